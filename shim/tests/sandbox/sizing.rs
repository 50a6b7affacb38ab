//! The VM grows for its containers before they may use it, and shrinks when they do not any more.

use std::sync::atomic::Ordering;

use ttrpc::Code;

use crate::support::{Boot, Shim, refusal};

/// 256 MiB at the boot, and 65 for a container of 64: one for the guest's records.
const ONE: &str = "321 MiB";
const TWO: &str = "386 MiB";
const NONE: &str = "256 MiB";

#[tokio::test]
async fn memory_comes_with_a_container_and_goes_with_its_exit_or_its_deletion() {
    let shim = Shim::new(Boot::Works).await;
    shim.create("plain", &["sleep"]).await.unwrap();
    assert!(shim.guest.size.changes.borrow().is_empty());
    shim.create_limited("a", &["exit", "0"], 64).await.unwrap();
    shim.create_limited("b", &["sleep"], 64).await.unwrap();
    assert_eq!(*shim.guest.size.changes.borrow(), [ONE, TWO]);
    shim.start("a", "").await.unwrap();
    shim.wait("a", "").await.unwrap();
    assert_eq!(shim.guest.size.after(3).await, [ONE, TWO, ONE]);
    // It was counted no more already.
    shim.delete("a", "").await.unwrap();
    shim.delete("b", "").await.unwrap();
    assert_eq!(shim.guest.size.after(4).await, [ONE, TWO, ONE, NONE]);
    shim.guest
        .calls
        .subscribe()
        .wait_for(|calls| calls.iter().filter(|call| *call == "resize to 1").count() == 2)
        .await
        .unwrap();
}

#[tokio::test]
async fn two_containers_that_come_at_once_both_fit() {
    let shim = Shim::new(Boot::Works).await;
    let (one, other) = tokio::join!(
        shim.create_limited("a", &["sleep"], 64),
        shim.create_limited("b", &["sleep"], 64)
    );
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(shim.guest.size.changes.borrow().last().unwrap(), TWO);
}

#[tokio::test]
async fn an_update_grows_the_vm_before_the_guest_is_told_and_shrinks_it_after() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("a", &["sleep"]).await;
    for _ in 0..2 {
        shim.update("a", 64).await.unwrap();
        assert_eq!(*shim.guest.size.changes.borrow(), [ONE]);
    }
    let (one, other) = tokio::join!(shim.update("a", 128), shim.update("a", 128));
    assert!(one.is_ok() && other.is_ok());
    shim.update("a", 64).await.unwrap();
    assert_eq!(shim.guest.size.after(3).await, [ONE, TWO, ONE]);
}

#[tokio::test]
async fn memory_that_the_guest_does_not_take_fails_the_container_and_nothing_is_counted_for_it() {
    let shim = Shim::new(Boot::Works).await;
    shim.guest.size.stuck.store(true, Ordering::SeqCst);
    let (code, message) = refusal(shim.create_limited("a", &["sleep"], 64).await);
    assert_eq!(code, Code::RESOURCE_EXHAUSTED);
    assert!(
        message.contains("container a") && message.contains("plugged memory"),
        "{message}"
    );
    // What the guest was told is taken back.
    assert_eq!(shim.guest.size.after(2).await, [ONE, NONE]);
    assert_eq!(shim.host.attached(), Vec::<String>::new());

    shim.run("b", &["sleep"]).await;
    let (code, _) = refusal(shim.update("b", 64).await);
    assert_eq!(code, Code::RESOURCE_EXHAUSTED);
    assert_eq!(shim.guest.size.after(4).await, [ONE, NONE, ONE, NONE]);
    shim.guest.size.stuck.store(false, Ordering::SeqCst);
    shim.update("b", 64).await.unwrap();
}

#[tokio::test]
async fn vcpus_that_were_refused_are_asked_for_again_by_the_next_container() {
    let shim = Shim::new(Boot::Works).await;
    let asked = || {
        let changes = shim.guest.size.changes.borrow();
        changes
            .iter()
            .filter(|change| change.ends_with("vCPUs"))
            .cloned()
            .collect::<Vec<_>>()
    };
    shim.guest.size.refuses_vcpus.store(true, Ordering::SeqCst);
    shim.create_with_two_cpus("a").await.unwrap();
    shim.guest.size.refuses_vcpus.store(false, Ordering::SeqCst);
    let first = asked();
    assert_eq!(first.len(), 1, "{first:?}");
    shim.create("b", &["sleep"]).await.unwrap();
    assert_eq!(asked(), [first[0].clone(), first[0].clone()]);
    shim.create("c", &["sleep"]).await.unwrap();
    assert_eq!(asked().len(), 2, "they are there");
}

#[tokio::test]
async fn growing_does_not_wait_for_a_guest_that_clings_to_memory() {
    let shim = Shim::new(Boot::Works).await;
    shim.guest.size.clings.store(true, Ordering::SeqCst);
    shim.create_limited("a", &["sleep"], 128).await.unwrap();
    shim.delete("a", "").await.unwrap();
    assert_eq!(shim.guest.size.after(2).await, [TWO, NONE]);
    shim.create_limited("b", &["sleep"], 64).await.unwrap();
    assert_eq!(*shim.guest.size.changes.borrow(), [TWO, NONE, ONE]);
}

#[tokio::test]
async fn more_than_the_most_is_cut() {
    let shim = Shim::new(Boot::Works).await;
    shim.create_limited("a", &["sleep"], 1 << 20).await.unwrap();
    assert_eq!(*shim.guest.size.changes.borrow(), ["4096 MiB"]);
}

#[tokio::test]
async fn a_container_that_is_deleted_while_it_is_updated_leaves_nothing_counted() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("keeps", &["sleep"]).await;
    shim.run("a", &["sleep"]).await;
    shim.kill("a", "", 9).await.unwrap();
    let (updated, waited) = tokio::join!(shim.update("a", 64), shim.wait("a", ""));
    // It may have come too late, but what it has done is undone.
    if updated.is_ok() {
        shim.guest
            .size
            .changes
            .subscribe()
            .wait_for(|changes| changes.last().is_none_or(|last| last == NONE))
            .await
            .unwrap();
    }
    waited.unwrap();
    shim.delete("a", "").await.unwrap();
    shim.update("keeps", 64).await.unwrap();
    assert_eq!(shim.guest.size.changes.borrow().last().unwrap(), ONE);
}

#[tokio::test]
async fn the_host_allows_more_before_the_vm_grows_and_less_after_it_has_shrunk() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("a", &["sleep"]).await;
    // What was not limited is limited when the guest's limit holds.
    shim.update("a", 64).await.unwrap();
    assert_eq!(shim.guest.size.steps(2).await, [ONE, "host: 489 MiB"]);
    shim.update("a", 128).await.unwrap();
    assert_eq!(shim.guest.size.steps(4).await[2..], ["host: 562 MiB", TWO]);
    shim.update("a", 64).await.unwrap();
    assert_eq!(shim.guest.size.steps(6).await[4..], [ONE, "host: 489 MiB"]);
    // One that is not limited has the VM's own size, and what the guest asks for on top.
    shim.run("b", &["sleep"]).await;
    shim.guest.scale(256).await.unwrap();
    assert_eq!(shim.guest.size.steps(8).await[6..], ["host: 777 MiB", "577 MiB"]);
    shim.kill("b", "", 9).await.unwrap();
    assert_eq!(shim.guest.size.steps(10).await[8..], [ONE, "host: 489 MiB"]);
}

#[tokio::test]
async fn what_a_guest_does_not_give_back_the_host_does_not_take() {
    let shim = Shim::new(Boot::Works).await;
    shim.create_limited("a", &["sleep"], 64).await.unwrap();
    shim.create_limited("b", &["sleep"], 64).await.unwrap();
    shim.update("a", 65).await.unwrap();
    let grown = shim.guest.size.steps(4).await;
    assert_eq!(grown[3], "host: 564 MiB", "{grown:?}");
    shim.guest.size.clings.store(true, Ordering::SeqCst);
    shim.update("a", 64).await.unwrap();
    // Nothing follows: the guest never answers. The next to grow finds the host's limit as it was.
    let held = shim.guest.size.steps(5).await;
    assert_eq!(held[4..], [TWO], "{held:?}");
    shim.update("b", 128).await.unwrap();
    let next = shim.guest.size.steps(7).await;
    assert_eq!(next[5..7], ["host: 635 MiB", "451 MiB"], "{next:?}");
}

#[tokio::test]
async fn the_hosts_limit_follows_a_guest_that_gives_memory_back_late() {
    let shim = Shim::new(Boot::Works).await;
    shim.create_limited("a", &["sleep"], 64).await.unwrap();
    shim.create_limited("b", &["sleep"], 64).await.unwrap();
    shim.update("a", 64).await.unwrap();
    let size = &shim.guest.size;
    let grown = size.steps(3).await.len();
    let waits = |count| async move {
        let mut waited_for = size.waited_for.subscribe();
        waited_for.wait_for(|now| *now == count).await.unwrap();
    };
    size.clings.store(true, Ordering::SeqCst);
    shim.delete("b", "").await.unwrap();
    let asked = size.steps(grown + 1).await;
    assert_eq!(asked[grown..], [ONE], "{asked:?}");
    waits(1).await;
    size.gives_back_to(330);
    let some = size.steps(grown + 2).await;
    assert_eq!(some[grown + 1..], ["host: 499 MiB"]);
    // Who comes meanwhile has its turn at once, and the guest is waited for again.
    shim.run("c", &["sleep"]).await;
    shim.kill("c", "", 9).await.unwrap();
    waits(1).await;
    size.gives_back_to(321);
    let all = size.steps(grown + 3).await;
    assert_eq!(all[grown + 2..], ["host: 489 MiB"]);
    waits(0).await;
}

#[tokio::test]
async fn nobody_waits_for_memory_of_a_vm_that_has_ended() {
    let shim = Shim::new(Boot::Works).await;
    shim.create_limited("a", &["sleep"], 64).await.unwrap();
    shim.run("b", &["sleep"]).await;
    shim.guest.size.clings.store(true, Ordering::SeqCst);
    shim.delete("a", "").await.unwrap();
    let mut waited_for = shim.guest.size.waited_for.subscribe();
    waited_for.wait_for(|now| *now == 1).await.unwrap();
    shim.guest.die("QEMU exited with status 1", false);
    waited_for.wait_for(|now| *now == 0).await.unwrap();
}

#[tokio::test]
async fn a_vm_grows_for_containers_without_a_limit_within_the_configuration_and_shrinks_with_them() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("a", &["sleep"]).await;
    let size = &shim.guest.size;
    assert_eq!(shim.guest.scale(256).await.unwrap(), (256, 1792));
    assert_eq!(*size.changes.borrow(), ["512 MiB"]);
    // Limits of others come on top.
    shim.create_limited("b", &["sleep"], 64).await.unwrap();
    assert_eq!(size.changes.borrow().last().unwrap(), "577 MiB");
    // More than the most, and as much as no VM has.
    assert_eq!(shim.guest.scale(1 << 40).await.unwrap(), (1792, 1792));
    assert_eq!(size.changes.borrow().last().unwrap(), "2113 MiB");
    assert_eq!(shim.guest.scale(128).await.unwrap(), (128, 1792));
    assert_eq!(size.after(4).await[3], "449 MiB");
    // Nobody without a limit is left.
    shim.kill("a", "", 9).await.unwrap();
    assert_eq!(size.after(5).await[4], ONE);
    assert_eq!(shim.guest.scale(256).await.unwrap(), (0, 0));
    assert_eq!(size.changes.borrow().len(), 5);
}

#[tokio::test]
async fn memory_that_the_vm_does_not_take_is_refused_and_not_counted() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("a", &["sleep"]).await;
    shim.guest.size.stuck.store(true, Ordering::SeqCst);
    let (code, message) = refusal(shim.guest.scale(256).await);
    assert_eq!(code, Code::RESOURCE_EXHAUSTED);
    assert!(message.contains("plugged memory"), "{message}");
    assert_eq!(shim.guest.size.after(2).await, ["512 MiB", NONE]);
    shim.guest.size.stuck.store(false, Ordering::SeqCst);
    assert_eq!(shim.guest.scale(256).await.unwrap(), (256, 1792));
}
