//! However many files a volume has, a container can look at all of them, and works afterwards.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use framework::{Node, Result};

/// More than virtiofsd may have open; `TATAMI_MANY_FILES` is another number.
const FILES: usize = 25_000;
const DESCRIPTORS: usize = 20_000;
/// Of more files than this all are listed, and every tenth is opened and changed: an emulated guest opens a thousand a second.
const ALL: usize = 100_000;
/// What virtiofsd may take of the host's memory for them, in KiB, however many there are.
const MEMORY: u64 = 128 << 10;
/// An emulated guest looks at some thousand files a second, on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(400);

fn fill(dir: &Path, files: usize) -> Result<()> {
    for number in 0..files {
        let part = dir.join(format!("{:03}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&part)?;
        }
        fs::write(part.join(format!("{number:05}")), "x")?;
    }
    Ok(())
}

/// Kibibytes of memory.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    resident
        .and_then(|kibibytes| kibibytes.trim().parse().ok())
        .unwrap_or_default()
}

#[test]
fn more_files_than_virtiofsd_may_have_open_are_listed_read_and_removed() -> Result<()> {
    let files = std::env::var("TATAMI_MANY_FILES")
        .ok()
        .and_then(|files| files.parse().ok())
        .unwrap_or(FILES);
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
        let memory: u64 = servers.map(|process| resident(process.pid)).sum();
        eprintln!(
            "{files} files, {exec}: {:.0?}, virtiofsd has {memory} kB",
            begun.elapsed()
        );
        assert!(memory < MEMORY, "{exec}: virtiofsd has {memory} kB");
        said
    };
    assert_eq!(sh("list", "ls -lR /data | grep -c '^-'")?, format!("{files}\n"));
    let (chosen, opened) = match files {
        0..=ALL => ("", files),
        _ => ("-name '*0'", files.div_ceil(10)),
    };
    let read = format!("find /data -type f {chosen} -exec cat {{}} + | wc -c");
    assert_eq!(sh("read", &read)?, format!("{opened}\n"));
    let change = format!("find /data -type f {chosen} | sed 's/.*/echo y >> &/' | sh; {read}");
    assert_eq!(sh("change", &change)?, format!("{}\n", 3 * opened));
    // A program that has not run yet, and files that are new.
    assert_eq!(
        sh("start", "expr 1 + 1; echo new > /data/new; cat /data/new")?,
        "2\nnew\n"
    );
    assert_eq!(sh("remove", "rm -r /data/0* /data/new; ls /data")?, {
        let left: Vec<String> = (0..files.div_ceil(1000))
            .map(|part| format!("{part:03}\n"))
            .filter(|part| !part.starts_with('0'))
            .collect();
        left.concat()
    });
    node.remove("many")?;
    node.nothing_left()
}
