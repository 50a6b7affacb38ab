//! Programs that run in the guest and that containerd does not know: the debug console, port-forward.

pub mod console;
mod forward;
pub(super) mod forwards;
