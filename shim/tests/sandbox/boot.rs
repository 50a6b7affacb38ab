//! A sandbox that does not come up says why, to the Create that waits for it.

use std::time::Duration;

use ttrpc::Code;

use crate::support::{Boot, CONSOLE, Shim, refusal};

/// virtiofsd would not see what is mounted while it makes its mount namespace.
#[tokio::test]
async fn nothing_is_mounted_before_the_file_server_sees_it() {
    let shim = Shim::new(Boot::Late).await;
    let creation = shim.create("c", &["sleep"]);
    tokio::pin!(creation);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut creation).await;
    assert!(early.is_err(), "it waits for the VM");
    assert!(
        shim.host.attached().is_empty(),
        "something was mounted before the VMM ran"
    );
    shim.guest.release();
    creation.await.unwrap();
    assert_eq!(shim.host.attached(), ["c"]);
    shim.stop().await;
}

#[tokio::test]
async fn a_creation_does_not_wait_for_a_vm_that_is_never_started() {
    let shim = Shim::new(Boot::Late).await;
    let creation = shim.create("c", &["sleep"]);
    tokio::pin!(creation);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut creation).await;
    assert!(early.is_err(), "it waits for the VM");
    let ((), created) = tokio::join!(shim.stop(), creation);
    assert!(refusal(created).1.contains("the sandbox was stopped"));
    assert!(shim.host.attached().is_empty());
}

async fn why(boot: Boot) -> (Code, String) {
    let shim = Shim::new(boot).await;
    let answer = refusal(shim.create("c", &["sleep"]).await);
    assert!(shim.host.attached().is_empty(), "the mounts are undone");
    // The next one is told the same, at once.
    assert_eq!(refusal(shim.create("d", &["sleep"]).await), answer);
    shim.stop().await;
    answer
}

#[tokio::test]
async fn a_vmm_that_cannot_be_started_is_reported_with_its_cause() {
    let (code, message) = why(Boot::NoLaunch).await;
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(message.contains("sandbox pod did not start"), "{message}");
    assert!(message.contains("/dev/kvm: Permission denied"), "{message}");
}

#[tokio::test]
async fn an_agent_that_never_calls_is_reported_with_the_limit_and_the_console() {
    let (code, message) = why(Boot::Silent).await;
    assert_eq!(code, Code::DEADLINE_EXCEEDED);
    assert!(message.contains("agent did not call"), "{message}");
    assert!(
        message.contains("dial_timeout") && message.contains(CONSOLE),
        "{message}"
    );
}

#[tokio::test]
async fn an_agent_that_only_says_hello_is_reported_as_such() {
    let (code, message) = why(Boot::OnlyHello).await;
    assert_eq!(code, Code::DEADLINE_EXCEEDED);
    assert!(message.contains("did not finish its setup"), "{message}");
}

#[tokio::test]
async fn an_agent_that_cannot_set_the_guest_up_is_reported_with_its_reason_although_the_vm_ends_then() {
    let (code, message) = why(Boot::GivesUp).await;
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(
        message.contains("the agent gave up: the kernel has no module \"e1000e\""),
        "{message}"
    );
}

#[tokio::test]
async fn a_vm_that_ends_while_it_boots_is_reported_with_its_console() {
    let (code, message) = why(Boot::Dies).await;
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(message.contains("QEMU exited with status 1"), "{message}");
    assert!(message.contains(CONSOLE), "{message}");
}

#[tokio::test]
async fn a_sandbox_that_is_stopped_while_it_boots_fails_the_create_that_waits() {
    let shim = Shim::new(Boot::Dies).await;
    shim.stop().await;
    assert_eq!(refusal(shim.create("c", &["sleep"]).await).0, Code::UNAVAILABLE);
}
