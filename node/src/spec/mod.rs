//! What a specification (config.json) means, and what the guest gets of it.

pub mod bundle;
pub(crate) mod guest_path;
pub mod guest_spec;
