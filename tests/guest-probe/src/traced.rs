//! A program that its parent is to trace, though the parent has not asked for it.

use std::{os::unix::process::CommandExt, process::Command};

use nix::sys::{
    ptrace::traceme,
    signal::{Signal, raise},
};

/// `guest-probe traced PROGRAM…`. A signal that is ignored stops a traced process as well, and so does execve(2).
pub(crate) fn traced(program: &[&str]) -> crate::error::Result<()> {
    let [program, arguments @ ..] = program else {
        return Err("no program".into());
    };
    traceme()?;
    raise(Signal::SIGCHLD)?;
    traceme()?;
    Err(Command::new(program).args(arguments).exec().into())
}
