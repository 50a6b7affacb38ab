//! The management API of Kata's shim: HTTP over a Unix socket, for kata-monitor, `kata-runtime` and `kata-ctl` of Kata
//! (kata-containers, src/runtime/pkg/containerd-shim-v2/shim_management.go). It owns the paths and their answers; [`places`]
//! owns the sockets, [`console`] the one that `/agent-url` names.
//!
//! Only root can connect: the directories have mode 0700, the sockets 0600.

mod console;
mod fifos;
mod iptables;
pub(crate) mod places;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::chain;
use node::run_dir::RunDir;
use protocol::agent::StorageStatsResponse;
use scrape::{Method, Reply, Request};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;

use crate::metrics::{self, Scraper};
use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::service::SandboxCell;

/// What there is, for whoever asks for something else.
const PATHS: &str =
    "there are /metrics, /agent-url, /direct-volume/stats, /direct-volume/resize, /iptables and /ip6tables\n";

/// Serves on each of the sockets until the process ends.
pub(crate) fn serve(run_dir: &RunDir, listeners: Vec<UnixListener>, cell: &SandboxCell) {
    for listener in listeners {
        let (cell, directory) = (Arc::clone(cell), run_dir.path().to_owned());
        tokio::spawn(scrape::serve(listener, move |request| {
            reply(request, Arc::clone(&cell), directory.clone())
        }));
    }
    if let Err(error) = console::serve(run_dir, cell) {
        tracing::warn!(%error, "Kata's tools cannot open a debug console in this sandbox; kata-ctl can");
    }
}

async fn reply(request: Request, cell: SandboxCell, directory: PathBuf) -> Reply {
    let Some(sandbox) = cell.get() else {
        return Reply::unavailable("the sandbox is not created yet\n".to_owned());
    };
    match (request.method, request.path.as_str()) {
        (Method::Get, "/metrics") => Reply::figures(metrics::render(sandbox, Scraper::Monitor).await),
        (Method::Get, "/agent-url") => Reply::text(protocol::agent_url(&directory)),
        // Kata's clients use GET, runtime-rs's server expects POST.
        (Method::Get | Method::Post, "/direct-volume/stats") => stats(sandbox, &request).await,
        (Method::Post, "/direct-volume/resize") => resize(sandbox, &request.body).await,
        (Method::Get, path @ ("/iptables" | "/ip6tables")) => {
            iptables::get(sandbox, &directory, path == "/ip6tables").await
        }
        (Method::Put, path @ ("/iptables" | "/ip6tables")) => {
            iptables::set(sandbox, &directory, path == "/ip6tables", &request.body).await
        }
        (_, "/metrics" | "/agent-url") => Reply::not_allowed("only GET\n".to_owned()),
        (_, "/direct-volume/stats") => Reply::not_allowed("only GET and POST\n".to_owned()),
        (_, "/direct-volume/resize") => Reply::not_allowed("only POST\n".to_owned()),
        (_, "/iptables" | "/ip6tables") => Reply::not_allowed("only GET and PUT\n".to_owned()),
        _ => Reply::not_found(PATHS.to_owned()),
    }
}

/// `?path=`: the volume's path, or, as Kata's clients send it, its device. They escape it twice.
async fn stats(sandbox: &Sandbox, request: &Request) -> Reply {
    let Some(path) = request.value("path") else {
        return Reply::bad_request("name the volume: ?path=PATH\n".to_owned());
    };
    match sandbox.volume_stats(Path::new(&scrape::unescaped(&path))).await {
        Ok(stats) => Reply::json(usage(&stats).to_string()),
        Err(error) => failed(&error),
    }
}

/// As Kata's agent answers GetVolumeStats: the unit 1 is bytes, 2 inodes (its agent.proto).
fn usage(stats: &StorageStatsResponse) -> serde_json::Value {
    json!({
        "usage": [
            { "available": stats.available_bytes, "total": stats.total_bytes, "used": stats.used_bytes, "unit": 1 },
            { "available": stats.available_inodes, "total": stats.total_inodes, "used": stats.used_inodes, "unit": 2 },
        ],
        "volume_condition": { "abnormal": false, "message": "" },
    })
}

/// The body of a resize. The first names are those of Kata's Go runtime, the aliases those of runtime-rs.
#[derive(Debug, Deserialize)]
struct Resize {
    #[serde(rename = "VolumePath", alias = "volume_guest_path")]
    volume: PathBuf,
    /// In bytes.
    #[serde(rename = "Size", alias = "size")]
    bytes: u64,
}

async fn resize(sandbox: &Sandbox, body: &[u8]) -> Reply {
    let Resize { volume, bytes } = match serde_json::from_slice(body) {
        Ok(resize) => resize,
        Err(error) => return Reply::bad_request(format!("the body is not {{\"VolumePath\", \"Size\"}}: {error}\n")),
    };
    match sandbox.resize_volume(&volume, bytes).await {
        Ok(_) => Reply::text(String::new()),
        Err(error) => failed(&error),
    }
}

/// Kata answers 500 to every error.
fn failed(error: &Error) -> Reply {
    Reply::failed(chain(error) + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_of_katas_runtimes_names_of_a_resize_are_read() {
        for body in [
            r#"{"VolumePath":"/dev/sdf","Size":1048576}"#,
            r#"{"volume_guest_path":"/dev/sdf","size":1048576}"#,
        ] {
            let resize: Resize = serde_json::from_str(body).unwrap();
            assert_eq!((resize.volume, resize.bytes), ("/dev/sdf".into(), 1 << 20));
        }
        assert!(serde_json::from_str::<Resize>(r#"{"VolumePath":"/x","Size":-1}"#).is_err());
    }

    #[tokio::test]
    async fn before_there_is_a_sandbox_every_path_says_so() {
        let cell = SandboxCell::default();
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        tokio::spawn(scrape::serve(listener, move |request| {
            reply(request, Arc::clone(&cell), PathBuf::new())
        }));
        let mut client = tokio::net::UnixStream::connect(directory.path().join("s"))
            .await
            .unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET /metrics HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut said = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut client, &mut said)
            .await
            .unwrap();
        assert!(said.starts_with("HTTP/1.1 503 "), "{said}");
    }
}
