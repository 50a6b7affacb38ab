//! `guest_memory_dump_path`: the memory of a guest that has panicked is in a file of the host.

use framework::{Error, Node, Result};

mod kata_only {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use serde_json::json;

    use super::*;

    /// What a program of the guest has in its memory.
    const MARK: &str = "in-the-memory-of-the-guest";

    fn file_in(directory: &Path) -> Result<std::path::PathBuf> {
        let mut entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
        match (entries.pop(), entries.pop()) {
            (Some(entry), None) => Ok(entry.path()),
            other => Err(Error::unexpected(format!("{} has {other:?}", directory.display()))),
        }
    }

    #[test]
    fn a_guest_that_panics_is_dumped_and_one_that_is_stopped_is_not() -> Result<()> {
        let dumps = tempfile::tempdir()?;
        let configuration = format!(
            "[hypervisor.qemu]\nguest_memory_dump_path = \"{}\"\n",
            dumps.path().display()
        );
        let node = Node::start_configured(&configuration)?;
        assert_eq!(node.run("well").arg("--rm").program(["echo", "well"]).ok()?, "well\n");
        assert_eq!(fs::read_dir(dumps.path())?.count(), 0);

        // The kernel panics when a container has no memory left (vm.panic_on_oom).
        let script = format!("MARK={MARK}; echo 2 > /proc/sys/vm/panic_on_oom && tail /dev/zero");
        let spec = node.spec("panics", &["sh", "-c", &script])?.of_the_guest()?;
        let spec = spec.set("/linux/resources/memory", json!({ "limit": 32 << 20 }))?;
        node.run_spec("panics", &spec)?.arg("-d").ok()?;
        node.await_stopped("panics")?;
        let file = file_in(&dumps.path().join(node.id("panics")))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(name.starts_with("vmcore-") && name.ends_with("Z.elf"), "{name}");
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        let dump = fs::read(&file)?;
        assert!(
            dump.starts_with(b"\x7fELF") && dump.len() >= 256 << 20,
            "{} bytes",
            dump.len()
        );
        assert!(dump.windows(MARK.len()).any(|bytes| bytes == MARK.as_bytes()));
        let log = node.log();
        assert!(
            log.contains("the guest's memory is dumped") && log.contains(&name),
            "{log}"
        );
        node.forget("panics")?;
        node.nothing_left()
    }
}
