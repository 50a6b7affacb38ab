//! Relays connections of containers to the host, one vsock connection each. It does not know which service they reach.

use std::sync::Arc;
use std::time::Duration;

use protocol::preamble::{Preamble, Token};
use relay::{Listener, Side, Socket, Traffic};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::connections::dial::Dialer;

/// How long nothing is accepted where there are no descriptors or no memory for it: nothing tells when there are.
const BREATHER: Duration = Duration::from_millis(100);

/// Accepts connections and relays each, for ever. One is accepted beyond those that there is room for; further ones wait in the
/// socket's backlog, as with a busy service. Dropping the future breaks all of them.
pub(crate) async fn accept(dialer: Dialer, listener: Listener, token: Token, rooms: Vec<Arc<Semaphore>>) {
    let mut relays = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = relays.join_next() => continue,
        };
        match accepted {
            Ok(socket) => {
                let places = enter(&rooms).await;
                relays.spawn(relay(dialer, socket, token, places));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the host is not accepted yet");
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

async fn enter(rooms: &[Arc<Semaphore>]) -> Vec<OwnedSemaphorePermit> {
    let mut places = Vec::new();
    for room in rooms {
        // They are never closed.
        places.extend(Arc::clone(room).acquire_owned().await);
    }
    places
}

async fn relay(dialer: Dialer, socket: Socket, token: Token, _places: Vec<OwnedSemaphorePermit>) {
    let relayed = async {
        let stream = dialer.dial(Preamble::Relay(token)).await?;
        relay::relay(&socket, stream, Side::Dialled, &Traffic::default()).await
    };
    if let Err(error) = relayed.await {
        tracing::debug!(%error, "a connection to the host has broken");
    }
}
