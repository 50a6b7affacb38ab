//! The shim as containerd meets it, with a fake VM and a fake agent: neither QEMU nor root is needed.

#[cfg(test)]
mod boot;
#[cfg(test)]
mod death;
mod diagnostics;
#[cfg(test)]
mod disks;
#[cfg(test)]
mod halfway;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hostile_agent;
#[cfg(test)]
mod life;
#[cfg(test)]
mod names;
#[cfg(test)]
mod network;
#[cfg(test)]
mod order;
#[cfg(test)]
mod sizing;
#[cfg(test)]
mod stdio;
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
