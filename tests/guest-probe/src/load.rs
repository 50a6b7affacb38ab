//! File system load: large and small I/O on one file, and a storm of names in one directory. Prints rates as JSON.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::exit,
    time::Instant,
};

use nix::{
    libc::O_DIRECT,
    mount::{MsFlags, mount},
    unistd::pause,
};
use serde_json::{Map, Value, json};

use crate::{dial, error::Result, sys};

const BLOCK: usize = 1 << 20;
const SMALL: usize = 4 << 10;
/// Small reads and writes, each.
const SMALL_COUNT: u64 = 1000;

/// `guest-probe load DIR FILES MEBIBYTES`: in a directory of its own below `dir`, which it removes.
pub(crate) fn load(dir: &str, files: &str, mebibytes: &str) -> Result<()> {
    println!("load: {}", rates(Path::new(dir), files.parse()?, mebibytes.parse()?)?);
    Ok(())
}

/// `guest-probe first-program [TAG FILES MEBIBYTES]`: the whole user space of a guest without an agent. Says that it runs,
/// and how many cycles after the machine's start; then, if it is given the tag of a virtio-fs share, does the load there. The host ends the guest.
pub(crate) fn first_program(arguments: &[&str]) -> Result<()> {
    let cycles = sys::cycles();
    println!("first program runs\ncycles until then: {cycles}");
    match arguments {
        ["pour", port, mebibytes] => dial::pour(port, mebibytes)?,
        [tag, files, mebibytes] => {
            fs::create_dir_all("/share")?;
            mount(Some(*tag), "/share", Some("virtiofs"), MsFlags::empty(), None::<&str>)?;
            if let Err(error) = load("/share", files, mebibytes) {
                println!("load: failed: {error}");
            }
        }
        _ => {}
    }
    loop {
        pause();
        // A signal that is not for the first program.
        if std::process::id() != 1 {
            exit(0);
        }
    }
}

fn rates(dir: &Path, files: u32, mebibytes: u64) -> Result<Value> {
    let dir = dir.join(format!("load-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let mut rates = Map::new();
    large(&dir.join("large"), mebibytes, &mut rates)?;
    small(&dir.join("large"), mebibytes, &mut rates)?;
    fs::remove_file(dir.join("large"))?;
    names(&dir, files, &mut rates)?;
    fs::remove_dir(&dir)?;
    Ok(Value::Object(rates))
}

/// Runs `action` and enters how many `count` a second that made.
fn timed(rates: &mut Map<String, Value>, name: &str, count: u64, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    action()?;
    let count = u32::try_from(count)?;
    rates.insert(name.to_owned(), json!(f64::from(count) / begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Written through the page cache and flushed; read past it, so that each byte comes from the file system.
fn large(file: &Path, mebibytes: u64, rates: &mut Map<String, Value>) -> Result<()> {
    let mut block = aligned(BLOCK);
    timed(rates, "sequential write MiB/s", mebibytes, || {
        let mut out = File::create(file)?;
        for _ in 0..mebibytes {
            out.write_all(block.bytes())?;
        }
        Ok(out.sync_all()?)
    })?;
    timed(rates, "sequential read MiB/s", mebibytes, || {
        let mut input = File::options().read(true).custom_flags(O_DIRECT).open(file)?;
        for _ in 0..mebibytes {
            input.read_exact(block.bytes())?;
        }
        Ok(())
    })?;
    // What the guest keeps in its own memory.
    timed(rates, "sequential read again, cached MiB/s", mebibytes, || {
        let mut input = File::open(file)?;
        for _ in 0..2 {
            input.seek(SeekFrom::Start(0))?;
            for _ in 0..mebibytes / 2 {
                input.read_exact(block.bytes())?;
            }
        }
        Ok(())
    })
}

fn small(file: &Path, mebibytes: u64, rates: &mut Map<String, Value>) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(file)?;
    let blocks = mebibytes * (BLOCK / SMALL) as u64;
    // A fixed order that jumps about: a step without a common divisor with a power of two visits all blocks.
    let offset = |index: u64| (index * 7919 % blocks) * SMALL as u64;
    let mut block = aligned(SMALL);
    timed(rates, "random read 4 KiB ops/s", SMALL_COUNT, || {
        (0..SMALL_COUNT).try_for_each(|index| Ok(file.read_exact_at(block.bytes(), offset(index))?))
    })?;
    timed(rates, "random write 4 KiB ops/s", SMALL_COUNT, || {
        (0..SMALL_COUNT).try_for_each(|index| Ok(file.write_all_at(block.bytes(), offset(index))?))
    })
}

fn names(dir: &Path, files: u32, rates: &mut Map<String, Value>) -> Result<()> {
    let (old, new) = (
        |index| dir.join(format!("a{index}")),
        |index| dir.join(format!("b{index}")),
    );
    timed(rates, "create ops/s", files.into(), || {
        (0..files).try_for_each(|index| Ok(File::create(old(index)).map(drop)?))
    })?;
    timed(rates, "rename ops/s", files.into(), || {
        (0..files).try_for_each(|index| Ok(fs::rename(old(index), new(index))?))
    })?;
    timed(rates, "readdir ops/s", files.into(), || {
        let mut seen = 0_u32;
        for entry in fs::read_dir(dir)? {
            entry?;
            seen += 1;
        }
        if seen == files {
            Ok(())
        } else {
            Err(format!("{seen} of {files} names").into())
        }
    })?;
    timed(rates, "unlink ops/s", files.into(), || {
        (0..files).try_for_each(|index| Ok(fs::remove_file(new(index))?))
    })
}

/// Memory as `O_DIRECT` wants it: on a page's border.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    size: usize,
}

impl Aligned {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.size]
    }
}

fn aligned(size: usize) -> Aligned {
    // A value other than zero: pages of zeros might be special somewhere below.
    let bytes = vec![0x5a; size + SMALL];
    let from = bytes.as_ptr().align_offset(SMALL);
    Aligned { bytes, from, size }
}
