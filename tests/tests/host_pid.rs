//! The pid on the host that a runtime reports for a task, and what whoever is told it can do with it.

use std::{fs, path::PathBuf};

use framework::{Node, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A file that no root file system has, made through `/proc/PID/root` as `nerdctl cp` does it; whether the host's root has it then.
fn lands_on_the_host(pid: u32, name: &str) -> Result<bool> {
    let path = PathBuf::from(format!("/proc/{pid}/root"));
    // Refused, or made in the container.
    let _ = fs::write(path.join(name), "").or_else(|_| fs::write(path.join("../..").join(name), ""));
    let host = PathBuf::from("/").join(name);
    let landed = host.exists();
    if landed {
        fs::remove_file(host)?;
    }
    Ok(landed)
}

#[test]
fn what_is_written_through_the_pid_does_not_land_on_the_host() -> Result<()> {
    let node = Node::start()?;
    node.run("one").arg("-d").program(["sleep", "1000"]).ok()?;
    let pid = node.pid("one")?;
    assert!(!lands_on_the_host(pid, &node.id("written"))?);
    node.remove("one")?;
    node.nothing_left()
}

#[test]
fn whoever_kills_the_pid_ends_the_container() -> Result<()> {
    let node = Node::start()?;
    node.run("one").arg("-d").program(["sleep", "1000"]).ok()?;
    let pid = i32::try_from(node.pid("one")?).map_err(std::io::Error::other)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(std::io::Error::from)?;
    assert_eq!(node.await_stopped("one")?, 137);
    node.forget("one")?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// On runc the namespaces are the container's.
    #[test]
    fn the_pid_is_in_no_namespace_of_the_hosts_that_it_could_change() -> Result<()> {
        let node = Node::start()?;
        node.run("one").arg("-d").program(["sleep", "1000"]).ok()?;
        let pid = node.pid("one")?;
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root"))?.count(), 0);
        for kind in ["mnt", "uts", "ipc", "net"] {
            let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
            assert_ne!(link(&pid.to_string())?, link("self")?, "{kind}");
        }
        // What `ps` shows of it names the container.
        let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let wanted = format!("tatami-container\0{}", node.id("one"));
        assert_eq!(command_line.trim_end_matches('\0'), wanted);
        // Its cgroup is the sandbox's, where its figures are.
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        assert!(cgroup.contains(&format!("kata_{}", node.id("one"))), "{cgroup}");
        node.remove("one")?;
        node.nothing_left()
    }
}
