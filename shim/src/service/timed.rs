//! Measures how long each of containerd's calls takes, for the metrics. It knows the calls by their names alone.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service as Methods, TtrpcContext};
use ttrpc::{Request, Response};

use crate::metrics::kata::snake;
use crate::sandbox::Sandbox;

struct Timed {
    inner: Box<dyn MethodHandler + Send + Sync>,
    /// Kata's label: `create`, `resize_pty`.
    action: String,
    cell: Arc<OnceLock<Arc<Sandbox>>>,
}

#[async_trait]
impl MethodHandler for Timed {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let began = Instant::now();
        let answer = self.inner.handler(context, request).await;
        if let Some(sandbox) = self.cell.get() {
            sandbox.call_durations.record(&self.action, began.elapsed());
        }
        answer
    }
}

/// Puts a clock around every method.
pub(super) fn measure(table: &mut Methods, cell: &Arc<OnceLock<Arc<Sandbox>>>) {
    let methods = std::mem::take(&mut table.methods).into_iter();
    table.methods = methods
        .map(|(name, inner)| {
            let timed = Timed {
                inner,
                action: snake(&name),
                cell: Arc::clone(cell),
            };
            (name, Box::new(timed) as Box<dyn MethodHandler + Send + Sync>)
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_have_katas_names() {
        for (name, action) in [
            ("Create", "create"),
            ("ResizePty", "resize_pty"),
            ("CloseIO", "close_io"),
            ("Pids", "pids"),
        ] {
            assert_eq!(snake(name), action);
        }
    }
}
