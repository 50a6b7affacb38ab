//! Locked memory as a Kubernetes user asks for it: by annotations of the pod, since no field of a pod says it.

use std::collections::HashMap;

use framework::{
    Report, Result,
    cri::{
        PodNode,
        messages::{ContainerConfig, Int64Value},
    },
};
use serde_json::json;

const MEMLOCK: &str = "io.katacontainers.container.resource.memlock";
const CAP_IPC_LOCK: &str = "io.katacontainers.container.cap_ipc_lock";
/// CAP_IPC_LOCK's number (include/uapi/linux/capability.h).
const IPC_LOCK: u64 = 1 << 14;

fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// The same container as user 1000.
fn as_user(mut config: ContainerConfig) -> ContainerConfig {
    let linux = config.linux.as_mut();
    if let Some(context) = linux.and_then(|linux| linux.security_context.as_mut()) {
        context.run_as_user = Some(Int64Value { value: 1000 });
    }
    config
}

fn check(report: &Report) -> Result<()> {
    assert_eq!(report.fact("/rlimits/MEMLOCK"), &json!([32 << 20, 64 << 20]));
    // CRI gives no limits at all.
    assert_eq!(report.fact("/rlimits/NOFILE"), &json!([1024, 524_288]));
    assert_eq!(report.capabilities("CapEff")? & IPC_LOCK, IPC_LOCK);
    Ok(())
}

/// What only this runtime has.
mod kata_only {
    use super::*;

    #[test]
    fn a_pods_annotations_reach_its_containers_and_their_execs() -> Result<()> {
        let node = PodNode::start()?;
        let mut config = node.pod("bpf");
        config.annotations = annotations(&[(MEMLOCK, "32MiB:64MiB"), (CAP_IPC_LOCK, "ambient")]);
        let pod = node.run(&config)?;
        let reporting = |name: &str| pod.container(name, &["guest-probe", "report"]);
        check(&pod.start(&reporting("root"))?.report()?)?;
        check(&pod.start(&as_user(reporting("user")))?.report()?)?;
        // The kernel's own tables, read by an exec of either user.
        let asleep = |name: &str| pod.container(name, &["sleep", "1000"]);
        for (uid, config) in [("0", asleep("sleeping")), ("1000", as_user(asleep("sleeping-user")))] {
            let told = pod
                .start(&config)?
                .sh("id -u; grep locked /proc/self/limits; grep CapEff /proc/self/status")?;
            let words: Vec<&str> = told.split_whitespace().collect();
            assert_eq!(
                words[..6],
                [uid, "Max", "locked", "memory", "33554432", "67108864"],
                "{told}"
            );
            let effective = words.last().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let has = effective.is_some_and(|effective| effective & IPC_LOCK == IPC_LOCK);
            assert!(has, "{told}");
        }
        pod.stop()?;
        pod.remove()?;

        let mut wrong = node.pod("wrong");
        wrong.annotations = annotations(&[(MEMLOCK, "lots")]);
        let refused = node.run(&wrong).map(|pod| pod.id);
        let said = refused.err().map(|error| error.to_string()).unwrap_or_default();
        let expected = format!("{MEMLOCK} of the container = \"lots\": must be SIZE or SOFT:HARD");
        assert!(said.contains(&expected), "{said}");
        node.nothing_left()
    }
}
