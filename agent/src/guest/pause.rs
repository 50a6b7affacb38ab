//! The process of a pod's sandbox: this program under another name, so that a pod needs no image for it.
//!
//! Like any `pause` program it keeps the pod's namespaces, reaps orphaned processes of the containers, and ends on a
//! signal. As `pause dial PORT`, an exec in the sandbox, it connects its standard streams to a port of the pod. As `pause
//! rehearsal` it ends at once ([`crate::server::rehearsal`]).
//!
//! [`tatami_agent::launch`] starts it like any other program, with the same confinement. It is not part of the agent
//! process.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use protocol::{PAUSE_PROGRAM, PAUSE_ROOT};
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::common::sys::reap_one;

/// The argument with which it ends at once.
pub(crate) const REHEARSAL: &str = "rehearsal";

/// Puts the root of the sandbox's process together: a directory with this program in it.
///
/// # Errors
/// The program cannot be mounted there.
pub(crate) fn prepare() -> io::Result<()> {
    let root = Path::new(PAUSE_ROOT);
    std::fs::create_dir_all(root)?;
    // Whoever the sandbox runs as looks into it.
    std::fs::set_permissions(root, Permissions::from_mode(0o755))?;
    // Whoever is root in a user namespace cannot make them.
    for mount_point in ["dev", "proc", "sys"] {
        std::fs::create_dir_all(root.join(mount_point))?;
    }
    let program = root.join(PAUSE_PROGRAM.trim_start_matches('/'));
    std::fs::File::create(&program)?;
    mount_bind("/proc/self/exe", &program)?;
    // The agent's own file: a program of the pod that finds it by /proc must not change it, its mode or its owner.
    let read_only = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::BIND;
    Ok(mount_remount(&program, read_only, "")?)
}

/// Whether this program was started as the sandbox's process.
pub(crate) fn is_pause(name: Option<&OsStr>) -> bool {
    name == Some(OsStr::new(PAUSE_PROGRAM))
}

pub(crate) fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let done = match (arguments.next().as_deref(), arguments.next()) {
        (None, None) => wait_for_the_end(),
        (Some(REHEARSAL), None) => Ok(()),
        (Some("dial"), Some(port)) => port.parse().map_err(io::Error::other).and_then(dial),
        _ => Err(io::Error::other(
            "the arguments are neither none nor one of: dial PORT, rehearsal",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pause: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reaps until SIGTERM or SIGINT comes. The first process of a PID namespace gets only the signals that it waits for
/// (pid_namespaces(7)).
fn wait_for_the_end() -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    while signals.wait()? == Signal::SIGCHLD {
        // One signal may stand for many children.
        while let Ok(Some(_)) = reap_one() {}
    }
    Ok(())
}

/// Connects to a port where a program of the pod would find it: IPv4's loopback first, as containerd does.
fn dial(port: u16) -> io::Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).or_else(|first| {
        let second = TcpStream::connect((Ipv6Addr::LOCALHOST, port));
        second.map_err(|second| io::Error::other(format!("port {port}: IPv4: {first}, IPv6: {second}")))
    })?;
    let mut upstream = stream.try_clone()?;
    thread::spawn(move || {
        // An error is the other side's end, which the copy below sees, too.
        let _ = io::copy(&mut io::stdin().lock(), &mut upstream);
        let _ = upstream.shutdown(Shutdown::Write);
    });
    let mut stdout = io::stdout().lock();
    copy_eagerly(stream, &mut stdout)
}

/// Copies without keeping anything back: what is asked for may be one byte.
fn copy_eagerly(mut from: impl io::Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_makes_it_the_sandboxs_process() {
        assert!(is_pause(Some(OsStr::new("/pause"))));
        for other in [None, Some("/init"), Some("pause"), Some("/proc/self/exe")] {
            assert!(!is_pause(other.map(OsStr::new)));
        }
    }

    #[test]
    fn copying_ends_with_its_source() {
        let mut copied = Vec::new();
        copy_eagerly(&b"all of it"[..], &mut copied).unwrap();
        assert_eq!(copied, b"all of it");
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_named() {
        // Port 0 is nobody's.
        assert!(dial(0).unwrap_err().to_string().contains("port 0"));
    }
}
