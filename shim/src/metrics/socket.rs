//! The shim's metrics over HTTP on a separate socket beside the task API's, like `shim-monitor.sock` of Kata's shim. The
//! text is that of [`super::render`], as for `kata-ctl`.
//!
//! Only root can connect: the directory has mode 0700.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use scrape::{Reply, Request};
use tokio::net::UnixListener;

use crate::service::SandboxCell;

/// Serves until the process ends. The socket goes with the sandbox's directory.
///
/// # Errors
/// The socket cannot be made.
pub(crate) fn serve(path: &Path, cell: SandboxCell) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    tokio::spawn(scrape::serve(listener, move |request| {
        reply(request, Arc::clone(&cell))
    }));
    Ok(())
}

async fn reply(request: Request, cell: SandboxCell) -> Reply {
    if request.path != "/metrics" {
        return Reply::not_found("there is /metrics\n".to_owned());
    }
    match cell.get() {
        Some(sandbox) => Reply::figures(super::render(sandbox).await),
        None => Reply::unavailable("the sandbox is not created yet\n".to_owned()),
    }
}
