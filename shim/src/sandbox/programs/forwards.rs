//! The processes of forwarded connections that wait for the report of their exit. containerd does not know them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::id::{ExecId, IdError};

/// The length of the output of a process that has ended.
pub(in crate::sandbox) type Length = u64;

#[derive(Default)]
pub(in crate::sandbox) struct Forwards {
    waiting: Mutex<HashMap<ExecId, oneshot::Sender<Length>>>,
    next: AtomicU64,
}

/// A process that waits for its end to be reported; it is forgotten when this is dropped.
pub(in crate::sandbox) struct Awaited<'a> {
    forwards: &'a Forwards,
    pub(in crate::sandbox) exec: ExecId,
    pub(in crate::sandbox) ended: oneshot::Receiver<Length>,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.forwards.waiting().remove(&self.exec);
    }
}

impl Forwards {
    fn waiting(&self) -> MutexGuard<'_, HashMap<ExecId, oneshot::Sender<Length>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names a process that is going to be started.
    pub(in crate::sandbox) fn begin(&self) -> Result<Awaited<'_>, IdError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let exec = ExecId::new(&format!("tatami-forward-{number}"))?;
        let (tell, ended) = oneshot::channel();
        self.waiting().insert(exec.clone(), tell);
        Ok(Awaited {
            forwards: self,
            exec,
            ended,
        })
    }

    /// Takes the report of an exit that is no container's and no exec's of containerd's. Says whether somebody waited for it.
    pub(in crate::sandbox) fn ended(&self, exec: &str, output: Length) -> bool {
        let Ok(exec) = ExecId::new(exec) else {
            return false;
        };
        let waiting = self.waiting().remove(&exec);
        // Whoever waited may have given up.
        waiting.map(|waiting| waiting.send(output)).is_some()
    }
}
