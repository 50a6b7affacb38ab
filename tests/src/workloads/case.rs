//! What a case is.

use std::time::Duration;

use super::{container::Container, table::Step};
use crate::Result;

/// A program, or some that belong together.
pub struct Case {
    /// Its name; that of its script, if it has one.
    pub name: &'static str,
    /// The container's limit of memory, MiB.
    pub(super) memory: u64,
    pub(super) limit: Duration,
    /// Runs it: gives the measured steps, or why it is not right.
    pub(super) run: fn(&Container<'_>, &Case) -> Result<Vec<Step>>,
}
