//! Where the guest's cgroups are.

pub(super) const ROOT: &str = "/sys/fs/cgroup";
pub(super) const AGENT: &str = "/sys/fs/cgroup/agent";
pub(super) const CONTAINERS: &str = "/sys/fs/cgroup/containers";
