//! Starts other programs. All processes that execute a program on the host are started by this, so that none has by accident what
//! containerd or the shim has: the score for the OOM killer, the limits, the environment, the working directory.
//!
//! A [`Program`] has an empty environment, no streams, `/` as its working directory and a process group of its own, if nothing else
//! is said. The hypervisor crate, whose children also change their root, user and namespaces, uses [`Prepared`] alone.

mod accounting;
mod output;
mod sys;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};

pub use accounting::{Accounting, CoreDumps, Failed, OpenFiles, Prepared, Score, raise_open_files};
pub use output::{Finished, RunError};
use std::os::unix::process::CommandExt as _;

/// The first descriptor that a program can be given beside the standard streams.
const FIRST: i32 = 3;

/// A program that is to be started.
#[derive(Debug)]
pub struct Program {
    command: Command,
    accounting: Accounting,
    leads_session: bool,
    descriptors: Vec<OwnedFd>,
}

impl Program {
    /// A path, or a bare name that execvp(3) looks for in the `PATH` of this process.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            command,
            accounting: Accounting::default(),
            leads_session: false,
            descriptors: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// What the program sees as its own name, argument 0.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.command.arg0(name);
        self
    }

    /// Adds variables to the environment.
    #[must_use]
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, variables: impl IntoIterator<Item = (N, V)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Adds variables of this process's environment, those that are set.
    #[must_use]
    pub fn inherit_envs(self, names: &[&str]) -> Self {
        let set = names.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        self.envs(set)
    }

    /// The working directory.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    /// How the host accounts for it.
    #[must_use]
    pub fn accounting(mut self, accounting: Accounting) -> Self {
        self.accounting = accounting;
        self
    }

    /// It leads a session of its own (setsid(2)): no signal of this process's terminal reaches it, and it outlives this process.
    #[must_use]
    pub fn session(mut self) -> Self {
        self.leads_session = true;
        self
    }

    /// It has these as descriptors 3, 4 and so on.
    #[must_use]
    pub fn descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// A command that does all this, for callers that start it in a way of their own. This process's copies of the descriptors that
    /// are passed, the streams included, are closed when the command is dropped.
    ///
    /// # Errors
    /// This process's score or limits cannot be read.
    pub fn into_command(self) -> io::Result<Command> {
        let mut command = self.command;
        if self.leads_session {
            sys::lead_session(&mut command);
        } else {
            command.process_group(0);
        }
        sys::account(&mut command, self.accounting.prepare()?);
        let mappings = (FIRST..)
            .zip(self.descriptors)
            .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
        Ok(command)
    }

    /// Starts it. Whoever does not wait for it leaves a zombie until this process ends.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self) -> io::Result<Child> {
        self.into_command()?.spawn()
    }
}

#[cfg(test)]
mod tests;
