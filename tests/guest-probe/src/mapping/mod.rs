//! Memory that something else sees and changes as well: a device, a file.

mod sys;

pub(crate) use sys::{PAGE, Shared, Word};
