//! However many files a volume has, a container can look at all of them, and works afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use framework::{Node, Result};

/// More than virtiofsd may have open; `TATAMI_MANY_FILES` is another number.
const FILES: usize = 25_000;
const DESCRIPTORS: usize = 20_000;
/// Files that are opened and changed between two lines of progress.
const STEP: usize = 50_000;
/// What virtiofsd may take of the host's memory for them, in KiB, however many there are.
const MEMORY: u64 = 64 << 10;
/// An emulated guest looks at some thousand files a second, on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(400);

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

fn path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{:03}/{number:05}", number / 1000))
}

fn fill(dir: &Path, files: usize) -> Result<()> {
    for number in 0..files {
        if number % 1000 == 0 {
            fs::create_dir(dir.join(format!("{:03}", number / 1000)))?;
        }
        fs::write(path(dir, number), "x")?;
    }
    Ok(())
}

/// Kibibytes of memory that a process has of its own: the guest's memory, which virtiofsd maps, is not among them.
fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    of("RssAnon:").unwrap_or_default() + of("RssFile:").unwrap_or_default()
}

#[test]
fn more_files_than_virtiofsd_may_have_open_are_listed_read_and_removed() -> Result<()> {
    let files = number("TATAMI_MANY_FILES").unwrap_or(FILES);
    let every = number("TATAMI_MANY_EVERY").unwrap_or(1);
    let limit = LIMIT * u32::try_from(files.div_ceil(FILES)).unwrap_or(1);
    let dropin = format!("[hypervisor.qemu]\nvirtio_fs_extra_args = [\"--rlimit-nofile={DESCRIPTORS}\"]\n");
    let node = Node::start_configured(&dropin)?;
    let volume = node.dir().join("many");
    fs::create_dir(&volume)?;
    fill(&volume, files)?;
    let spec = node
        .spec("many", &["sleep", "100000"])?
        .bind(&volume, "/data", &["rw"])?;
    node.run_spec("many", &spec)?.arg("-d").ok()?;
    let sh = |exec: &str, script: &str| {
        let begun = Instant::now();
        let said = node.exec("many", exec).limit(limit).sh(script).ok();
        let processes = node.processes("many").into_iter();
        let servers = processes.filter(|process| process.program().contains("virtiofsd"));
        let memory: u64 = servers.map(|process| own_memory(process.pid)).sum();
        eprintln!(
            "{files} files, {exec}: {:.0?}, virtiofsd has {memory} kB",
            begun.elapsed()
        );
        assert!((1..MEMORY).contains(&memory), "{exec}: virtiofsd has {memory} kB");
        said
    };
    assert_eq!(sh("list", "ls -lR /data | grep -c '^-'")?, format!("{files}\n"));
    for from in (0..files).step_by(STEP) {
        let to = files.min(from + STEP);
        let read_and_change = format!(
            "awk 'BEGIN {{ for (i = {from}; i < {to}; i += {every}) {{ \
                 name = sprintf(\"/data/%03d/%05d\", i / 1000, i); \
                 getline line < name; close(name); read += line == \"x\"; line = \"\"; \
                 print \"y\" >> name; close(name) }} print read }}'"
        );
        let chosen = (from..to).step_by(every).count();
        assert_eq!(sh(&format!("change-{from}"), &read_and_change)?, format!("{chosen}\n"));
    }
    for number in 0..files {
        let content = fs::read_to_string(path(&volume, number))?;
        let wanted = if (number % STEP).is_multiple_of(every) {
            "xy\n"
        } else {
            "x"
        };
        assert_eq!(content, wanted, "file {number}");
    }
    // A program that has not run yet, and files that are new.
    assert_eq!(
        sh("start", "expr 1 + 1; echo new > /data/new; cat /data/new")?,
        "2\nnew\n"
    );
    assert_eq!(sh("remove", "rm -r /data/00* /data/new; ls /data")?, {
        let left: Vec<String> = (0..files.div_ceil(1000))
            .map(|part| format!("{part:03}\n"))
            .filter(|part| !part.starts_with("00"))
            .collect();
        left.concat()
    });
    node.remove("many")?;
    node.nothing_left()
}
