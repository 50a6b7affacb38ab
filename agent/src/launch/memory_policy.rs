//! The NUMA policy of a container (OCI runtime specification, config-linux.md "Memory policy"; set_mempolicy(2)). The nodes are the
//! host's: of them those count that the guest has, or all of the guest's if it has none of them.

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};

use super::{
    fault::{Context, Fault, Result},
    number_list, sys,
};

/// The nodes with memory (Documentation/ABI/stable/sysfs-devices-node).
const NODES: &str = "/sys/devices/system/node/has_memory";

/// Of the calling process and those that it starts.
pub(super) fn set(wanted: Option<&LinuxMemoryPolicy>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let has = std::fs::read_to_string(NODES).unwrap_or_else(|_| "0".to_owned());
    let nodes = mask(wanted.nodes().as_deref().unwrap_or_default(), &has)?;
    sys::set_memory_policy(mode(wanted), nodes).or_refuse(|| format!("cannot set memoryPolicy {}", wanted.mode()))
}

/// One bit for each node: Linux on these machines has at most 64 in a guest.
fn mask(wanted: &str, has: &str) -> Result<u64> {
    let bits = |list: &[usize]| {
        let numbers = list.iter().filter(|node| **node < 64);
        numbers.fold(0_u64, |bits, node| bits | 1 << node)
    };
    let refused = || Fault::Refused(format!("memoryPolicy: {wanted:?} is no list of memory nodes"));
    let wanted = number_list::parse(wanted).ok_or_else(refused)?;
    let has = number_list::parse(has).map_or(1, |has| bits(&has));
    Ok(match bits(&wanted) & has {
        _ if wanted.is_empty() => 0,
        0 => has,
        common => common,
    })
}

/// Numbers of linux/mempolicy.h.
fn mode(wanted: &LinuxMemoryPolicy) -> libc::c_int {
    let mode = match wanted.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = wanted.flags().iter().flatten();
    flags.fold(mode, |mode, flag| {
        mode | match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_reduced_to_those_that_there_are() {
        for (wanted, has, bits) in [
            ("0-3", "0", 1),
            ("2,3", "0", 1),
            ("1-2", "0-1", 2),
            ("64-71", "0", 1),
            ("", "0", 0),
        ] {
            assert_eq!(mask(wanted, has).unwrap(), bits, "{wanted} of {has}");
        }
        assert!(mask("one", "0").unwrap_err().to_string().contains("memoryPolicy"));
    }

    #[test]
    fn modes_and_flags_have_the_kernels_numbers() {
        let policy = |json: &str| mode(&serde_json::from_str(json).unwrap());
        assert_eq!(policy(r#"{"mode":"MPOL_BIND","nodes":"0"}"#), 2);
        let flags = r#"{"mode":"MPOL_INTERLEAVE","nodes":"0","flags":["MPOL_F_STATIC_NODES"]}"#;
        assert_eq!(policy(flags), 3 | 1 << 15);
    }
}
