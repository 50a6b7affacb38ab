//! How a VM ended, and the task that determines it.
//!
//! One end has many symptoms: QEMU's exit makes virtiofsd exit, and virtiofsd's death can make QEMU exit. The first child
//! that ends by itself is the cause; other children that failed by themselves are reported with it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::observe::console::Console;
use crate::process::children::{ChildDeath, Handle};
use crate::qmp::Qmp;

/// How long the others may take to fail or succeed by themselves, after one has ended.
const CONSEQUENCES: Duration = Duration::from_millis(500);

/// How long a killed child may take to be gone. Longer than that only in the kernel's hands.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The end of a VM. All its children are gone.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Why.
    pub cause: Cause,
    /// Children, apart from one in `cause`, that failed by themselves at the same time.
    pub also: Vec<ChildDeath>,
    /// The end of the guest's console, at most 16 KiB, harmless to a terminal.
    pub console_tail: String,
}

/// Why a VM ended.
#[derive(Debug, Clone)]
pub enum Cause {
    /// [`crate::Vm::stop`] was called.
    Stopped,
    /// The guest powered off, restarted or panicked.
    GuestShutdown {
        /// QEMU's word for it (`ShutdownCause` in its QAPI): `guest-shutdown`, `guest-reset`, `guest-panic`, …
        reason: String,
    },
    /// QEMU or a helper ended by itself, or was killed.
    ChildDied(ChildDeath),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Stopped => f.write_str("stopped")?,
            Cause::GuestShutdown { reason } => write!(f, "the guest shut down ({reason})")?,
            Cause::ChildDied(death) => write!(f, "{death}")?,
        }
        for death in &self.also {
            write!(f, "; {death}")?;
        }
        if !self.console_tail.is_empty() {
            write!(f, "; the guest's console ends with: {}", self.console_tail)?;
        }
        Ok(())
    }
}

/// What the task watches.
pub(crate) struct Watched {
    pub(crate) qemu: Handle,
    pub(crate) helpers: Vec<Handle>,
    pub(crate) qmp: Qmp,
    pub(crate) console: Console,
    pub(crate) stopping: Arc<AtomicBool>,
}

/// Starts the task; the receiver has the end when it has come.
pub(crate) fn watch(watched: Watched) -> watch::Receiver<Option<Arc<Ended>>> {
    let (sender, ended) = watch::channel(None);
    tokio::spawn(async move {
        let end = watched.end().await;
        sender.send_replace(Some(Arc::new(end)));
    });
    ended
}

impl Watched {
    async fn end(&self) -> Ended {
        let first = self.first().await;
        // What fails in this time fails by itself; what is killed afterwards is not to blame.
        let mut deaths = Vec::new();
        if !first.wait().await.success() {
            for other in self.all().filter(|other| other.pid != first.pid) {
                if let Ok(status) = timeout(CONSEQUENCES, other.wait()).await
                    && !status.success()
                {
                    deaths.push(other.clone());
                }
            }
        }
        self.kill_all().await;
        self.console.drained().await;
        let mut also = Vec::new();
        for death in deaths {
            also.push(death.death().await);
        }
        Ended {
            cause: self.cause(first).await,
            also,
            console_tail: self.console.tail.text(),
        }
    }

    async fn cause(&self, first: &Handle) -> Cause {
        if self.stopping.load(Ordering::Acquire) {
            return Cause::Stopped;
        }
        if first.pid == self.qemu.pid
            && first.wait().await.success()
            && let Some(reason) = self.qmp.closed().await
        {
            return Cause::GuestShutdown { reason };
        }
        Cause::ChildDied(first.death().await)
    }

    /// The child whose end is the cause. virtiofsd ends well when QEMU has closed its socket, which QEMU's own end does:
    /// then QEMU is the first, seen second.
    async fn first(&self) -> &Handle {
        let first = self.any().await;
        if first.pid != self.qemu.pid
            && first.wait().await.success()
            && timeout(CONSEQUENCES, self.qemu.wait()).await.is_ok()
        {
            return &self.qemu;
        }
        first
    }

    async fn any(&self) -> &Handle {
        let mut waiting: Vec<_> = self
            .all()
            .map(|handle| {
                Box::pin(async move {
                    handle.wait().await;
                    handle
                })
            })
            .collect();
        std::future::poll_fn(|cx| {
            for future in &mut waiting {
                if let std::task::Poll::Ready(handle) = future.as_mut().poll(cx) {
                    return std::task::Poll::Ready(handle);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// QEMU comes first, so that of several that have ended it is seen first.
    fn all(&self) -> impl Iterator<Item = &Handle> {
        std::iter::once(&self.qemu).chain(&self.helpers)
    }

    async fn kill_all(&self) {
        self.all().for_each(Handle::kill);
        for child in self.all() {
            if timeout(self.qmp.scale().of(KILL_TIMEOUT), child.wait()).await.is_err() {
                tracing::error!(child = %child.name, pid = child.pid, "a killed process does not go away");
            }
        }
    }
}
