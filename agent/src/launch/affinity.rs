//! The CPUs of an exec (OCI runtime specification, config.md, `process.execCPUAffinity`; sched_setaffinity(2)). The numbers are the
//! host's: of them those count that the guest has. If it has none of them, the list means nothing.

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use oci_spec::runtime::ExecCPUAffinity;

use super::{
    fault::{Context, Fault, Result},
    number_list,
};

/// Before the process is in the container's cgroup.
pub(super) fn set_initial(wanted: Option<&ExecCPUAffinity>) -> Result<()> {
    match wanted.and_then(|wanted| wanted.initial().as_deref()) {
        Some(list) => set(list),
        None => Ok(()),
    }
}

/// In the container's cgroup: without a list of its own the process may use every CPU again.
pub(super) fn set_final(wanted: Option<&ExecCPUAffinity>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    match (wanted.cpu_affinity_final(), wanted.initial()) {
        (Some(list), _) => set(list),
        (None, Some(_)) => put_in_force(0..CpuSet::count()),
        (None, None) => Ok(()),
    }
}

fn set(list: &str) -> Result<()> {
    let cpus = number_list::parse(list);
    let cpus = cpus.ok_or_else(|| Fault::Refused(format!("execCPUAffinity: {list:?} is no list of CPUs")))?;
    put_in_force(cpus)
}

fn put_in_force(cpus: impl IntoIterator<Item = usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus.into_iter().filter(|cpu| *cpu < CpuSet::count()) {
        set.set(cpu).or_fail(|| "cannot write a set of CPUs")?;
    }
    match sched_setaffinity(Pid::from_raw(0), &set) {
        // The guest has none of them.
        Err(Errno::EINVAL) => Ok(()),
        done => done.or_refuse(|| "cannot set execCPUAffinity"),
    }
}
