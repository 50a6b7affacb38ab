//! The trace of a sandbox: one for each, whose first span is the boot of its VM. Its spans and the agent's go to the
//! collector that the configuration or the environment names ([`endpoint`], [`export`]).
//!
//! It knows neither containers nor requests: who does something says so.

mod endpoint;
mod export;
mod guest_lines;
mod otlp;

use std::sync::Arc;
use std::time::Duration;

use config::Config;
use trace::{Context, Place};

use self::endpoint::Endpoint;
use self::export::Exporter;
use self::guest_lines::GuestLines;
use self::otlp::{Origin, Resource};
use crate::id::{Namespace, SandboxId};

/// The trace of a sandbox, and its way to the collector.
#[derive(Clone)]
pub struct Tracing {
    root: Place,
    exporter: Exporter,
    guest: Arc<GuestLines>,
}

impl Tracing {
    /// Begins a trace if the configuration says so. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(config: &Config, namespace: &Namespace, sandbox: &SandboxId) -> Option<Self> {
        if !config.runtime.enable_tracing {
            return None;
        }
        let endpoint = match Endpoint::of(&config.runtime, |name| std::env::var(name).ok()) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::warn!(%error, "nothing is traced");
                return None;
            }
        };
        tracing::info!(collector = endpoint.url(), "spans are sent to a collector");
        let resource = Resource::new(namespace, sandbox);
        let exporter = Exporter::start(endpoint, resource);
        let (context, own) = (Context::root(), exporter.clone());
        let root = Place::new(context, config.agent.enable_tracing, move |span| {
            own.send(Origin::Shim, span)
        });
        Some(Self {
            root,
            exporter,
            guest: Arc::new(GuestLines::new(context)),
        })
    }

    /// Where the sandbox's requests belong.
    #[must_use]
    pub fn root(&self) -> &Place {
        &self.root
    }

    /// Takes a line of the agent's log if it is a span.
    #[must_use]
    pub fn take(&self, line: &[u8]) -> bool {
        let Some(span) = trace::Record::from_line(line) else {
            return false;
        };
        match self.guest.accept(span) {
            Some(span) => self.exporter.send(Origin::Agent, span),
            None => self.exporter.drop_one(),
        }
        true
    }

    /// Sends what is left, for as long as `limit` allows.
    pub async fn flush(&self, limit: Duration) {
        self.exporter.flush(limit).await;
    }

    /// How many spans the collector has taken, and how many are lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.exporter.counts()
    }
}
