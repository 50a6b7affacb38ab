//! However many files a volume has, a container can look at all of them, and works afterwards.

use std::{fs, path::Path, time::Duration};

use framework::{Node, Result};

/// More than virtiofsd may have open.
const FILES: usize = 25_000;
const DESCRIPTORS: usize = 20_000;
/// An emulated guest looks at some thousand files a second, on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(400);

fn fill(dir: &Path) -> Result<()> {
    for number in 0..FILES {
        let part = dir.join(format!("{:03}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&part)?;
        }
        fs::write(part.join(format!("{number:05}")), "x")?;
    }
    Ok(())
}

#[test]
fn more_files_than_virtiofsd_may_have_open_are_listed_read_and_removed() -> Result<()> {
    let dropin = format!("[hypervisor.qemu]\nvirtio_fs_extra_args = [\"--rlimit-nofile={DESCRIPTORS}\"]\n");
    let node = Node::start_configured(&dropin)?;
    let volume = node.dir().join("many");
    fs::create_dir(&volume)?;
    fill(&volume)?;
    let spec = node.spec("many", &["sleep", "1000"])?.bind(&volume, "/data", &["rw"])?;
    node.run_spec("many", &spec)?.arg("-d").ok()?;
    let sh = |exec: &str, script: &str| node.exec("many", exec).limit(LIMIT).sh(script).ok();
    let files = format!("{FILES}\n");
    assert_eq!(sh("list", "ls -lR /data | grep -c '^-'")?, files);
    assert_eq!(sh("read", "find /data -type f -exec cat {} + | wc -c")?, files);
    // A program that has not run yet, and files that are new.
    assert_eq!(
        sh("start", "expr 1 + 1; echo new > /data/new; cat /data/new")?,
        "2\nnew\n"
    );
    assert_eq!(sh("remove", "rm -r /data/0* /data/new; ls /data")?, {
        let left: Vec<String> = (0..FILES / 1000)
            .map(|part| format!("{part:03}\n"))
            .filter(|part| !part.starts_with('0'))
            .collect();
        left.concat()
    });
    node.remove("many")?;
    node.nothing_left()
}
