//! The instructions for the child, and how they are sent: JSON in a sealed memfd, together with descriptors.
//!
//! A specification is often larger than a message may be. A memfd has no such limit, and its end is known. The
//! descriptors are sent in one fixed order, which only this file knows.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

use super::{
    fault::{Context, Fault, Result},
    request::{LaunchRequest, Stdio, Target},
};

/// Largest text of instructions, in bytes: twice what the shim may send in one message.
const MAX_TEXT: u64 = 8 << 20;

/// The part that is sent as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    id: String,
    spec: Spec,
    /// An exec's own process; the container's is used where it is absent.
    process: Option<Process>,
    /// The namespaces whose descriptors are sent, in their order.
    join: Vec<LinuxNamespaceType>,
    /// Path on the host.
    bundle: PathBuf,
    terminal: bool,
    /// Which of stdin, stdout and stderr are sent.
    streams: [bool; 3],
}

/// How the child comes to its namespaces and its root.
#[derive(Debug)]
pub(super) enum Place {
    /// New ones, but for those that are joined.
    New(Vec<(LinuxNamespaceType, OwnedFd)>),
    /// Those of the container whose first process this is a pidfd of.
    Of(OwnedFd),
}

#[derive(Debug)]
pub(super) struct Instructions {
    pub(super) id: String,
    /// The container's specification, without its process.
    pub(super) spec: Spec,
    /// The process to start: the container's first one or an exec.
    pub(super) process: Process,
    pub(super) place: Place,
    pub(super) stdio: Stdio,
    /// The container's bundle on the host.
    pub(super) bundle: PathBuf,
    /// `cgroup.procs` of the container.
    pub(super) cgroup: OwnedFd,
    /// `cgroup.procs` of the agent.
    pub(super) agent_cgroup: OwnedFd,
}

/// Instructions on their way: the memfd comes first among the descriptors.
#[derive(Debug)]
pub(super) struct Transfer {
    fds: Vec<OwnedFd>,
}

impl Transfer {
    /// Packs a request.
    ///
    /// # Errors
    /// The memfd cannot be made: no memory.
    pub(super) fn pack(request: LaunchRequest) -> io::Result<Self> {
        let LaunchRequest {
            id,
            target,
            stdio,
            bundle,
            cgroup,
            agent_cgroup,
        } = request;
        let mut fds = vec![cgroup, agent_cgroup];
        let (spec, process, join) = match target {
            Target::Container { spec, join } => {
                let (types, namespaces): (Vec<_>, Vec<_>) = join.into_iter().unzip();
                fds.extend(namespaces);
                (spec, None, types)
            }
            Target::Exec { spec, process, init } => {
                fds.push(init);
                (spec, Some(process), Vec::new())
            }
        };
        let (terminal, streams) = match stdio {
            Stdio::Terminal => (true, [None, None, None]),
            Stdio::Pipes { stdin, stdout, stderr } => (false, [stdin, stdout, stderr]),
        };
        let sent = [streams[0].is_some(), streams[1].is_some(), streams[2].is_some()];
        fds.extend(streams.into_iter().flatten());
        let text = Text {
            id,
            spec: *spec,
            process: process.map(|process| *process),
            join,
            bundle,
            terminal,
            streams: sent,
        };
        fds.insert(0, seal(&serde_json::to_vec(&text)?)?);
        Ok(Self { fds })
    }

    /// What is to be sent beside the message.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }

    pub(super) fn received(fds: Vec<OwnedFd>) -> Self {
        Self { fds }
    }

    pub(super) fn unpack(self) -> Result<Instructions> {
        let mut fds = self.fds.into_iter();
        let mut next = || {
            fds.next()
                .ok_or_else(|| Fault::Internal("the instructions lack a file descriptor".to_owned()))
        };
        let mut bytes = Vec::new();
        let memfd = File::from(next()?);
        (&memfd).rewind().or_fail(|| "cannot read the instructions")?;
        memfd
            .take(MAX_TEXT)
            .read_to_end(&mut bytes)
            .or_fail(|| "cannot read the instructions")?;
        let text: Text =
            serde_json::from_slice(&bytes).map_err(|why| Fault::internal("cannot read the instructions", why))?;

        let (cgroup, agent_cgroup) = (next()?, next()?);
        let mut spec = text.spec;
        let (process, place) = match text.process {
            Some(process) => (process, Place::Of(next()?)),
            None => {
                let process = spec.process().clone();
                let process = process.ok_or_else(|| Fault::Refused("the specification has no process".to_owned()))?;
                let join = text
                    .join
                    .into_iter()
                    .map(|kind| Ok((kind, next()?)))
                    .collect::<Result<_>>()?;
                (process, Place::New(join))
            }
        };
        spec.set_process(None);
        let stdio = if text.terminal {
            Stdio::Terminal
        } else {
            let mut stream = |sent: bool| sent.then(&mut next).transpose();
            let [stdin, stdout, stderr] = text.streams;
            Stdio::Pipes {
                stdin: stream(stdin)?,
                stdout: stream(stdout)?,
                stderr: stream(stderr)?,
            }
        };
        Ok(Instructions {
            id: text.id,
            spec,
            process,
            place,
            stdio,
            bundle: text.bundle,
            cgroup,
            agent_cgroup,
        })
    }
}

/// A memfd with these bytes, which nobody can change any more.
fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create("launch", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let request = LaunchRequest {
            id: "box".to_owned(),
            target: Target::Container {
                spec: Box::new(Spec::default()),
                join: vec![(LinuxNamespaceType::Ipc, null())],
            },
            stdio: Stdio::Pipes {
                stdin: None,
                stdout: Some(null()),
                stderr: None,
            },
            bundle: "/run/bundle".into(),
            cgroup: null(),
            agent_cgroup: null(),
        };
        let told = Transfer::pack(request).unwrap().unpack().unwrap();
        assert_eq!((told.id.as_str(), told.bundle.to_str()), ("box", Some("/run/bundle")));
        assert!(matches!(told.place, Place::New(join) if join[0].0 == LinuxNamespaceType::Ipc));
        assert!(matches!(
            told.stdio,
            Stdio::Pipes {
                stdin: None,
                stdout: Some(_),
                stderr: None
            }
        ));
        assert!(told.spec.process().is_none());
    }

    #[test]
    fn missing_descriptors_are_a_fault() {
        let request = LaunchRequest {
            id: "box".to_owned(),
            target: Target::Container {
                spec: Box::new(Spec::default()),
                join: Vec::new(),
            },
            stdio: Stdio::Terminal,
            bundle: PathBuf::new(),
            cgroup: null(),
            agent_cgroup: null(),
        };
        let mut transfer = Transfer::pack(request).unwrap();
        transfer.fds.truncate(2);
        assert!(matches!(transfer.unpack(), Err(Fault::Internal(_))));
    }
}
