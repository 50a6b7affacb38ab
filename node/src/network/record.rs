//! The record of a sandbox's changes in a namespace that outlives it, and their removal: by the server at its end, or by
//! `delete` if the server is gone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::namespace::{Identity, Namespace};
use super::plan::Rates;
use super::tap;
use super::wire::Wiring;

/// What is changed in a namespace that outlives the sandbox: written down before it is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    /// Their indexes, by their places in the guest's list.
    pub(super) interfaces: Vec<u32>,
}

/// Takes a sandbox's taps and redirections off its namespace. Whatever of it is gone is no error. Blocks.
pub fn remove(record: &NetworkRecord) {
    let Ok(namespace) = Namespace::open(&record.path) else {
        return;
    };
    // The file may stand for another one by now.
    if namespace.identity() != record.identity {
        return;
    }
    let (name, interfaces) = (namespace.name().to_owned(), record.interfaces.clone());
    let removed = namespace.run_blocking(move |netlink| async move {
        let wiring = Wiring {
            netlink: &netlink,
            namespace: &name,
            rates: Rates::default(),
        };
        for (place, interface) in interfaces.into_iter().enumerate() {
            wiring.remove(interface, &tap::name(place)).await;
        }
        Ok(())
    });
    if let Err(error) = removed {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the network namespace keeps what was added"
        );
    }
}
