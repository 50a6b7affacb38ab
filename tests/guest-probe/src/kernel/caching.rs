//! What the guest's FUSE keeps of a bind mount of a host directory: pages, inodes and positions in directories.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{sys, verdict::Verdict};
use crate::error::Result;

/// A file that was written a moment ago is not kept at once: twice the time after which it is.
const SETTLES: Duration = Duration::from_millis(300);
/// How often it is opened until its page has to stay: what else goes on may take it away now and then.
const OPENS: u32 = 10;
/// More positions than this do not fit into the `off_t` of a 32-bit program.
const NARROW: u64 = 0x7fff_ffff;

/// Whether a page of a file stays in the guest's memory when the file is opened once more.
pub(super) fn close_to_open(path: &str) -> Result<Verdict> {
    let file = Path::new(path).join("file");
    let mut content = String::new();
    for _ in 0..OPENS {
        content.clear();
        File::open(&file)?.read_to_string(&mut content)?;
        thread::sleep(SETTLES);
        let page = sys::MappedPage::of(&File::open(&file)?)?;
        let first = page.first_byte();
        let before = page.resident()?;
        drop(File::open(&file)?);
        if before && page.resident()? {
            return Ok(Verdict::Right(format!("the page that begins with {first} stayed")));
        }
    }
    Ok(Verdict::Wrong(format!(
        "the page of {} went at each open",
        file.display()
    )))
}

/// Whether a hard link is one to the file that the host has just put in the place of the name. Each line of the input says that it
/// has, and what is in it.
pub(super) fn changed_by_name(path: &str) -> Result<Verdict> {
    let nested = Path::new(path).join("nested");
    let (name, linked) = (nested.join("name"), nested.join("linked"));
    fs::metadata(&name)?;
    println!("looked");
    let (mut rounds, mut wrong) = (0_u32, 0_u32);
    for line in io::stdin().lines() {
        fs::hard_link(&name, &linked)?;
        if fs::read_to_string(&linked)? != line? {
            wrong += 1;
        }
        fs::remove_file(&linked)?;
        fs::metadata(&name)?;
        println!("round {rounds}");
        rounds += 1;
    }
    Ok(if wrong == 0 {
        Verdict::Right(format!("{rounds} links to the file that the name has"))
    } else {
        Verdict::Wrong(format!(
            "{wrong} of {rounds} links are to the file that the name had before"
        ))
    })
}

/// Whether a file and a directory that are opened again and again are opened at the server each time.
pub(super) fn kept_open(path: &str) -> Result<Verdict> {
    let (file, dir) = (Path::new(path).join("file"), Path::new(path));
    let look = || -> io::Result<()> {
        fs::read(&file)?;
        fs::read_dir(dir)?.try_for_each(|entry| entry.map(drop))
    };
    look()?;
    let trace = traced(|| (0..OPENS).try_for_each(|_| look()))?;
    let asked = |request: &str| trace.matches(request).count();
    if asked("FUSE_LOOKUP") == 0 {
        return Err(format!("the trace has no request: {trace}").into());
    }
    let opened = [asked("FUSE_OPEN)"), asked("FUSE_OPENDIR)")];
    let says = format!(
        "{} and {} of {OPENS} opens of a file and a directory were the server's",
        opened[0], opened[1]
    );
    // One that has been kept for its time is closed, and opened anew.
    Ok(match opened.iter().all(|opened| *opened <= 1) {
        true => Verdict::Right(says),
        false => Verdict::Wrong(says),
    })
}

/// Whether a directory that has not changed is read from the server each time that it is listed.
pub(super) fn kept_listing(path: &str) -> Result<Verdict> {
    let list = || -> io::Result<usize> {
        let mut names = 0;
        for entry in fs::read_dir(path)? {
            entry?;
            names += 1;
        }
        Ok(names)
    };
    let names = list()?;
    // A listing that is read so soon after a change is not believed (fs/fuse/close_to_open.c).
    thread::sleep(SETTLES);
    list()?;
    let trace = traced(|| {
        (0..OPENS).try_for_each(|_| match list()? {
            again if again == names => Ok(()),
            again => Err(io::Error::other(format!("{again} names and not {names}"))),
        })
    })?;
    let read = trace.matches("FUSE_READDIR").count();
    let says = format!("{OPENS} listings were {read} requests");
    // It is kept for some seconds, and then read anew: a request, and one that finds its end.
    Ok(if read <= 4 {
        Verdict::Right(says)
    } else {
        Verdict::Wrong(says)
    })
}

/// Whether the server is asked for a file's capabilities whenever the file is written.
pub(super) fn write_caps(path: &str) -> Result<Verdict> {
    let file = Path::new(path).join("file");
    let trace = traced(|| (0..OPENS).try_for_each(|number| fs::write(&file, number.to_string())))?;
    let requests = |request: &str| trace.matches(request).count();
    if requests("FUSE_WRITE)") < OPENS as usize {
        return Err(format!("the trace has not all writes: {trace}").into());
    }
    let asked = requests("FUSE_GETXATTR");
    let says = format!("{OPENS} times a file was truncated and written, and its attributes asked for {asked} times");
    Ok(match asked {
        0 => Verdict::Right(says),
        _ => Verdict::Wrong(says),
    })
}

/// The requests to virtio-fs servers while something is done, as the kernel's trace events name them.
fn traced(does: impl FnOnce() -> io::Result<()>) -> Result<String> {
    let tracing = Path::new("/tracing");
    fs::create_dir_all(tracing)?;
    mount(
        Some("tracefs"),
        tracing,
        Some("tracefs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let enable = tracing.join("events/fuse/fuse_request_send/enable");
    fs::write(&enable, "1")?;
    does()?;
    fs::write(&enable, "0")?;
    Ok(fs::read_to_string(tracing.join("trace"))?)
}

/// Whether more files can be looked at than virtiofsd may have open, and others opened afterwards.
pub(super) fn bounded_inodes(path: &str) -> Result<Verdict> {
    let mut seen = 0_u32;
    let mut look = || -> io::Result<()> {
        for entry in fs::read_dir(Path::new(path).join("many"))? {
            entry?.metadata()?;
            seen += 1;
        }
        File::open(Path::new(path).join("file"))?;
        Ok(())
    };
    match look() {
        Ok(()) => Ok(Verdict::Right(format!("{seen} files were looked at"))),
        Err(error) if error.raw_os_error() == Some(Errno::ENFILE as i32) => {
            Ok(Verdict::Wrong(format!("ENFILE after {seen} files")))
        }
        Err(error) => Err(format!("after {seen} files of {path}: {error}").into()),
    }
}

/// Whether a 32-bit program is told positions that it can take, sees each name, and can go back to a position.
pub(super) fn compat_readdir(path: &str) -> Result<Verdict> {
    let dir = File::open(path)?;
    let wide = sys::directory(&dir, sys::Caller::Wide, 0)?;
    if wide.iter().all(|(_, position)| *position <= NARROW) {
        let why = "no position needs more than 31 bits: the directory has to be on ext4 (set TMPDIR)";
        return Err(format!("{path}: {why}").into());
    }
    // Listed once more, it comes from what is kept.
    thread::sleep(SETTLES);
    for _ in 0..2 {
        sys::directory(&File::open(path)?, sys::Caller::Wide, 0)?;
    }
    let narrow = sys::directory(&File::open(path)?, sys::Caller::Narrow, 0)?;
    if let Some((name, position)) = narrow.iter().find(|(_, position)| *position > NARROW) {
        return Ok(Verdict::Wrong(format!("the position after {name} is {position:#x}")));
    }
    let names = |entries: &[(String, u64)]| {
        let mut names: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    };
    if names(&wide) != names(&narrow) {
        return Ok(Verdict::Wrong(format!("{} names of {}", narrow.len(), wide.len())));
    }
    // From the middle on, in the same open directory.
    let middle = narrow.len() / 2;
    let (Some((_, position)), Some(rest)) = (narrow.get(middle), narrow.get(middle + 1..)) else {
        return Err(format!("{path} has too few names").into());
    };
    let again = File::open(path)?;
    sys::directory(&again, sys::Caller::Narrow, 0)?;
    let from_middle = sys::directory(&again, sys::Caller::Narrow, *position)?;
    if names(&from_middle) != names(rest) {
        return Ok(Verdict::Wrong(format!(
            "{} names from the middle on, and {} are there",
            from_middle.len(),
            rest.len()
        )));
    }
    Ok(Verdict::Right(format!("{} names, twice", narrow.len())))
}
