//! Pods through containerd's CRI plugin, as the kubelet makes them: a client for its gRPC service, and a node of the
//! test's own with CNI in a network namespace of its own.

pub mod client;
pub mod config;
pub mod messages;
pub mod node;
pub mod pod;
pub mod stream;

pub use client::Client;
pub use config::Sandboxer;
pub use node::{PodNode, eventually};
pub use pod::{Container, LogLine, Pod};
