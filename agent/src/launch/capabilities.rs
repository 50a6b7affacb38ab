//! The five capability sets of a process (capabilities(7)).

use std::collections::HashSet;

use caps::{CapSet, Capability, CapsHashSet};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use super::{
    fault::{Context, Fault, Result},
    sys,
};

/// The sets as masks, as the kernel shows them in `/proc/PID/status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Masks {
    pub(super) bounding: u64,
    pub(super) permitted: u64,
    pub(super) effective: u64,
    pub(super) inheritable: u64,
    pub(super) ambient: u64,
}

/// What [`bound`] and [`apply`] make of the wanted sets.
pub(super) fn masks(wanted: Option<&LinuxCapabilities>) -> Masks {
    let mask = |select: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        let set = known(wanted.and_then(|sets| select(sets).as_ref()));
        set.iter().fold(0, |mask, capability| mask | capability.bitmask())
    };
    let (permitted, inheritable) = (mask(LinuxCapabilities::permitted), mask(LinuxCapabilities::inheritable));
    Masks {
        bounding: mask(LinuxCapabilities::bounding),
        permitted,
        effective: mask(LinuxCapabilities::effective),
        inheritable,
        // The kernel refuses what is not both, and runc does without it then.
        ambient: mask(LinuxCapabilities::ambient) & inheritable & permitted,
    }
}

/// Drops from the bounding set what the process shall never have. Must come before the user changes.
pub(super) fn bound(wanted: Option<&LinuxCapabilities>) -> Result<()> {
    let keep = known(wanted.and_then(|sets| sets.bounding().as_ref()));
    for capability in caps::runtime::thread_all_supported().difference(&keep) {
        caps::drop(None, CapSet::Bounding, *capability)
            .map_err(|why| Fault::internal(format_args!("cannot drop {capability}"), why))?;
    }
    Ok(())
}

/// Sets the other four: three at once, as they depend on each other, and then the ambient one. `also` is held until the program
/// is executed, and not by it: `execve` computes the sets anew from the inheritable, the bounding and the ambient one.
pub(super) fn apply(wanted: Option<&LinuxCapabilities>, also: Option<Capability>) -> Result<()> {
    let masks = masks(wanted);
    let also = also.map_or(0, |capability| capability.bitmask());
    sys::set_capabilities(masks.effective | also, masks.permitted | also, masks.inheritable)
        .or_refuse(|| "cannot set the effective, permitted and inheritable capabilities")?;
    let ambient = known(wanted.and_then(|sets| sets.ambient().as_ref()));
    let ambient = ambient.into_iter().filter(|one| masks.ambient & one.bitmask() != 0);
    caps::set(None, CapSet::Ambient, &ambient.collect())
        .map_err(|why| Fault::refused("cannot set the ambient capabilities", why))
}

/// The capabilities that this kernel has; runc ignores the others, too.
fn known(wanted: Option<&Capabilities>) -> CapsHashSet {
    let supported = caps::runtime::thread_all_supported();
    let wanted: HashSet<Capability> = wanted
        .into_iter()
        .flatten()
        .filter_map(|capability| format!("CAP_{capability}").parse().ok())
        .collect();
    wanted.intersection(&supported).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Capability as Oci;

    #[test]
    fn the_names_of_both_libraries_agree() {
        let wanted = Capabilities::from([
            Oci::Chown,
            Oci::IpcLock,
            Oci::SysAdmin,
            Oci::Mknod,
            Oci::Perfmon,
            Oci::Bpf,
        ]);
        assert_eq!(known(Some(&wanted)).len(), 6);
    }
}
