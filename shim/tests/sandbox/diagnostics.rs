//! What `kata-ctl` asks of a sandbox.

use protocol::agent::MemlockRequest;
use protocol::diagnostics::{ConsoleRequest, HealthRequest, MetricsRequest, SandboxRequest, VcpusRequest};
use ttrpc::Code;

use crate::support::{Boot, Shim, refusal, soon};

#[tokio::test]
async fn a_sandbox_says_who_it_is_and_which_containers_it_has() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    shim.run("b", &["sleep"]).await;
    shim.create("a", &["sleep"]).await.unwrap();
    let info = diagnostics.sandbox(soon(), &SandboxRequest::new()).await.unwrap();
    assert_eq!((info.namespace.as_str(), info.sandbox_id.as_str()), ("default", "pod"));
    assert_eq!(info.container_ids, ["a", "b"]);
}

#[tokio::test]
async fn what_a_process_may_lock_comes_with_the_policy_and_without_the_guests_control_characters() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    shim.run("c", &["sleep"]).await;
    let request = |container: &str| MemlockRequest {
        container_id: container.to_owned(),
        pid: 7,
        pages: 64,
        ..Default::default()
    };
    let response = diagnostics.memlock(soon(), &request("c")).await.unwrap();
    assert_eq!(response.report.pid, 7);
    assert!(response.report.command.len() < 80 && !response.report.command.contains(char::is_control));
    assert_eq!(
        (response.policy.default_bytes, response.policy.max_bytes),
        (8 << 20, u64::MAX)
    );
    assert_eq!(response.policy.cap_ipc_lock, "spec");

    let (code, message) = refusal(diagnostics.memlock(soon(), &request("other")).await);
    assert_eq!(
        (code, message.as_str()),
        (Code::NOT_FOUND, "container other does not exist in this sandbox")
    );
    let (code, _) = refusal(diagnostics.memlock(soon(), &request("../x")).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn the_health_of_a_sandbox_is_that_of_its_vm_its_agent_and_its_containers() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    shim.run("c", &["sleep"]).await;
    let health = diagnostics.health(soon(), &HealthRequest::new()).await.unwrap();
    assert_eq!((health.vm_state.as_str(), health.agent_answers), ("ready", true));
    assert_eq!(health.vmm_error, "this VMM does not tell its state");
    assert_eq!(
        (
            health.containers[0].container_id.as_str(),
            health.containers[0].state.as_str()
        ),
        ("c", "running")
    );
    let (code, _) = refusal(diagnostics.vcpus(soon(), &VcpusRequest::new()).await);
    assert_eq!(code, Code::UNAVAILABLE);
}

#[tokio::test]
async fn a_sandbox_that_did_not_start_says_why() {
    let shim = Shim::new(Boot::NoLaunch).await;
    let diagnostics = shim.diagnostics().await;
    shim.create("c", &["sleep"]).await.unwrap_err();
    let health = diagnostics.health(soon(), &HealthRequest::new()).await.unwrap();
    assert_eq!(health.vm_state, "failed");
    assert!(
        health.reason.contains("/dev/kvm: Permission denied"),
        "{}",
        health.reason
    );
    assert!(!health.agent_answers && !health.agent_error.is_empty());
}

#[tokio::test]
async fn figures_are_in_lines_that_the_guest_cannot_break() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    shim.run("c", &["sleep"]).await;
    let text = diagnostics.metrics(soon(), &MetricsRequest::new()).await.unwrap().text;
    for line in [
        "kata_guest_up{sandbox=\"pod\"} 1",
        "kata_guest_oom_kills_total{sandbox=\"pod\"} 3",
        "kata_guest_memory_bytes{sandbox=\"pod\",item=\"Mem\\\"\\nTotal\"} 4096",
        "kata_container_up{sandbox=\"pod\",container=\"c\"} 1",
        "kata_container_processes{sandbox=\"pod\",container=\"c\"} 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}:\n{text}");
    }
}

#[tokio::test]
async fn who_scrapes_does_not_wait_for_each_container_of_a_guest_that_hangs() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    for id in ["mute-1", "mute-2", "mute-3", "mute-4", "mute-5"] {
        shim.run(id, &["mute"]).await;
    }
    shim.run("well", &["sleep"]).await;
    shim.run("over", &["exit", "0"]).await;
    shim.wait("over", "").await.unwrap();
    // One after the other, with the time that other calls have, they would take minutes.
    let text = diagnostics.metrics(soon(), &MetricsRequest::new()).await.unwrap().text;
    for line in [
        "kata_guest_up{sandbox=\"pod\"} 1",
        "kata_container_up{sandbox=\"pod\",container=\"mute-1\"} 0",
        "kata_container_up{sandbox=\"pod\",container=\"mute-5\"} 0",
        "kata_container_up{sandbox=\"pod\",container=\"well\"} 1",
        "kata_container_processes{sandbox=\"pod\",container=\"well\"} 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}:\n{text}");
    }
    assert!(text.contains("kata_shim_resident_memory_bytes"), "{text}");
    let of = |container: &str| text.matches(&format!("container=\"{container}\"")).count();
    assert_eq!((of("mute-1"), of("over")), (1, 0), "{text}");
    shim.guest.release();
}

#[tokio::test]
async fn a_guest_that_hangs_costs_whoever_asks_for_all_figures_one_wait() {
    let shim = Shim::new(Boot::Works).await;
    for id in ["mute-1", "mute-2"] {
        shim.run(id, &["mute"]).await;
    }
    shim.run("well", &["sleep"]).await;
    shim.stats("well").await.unwrap();
    assert!(shim.stats("mute-1").await.is_err());
    // It is not even asked.
    assert!(shim.stats("well").await.is_err());
    assert!(shim.stats("mute-2").await.is_err());
    assert_eq!(
        shim.guest
            .calls
            .borrow()
            .iter()
            .filter(|call| call.starts_with("stats"))
            .count(),
        2
    );
    shim.guest.release();
    let answered = async {
        while shim.stats("well").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), answered)
        .await
        .unwrap();
}

#[tokio::test]
async fn pids_are_the_hosts_and_are_told_without_the_guest() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("running", &["sleep"]).await;
    shim.run("stopped", &["exit", "0"]).await;
    shim.wait("stopped", "").await.unwrap();
    for id in ["running", "stopped"] {
        let pid = shim.state(id, "").await.unwrap().pid;
        assert_eq!(shim.pids(id).await.unwrap(), [pid]);
    }
    assert!(shim.pids("nobody").await.is_err());
    // containerd takes a shim that gives no number, when it comes back, for a leaked one, and deletes its task.
    shim.guest.die("killed", false);
    assert_eq!(shim.wait("running", "").await.unwrap(), 137);
    assert_eq!(shim.pids("running").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_console_ends_with_its_programs_code_and_leaves_nothing_in_the_guest() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    let directory = std::path::PathBuf::from(shim.fifo("stdin"));
    let outputs: Vec<_> = ["stdout", "stderr"].map(|name| shim.fifo(name)).into();
    let readers = outputs
        .iter()
        .map(|path| std::fs::File::options().read(true).write(true).open(path).unwrap());
    let _readers: Vec<_> = readers.collect();
    let request = |id: &str, program: &[&str]| ConsoleRequest {
        console_id: id.to_owned(),
        args: program.iter().map(|&word| word.to_owned()).collect(),
        directory: directory.parent().unwrap().display().to_string(),
        ..Default::default()
    };
    for _ in 0..2 {
        let ended = diagnostics
            .console(soon(), &request("a", &["exit", "7"]))
            .await
            .unwrap();
        assert_eq!(ended.status, 7);
    }
    let container = "kata-ctl..console-a";
    shim.guest.called(&format!("delete {container}")).await;
    // It is no container of the sandbox's.
    let info = diagnostics.sandbox(soon(), &SandboxRequest::new()).await.unwrap();
    assert!(info.container_ids.is_empty());
    let (code, message) = refusal(diagnostics.console(soon(), &request("a", &["missing"])).await);
    assert_ne!(code, Code::OK);
    assert!(!message.is_empty());
    let (code, _) = refusal(diagnostics.console(soon(), &request("../a", &["exit", "0"])).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    let (code, _) = refusal(diagnostics.console(soon(), &request("b", &[])).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn whoever_hangs_up_takes_their_console_with_them() {
    let shim = Shim::new(Boot::Works).await;
    let diagnostics = shim.diagnostics().await;
    let directory = std::path::PathBuf::from(shim.fifo("stdin"));
    let _outputs = ["stdout", "stderr"].map(|name| shim.fifo(name));
    let request = ConsoleRequest {
        console_id: "a".to_owned(),
        args: vec!["sleep".to_owned()],
        directory: directory.parent().unwrap().display().to_string(),
        ..Default::default()
    };
    let asking = tokio::spawn(async move { diagnostics.console(soon(), &request).await });
    shim.guest.called("start kata-ctl..console-a").await;
    asking.abort();
    let _ = asking.await;
    shim.guest.called("delete kata-ctl..console-a").await;
}
