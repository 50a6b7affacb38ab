//! Work that is given up, answered late or overtaken half-way: nothing of it is lost or forgotten.

use std::time::Duration;

use containerd_shim_protos::api::{PauseRequest, Status};
use containerd_shim_protos::sandbox_api::SandboxStatusRequest;
use ttrpc::Code;

use crate::support::{Boot, POD, Shim, Stdio, refusal, soon};

/// Longer than a deletion may be without progress here, and shorter than a test may take.
const LONG: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_deletion_goes_on_as_long_as_its_disk_does_and_whoever_asks_again_joins_it() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    shim.create_on("c", &["flushing"], &[(&image, false)]).await.unwrap();
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    let first = tokio::time::timeout(LONG, shim.delete("c", "")).await;
    assert!(first.is_err(), "it is answered though the disk is not written");
    assert_eq!(
        shim.guest.disks.plugged(),
        ["tatami-1"],
        "it is unplugged under its writer"
    );
    let (second, third, ()) = tokio::join!(shim.delete("c", ""), shim.delete("c", ""), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        shim.guest.release();
    });
    assert_eq!((second.unwrap().exit_status, third.unwrap().exit_status), (137, 137));
    assert!(shim.guest.disks.plugged().is_empty() && shim.host.attached().is_empty());
    let topics = shim.containerd.topics(3).await;
    assert_eq!(topics, ["/tasks/create", "/tasks/exit", "/tasks/delete"]);
}

#[tokio::test]
async fn a_guest_that_answers_neither_a_deletion_nor_a_ping_is_not_waited_for() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["speechless"]).await;
    shim.run("neighbour", &["sleep"]).await;
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    let (code, message) = refusal(shim.delete("c", "").await);
    assert_eq!(code, Code::DEADLINE_EXCEEDED);
    assert!(
        message.contains("delete container c") && message.contains("did not answer within"),
        "{message}"
    );
    // It was asked before that: a slow agent is waited for.
    shim.guest.called("ping ").await;
    // The neighbour has nobody who could end it either.
    assert_eq!(shim.wait("neighbour", "").await.unwrap(), 137);
}

#[tokio::test]
async fn a_deletion_that_gets_on_no_further_is_given_up_and_says_what_it_waits_for() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["stalled"]).await;
    shim.run("neighbour", &["sleep"]).await;
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    let (code, message) = refusal(shim.delete("c", "").await);
    assert_eq!(code, Code::DEADLINE_EXCEEDED);
    assert!(
        message.contains("cannot delete container c: the guest has waited"),
        "{message}"
    );
    assert!(message.ends_with("for its disk "), "{message}");
    assert_eq!(shim.status("neighbour", "").await, Status::RUNNING);
}

#[tokio::test]
async fn a_guest_that_is_slow_to_kill_an_exec_keeps_its_containers() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim.exec("c", "probe", &["hung"]).await.unwrap();
    shim.start("c", "probe").await.unwrap();
    let kill = shim.kill("c", "probe", 9);
    let goes_on = async {
        // It is asked whether it is there at all, and it is.
        shim.guest.called("ping ").await;
        let request = SandboxStatusRequest {
            sandbox_id: POD.to_owned(),
            ..Default::default()
        };
        // Shorter than what is left of the call's time limit, which is scaled like all others.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let status = shim.sandbox.sandbox_status(soon(), &request).await.unwrap();
        assert_eq!(status.state, "SANDBOX_READY");
        assert_eq!(shim.status("c", "").await, Status::RUNNING);
        shim.guest.release();
    };
    let (killed, ()) = tokio::join!(kill, goes_on);
    killed.unwrap();
    assert_eq!(shim.wait("c", "probe").await.unwrap(), 137);
}

#[tokio::test]
async fn an_exec_that_fails_after_the_guest_has_started_it_is_killed_and_can_be_deleted() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    let stdio = Stdio {
        stdout: shim.fifo("stdout"),
        ..Default::default()
    };
    shim.exec_with("c", "e", &["undialled"], stdio).await.unwrap();
    assert_eq!(refusal(shim.start("c", "e").await).0, Code::DEADLINE_EXCEEDED);
    assert_eq!(shim.delete("c", "e").await.unwrap().exit_status, 127);
    assert!(!shim.guest.has("c", "e"), "the guest keeps its process");
    assert_eq!(shim.containerd.exits("e"), 0, "it was never told to have started");
}

#[tokio::test]
async fn a_creation_that_fails_after_the_guest_has_made_it_leaves_neither_id_nor_disk() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    let stdout = shim.fifo("stdout");
    let failed = shim
        .create_on_with("c", &["undialled"], &[(&image, false)], &stdout)
        .await;
    assert_eq!(refusal(failed).0, Code::DEADLINE_EXCEEDED);
    assert!(!shim.guest.has("c", ""), "the guest keeps the container");
    assert!(shim.guest.disks.plugged().is_empty() && shim.host.attached().is_empty());
    shim.create_on("c", &["exit", "0"], &[(&image, true)]).await.unwrap();
}

#[tokio::test]
async fn a_pause_whose_client_goes_is_told_when_it_is_done() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["tough"]).await;
    let tasks = shim.connect().await;
    let pause = tokio::spawn(async move {
        let request = PauseRequest {
            id: "c".to_owned(),
            ..Default::default()
        };
        tasks.pause(soon(), &request).await
    });
    shim.guest.called("pause c").await;
    pause.abort();
    let _ = pause.await;
    shim.guest.release();
    let topics = shim.containerd.topics(3).await;
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/paused"]);
    assert_eq!(shim.status("c", "").await, Status::PAUSED);
}
