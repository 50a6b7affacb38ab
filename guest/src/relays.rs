//! The services of the host that the guest may connect to, each by a token: 128 random bits that the agent was given. So a program of the
//! guest cannot name or guess a service.
//!
//! It owns the tokens and the limits of connections, and does not know the services.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use protocol::preamble::{TOKEN_LENGTH, Token};
use tokio::sync::{Semaphore, watch};

use crate::connection::Connection;

/// Connections at a time to one service, and to all. The agent opens half as many; the rest is for those that it has closed and that
/// are not known to be closed here.
const TO_ONE: usize = 256;
const TO_ALL: usize = 512;

/// What a token stands for.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Serves one connection of the guest to its end. Dropping the future breaks it.
    async fn serve(&self, connection: Connection);
}

struct Offered {
    service: Arc<dyn Service>,
    room: Arc<Semaphore>,
    withdrawn: watch::Receiver<()>,
}

struct Table {
    offered: Mutex<HashMap<Token, Offered>>,
    room: Arc<Semaphore>,
    counts: Counts,
}

/// Connections since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Those that were served, whatever came of it.
    pub served: AtomicU64,
    /// Those that were not, because there were too many, or their token meant nothing.
    pub refused: AtomicU64,
}

/// All that a guest may be connected with. Cheap to clone.
#[derive(Clone)]
pub struct Relays(Arc<Table>);

impl Default for Relays {
    fn default() -> Self {
        Self(Arc::new(Table {
            offered: Mutex::default(),
            room: Arc::new(Semaphore::new(TO_ALL)),
            counts: Counts::default(),
        }))
    }
}

/// A service that is offered. Dropping it withdraws the token and breaks the connections.
pub struct Offer {
    /// What the agent names it by.
    pub token: Token,
    relays: Relays,
    _withdrawn: watch::Sender<()>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.relays.lock().remove(&self.token);
    }
}

/// Why a connection is not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum Refused {
    /// The token means nothing, or no longer.
    #[error("nobody is offered by its token")]
    Unknown,
    #[error("there are too many connections")]
    TooMany,
}

impl Relays {
    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Offered>> {
        self.0.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a service to the guest.
    #[must_use]
    pub fn offer(&self, service: Arc<dyn Service>) -> Offer {
        let mut token = [0; TOKEN_LENGTH];
        node::sys::fill_random(&mut token);
        let (sender, withdrawn) = watch::channel(());
        let offered = Offered {
            service,
            room: Arc::new(Semaphore::new(TO_ONE)),
            withdrawn,
        };
        self.lock().insert(token, offered);
        Offer {
            token,
            relays: self.clone(),
            _withdrawn: sender,
        }
    }

    /// Has a connection served, in a task of its own.
    ///
    /// # Errors
    /// It is dropped.
    pub fn serve(&self, token: &Token, connection: Connection) -> Result<(), Refused> {
        let served = self.try_serve(token, connection);
        let count = match served {
            Ok(()) => &self.0.counts.served,
            Err(_) => &self.0.counts.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
        served
    }

    fn try_serve(&self, token: &Token, connection: Connection) -> Result<(), Refused> {
        let offered = self.lock();
        let offered = offered.get(token).ok_or(Refused::Unknown)?;
        let place = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_owned().map_err(|_| Refused::TooMany);
        let places = (place(&offered.room)?, place(&self.0.room)?);
        let (service, mut withdrawn) = (Arc::clone(&offered.service), offered.withdrawn.clone());
        tokio::spawn(async move {
            let _places = places;
            tokio::select! {
                () = service.serve(connection) => {}
                // Nothing is ever sent: its sender's end is the sign.
                _ = withdrawn.changed() => {}
            }
        });
        Ok(())
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        TO_ALL - self.0.room.available_permits()
    }

    /// Connections since the start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// Keeps its connections until they are broken.
    struct Silent;

    #[async_trait]
    impl Service for Silent {
        async fn serve(&self, _connection: Connection) {
            std::future::pending().await
        }
    }

    fn connection() -> (tokio::io::DuplexStream, Connection) {
        let (near, far) = tokio::io::duplex(8);
        (near, Box::new(far))
    }

    #[tokio::test]
    async fn what_is_withdrawn_is_broken_and_its_token_worth_nothing() {
        let relays = Relays::default();
        let offer = relays.offer(Arc::new(Silent));
        let (mut guest, far) = connection();
        relays.serve(&offer.token, far).unwrap();
        let token = offer.token;
        drop(offer);
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(relays.serve(&token, connection().1), Err(Refused::Unknown));
        assert_eq!(relays.serve(&[7; TOKEN_LENGTH], connection().1), Err(Refused::Unknown));
    }

    #[tokio::test]
    async fn one_service_has_not_all_places_and_the_guest_not_more_than_there_are() {
        let relays = Relays::default();
        let offers: Vec<_> = (0..3).map(|_| relays.offer(Arc::new(Silent))).collect();
        let taken = |offer: &Offer| {
            let mut taken = 0;
            while relays.serve(&offer.token, connection().1).is_ok() {
                taken += 1;
            }
            taken
        };
        let taken: Vec<_> = offers.iter().map(taken).collect();
        assert_eq!(taken, [TO_ONE, TO_ONE, 0]);
        assert_eq!(relays.open(), TO_ALL);
        drop(offers);
        while relays.open() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
