//! The file systems of the containers: disks, volumes, and what is mounted inside them.

pub(crate) mod storage;
pub(crate) mod tmpfs;
pub(crate) mod volumes;
