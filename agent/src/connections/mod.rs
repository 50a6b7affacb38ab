//! The guest's connections to the host, and what is carried by them beside the agent's calls: streams of processes, sockets of the host, lookups of names.

pub(crate) mod dial;
pub(crate) mod host_sockets;
pub(crate) mod names;
pub(crate) mod relays;
pub(crate) mod streams;
