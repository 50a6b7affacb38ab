//! The processes of a VM on the host: how each is started, what it may see and take, and what it says.

pub(crate) mod child_name;
pub(crate) mod children;
pub(crate) mod elf;
pub(crate) mod files;
pub(crate) mod jail;
pub(crate) mod pinning;
pub(crate) mod qemu_root;
pub(crate) mod rootless;
pub(crate) mod stderr;
pub(crate) mod sys;
pub mod vm_time;
