//! Which CPUs of the host each vCPU's thread may run on.
//!
//! The rule is Kata's (docs/design/vcpu-threads-pinning.md of it): as many vCPUs as the set has CPUs, and each gets one of its own;
//! else none does. It knows nothing of cgroups: the kernel keeps every thread within the set of its cgroup anyway.

use std::io;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::qmp::{Qmp, QmpError};

/// Why vCPUs could not be pinned, or not be let go.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum PinError {
    #[error("cannot ask QEMU for the threads of the vCPUs")]
    Threads(#[source] QmpError),
    /// The kernel refuses: not a CPU of the cgroup's set, or not online any more.
    #[error("cannot choose the CPUs of thread {thread}")]
    Affinity {
        thread: i32,
        #[source]
        source: io::Error,
    },
}

/// Pins each vCPU to one of these CPUs, both in the order of their numbers, and says whether it did: not if there are fewer or
/// more of them, nor if one thread runs all vCPUs (`-accel tcg,thread=single`).
pub(crate) async fn pin(qmp: &Qmp, qemu: u32, cpus: &[usize]) -> Result<bool, PinError> {
    let threads = threads(qmp, qemu).await?;
    if !one_each(&threads, cpus) {
        return Ok(false);
    }
    for (thread, cpu) in threads.into_iter().zip(cpus) {
        let mut set = CpuSet::new();
        set.set(*cpu);
        allow(thread, &set)?;
    }
    Ok(true)
}

/// Lets each vCPU run wherever its cgroup may.
pub(crate) async fn unpin(qmp: &Qmp, qemu: u32) -> Result<(), PinError> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    threads(qmp, qemu)
        .await?
        .into_iter()
        .try_for_each(|thread| allow(thread, &all))
}

fn one_each(threads: &[Pid], cpus: &[usize]) -> bool {
    threads.len() == cpus.len()
        && cpus.iter().all(|cpu| *cpu < CpuSet::MAX_CPU)
        && threads.windows(2).all(|pair| pair[0] != pair[1])
}

fn allow(thread: Pid, set: &CpuSet) -> Result<(), PinError> {
    sched_setaffinity(Some(thread), set).map_err(|error| PinError::Affinity {
        thread: thread.as_raw_nonzero().get(),
        source: error.into(),
    })
}

/// The vCPUs' threads. What is no thread of QEMU's is left out: a QEMU that the guest has taken over may name any of the host's.
async fn threads(qmp: &Qmp, qemu: u32) -> Result<Vec<Pid>, PinError> {
    let answer = qmp.execute("query-cpus-fast", Value::Null).await;
    let mut threads = parse(&answer.map_err(PinError::Threads)?);
    threads.retain(|thread| is_thread_of(*thread, qemu));
    Ok(threads)
}

fn is_thread_of(thread: Pid, process: u32) -> bool {
    Path::new(&format!("/proc/{process}/task/{}", thread.as_raw_nonzero())).exists()
}

/// From CpuInfoFast of QEMU's qapi/machine.json, in the order of the vCPUs' numbers.
fn parse(answer: &Value) -> Vec<Pid> {
    let entries = answer.as_array().map_or(&[][..], Vec::as_slice).iter();
    let mut vcpus: Vec<_> = entries
        .filter_map(|entry| {
            let thread = i32::try_from(entry["thread-id"].as_i64()?).ok()?;
            Some((entry["cpu-index"].as_i64()?, Pid::from_raw(thread)?))
        })
        .collect();
    vcpus.sort_by_key(|(index, _)| *index);
    vcpus.into_iter().map(|(_, thread)| thread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn threads_come_in_the_order_of_the_vcpus() {
        let answer = json!([{ "cpu-index": 2, "thread-id": 70 }, { "cpu-index": 0, "thread-id": 90 }]);
        let ids: Vec<_> = parse(&answer).iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        assert_eq!(ids, [90, 70]);
    }

    #[test]
    fn a_thread_of_another_process_is_none_of_the_vcpus() {
        let (own, init) = (std::process::id(), Pid::from_raw(1).unwrap());
        assert!(is_thread_of(rustix::thread::gettid(), own));
        assert!(!is_thread_of(init, own));
    }

    #[test]
    fn each_vcpu_needs_a_cpu_and_a_thread_of_its_own() {
        let threads = |ids: &[i32]| -> Vec<Pid> { ids.iter().filter_map(|id| Pid::from_raw(*id)).collect() };
        assert!(one_each(&threads(&[7, 8]), &[0, 3]));
        assert!(!one_each(&threads(&[7, 8]), &[0]));
        assert!(!one_each(&threads(&[7]), &[0, 3]));
        assert!(!one_each(&threads(&[7, 7]), &[0, 3]));
        assert!(!one_each(&threads(&[7]), &[CpuSet::MAX_CPU]));
    }
}
