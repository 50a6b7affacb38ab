//! Docker's name server, for containers with and without a network.

use std::sync::atomic::Ordering;

use crate::support::{Boot, Shim};

#[tokio::test]
async fn a_guest_without_a_network_is_given_no_name_server() {
    for (shim, asked) in [
        (Shim::new(Boot::Works).await, true),
        (Shim::without_network().await, false),
    ] {
        shim.run("c", &["sleep", "resolver"]).await;
        assert_eq!(shim.host.names_asked.load(Ordering::SeqCst) > 0, asked);
        shim.stop().await;
    }
}
