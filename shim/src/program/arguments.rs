//! Which sandbox or container a command is about, as containerd's flags name it.

use std::path::PathBuf;

use crate::id::{ContainerId, Namespace};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    pub namespace: Namespace,
    /// The container, or for the server the sandbox. Checked as both are.
    pub id: ContainerId,
    /// The bundle; empty: the working directory.
    pub bundle: PathBuf,
    pub debug: bool,
    /// Ours, for the server: the configuration that the runtime options named.
    pub config_path: Option<PathBuf>,
}
