//! The agent's calls, and the sandbox that carries them out.

pub(crate) mod rehearsal;
pub(crate) mod rpc;
pub(crate) mod sandbox;
