//! The files of a sandbox's containers: what is shared with the guest, what becomes a disk or a copy, and what is watched for changes.

pub mod share;
pub mod volumes;
pub mod watch;
