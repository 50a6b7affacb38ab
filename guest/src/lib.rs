//! The guest's connections: their preambles, the agent's client, the streams of processes, and the relays for containers.
//!
//! It knows neither containerd's calls nor what a sandbox decides.

pub mod accept;
pub mod agent_client;
pub mod connection;
pub mod host_sockets;
pub mod names;
pub mod rate_limited;
pub mod relays;
pub mod streams;
pub mod vm;
