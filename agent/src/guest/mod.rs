//! The guest's own kernel and settings: its boot, CPUs, memory, clock, what it has of the node's settings, random numbers, modules, announcements of devices, and the first process of a pod's sandbox.

pub(crate) mod boot;
pub(crate) mod clock;
pub(crate) mod cpus;
pub(crate) mod growth;
pub(crate) mod inherited;
pub(crate) mod metrics;
pub(crate) mod modules;
pub(crate) mod pause;
pub(crate) mod random;
pub(crate) mod setup;
pub(crate) mod template;
pub(crate) mod uevents;
