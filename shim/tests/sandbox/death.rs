//! The VM dies: whatever phase a process is in, containerd hears of its end, and every later call is answered.

use containerd_shim_protos::api::Status;
use ttrpc::Code;

use crate::support::{Boot, Shim, Stdio, refusal, soon};

const KILLED: u32 = 137;

#[tokio::test]
async fn running_processes_are_killed_by_it_the_execs_first() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim.exec("c", "e", &["sleep"]).await.unwrap();
    shim.start("c", "e").await.unwrap();
    shim.guest.die("QEMU was killed by signal 9", false);
    assert_eq!(shim.wait("c", "e").await.unwrap(), KILLED);
    assert_eq!(shim.wait("c", "").await.unwrap(), KILLED);
    assert_eq!(shim.containerd.exit("e").await.exit_status, KILLED);
    assert_eq!(shim.containerd.exit("c").await.exit_status, KILLED);
    later_calls_answer(&shim, "c").await;
}

#[tokio::test]
async fn a_create_whose_mounts_never_come_fails_with_it() {
    let shim = Shim::new(Boot::Works).await;
    let request = shim.create_request("c", &["silent"], Stdio::default());
    let tasks = shim.connect().await;
    let create = tokio::spawn(async move { tasks.create(soon(), &request).await });
    shim.host.attaches().await;
    shim.guest.die("QEMU was killed by signal 9", false);
    let (code, message) = refusal(create.await.unwrap());
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(message.contains("killed by signal 9"), "{message}");
    assert!(shim.host.attached().is_empty());
}

async fn later_calls_answer(shim: &Shim, id: &str) {
    assert_eq!(shim.status(id, "").await, Status::STOPPED);
    assert_eq!(refusal(shim.kill(id, "", 9).await).0, Code::NOT_FOUND);
    assert_eq!(
        refusal(shim.exec(id, "late", &["sleep"]).await).0,
        Code::FAILED_PRECONDITION
    );
    assert_eq!(refusal(shim.create("late", &["sleep"]).await).0, Code::UNAVAILABLE);
    assert_eq!(shim.delete(id, "").await.unwrap().exit_status, KILLED);
    assert_eq!(refusal(shim.state(id, "").await).0, Code::NOT_FOUND);
    assert!(shim.host.attached().is_empty());
    assert_eq!(shim.containerd.exits(id), 1, "an exit is told once");
}

#[tokio::test]
async fn a_container_that_is_not_started_is_killed_by_it() {
    let shim = Shim::new(Boot::Works).await;
    shim.create("c", &["sleep"]).await.unwrap();
    shim.guest.die("QEMU was killed by signal 9", false);
    assert_eq!(shim.wait("c", "").await.unwrap(), KILLED);
    assert_eq!(shim.containerd.exit("c").await.exit_status, KILLED);
    later_calls_answer(&shim, "c").await;
}

#[tokio::test]
async fn a_create_that_is_under_way_fails_and_is_undone() {
    let shim = Shim::new(Boot::Works).await;
    let request = shim.create_request("c", &["slow"], Stdio::default());
    let tasks = shim.connect().await;
    let create = tokio::spawn(async move { tasks.create(soon(), &request).await });
    shim.guest.called("create c").await;
    shim.guest.die("QEMU was killed by signal 9", false);
    assert_eq!(refusal(create.await.unwrap()).0, Code::UNAVAILABLE);
    assert!(shim.host.attached().is_empty());
    assert_eq!(refusal(shim.state("c", "").await).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_start_that_is_under_way_fails_and_the_container_ends() {
    let shim = Shim::new(Boot::Works).await;
    shim.create("c", &["stuck"]).await.unwrap();
    let (start, ()) = tokio::join!(shim.start("c", ""), async {
        shim.guest.called("start c").await;
        shim.guest.die("QEMU was killed by signal 9", false);
    });
    assert_eq!(refusal(start).0, Code::UNAVAILABLE);
    assert_eq!(shim.wait("c", "").await.unwrap(), KILLED);
    later_calls_answer(&shim, "c").await;
}

#[tokio::test]
async fn an_exec_that_is_being_started_fails() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim.exec("c", "e", &["stuck"]).await.unwrap();
    let (start, ()) = tokio::join!(shim.start("c", "e"), async {
        shim.guest.called("exec c").await;
        shim.guest.die("QEMU was killed by signal 9", false);
    });
    assert_eq!(refusal(start).0, Code::UNAVAILABLE);
    assert_eq!(shim.wait("c", "").await.unwrap(), KILLED);
    shim.wait("c", "e").await.unwrap();
    later_calls_answer(&shim, "c").await;
}

#[tokio::test]
async fn a_host_that_ran_out_of_memory_is_named_before_the_exit() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim.guest.die("QEMU was killed by signal 9", true);
    assert_eq!(shim.wait("c", "").await.unwrap(), KILLED);
    let topics = shim.containerd.topics(4).await;
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]);
}

#[tokio::test]
async fn a_guest_that_does_not_answer_a_sigkill_is_ended_itself() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["hung"]).await;
    shim.kill("c", "", 9).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), KILLED);
    later_calls_answer(&shim, "c").await;
}

#[tokio::test]
async fn a_container_that_waits_at_its_gate_in_such_a_guest_can_be_deleted() {
    let shim = Shim::new(Boot::Works).await;
    shim.create("c", &["hung"]).await.unwrap();
    assert_eq!(shim.delete("c", "").await.unwrap().exit_status, KILLED);
    assert!(shim.host.attached().is_empty());
}

#[tokio::test]
async fn what_sigkill_does_not_end_is_ended_with_its_machine_once_nobody_else_needs_it() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("stuck", &["unkillable"]).await;
    shim.run("neighbour", &["sleep"]).await;
    shim.kill("stuck", "", 9).await.unwrap();
    // A machine that ended because of it would take the neighbour with it, with the same status but earlier.
    shim.exec("neighbour", "e", &["exit", "0"]).await.unwrap();
    shim.start("neighbour", "e").await.unwrap();
    assert_eq!(shim.wait("neighbour", "e").await.unwrap(), 0);
    assert_eq!(shim.status("neighbour", "").await, Status::RUNNING);
    shim.kill("neighbour", "", 9).await.unwrap();
    assert_eq!(shim.wait("neighbour", "").await.unwrap(), 137);
    assert_eq!(shim.wait("stuck", "").await.unwrap(), 137);
}

#[tokio::test]
async fn a_container_that_the_guest_does_not_forget_can_be_deleted_all_the_same_once_nobody_else_lives() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["clinging"]).await;
    shim.run("other", &["sleep"]).await;
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    for _ in 0..2 {
        let (code, message) = refusal(shim.delete("c", "").await);
        assert_eq!(code, Code::INTERNAL);
        assert!(message.contains("it does not go away"), "{message}");
    }
    shim.kill("other", "", 9).await.unwrap();
    shim.wait("other", "").await.unwrap();
    assert_eq!(shim.delete("c", "").await.unwrap().exit_status, KILLED);
    shim.delete("other", "").await.unwrap();
    assert!(shim.host.attached().is_empty());
}

#[tokio::test]
async fn whoever_deletes_the_last_container_is_told_first_that_the_guest_does_not_forget_it() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["clinging"]).await;
    shim.kill("c", "", 9).await.unwrap();
    shim.wait("c", "").await.unwrap();
    assert_eq!(refusal(shim.delete("c", "").await).0, Code::INTERNAL);
    shim.delete("c", "").await.unwrap();
}
