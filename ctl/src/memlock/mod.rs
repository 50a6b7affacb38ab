//! `kata-ctl memlock`: what a process may lock, whether perf buffers would be granted to it, and what to change if not.
//!
//! It asks the shim of the container's sandbox, which asks the guest. [`remedies`] explains a refusal.

mod question;
mod remedies;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::agent::MemlockRequest;
use protocol::diagnostics::{MemlockResponse, SandboxInfo, SandboxRequest};
use protocol::diagnostics_ttrpc::DiagnosticsClient;
use ttrpc::r#async::Client;
use ttrpc::context;

pub(crate) use self::question::Question;
use crate::report::Report;

/// Timeout for a shim to say which containers it has.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Timeout for the report: a probe starts up to six processes in a guest that may be emulated.
const PROBE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    /// This program cannot wait for an answer.
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
    #[error("cannot look for sandboxes in {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no container {container} in any of {} sandboxes in {}{}", asked, root.display(), silence(silent))]
    NotFound {
        container: String,
        root: PathBuf,
        asked: usize,
        /// The sockets of those that did not.
        silent: Vec<String>,
    },
    #[error("there is a container {container} in each of the namespaces {}: choose one by --namespace", namespaces.join(", "))]
    Ambiguous { container: String, namespaces: Vec<String> },
    #[error("{0}")]
    Refused(String),
}

fn silence(silent: &[String]) -> String {
    if silent.is_empty() {
        return String::new();
    }
    format!("; no answer from {}", silent.join(", "))
}

struct Found {
    info: SandboxInfo,
    client: DiagnosticsClient,
}

/// Asks and reports. All is well unless the probe was refused.
///
/// # Errors
/// There is no such container, or its sandbox does not answer.
pub(crate) fn report(question: &Question) -> Result<Report, ReportError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ReportError::Runtime)?;
    let (info, response) = runtime.block_on(ask(Path::new(protocol::SANDBOXES), question))?;
    let text = if question.json {
        show::json(question, &info, &response)
    } else {
        show::text(question, &info, &response)
    };
    let good = response.report.probe.as_ref().is_none_or(|probe| probe.as_is.granted);
    Ok(Report { text, good })
}

async fn ask(root: &Path, question: &Question) -> Result<(SandboxInfo, MemlockResponse), ReportError> {
    let found = find(root, question).await?;
    let request = MemlockRequest {
        container_id: question.container.clone(),
        pid: question.pid.unwrap_or(0),
        pages: question.pages,
        ..Default::default()
    };
    let call = found.client.memlock(context::with_duration(PROBE), &request);
    match tokio::time::timeout(PROBE, call).await {
        Ok(Ok(response)) => Ok((found.info, response)),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(ReportError::Refused(status.message().to_owned())),
        Ok(Err(error)) => Err(ReportError::Refused(format!("the sandbox's shim: {error}"))),
        Err(_) => Err(ReportError::Refused(format!(
            "the sandbox's shim did not answer within {} s",
            PROBE.as_secs()
        ))),
    }
}

/// The one sandbox that has the container.
async fn find(root: &Path, question: &Question) -> Result<Found, ReportError> {
    let failed = |source| ReportError::Directory {
        path: root.to_owned(),
        source,
    };
    let entries: Vec<_> = match root.read_dir() {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(failed)?,
        // Nobody has made a sandbox yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    let (mut found, mut asked, mut silent) = (Vec::new(), 0, Vec::new());
    for entry in entries {
        let socket = entry.path().join(protocol::SHIM_SOCKET);
        if !socket.exists() {
            continue;
        }
        let Ok(Some(sandbox)) = tokio::time::timeout(LOOK_UP, sandbox(&socket)).await else {
            silent.push(socket.display().to_string());
            continue;
        };
        asked += 1;
        let wanted = question
            .namespace
            .as_ref()
            .is_none_or(|name| *name == sandbox.info.namespace);
        if wanted && sandbox.info.container_ids.contains(&question.container) {
            found.push(sandbox);
        }
    }
    if found.len() > 1 {
        return Err(ReportError::Ambiguous {
            container: question.container.clone(),
            namespaces: found.into_iter().map(|sandbox| sandbox.info.namespace).collect(),
        });
    }
    found.pop().ok_or_else(|| ReportError::NotFound {
        container: question.container.clone(),
        root: root.to_owned(),
        asked,
        silent,
    })
}

async fn sandbox(socket: &Path) -> Option<Found> {
    let client = Client::connect(&format!("unix://{}", socket.display())).await.ok()?;
    let client = DiagnosticsClient::new(client);
    let request = SandboxRequest::new();
    let info = client.sandbox(context::with_duration(LOOK_UP), &request).await;
    Some(Found {
        info: info.ok()?,
        client,
    })
}

#[cfg(test)]
mod tests;
