//! Containers and execs from their creation to their deletion, and the events that containerd gets.

use std::time::Duration;

use containerd_shim_protos::api::{DeleteResponse, Status};

use crate::support::{Boot, PID, POD, Shim, Stdio, refusal, soon};

#[tokio::test]
async fn a_container_lives_and_its_events_come_in_order() {
    let shim = Shim::new(Boot::Works).await;
    let pid = shim.create("c", &["exit", "3"]).await.unwrap();
    // A pid of its own, which is alive, and not the VMM's: its root would be the host's.
    assert!(pid != PID && std::path::Path::new(&format!("/proc/{pid}/ns/pid")).exists());
    assert_eq!(shim.status("c", "").await, Status::CREATED);
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 3);
    assert_eq!(shim.status("c", "").await, Status::STOPPED);
    // Whoever asks late gets the same answer.
    assert_eq!(shim.wait("c", "").await.unwrap(), 3);
    let deleted = shim.delete("c", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 3));
    let topics = shim.containerd.topics(4).await;
    assert_eq!(
        topics,
        ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    );
    assert!(!shim.guest.has("c", "") && shim.host.attached().is_empty());
}

#[tokio::test]
async fn two_deletions_at_once_get_the_same_answer_and_nothing_is_done_twice() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim.exec("c", "e", &["exit", "7"]).await.unwrap();
    shim.start("c", "e").await.unwrap();
    shim.wait("c", "e").await.unwrap();
    // One of them may come when the other is done.
    let agree = |deleted: [ttrpc::Result<DeleteResponse>; 2], status: u32, what: &str| {
        let (done, failed): (Vec<_>, Vec<_>) = deleted.into_iter().partition(Result::is_ok);
        assert!(!done.is_empty(), "{what}");
        assert!(
            done.into_iter().all(|done| done.unwrap().exit_status == status),
            "{what}"
        );
        let mut codes = failed.into_iter().map(|failed| refusal(failed).0);
        assert!(codes.all(|code| code == ttrpc::Code::NOT_FOUND), "{what}");
    };
    let (one, other) = tokio::join!(shim.delete("c", "e"), shim.delete("c", "e"));
    agree([one, other], 7, "the exec");
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    let (one, other) = tokio::join!(shim.delete("c", ""), shim.delete("c", ""));
    agree([one, other], 137, "the container");
    // The next event says that there was no second one of the first container's.
    shim.create("next", &["sleep"]).await.unwrap();
    let topics = shim.containerd.topics(8).await;
    assert_eq!(topics[6..], ["/tasks/delete", "/tasks/create"]);
}

#[tokio::test]
async fn an_exec_lives_beside_the_first_process_and_ends_before_it() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim.exec("c", "e", &["exit", "7"]).await.unwrap();
    shim.start("c", "e").await.unwrap();
    assert_eq!(shim.wait("c", "e").await.unwrap(), 7);
    assert_eq!(shim.delete("c", "e").await.unwrap().exit_status, 7);
    assert_eq!(shim.status("c", "").await, Status::RUNNING);
    shim.kill("c", "", 15).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 143);
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
    ];
    assert_eq!(shim.containerd.topics(6).await, expected);
    assert_eq!(shim.containerd.exit("e").await.exit_status, 7);
    assert_eq!(shim.containerd.exit("c").await.exit_status, 143);
}

#[tokio::test]
async fn a_slow_create_holds_up_neither_another_nor_state_and_kill() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("running", &["sleep"]).await;
    let request = shim.create_request("slow", &["slow"], Stdio::default());
    let tasks = shim.connect().await;
    let slow = tokio::spawn(async move { tasks.create(soon(), &request).await });
    shim.guest.called("create slow").await;
    assert_eq!(shim.status("running", "").await, Status::RUNNING);
    shim.run("other", &["exit", "0"]).await;
    assert_eq!(shim.wait("other", "").await.unwrap(), 0);
    shim.kill("running", "", 9).await.unwrap();
    assert_eq!(shim.wait("running", "").await.unwrap(), 137);
    assert!(!slow.is_finished());
    shim.guest.release();
    slow.await.unwrap().unwrap();
    assert_eq!(shim.status("slow", "").await, Status::CREATED);
}

#[tokio::test]
async fn a_hundred_containers_are_created_started_and_deleted_at_once() {
    let shim = Shim::new(Boot::Works).await;
    let one = |number: usize| {
        let shim = &shim;
        async move {
            let id = format!("c{number}");
            shim.create(&id, &["exit", "5"]).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(shim.wait(&id, "").await.unwrap(), 5);
            assert_eq!(shim.delete(&id, "").await.unwrap().exit_status, 5);
        }
    };
    futures::future::join_all((0..100).map(one)).await;
    assert!(shim.host.attached().is_empty());
    let topics = shim.containerd.topics(400).await;
    for topic in ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] {
        assert_eq!(topics.iter().filter(|one| *one == topic).count(), 100, "{topic}");
    }
}

#[tokio::test]
async fn a_create_that_fails_leaves_nothing_and_its_id_can_be_used_again() {
    let shim = Shim::new(Boot::Works).await;
    for (program, reason) in [
        ("unmountable", "cannot mount /nowhere"),
        ("refused", "the device does not exist"),
    ] {
        let (_, message) = refusal(shim.create("c", &[program]).await);
        assert!(message.contains(reason), "{message}");
        assert!(shim.host.attached().is_empty(), "{program}");
        assert_eq!(refusal(shim.state("c", "").await).0, ttrpc::Code::NOT_FOUND);
    }
    shim.run("c", &["exit", "0"]).await;
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
}

#[tokio::test]
async fn a_create_whose_caller_hangs_up_is_undone() {
    let shim = Shim::new(Boot::Works).await;
    let request = shim.create_request("c", &["slow"], Stdio::default());
    let tasks = shim.connect().await;
    let create = tokio::spawn(async move { tasks.create(soon(), &request).await });
    shim.guest.called("create c").await;
    create.abort();
    // The guest is told to forget what it may have made, and then the mounts go.
    shim.guest.called("delete c").await;
    shim.host.detached().await;
    shim.run("c", &["exit", "0"]).await;
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let shim = Shim::new(Boot::Works).await;
    shim.create("deleted", &["sleep"]).await.unwrap();
    assert_eq!(shim.delete("deleted", "").await.unwrap().exit_status, 137);
    shim.create("killed", &["sleep"]).await.unwrap();
    shim.kill("killed", "", 9).await.unwrap();
    assert_eq!(shim.wait("killed", "").await.unwrap(), 137);
    assert_eq!(shim.delete("killed", "").await.unwrap().exit_status, 137);
}

#[tokio::test]
async fn a_program_that_is_missing_fails_the_start_with_the_agents_words() {
    let shim = Shim::new(Boot::Works).await;
    shim.create("c", &["missing"]).await.unwrap();
    let (_, message) = refusal(shim.start("c", "").await);
    assert!(message.contains("no such file"), "{message}");
    shim.run("d", &["sleep"]).await;
    shim.exec("d", "e", &["missing"]).await.unwrap();
    let (_, message) = refusal(shim.start("d", "e").await);
    assert!(message.contains("no such file"), "{message}");
    assert_eq!(shim.wait("d", "e").await.unwrap(), 127);
    assert_eq!(shim.delete("d", "e").await.unwrap().exit_status, 127);
    // As runc's shim: the exec was added and that is all.
    shim.kill("d", "", 9).await.unwrap();
    let topics = shim.containerd.topics(5).await;
    let of_exec = [
        "/tasks/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exit",
    ];
    assert_eq!(topics, of_exec);
}

#[tokio::test]
async fn the_sandbox_has_a_status_and_an_end_of_its_own() {
    use containerd_shim_protos::sandbox_api::{
        SandboxMetricsRequest, SandboxStatusRequest, StartSandboxRequest, WaitSandboxRequest,
    };
    let shim = Shim::new(Boot::Works).await;
    let start = StartSandboxRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    };
    let first = shim.sandbox.start_sandbox(soon(), &start).await.unwrap();
    let again = shim.sandbox.start_sandbox(soon(), &start).await.unwrap();
    assert_ne!(first.pid, PID);
    assert_eq!(first.created_at, again.created_at, "a sandbox is created once");
    let status = SandboxStatusRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    };
    let now = shim.sandbox.sandbox_status(soon(), &status).await.unwrap();
    assert_eq!(now.state, "SANDBOX_READY");
    assert_eq!(now.created_at, first.created_at);
    let metrics = SandboxMetricsRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    };
    shim.run(POD, &["sleep"]).await;
    assert_eq!(shim.state(POD, "").await.unwrap().pid, first.pid);
    let figures = shim.sandbox.sandbox_metrics(soon(), &metrics).await.unwrap();
    assert_eq!(figures.metrics.id, POD);
    assert!(figures.metrics.data.type_url.ends_with("Metrics"));
    shim.stop().await;
    let wait = WaitSandboxRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    };
    let ended = shim.sandbox.wait_sandbox(soon(), &wait).await.unwrap();
    assert_eq!(ended.exit_status, 0, "it was asked to end");
    let then = shim.sandbox.sandbox_status(soon(), &status).await.unwrap();
    assert_eq!(then.state, "SANDBOX_NOTREADY");
}

#[tokio::test]
async fn the_agent_is_hung_up_on_once_it_has_been_told_to_power_off() {
    // The quickest of three: a machine may stand still for a while.
    let mut times = Vec::new();
    for _ in 0..3 {
        let shim = Shim::new(Boot::Works).await;
        shim.run("c", &["sleep"]).await;
        let began = std::time::Instant::now();
        shim.stop().await;
        times.push(began.elapsed());
        assert_eq!(shim.wait("c", "").await.unwrap(), 137);
    }
    // The guest's own limit is a second, and ours is two.
    assert!(times.iter().min() < Some(&Duration::from_millis(700)), "{times:?}");
}

#[tokio::test]
async fn containerds_shutdown_counts_once_nothing_is_left() {
    use containerd_shim_protos::api::ShutdownRequest;
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["exit", "0"]).await;
    shim.wait("c", "").await.unwrap();
    shim.tasks.shutdown(soon(), &ShutdownRequest::new()).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), shim.shutdown.notified()).await;
    assert!(early.is_err(), "a container is left");
    // The mounts of another are waited for, and that may be for ever.
    let request = shim.create_request("other", &["silent"], Stdio::default());
    let tasks = shim.connect().await;
    let create = tokio::spawn(async move { tasks.create(soon(), &request).await });
    shim.host.attaches().await;
    shim.delete("c", "").await.unwrap();
    shim.tasks.shutdown(soon(), &ShutdownRequest::new()).await.unwrap();
    shim.shutdown.notified().await;
    shim.stop().await;
    assert_eq!(refusal(create.await.unwrap()).0, ttrpc::Code::UNAVAILABLE);
}

#[tokio::test]
async fn an_exec_that_may_not_lock_what_it_asks_for_is_refused_before_anything_is_started() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    let limit = serde_json::json!({ "type": "RLIMIT_MEMLOCK", "soft": 2, "hard": 1 });
    let process = serde_json::json!({ "args": ["exit", "0"], "rlimits": [limit] });
    let (code, message) = refusal(shim.exec_process("c", "e", &process, Stdio::default()).await);
    assert_eq!(
        (code, message.as_str()),
        (
            ttrpc::Code::INVALID_ARGUMENT,
            "cannot add exec e of container c: process.rlimits RLIMIT_MEMLOCK = 2:1: the soft limit must be at most the \
             hard one"
        )
    );
    assert!(!shim.guest.has("c", "e"));
    // The name is free.
    shim.exec("c", "e", &["exit", "0"]).await.unwrap();
}

#[tokio::test]
async fn one_container_of_a_living_pod_is_ended_and_the_others_live() {
    let shim = Shim::new(Boot::Works).await;
    for id in ["pod", "leaked", "created"] {
        shim.create(id, &["sleep"]).await.unwrap();
    }
    shim.start("pod", "").await.unwrap();
    shim.start("leaked", "").await.unwrap();
    assert!(shim.was_asked());
    for id in ["leaked", "created"] {
        let answer = shim::command::delete::end(&shim.address(), id).await.unwrap();
        assert_eq!(answer.exit_status, 137);
        assert!(shim.state(id, "").await.is_err());
    }
    assert!(shim::command::delete::end(&shim.address(), "nobody").await.is_err());
    assert_eq!(shim.status("pod", "").await, Status::RUNNING);
}
