//! What a sandbox and its containers may take: their size, the cgroup on the host, and locked memory.

pub mod host_cgroup;
pub mod memlock;
pub mod sizing;
