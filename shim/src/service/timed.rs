//! Measures how long each of containerd's calls takes, for the metrics, and records a span of those that change something.
//! It knows of a call its name and the names of its container and exec.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{PauseRequest, StartRequest};
use containerd_shim_protos::protobuf::Message as _;
use trace::{Kind, Span};
use ttrpc::r#async::{MethodHandler, Service as Methods, TtrpcContext};
use ttrpc::{Request, Response};

use crate::metrics::kata::snake;
use crate::sandbox::Sandbox;

/// Calls that a span is recorded of, by their names, which are those of Kata's spans; and whether they name an exec. The request of each
/// has the container's id in its first field and the exec's in its second (containerd's shim.proto).
const TRACED: [(&str, bool); 10] = [
    ("Create", false),
    ("Start", true),
    ("Exec", true),
    ("Kill", true),
    ("Delete", true),
    ("Pause", false),
    ("Resume", false),
    ("Update", false),
    ("ResizePty", true),
    ("CloseIO", true),
];

/// Timeout for the collector to take the spans before a Shutdown, or a Create that has failed, is answered: containerd may have this process killed
/// then.
const LAST: Duration = Duration::from_millis(500);

struct Timed {
    inner: Box<dyn MethodHandler + Send + Sync>,
    /// Kata's label: `create`, `resize_pty`.
    action: String,
    traced: Option<(&'static str, bool)>,
    cell: Arc<OnceLock<Arc<Sandbox>>>,
}

impl Timed {
    fn span(&self, request: &Request) -> Option<Span> {
        let (name, names_exec) = self.traced?;
        let tracing = self.cell.get()?.tracing()?;
        let mut span = tracing.root().start(name, Kind::Server);
        // What cannot be read is refused by the call itself.
        let (container, exec) = names(&request.payload, names_exec).unwrap_or_default();
        span.set("container", container);
        if !exec.is_empty() {
            span.set("exec", exec);
        }
        Some(span)
    }
}

/// The container's and the exec's id in a request.
fn names(request: &[u8], names_exec: bool) -> Option<(String, String)> {
    if names_exec {
        let names = StartRequest::parse_from_bytes(request).ok()?;
        return Some((names.id, names.exec_id));
    }
    let names = PauseRequest::parse_from_bytes(request).ok()?;
    Some((names.id, String::new()))
}

#[async_trait]
impl MethodHandler for Timed {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let began = Instant::now();
        let mut last = self.action == "shutdown";
        let answer = match self.span(&request) {
            None => self.inner.handler(context, request).await,
            Some(span) => {
                let answer = span.place().scope(self.inner.handler(context, request)).await;
                let refusal = protocol::refusal(&answer);
                last |= refusal.is_some() && self.action == "create";
                span.end(refusal);
                answer
            }
        };
        if let Some(tracing) = self.cell.get().and_then(|sandbox| sandbox.tracing()).filter(|_| last) {
            tracing.flush(LAST).await;
        }
        if let Some(sandbox) = self.cell.get() {
            sandbox.call_durations.record(&self.action, began.elapsed());
        }
        answer
    }
}

/// Measures the duration of every method.
pub(super) fn measure(table: &mut Methods, cell: &Arc<OnceLock<Arc<Sandbox>>>) {
    let methods = std::mem::take(&mut table.methods).into_iter();
    table.methods = methods
        .map(|(name, inner)| {
            let timed = Timed {
                inner,
                action: snake(&name),
                traced: TRACED.into_iter().find(|(traced, _)| *traced == name),
                cell: Arc::clone(cell),
            };
            (name, Box::new(timed) as Box<dyn MethodHandler + Send + Sync>)
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::api::{
        CloseIORequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, ResizePtyRequest,
        ResumeRequest, UpdateTaskRequest,
    };

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

    #[test]
    fn every_call_that_is_traced_names_its_container_and_its_exec() {
        macro_rules! request {
            ($type:ident $(, $exec:ident)?) => {{
                let mut request = $type::new();
                request.id = "c".to_owned();
                $(request.$exec = "e".to_owned();)?
                request.write_to_bytes().unwrap()
            }};
        }
        let mut create = CreateTaskRequest::new();
        (create.id, create.bundle) = ("c".to_owned(), "/bundle".to_owned());
        let mut update = UpdateTaskRequest::new();
        update.id = "c".to_owned();
        update.resources = Some(Default::default()).into();
        let requests = [
            create.write_to_bytes().unwrap(),
            request!(StartRequest, exec_id),
            request!(ExecProcessRequest, exec_id),
            request!(KillRequest, exec_id),
            request!(DeleteRequest, exec_id),
            request!(PauseRequest),
            request!(ResumeRequest),
            update.write_to_bytes().unwrap(),
            request!(ResizePtyRequest, exec_id),
            request!(CloseIORequest, exec_id),
        ];
        for ((name, names_exec), request) in TRACED.into_iter().zip(requests) {
            let exec = if names_exec { "e" } else { "" };
            assert_eq!(
                names(&request, names_exec),
                Some(("c".to_owned(), exec.to_owned())),
                "{name}"
            );
        }
    }
}
