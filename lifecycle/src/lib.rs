//! The lifecycle of a sandbox's containers: a state machine.
//!
//! It owns the sandbox's containers and execs as values: the phase of each, its running operation, and the resources to
//! release. [`Core::step`] takes one [`Input`] and returns the [`Effect`]s. There is no I/O here, no clock, no lock and
//! no task. The driver (`shim::sandbox::driver`) carries the effects out and returns their results as inputs. The
//! simulation in `tests/` does the same with a guest, a VMM and a client that may be arbitrarily slow and faulty.
//!
//! ```text
//!             requests ─┐                        ┌─► work (each in a task of its own) ──► Finished
//!   exits, the VM's end ├─► Core::step ─► effects├─► timers ─────────────────────────────► Elapsed
//!     Finished, Elapsed ┘                        └─► records, events, answers (at once, in order)
//! ```
//! A request is only queued and waits for its answer, so an operation goes on if its caller disconnects. Only the
//! creation of a container is undone then.
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
