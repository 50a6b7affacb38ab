//! The child.

use std::{os::fd::AsFd, process::ExitCode};

use super::{
    channel::{ChildEnd, Order, Word},
    fault::{Context, Fault, Result},
    instructions::{Instructions, Parcel},
};

/// Reads the instructions from standard input and carries them out.
pub(super) fn main() -> ExitCode {
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let channel = ChildEnd::new(socket);
    let Err(fault) = instructed(&channel).and_then(|told| carry_out(&channel, &told)) else {
        return ExitCode::SUCCESS;
    };
    // Nobody may be listening any more, and then nobody needs to know.
    let _ = channel.say(&Word::Failed(fault.bounded()));
    ExitCode::FAILURE
}

fn instructed(channel: &ChildEnd) -> Result<Instructions> {
    match channel.receive().or_fail(|| "cannot receive the instructions")? {
        Some((Order::Prepare, fds)) => Parcel::received(fds).unpack(),
        _ => Err(Fault::Internal("the child was started without instructions".to_owned())),
    }
}

fn carry_out(channel: &ChildEnd, told: &Instructions) -> Result<()> {
    let _ = (
        channel,
        &told.id,
        &told.spec,
        &told.process,
        &told.place,
        &told.stdio,
        &told.cgroup,
        &told.agent_cgroup,
    );
    channel.send(&Word::Made(0), &[]).or_fail(|| "x")
}
