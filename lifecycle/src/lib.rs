//! What happens to the containers of a sandbox, and when: a state machine.
//!
//! It owns the sandbox's containers and execs as values: where each is in its life, what is under way for it, what it has that has to be given
//! back. [`Core::step`] takes one [`Input`] and gives the [`Effect`]s that follow. There is no I/O here, no clock, no lock
//! and no task: the driver (`shim::sandbox::driver`) carries the effects out and feeds their results back, and the simulation in
//! `tests/` does the same with a guest, a VMM and a client that are as slow and as wrong as it likes.
//!
//! ```text
//!             requests ─┐                        ┌─► work (each in a task of its own) ──► Finished
//!   exits, the VM's end ├─► Core::step ─► effects├─► timers ─────────────────────────────► Elapsed
//!     Finished, Elapsed ┘                        └─► records, events, answers (at once, in order)
//! ```
//! A request only queues and waits for its answer: a caller that goes away takes nothing with it. Only the creation of a container is
//! undone when its caller is gone.
//!
//! It knows neither containerd's messages nor the guest's, and no path of the host.

mod create;
mod exec;
mod exit;
pub mod id;
mod machine;
mod message;
mod remove;
mod running;
mod signal;
mod state;
mod step;
mod timeouts;
mod vm;

pub use machine::Core;
pub use message::{
    Answer, Effect, Event, Exit, Failure, Fault, Input, Job, Output, Reason, Refusal, Reply, Request, Timer, View, Work,
};
pub use state::{KILLED, NOT_STARTED, SIGKILL};
pub use timeouts::Timeouts;
