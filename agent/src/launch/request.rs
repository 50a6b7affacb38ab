//! What a launch is asked for.

use std::{os::fd::OwnedFd, path::PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

#[derive(Debug)]
pub enum Target {
    /// A new container's first process.
    Container {
        /// The whole specification. Paths in it are the guest's.
        spec: Box<Spec>,
        /// Namespaces that are joined instead of made: they take the place of the specification's own entry.
        join: Vec<(LinuxNamespaceType, OwnedFd)>,
    },
    /// One more process in a container.
    Exec {
        /// The container's specification: its seccomp filter and its personality bind an exec too.
        spec: Box<Spec>,
        /// The process to execute, as in the specification.
        process: Box<Process>,
        /// A pidfd of the container's first process, whose namespaces and root are joined.
        init: OwnedFd,
    },
}

#[derive(Debug)]
pub enum Stdio {
    /// Each to its descriptor, or to /dev/null where it has none.
    Pipes {
        /// Read by the process.
        stdin: Option<OwnedFd>,
        /// Written by the process.
        stdout: Option<OwnedFd>,
        /// Written by the process.
        stderr: Option<OwnedFd>,
    },
    /// All to a new terminal of the container, whose master comes back.
    Terminal,
}

#[derive(Debug)]
pub struct LaunchRequest {
    /// The container's id: its keyring and its hooks are told.
    pub id: String,
    pub target: Target,
    pub stdio: Stdio,
    /// The bundle of a new container on the host, which its hooks are told.
    pub bundle: PathBuf,
    /// `cgroup.procs` of the container, open for writing.
    pub cgroup: OwnedFd,
    /// `cgroup.procs` of the agent, open for writing: set-up work is not charged to the container.
    pub agent_cgroup: OwnedFd,
}
