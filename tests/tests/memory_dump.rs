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

    /// Runs a container whose kernel panics when it has no memory left (vm.panic_on_oom).
    fn panic(node: &Node) -> Result<()> {
        let script = format!("MARK={MARK}; echo 2 > /proc/sys/vm/panic_on_oom && tail /dev/zero");
        let spec = node.spec("panics", &["sh", "-c", &script])?.of_the_guest()?;
        let spec = spec.set("/linux/resources/memory", json!({ "limit": 32 << 20 }))?;
        node.run_spec("panics", &spec)?.arg("-d").ok()?;
        node.await_stopped("panics")?;
        Ok(())
    }

    /// The virtual addresses of a dump's segments (elf(5): 64 bits, little-endian).
    fn addresses(dump: &[u8]) -> Vec<u64> {
        let number = |at: usize, length: usize| {
            let mut bytes = [0; 8];
            bytes[..length].copy_from_slice(&dump[at..at + length]);
            u64::from_le_bytes(bytes)
        };
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        let headers = (0..count).map(|index| (table + index * size) as usize);
        let loaded = headers.filter(|at| number(*at, 4) == 1);
        loaded.map(|at| number(at + 16, 8)).collect()
    }

    /// Where the guest's kernel has itself and all memory (Linux, Documentation/arch/x86/x86_64/mm.rst).
    const KERNEL: u64 = 0xffff_8000_0000_0000;

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

        panic(&node)?;
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
        assert!(addresses(&dump).iter().all(|address| *address < KERNEL));
        let log = node.log();
        assert!(
            log.contains("the guest's memory is dumped") && log.contains(&name),
            "{log}"
        );
        node.forget("panics")?;
        node.nothing_left()
    }

    #[test]
    fn with_paging_a_dump_has_the_guests_virtual_addresses() -> Result<()> {
        let dumps = tempfile::tempdir()?;
        let node = Node::start_configured(&format!(
            "[hypervisor.qemu]\nguest_memory_dump_path = \"{}\"\nguest_memory_dump_paging = true\n",
            dumps.path().display()
        ))?;
        panic(&node)?;
        let dump = fs::read(file_in(&dumps.path().join(node.id("panics")))?)?;
        assert!(addresses(&dump).iter().any(|address| *address >= KERNEL));
        node.forget("panics")?;
        node.nothing_left()
    }
}
