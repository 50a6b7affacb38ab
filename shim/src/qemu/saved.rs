//! A VM that was saved when it had booted, and VMs that are copies of it. It does not know where saved VMs are kept.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use base::chain;
use config::Hypervisor;
use hypervisor::{BootError, Cause, GuestListener, GuestStream, Vm, VmRequest, vm_time};
use rustix::event::{PollFd, PollFlags, poll};

/// Timeout for the guest of a copy to call, in time that the VM has had: its first act.
const CALL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct NotCopied {
    pub(crate) why: String,
    /// Whether the next copy would fail as well: QEMU does not take the file, or the guest in it does not go on. Otherwise something happened to this VM.
    pub(crate) is_unfit: bool,
}

/// Is told what came of a copy.
pub(crate) type OnOutcome = Box<dyn FnOnce(Result<(), &NotCopied>) + Send>;

/// A saved VM. It is used once: copies that are made at the same time read it by descriptors of their own.
pub(crate) struct Saved {
    /// Its memory and state.
    pub(crate) file: OwnedFd,
    pub(crate) outcome: OnOutcome,
}

impl fmt::Debug for Saved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Saved")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A VM, and the first connection of its guest.
type Called = (Vm, GuestListener, GuestStream);

impl Saved {
    /// Begins a VM as a copy, and waits until its guest calls. None if that does not work: the VM is to boot then.
    pub(crate) async fn copy(self, config: &Hypervisor, request: VmRequest) -> Option<Called> {
        let copied = copy(config, request, self.file).await;
        (self.outcome)(copied.as_ref().map(drop));
        copied.ok()
    }
}

async fn copy(config: &Hypervisor, request: VmRequest, file: OwnedFd) -> Result<Called, NotCopied> {
    let limit = request.scale.of(CALL);
    let copied = Box::pin(hypervisor::boot_copy(config, request, file)).await;
    let (vm, mut listener) = copied.map_err(|error| NotCopied {
        why: chain(&error),
        is_unfit: matches!(error, BootError::Saved { .. }),
    })?;
    let pids: Vec<u32> = vm.pids().collect();
    let first = tokio::select! {
        first = first_call(&mut listener) => first.map_err(|error| NotCopied { why: chain(&error), is_unfit: false })?,
        ended = vm.ended() => {
            let was_killed = matches!(&ended.cause, Cause::ChildDied(death) if death.signal().is_some());
            return Err(NotCopied { why: ended.to_string(), is_unfit: !was_killed });
        }
        () = vm_time::has_passed(limit, || pids.clone()) => {
            let why = format!("its guest did not call within {} s of its own time", limit.as_secs());
            return Err(NotCopied { why, is_unfit: true });
        }
    };
    Ok((vm, listener, first))
}

/// The agent's first connection, once there is something on it.
pub(crate) async fn first_call(listener: &mut GuestListener) -> io::Result<GuestStream> {
    let first = guest::accept::next("a connection of the guest", listener).await;
    let copy = first.as_fd().try_clone_to_owned()?;
    let spoken = tokio::task::spawn_blocking(move || poll(&mut [PollFd::new(&copy, PollFlags::IN)], None));
    spoken.await.map_err(io::Error::other)??;
    Ok(first)
}
