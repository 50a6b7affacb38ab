//! The record of one process that containerd knows: a container's first process or an exec. It has the answers to State
//! and Wait, and the streams.
//!
//! The state machine (`lifecycle`) decides its contents, [`crate::sandbox::driver`] writes it, and all others only read it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use guest::streams::{LoggerEnd, Prepared, StdioPaths, Streams};
use protocol::agent::Stdio;
use protocol::phase::Phase;
use tokio::sync::{MutexGuard, watch};

pub use lifecycle::id::ProcessName;
pub use lifecycle::{Exit, View};

/// What others see of a process whose creation is under way: nothing.
pub(in crate::sandbox) fn is_created(view: View) -> bool {
    view != View::In(Phase::Creating)
}

pub struct Process {
    /// The container's id, and the exec's.
    pub name: ProcessName,
    /// What containerd named as its streams.
    pub stdio: StdioPaths,
    /// The OCI `process` of an exec as JSON; empty for the first process.
    pub spec: Vec<u8>,
    view: watch::Sender<View>,
    /// Open on the host, and not yet connected with the guest.
    prepared: Mutex<Option<Prepared>>,
    /// What tells the guest how to dial them.
    stdio_call: Mutex<Option<Stdio>>,
    streams: Mutex<Option<Arc<Streams>>>,
    /// CloseIO has come: there may be no streams yet.
    stdin_closed: AtomicBool,
    /// The program that writes its log, once its output has ended.
    logger: OnceLock<LoggerEnd>,
    /// The terminal's size, until the guest has been told of it.
    size: Mutex<Option<(u32, u32)>>,
    /// Held by who tells the guest of a size: the last one that was asked for is the last one that it hears of.
    sizing: tokio::sync::Mutex<()>,
}

impl Process {
    #[must_use]
    pub fn new(name: ProcessName, stdio: StdioPaths, spec: Vec<u8>) -> Self {
        let phase = if name.exec.is_some() {
            Phase::Created
        } else {
            Phase::Creating
        };
        Self {
            name,
            stdio,
            spec,
            view: watch::Sender::new(View::In(phase)),
            prepared: Mutex::default(),
            stdio_call: Mutex::default(),
            streams: Mutex::default(),
            stdin_closed: AtomicBool::new(false),
            logger: OnceLock::new(),
            size: Mutex::default(),
            sizing: tokio::sync::Mutex::default(),
        }
    }

    /// Its phase, or its exit.
    #[must_use]
    pub fn view(&self) -> View {
        *self.view.borrow()
    }

    /// Its phase; [`Phase::Stopped`] once its exit is told.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.view() {
            View::In(phase) => phase,
            View::Stopped(_) => Phase::Stopped,
        }
    }

    /// Changes the record, and tells of it. Whoever hears of it and asks for the phase gets the new one, and whoever sees the new one
    /// comes after it was told: Docker deletes a task at the event of its exit, and containerd's events have an order.
    /// `tell` must not ask for the phase. A stopped process stays stopped.
    pub(in crate::sandbox) fn enter(&self, view: View, tell: impl FnOnce()) {
        self.view.send_if_modified(|now| {
            let moves = !matches!(now, View::Stopped(_));
            if moves {
                tell();
                *now = view;
            }
            moves
        });
    }

    pub(in crate::sandbox) async fn reach(&self, wanted: impl Fn(View) -> bool) -> View {
        let mut views = self.view.subscribe();
        let reached = views.wait_for(|view| wanted(*view)).await.map(|view| *view);
        // The sender is in self: it cannot be gone.
        reached.unwrap_or_else(|_| self.view())
    }

    pub async fn stopped(&self) -> Exit {
        loop {
            if let View::Stopped(exit) = self.reach(|view| matches!(view, View::Stopped(_))).await {
                return exit;
            }
        }
    }

    pub(in crate::sandbox) fn set_prepared(&self, prepared: Prepared) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
    }

    pub(in crate::sandbox) fn take_prepared(&self) -> Option<Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(in crate::sandbox) fn set_stdio(&self, stdio: Stdio) {
        *self.stdio_call.lock().unwrap_or_else(PoisonError::into_inner) = Some(stdio);
    }

    pub(in crate::sandbox) fn take_stdio(&self) -> Stdio {
        let stdio = self.stdio_call.lock().unwrap_or_else(PoisonError::into_inner).take();
        stdio.unwrap_or_default()
    }

    pub(in crate::sandbox) fn set_streams(&self, streams: Arc<Streams>) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = Some(streams);
        if self.stdin_closed.load(Ordering::SeqCst) {
            self.close_stdin();
        }
    }

    /// CloseIO. Before the streams are connected it is remembered.
    pub(in crate::sandbox) fn close_stdin(&self) {
        self.stdin_closed.store(true, Ordering::SeqCst);
        if let Some(streams) = self.streams() {
            streams.close_stdin();
        }
    }

    /// It runs: stdin ends with CloseIO.
    pub(in crate::sandbox) fn hold_stdin(&self) {
        let Some(streams) = self.streams() else { return };
        if !self.stdin_closed.load(Ordering::SeqCst) {
            streams.hold_stdin();
        }
        // It may have come meanwhile.
        if self.stdin_closed.load(Ordering::SeqCst) {
            streams.close_stdin();
        }
    }

    pub(in crate::sandbox) fn set_logger(&self, logger: LoggerEnd) {
        // Its output ends once.
        let _ = self.logger.set(logger);
    }

    /// Waits for the end of the program that writes its log, and brings it about.
    pub(in crate::sandbox) async fn end_logger(&self) {
        if let Some(logger) = self.logger.get() {
            logger.wait().await;
        }
    }

    pub(in crate::sandbox) fn streams(&self) -> Option<Arc<Streams>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes what is open. The answer is what was connected.
    pub(in crate::sandbox) fn drop_streams(&self) -> Option<Arc<Streams>> {
        drop(self.take_prepared());
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Remembers the terminal's size that was asked for, columns first.
    pub(in crate::sandbox) fn remember_size(&self, size: (u32, u32)) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    }

    /// The size that the guest has not been told of. Nobody else is given one until the answer is dropped.
    pub(in crate::sandbox) async fn size_to_tell(&self) -> Option<(MutexGuard<'_, ()>, (u32, u32))> {
        let one = self.sizing.lock().await;
        let size = self.remembered_size()?;
        Some((one, size))
    }

    fn remembered_size(&self) -> Option<(u32, u32)> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::id::ContainerId;

    #[test]
    fn who_hears_of_a_phase_finds_it() {
        let name = ProcessName::init(ContainerId::new("c").unwrap());
        let process = Arc::new(Process::new(name, StdioPaths::default(), Vec::new()));
        let (tell, told) = mpsc::channel();
        let hears = Arc::clone(&process);
        let hears = thread::spawn(move || {
            told.recv().unwrap();
            hears.phase()
        });
        process.enter(View::In(Phase::Running), || {
            tell.send(()).unwrap();
            // Time for whoever hears of it to ask.
            thread::sleep(Duration::from_millis(20));
        });
        assert_eq!(hears.join().unwrap(), Phase::Running);
        let stopped = View::Stopped(Exit {
            status: 0,
            at: SystemTime::now(),
        });
        process.enter(stopped, || {});
        process.enter(View::In(Phase::Running), || panic!("a stopped process stays stopped"));
    }
}
