//! Why the guest's network is not what the host wants.

use std::io;
use std::time::Duration;

use crate::common::timeouts::scaled;

/// Timeout for a device that has been plugged in to be found by its driver.
pub(super) const APPEARS: Duration = Duration::from_secs(20);

/// Why the network is not what the host wants.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("network: open a netlink socket")]
    Socket(#[source] io::Error),
    /// There can be no thread for it, or its work has panicked.
    #[error("network: have a thread of its own")]
    Thread(#[source] io::Error),
    /// There is no place for devices that are not used.
    #[error("network: make a namespace for devices that are not used")]
    Parking(#[source] io::Error),
    /// A message of the host that cannot be understood.
    #[error("network: the host's message about {what} cannot be understood: {reason}")]
    Message {
        /// The list that the message was in.
        what: &'static str,
        reason: String,
    },
    #[error("network: no device with address {mac} appeared within {} s", scaled(APPEARS).as_secs_f64())]
    NoDevice { mac: String },
    #[error("network: {step} {on}")]
    Step {
        step: &'static str,
        on: String,
        #[source]
        source: io::Error,
    },
    #[error("network: write {value} to {path}")]
    Sysctl {
        path: String,
        value: String,
        #[source]
        source: io::Error,
    },
}

/// Gives the result of a step its name; that the thing is there (or gone) already is none of its faults.
pub(super) fn step(
    step: &'static str,
    on: impl std::fmt::Debug,
    fine: &[i32],
    result: Result<(), rtnetlink::Error>,
) -> Result<(), NetworkError> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if fine.contains(&-error.raw_code()) => Ok(()),
        result => result.map_err(|source| NetworkError::Step {
            step,
            on: format!("{on:?}"),
            source: cause(source),
        }),
    }
}

/// The kernel's word alone, where it is one.
pub(super) fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        error => io::Error::other(error),
    }
}
