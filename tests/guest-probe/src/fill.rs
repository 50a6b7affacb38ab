//! Uses up all memory that a process may lock for perf buffers, as a program with a buffer for each of its events does.

use std::{
    io,
    os::fd::OwnedFd,
    process::{Child, Command},
};

use nix::libc;

use crate::{
    error::Result,
    sys::{self, Mapping},
};

/// PERF_TYPE_SOFTWARE and PERF_COUNT_SW_CPU_CLOCK (include/uapi/linux/perf_event.h).
const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;

/// What was mapped until the kernel refused.
pub(crate) struct Filled {
    /// Buffers of a header and two data pages.
    pub(crate) buffers: u64,
    /// All pages: those of the buffers, and the single ones that were granted after them.
    pub(crate) pages: u64,
    mapped: Vec<(OwnedFd, Mapping)>,
    sleeper: Child,
}

impl Filled {
    /// Maps buffers, each of an event of its own, until one is refused; then headers alone, so that the last page is found.
    /// Everything stays mapped until this is dropped.
    pub(crate) fn new() -> Result<Self> {
        // The events are those of a process that sleeps: at every switch to a process the kernel goes through all of its
        // events, and with tens of thousands of them it would do little else. Who maps is charged all the same.
        let mut filled = Self {
            buffers: 0,
            pages: 0,
            mapped: Vec::new(),
            sleeper: Command::new("sleep").arg("1000").spawn()?,
        };
        filled.buffers = filled.map_until_refused(3)?;
        filled.map_until_refused(1)?;
        Ok(filled)
    }

    /// How many were mapped until EPERM; any other error is none that a limit gives.
    fn map_until_refused(&mut self, pages: usize) -> Result<u64> {
        for mapped in 0..=u64::MAX {
            let event = sys::idle_perf_event(self.sleeper.id(), SOFTWARE, CPU_CLOCK)?;
            match Mapping::new(&event, pages, 0) {
                Ok(mapping) => {
                    self.mapped.push((event, mapping));
                    self.pages += pages as u64;
                }
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(mapped),
                Err(error) => return Err(format!("after {mapped} buffers of {pages} pages: {error}").into()),
            }
        }
        Err(io::Error::other("the kernel maps without end").into())
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
    }
}
