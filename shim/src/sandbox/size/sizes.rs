//! The parts of the VM's size: the limits of each container, the memory that containers without a
//! limit need, and the sizes that the VM and the guest were last given. Pure, except that changes wait for their turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use config::Mebibytes;
use hypervisor::Size;
use node::sizing::{HostLimits, Limits, Sizing, Wanted};
use protocol::agent::ResizeRequest;
use tokio::sync::watch;

use crate::id::{ContainerId, SandboxId};

/// Who has which limits, and what was last told.
pub(in crate::sandbox) struct Sizes {
    sizing: Sizing,
    /// The sandbox's own container, where it is the runtime's: nobody has set its limits.
    own: Option<ContainerId>,
    counted: Mutex<Counted>,
    target: tokio::sync::Mutex<ResizeTarget>,
    /// What the guest was last told that the VM grows to, in MiB.
    growth_told: AtomicU32,
    /// The bytes of the VM's memory that its kernel has kept for itself at boot: no program ever gets those.
    kept: AtomicU64,
    /// Number of changes that wait for their turn.
    waiting: watch::Sender<usize>,
}

/// What the VM's size is made of.
#[derive(Default)]
struct Counted {
    limits: HashMap<ContainerId, Limits>,
    /// What containers without a limit of memory need beyond what the VM has without them.
    extra: Mebibytes,
}

/// The size that the VM should have.
pub(in crate::sandbox) struct ResizeTarget {
    /// What QEMU and the guest were last asked for.
    pub(in crate::sandbox) vm: Size,
    /// What the VM has for certain: less than what it was asked for if that failed, or if nobody waited for the answer.
    pub(in crate::sandbox) confirmed: Size,
    /// Memory that the guest has, or may have, beyond that.
    pub(in crate::sandbox) beyond: Mebibytes,
}

impl ResizeTarget {
    /// A size with no more vCPUs than there are: the guest would wait for the others.
    pub(in crate::sandbox) fn present(&self, size: Size) -> Size {
        Size {
            vcpus: size.vcpus.min(self.confirmed.vcpus),
            ..size
        }
    }
}

/// Counts one waiting change until it is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Sizes {
    pub(in crate::sandbox) fn new(sizing: Sizing, sandbox: &SandboxId) -> Self {
        Self {
            sizing,
            own: sizing.is_pod().then(|| ContainerId::from(sandbox)),
            counted: Mutex::default(),
            target: tokio::sync::Mutex::new(ResizeTarget {
                vm: sizing.boot().size,
                confirmed: sizing.boot().size,
                beyond: Mebibytes(0),
            }),
            growth_told: AtomicU32::new(0),
            kept: AtomicU64::new(0),
            waiting: watch::Sender::new(0),
        }
    }

    pub(in crate::sandbox) fn is_pod(&self) -> bool {
        self.own.is_some()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM is up, and its kernel counts so many bytes of memory.
    pub(in crate::sandbox) fn booted(&self, bytes: u64) {
        let kept = self.sizing.boot().size.memory.bytes().saturating_sub(bytes);
        self.kept.store(kept, Ordering::Relaxed);
    }

    /// What is counted for a container.
    pub(in crate::sandbox) fn of(&self, container: &ContainerId) -> Limits {
        self.counted().limits.get(container).copied().unwrap_or_default()
    }

    /// Counts these limits for a container from now on.
    pub(in crate::sandbox) fn count(&self, container: &ContainerId, limits: Limits) {
        self.counted().limits.insert(container.clone(), limits);
    }

    pub(in crate::sandbox) fn forget(&self, container: &ContainerId) {
        self.counted().limits.remove(container);
    }

    /// Waits for a turn. Whoever has it and waits for the guest to give memory back gives it up.
    pub(in crate::sandbox) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ResizeTarget> {
        let _waiting = Waiting::new(&self.waiting);
        self.target.lock().await
    }

    pub(in crate::sandbox) fn wanted(&self) -> Wanted {
        let mut counted = self.counted();
        // Who needed it may be gone, or have a limit now.
        counted.extra = counted.extra.min(self.most_extra(&counted));
        self.sizing.wanted_with(counted.limits.values().copied(), counted.extra)
    }

    /// Counts so much memory for containers without a limit of it, or as much as they may have. The answer is what is counted, and
    /// the most that can be.
    pub(in crate::sandbox) fn count_extra(&self, extra: Mebibytes) -> (Mebibytes, Mebibytes) {
        let mut counted = self.counted();
        let most = self.most_extra(&counted);
        counted.extra = extra.min(most);
        (counted.extra, most)
    }

    /// What the guest's kernel counts when the VM has grown as far as its containers can have it grow, in bytes, to be told to the
    /// guest now; 0 if it does not grow for them.
    pub(in crate::sandbox) fn tell_growth(&self) -> u64 {
        let grows_to = self.grows_to();
        self.growth_told.store(grows_to.0, Ordering::Relaxed);
        grows_to.bytes().saturating_sub(self.kept.load(Ordering::Relaxed))
    }

    /// The VM's memory when it has grown as far as its containers can have it grow; 0 if it does not grow for them.
    fn grows_to(&self) -> Mebibytes {
        let counted = self.counted();
        match self.most_extra(&counted) {
            Mebibytes(0) => Mebibytes(0),
            most => {
                let wanted = self.sizing.wanted_with(counted.limits.values().copied(), most);
                self.sizing.plugged(wanted.size.memory)
            }
        }
    }

    /// Whether the guest was last told of another growth than the one that is possible now.
    pub(in crate::sandbox) fn growth_is_untold(&self) -> bool {
        self.grows_to().0 != self.growth_told.load(Ordering::Relaxed)
    }

    /// Whether the VM's size never changes.
    pub(in crate::sandbox) fn is_fixed(&self) -> bool {
        self.sizing.is_fixed()
    }

    /// Waits until another change waits for its turn.
    pub(in crate::sandbox) async fn another_waits(&self) {
        let mut waiting = self.waiting.subscribe();
        // The sender is in self: it cannot be gone.
        let _ = waiting.wait_for(|waiting| *waiting > 0).await;
    }

    /// What the guest is told of a VM of this size.
    pub(in crate::sandbox) fn resized(&self, size: Size) -> ResizeRequest {
        ResizeRequest {
            cpus: size.vcpus.get(),
            memory_grows_to_bytes: self.tell_growth(),
            ..ResizeRequest::default()
        }
    }

    fn most_extra(&self, counted: &Counted) -> Mebibytes {
        let unlimited = self.members(counted).any(|limits| limits.memory_bytes() == 0);
        if unlimited { self.sizing.growth() } else { Mebibytes(0) }
    }

    /// The limits of those containers that are somebody's.
    fn members<'a>(&'a self, counted: &'a Counted) -> impl Iterator<Item = Limits> + 'a {
        let members = counted.limits.iter().filter(|(id, _)| Some(*id) != self.own.as_ref());
        members.map(|(_, limits)| *limits)
    }

    /// What the host's cgroup is limited to for a VM of this size; none if there is no container that could say.
    pub(in crate::sandbox) fn host(&self, size: Size) -> Option<HostLimits> {
        let counted = self.counted();
        self.sizing.host_limits(size, self.members(&counted))
    }
}
