//! A container runs, says what it has to say, and ends.

use framework::{Node, Result};

#[test]
fn a_container_has_its_arguments_and_environment_and_its_streams_apart_and_its_exit_code() -> Result<()> {
    let node = Node::start()?;
    let script = r#"echo out; echo err >&2; echo "$A-$0-$1"; exit 7"#;
    let output = node
        .run("smoke")
        .args(["--rm", "--env", "A=b c"])
        .program(["sh", "-c", script, "zero", "o n e"])
        .output()?
        .code(7)?;
    assert_eq!(output.stdout(), "out\nb c-zero-o n e\n");
    assert_eq!(output.stderr(), "err\n");
    node.nothing_left()
}

/// What only a runtime with a kernel of its own can show.
mod kata_only {
    use super::*;
    use framework::locate;

    #[test]
    fn the_guest_runs_the_pinned_kernel() -> Result<()> {
        let pin = std::fs::read_to_string(locate::workspace().join("guest-kernel/pin"))?;
        let node = Node::start()?;
        let release = node.run("uname").arg("--rm").program(["uname", "-r"]).ok()?;
        let release = release.trim();
        let version: String = release
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.')
            .collect();
        assert!(
            !version.is_empty() && pin.contains(&version),
            "uname -r says {release}, the pin:\n{pin}"
        );
        Ok(())
    }
}
