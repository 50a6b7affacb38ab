//! virtiofsd: serves the shared directory to one guest.
//!
//! This module listens, and connects for QEMU, before the daemon starts. The connection waits in the socket's backlog, so
//! nothing has to wait for the daemon, and the socket's path is removed before another process could use it.

pub(crate) mod arguments;

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use config::Hypervisor;

use crate::boot_error::BootError;
use crate::machine::descriptor::number;
use crate::machine::request::VmRequest;
use crate::process::child_name::ChildName;
use crate::process::children::{Child, Program, spawn};
use crate::process::files::SocketFile;
use crate::process::sys::child::{Network, ProcessLimits};

/// About 300 bytes for each of at most a million files that the guest knows, its requests, its threads' stacks. It is root, whose
/// threads the kernel does not count.
pub(crate) const LIMITS: ProcessLimits = ProcessLimits {
    data: 1 << 30,
    threads: None,
};

/// A daemon that runs, and the socket that QEMU is to have.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) child: Child,
    pub(crate) socket: OwnedFd,
}

pub(crate) async fn start(
    program: PathBuf,
    config: &Hypervisor,
    socket_path: PathBuf,
    request: &VmRequest,
) -> Result<Share, BootError> {
    let file = SocketFile::new(socket_path)?;
    let socket_error = |source| BootError::Socket {
        path: file.path().to_owned(),
        source,
    };
    let listener: OwnedFd = UnixListener::bind(file.path()).map_err(socket_error)?.into();
    let socket = UnixStream::connect(file.path()).map_err(socket_error)?.into();
    drop(file);
    let program = Program {
        child: ChildName::Virtiofsd,
        path: program,
        args: arguments::args(config, &request.shared_dir, number(listener.as_fd())),
        // It makes an empty one.
        network: Network::Inherited,
        root: None,
        user: None,
        // It gives up by itself what it does not need, once it has made its sandbox.
        capabilities: None,
        jail: None,
        limits: LIMITS,
        cgroup_procs: request.cgroup_procs.clone(),
        score: request.score,
        pass: vec![listener],
    };
    Ok(Share {
        child: spawn(program).await?,
        socket,
    })
}
