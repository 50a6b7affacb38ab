//! All that is asked.

use super::{
    case::Group, cgroups, confinement, exec, files, hooks, kernel_binds, lifecycle, mounts, namespaces, process,
    refusals,
};

pub fn groups() -> impl Iterator<Item = &'static Group> {
    let all = [
        process::GROUPS,
        confinement::GROUPS,
        namespaces::GROUPS,
        files::GROUPS,
        mounts::GROUPS,
        kernel_binds::GROUPS,
        cgroups::GROUPS,
        hooks::GROUPS,
        exec::GROUPS,
        lifecycle::GROUPS,
        refusals::GROUPS,
    ];
    all.into_iter().flatten()
}
