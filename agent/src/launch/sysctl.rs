//! Kernel parameters of a specification.
//!
//! Parameters of a namespace are set in the container's namespace. The others are set for the whole guest, as in Kata:
//! the guest is the sandbox, and nobody else uses its kernel.

use std::path::PathBuf;

use oci_spec::runtime::Spec;

use super::fault::{Context, Fault, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// The guest's, with the guest's privileges.
    Guest,
    /// Those of the container's own namespaces, from inside them.
    Container,
}

/// Sets the parameters of one kind. Those of the network are the guest's where the container has the guest's network
/// (`own_network` is false): a user namespace of the container's has no right to it.
pub(super) fn set(spec: &Spec, place: Where, own_network: bool) -> Result<()> {
    let Some(sysctls) = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else {
        return Ok(());
    };
    let place_of = |name: &str| match is_namespaced(name) && (own_network || !is_networks(name)) {
        true => Where::Container,
        false => Where::Guest,
    };
    for (name, value) in sysctls.iter().filter(|(name, _)| place_of(name) == place) {
        let path = path(name).ok_or_else(|| Fault::Refused(format!("{name:?} is no name of a sysctl")))?;
        std::fs::write(&path, value).or_refuse(|| format!("cannot set the sysctl {name} to {value:?}"))?;
    }
    Ok(())
}

/// Whether a namespace of the container holds the parameter: the network, IPC or UTS one.
fn is_namespaced(name: &str) -> bool {
    if is_networks(name) {
        return true;
    }
    let name = name.replace('/', ".");
    name.starts_with("fs.mqueue.")
        || name.starts_with("kernel.msg")
        || name.starts_with("kernel.shm")
        || matches!(name.as_str(), "kernel.sem" | "kernel.hostname" | "kernel.domainname")
}

fn is_networks(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// Its file. The first separator of a name says which one separates (sysctl(8)): the other is part of a word.
fn path(name: &str) -> Option<PathBuf> {
    let separator = name.find(['.', '/']).map(|at| name.as_bytes()[at] == b'.')?;
    let turned: String = name
        .chars()
        .map(|letter| match letter {
            '.' if separator => '/',
            '/' if separator => '.',
            other => other,
        })
        .collect();
    let clean = turned.split('/').all(|word| !matches!(word, "" | "." | ".."));
    clean.then(|| PathBuf::from("/proc/sys").join(turned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_spellings_name_the_same_file() {
        let file = Some(PathBuf::from("/proc/sys/net/ipv4/conf/eth0.7/forwarding"));
        assert_eq!(path("net.ipv4.conf.eth0/7.forwarding"), file);
        assert_eq!(path("net/ipv4/conf/eth0.7/forwarding"), file);
        assert_eq!(path("../etc/passwd"), None);
        assert_eq!(path("net/../../etc"), None);
    }

    #[test]
    fn what_belongs_to_a_namespace_is_known() {
        assert!(is_namespaced("net.core.somaxconn") && is_namespaced("kernel/shmmax") && is_namespaced("kernel.sem"));
        assert!(!is_namespaced("vm.overcommit_memory") && !is_namespaced("kernel.pid_max"));
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_proc_sys(name: String) {
            if let Some(path) = path(&name) {
                prop_assert!(path.starts_with("/proc/sys"));
                prop_assert!(path.components().all(|part| part != std::path::Component::ParentDir));
            }
        }
    }
}
