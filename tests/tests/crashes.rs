//! Whatever is killed, containerd learns of it, and nothing stays behind.

use framework::{Node, Result};

#[test]
fn a_containerd_that_dies_and_comes_back_finds_its_containers_running() -> Result<()> {
    let mut node = Node::start()?;
    node.run("survivor").arg("-d").program(["sleep", "1000"]).ok()?;
    node.crash_containerd()?;
    assert_eq!(node.status("survivor")?.as_deref(), Some("RUNNING"));
    assert_eq!(
        node.exec("survivor", "after").program(["echo", "alive"]).ok()?,
        "alive\n"
    );
    node.remove("survivor")?;
    node.nothing_left()
}

#[test]
fn a_shim_that_is_killed_takes_its_container_with_it() -> Result<()> {
    let node = Node::start()?;
    // No FIFOs: containerd forgets the task without its client's help, and only the client knows them.
    node.run("orphan")
        .args(["-d", "--null-io"])
        .program(["sleep", "1000"])
        .ok()?;
    node.kill_process("orphan", "containerd-shim")?;
    // containerd sees the broken connection, runs `delete`, and announces the exit.
    assert_eq!(node.await_stopped("orphan")?, 137);
    node.ctr().args(["container", "rm"]).arg(node.id("orphan")).ok()?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// A container whose VM loses the process `victim` has ended with 137, and leaves nothing.
    fn ends_with(victim: &str) -> Result<()> {
        let node = Node::start()?;
        node.run("victim").arg("-d").program(["sleep", "1000"]).ok()?;
        node.kill_process("victim", victim)?;
        assert_eq!(node.await_stopped("victim")?, 137);
        node.forget("victim")?;
        node.nothing_left()
    }

    #[test]
    fn a_container_ends_with_its_qemu() -> Result<()> {
        ends_with("qemu-system")
    }

    #[test]
    fn a_container_ends_with_its_virtiofsd() -> Result<()> {
        ends_with("virtiofsd")
    }

    #[test]
    fn a_container_ends_with_its_vsock_backend() -> Result<()> {
        ends_with("vhost-device-vsock")
    }
}
