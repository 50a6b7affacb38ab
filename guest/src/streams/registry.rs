//! The streams that the guest has been told to dial, by their tokens.
//!
//! A token is valid for one connection, and only while somebody waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use protocol::preamble::{TOKEN_LENGTH, Token};
use tokio::sync::oneshot;

use super::error::StreamError;
use crate::connection::Connection;

type Waiting = Arc<Mutex<HashMap<Token, oneshot::Sender<Connection>>>>;

/// The streams that the guest has been told to dial.
#[derive(Clone, Default)]
pub struct StreamRegistry {
    waiting: Waiting,
}

impl StreamRegistry {
    /// Registers one stream, under a token of 128 random bits.
    #[must_use]
    pub fn register(&self) -> (Token, RegisteredStream) {
        let mut token = [0; TOKEN_LENGTH];
        node::sys::fill_random(&mut token);
        let (sender, receiver) = oneshot::channel();
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token, sender);
        let waiting = Arc::clone(&self.waiting);
        (
            token,
            RegisteredStream {
                token,
                receiver,
                waiting,
            },
        )
    }

    /// Streams that have not been dialled yet.
    pub fn count(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Who waits for the stream with this token, which is worth nothing any more.
    pub fn take(&self, token: &Token) -> Option<oneshot::Sender<Connection>> {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(token)
    }
}

/// A stream that is to be dialled. Dropping it makes its token worthless.
pub struct RegisteredStream {
    token: Token,
    receiver: oneshot::Receiver<Connection>,
    waiting: Waiting,
}

impl RegisteredStream {
    /// The connection, once it is there.
    ///
    /// # Errors
    /// It can come no more.
    pub async fn connection(mut self) -> Result<Connection, StreamError> {
        (&mut self.receiver).await.map_err(|_| StreamError::NotDialled)
    }
}

impl Drop for RegisteredStream {
    fn drop(&mut self) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_worth_nothing_once_nobody_waits() {
        let streams = StreamRegistry::default();
        let (token, stream) = streams.register();
        drop(stream);
        assert!(streams.take(&token).is_none());
    }
}
