//! The host itself: its mounts and mount namespace, processes, settings and owners of files, and the system calls for them.
//!
//! Knows no sandbox.

pub(crate) mod host_mount;
pub mod host_ns;
pub(crate) mod mountinfo;
pub mod openat_beneath;
pub(crate) mod owners;
pub mod path_error;
pub mod process;
pub(crate) mod remove;
pub mod settings;
pub mod sys;
