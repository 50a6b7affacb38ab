//! Changes of the network reach the guest.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use crate::support::{Boot, Shim};

#[tokio::test]
async fn an_update_that_the_guest_refuses_is_sent_again_without_another_change() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    let network = &shim.guest.network;
    network.refusals.store(3, Ordering::SeqCst);
    network.change();
    timeout(Duration::from_secs(30), network.updated(4)).await.unwrap();
    // It has succeeded: no other one follows.
    let another = timeout(Duration::from_millis(500), network.updated(5)).await;
    assert!(another.is_err(), "it is sent again though it was taken");
}
