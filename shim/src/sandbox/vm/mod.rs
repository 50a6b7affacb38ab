//! The VM: how it comes up, what it reports, how it ends, and whether it answers.

pub mod boot;
pub(super) mod health;
pub(super) mod life;
