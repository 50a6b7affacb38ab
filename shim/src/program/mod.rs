//! The shim as a program: its arguments, what it prints at its start, its log, the node's settings, and what the server is given.

pub(crate) mod alive;
pub(crate) mod announcement;
pub(crate) mod arguments;
pub mod context;
pub mod logging;
pub(crate) mod settings;
