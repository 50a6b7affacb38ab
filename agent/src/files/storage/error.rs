//! The errors of acquiring and releasing storages.

use std::io;
use std::path::PathBuf;

/// Why a storage cannot be acquired or released.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// What the host asks for cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The kernel does not tell of new devices.
    #[error("listen to the kernel's device events")]
    Events(#[source] io::Error),
    /// A disk that was plugged in does not show up.
    #[error("disk {serial} has not appeared in the guest within {seconds} s")]
    NoDisk { serial: String, seconds: u64 },
    #[error("cannot mount {fstype} from {source_name} with options {options:?}: {reason}")]
    Mount {
        fstype: String,
        source_name: String,
        options: Vec<String>,
        reason: String,
    },
    /// What the host has in it cannot be made.
    #[error("cannot make what the host has put into storage {name}")]
    Entries {
        name: String,
        #[source]
        source: io::Error,
    },
    /// Two containers mean different things by one name.
    #[error("storage {name} is mounted as {mounted} for another container, and {wanted} is asked for")]
    Different {
        name: String,
        /// What is already mounted under the name.
        mounted: String,
        wanted: String,
    },
    /// The memory does not do for so many huge pages.
    #[error(
        "the guest has room for {got} of {wanted} huge pages of {size_kib} KiB: give it more memory (default_memory, default_maxmemory) or \
         ask for less"
    )]
    NoRoom {
        wanted: u64,
        got: u64,
        /// Size of a page in KiB.
        size_kib: u64,
    },
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The disk is still in use after its file system was unmounted.
    #[error("disk {} is still in use {seconds} s after it was unmounted", path.display())]
    Busy { path: PathBuf, seconds: u64 },
    #[error("no storage {0:?} is mounted")]
    NotMounted(String),
    #[error("cannot make {name} larger: {reason}")]
    Grow { name: String, reason: String },
    /// The thread that did the work is gone.
    #[error("the work was interrupted")]
    Thread(#[source] io::Error),
}

impl StorageError {
    /// For `map_err`.
    pub(super) fn io<E: Into<io::Error>>(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source: source.into(),
        }
    }
}
