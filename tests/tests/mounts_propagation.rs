//! What the host mounts below a source after the start appears in the container, and the container never holds it up.

use std::{fs, time::Duration};

use framework::{HostMount, Node, Result};
use rustix::mount::MountFlags;

/// With virtiofsd's cache "auto" the guest asks again after a second.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_later_mount_appears_and_the_host_unmounts_it_though_it_is_in_use() -> Result<()> {
    let node = Node::start()?;
    let source = node.dir().join("source");
    // Only what is shared on the host passes anything on; on most hosts `/` is.
    let outer = HostMount::new(&source, MountFlags::empty())?.shared()?;
    fs::create_dir(source.join("sub"))?;
    let spec = node
        .spec("late", &["sleep", "1000"])?
        .bind(&source, "/slave", &["rslave", "rw"])?
        .bind(&source, "/ro", &["rslave", "ro"])?
        .bind(&source, "/private", &["rprivate", "rw"])?;
    node.run_spec("late", &spec)?.arg("-d").ok()?;
    let sh = |exec: &str, script: &str| node.exec("late", exec).sh(script).limit(SOON).ok();

    let late = HostMount::new(&source.join("sub"), MountFlags::empty())?;
    fs::write(source.join("sub/file"), "late")?;
    let until = "until [ -e /slave/sub/file ] && [ -e /ro/sub/file ]; do :; done; cat /slave/sub/file /ro/sub/file";
    assert_eq!(sh("a", until)?, "latelate");
    sh(
        "b",
        "echo written > /slave/sub/new; ! touch /ro/sub/no 2>/dev/null && [ ! -e /private/sub/file ]",
    )?;
    assert_eq!(fs::read_to_string(source.join("sub/new"))?, "written\n");

    // A program that has a file of it open, and one whose directory it is.
    let mut user = node
        .exec("late", "user")
        .sh("cd /slave/sub; exec 3< file; echo ready; read end; cat <&3")
        .spawn()?;
    user.shows("ready")?;
    late.unmount()?;
    let until = "until [ ! -e /slave/sub/file ] && [ ! -e /ro/sub/file ]; do :; done";
    sh("c", until)?;
    // What was open stays so, as on any other runtime.
    user.write(b"\n")?;
    user.close_stdin();
    assert!(user.wait()?.success()?.stdout().ends_with("late"));

    // Again, with something else at the same place.
    let again = HostMount::new(&source.join("sub"), MountFlags::empty())?;
    fs::write(source.join("sub/again"), "")?;
    sh("d", "until [ -e /slave/sub/again ]; do :; done")?;
    again.unmount()?;
    node.remove("late")?;
    outer.unmount()?;
    node.nothing_left()
}

#[test]
fn a_mount_that_was_there_at_the_start_does_not_hold_the_host_up_either() -> Result<()> {
    let node = Node::start()?;
    let source = node.dir().join("source");
    let outer = HostMount::new(&source, MountFlags::empty())?.shared()?;
    let early = HostMount::new(&source.join("sub"), MountFlags::empty())?;
    fs::write(source.join("sub/file"), "early")?;
    let spec = node
        .spec("early", &["sleep", "1000"])?
        .bind(&source, "/data", &["rslave"])?;
    node.run_spec("early", &spec)?.arg("-d").ok()?;
    let cat = "cat /data/sub/file; exec 3< /data/sub/file; echo; echo ready; read end";
    let mut user = node.exec("early", "user").sh(cat).spawn()?;
    user.shows("ready")?;
    early.unmount()?;
    user.close_stdin();
    user.wait()?;
    node.remove("early")?;
    outer.unmount()?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    #[test]
    fn propagation_to_the_host_is_refused_with_the_reason() -> Result<()> {
        let node = Node::start()?;
        for option in ["shared", "rshared"] {
            let spec = node
                .spec(option, &["true"])?
                .bind(node.dir(), "/data", &[option, "rw"])?;
            let said = node.run_spec(option, &spec)?.arg("--rm").fails()?;
            assert!(
                said.contains("/data") && said.contains("cannot propagate mounts to the host"),
                "{said}"
            );
            node.discard(option)?;
        }
        node.nothing_left()
    }
}
