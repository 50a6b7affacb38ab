//! `sandbox_bind_mounts`: the guest itself has directories of the host, and its containers do not.

use framework::{Node, Result};

mod kata_only {
    use std::fs;

    use framework::Output;

    use super::*;

    /// Where Kata has them.
    const PLACE: &str = "/run/kata-containers/shared/containers/sandbox-mounts";

    #[test]
    fn the_guest_has_them_as_they_are_configured_and_a_container_has_not() -> Result<()> {
        let host = tempfile::tempdir()?;
        let host = host.path().canonicalize()?;
        for name in ["kept", "written"] {
            fs::create_dir(host.join(name))?;
            fs::write(host.join(name).join("file"), format!("{name}\n"))?;
        }
        let list = format!("[\"{0}/kept\", \"{0}/written:rw\"]", host.display());
        let node = Node::start_configured(&format!(
            "[agent.kata]\ndebug_console_enabled = true\n[runtime]\nsandbox_bind_mounts = {list}\n"
        ))?;
        node.run("c").arg("-d").program(["sleep", "1000"]).ok()?;
        let id = node.id("c");
        let guest = |script: &str| -> Result<Output> {
            node.diagnose()?.args(["exec", &id, "--", "sh", "-c", script]).output()
        };
        let said = guest(&format!(
            "cd {PLACE} && ls && cat kept/file written/file && echo new > written/new"
        ))?;
        assert_eq!(said.success()?.stdout(), "kept\nwritten\nkept\nwritten\n");
        assert_eq!(fs::read_to_string(host.join("written/new"))?, "new\n");
        for path in ["kept/new", "kept/file", "new"] {
            let refused = guest(&format!("echo x > {PLACE}/{path}"))?;
            assert!(
                refused.stderr().contains("Read-only file system"),
                "{path}: {}",
                refused.stderr()
            );
        }
        let look = "ls /run/kata-containers /run/tatami 2>/dev/null; grep -c sandbox-mounts /proc/mounts";
        let said = node.exec("c", "look").sh(&format!("{look} || true")).ok()?;
        assert_eq!(said, "0\n");
        node.remove("c")?;
        node.nothing_left()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        assert!(!mounts.contains("sandbox-mounts"), "{mounts}");
        Ok(())
    }

    #[test]
    fn one_that_is_not_there_is_an_error_that_names_key_and_path() -> Result<()> {
        let node = Node::start_configured("[runtime]\nsandbox_bind_mounts = [\"/nonexistent/data\"]\n")?;
        let said = node.run("c").arg("--rm").program(["true"]).fails()?;
        assert!(
            said.contains("runtime.sandbox_bind_mounts") && said.contains("/nonexistent/data"),
            "{said}"
        );
        node.discard("c")?;
        node.nothing_left()
    }
}
