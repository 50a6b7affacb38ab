//! The framework of the black-box tests: a private containerd, an image made from busybox, the `ctr` command, and
//! the search for what a container left behind.
//!
//! It knows the runtime only by its name and by the files that `make build` makes. Nothing here links to the runtime.
//!
//! Every [`Node`] has a tag that no other node has. The tag is its containerd namespace, its directory and the start
//! of every container's id, so whatever on this machine names the tag belongs to that node and to nothing else. Tests
//! can therefore run side by side and still prove that nothing of theirs is left.
#![allow(missing_docs, reason = "no other crate uses it")]

pub mod bench;
pub mod bundle;
pub mod conformance;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod disk;
pub mod docker;
pub mod error;
pub mod events;
mod fifos;
mod grpc;
pub mod host_cgroup;
pub mod host_mount;
pub mod http;
pub mod image;
pub mod kernel;
pub mod kernel_pin;
pub mod kubernetes;
pub mod leftovers;
pub mod locate;
pub mod netns;
pub mod node;
pub mod pool;
pub mod probe;
pub mod programs;
pub mod spec;
mod sys;
mod tasks;
pub mod terminal;
pub mod wait;
pub mod workloads;

pub use ctr::{Ctr, Output, Running};
pub use docker::Docker;
pub use error::{Error, Result};
pub use fifos::Fifos;
pub use host_mount::{HostMount, Silent};
pub use netns::NetNs;
pub use node::{Node, Runtime};
pub use pool::Pool;
pub use probe::Report;
pub use spec::Spec;
pub use tasks::{Mount, Tasks};
pub use terminal::Terminal;
