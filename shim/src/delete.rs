//! `delete`: containerd's last resort if a shim has ended or does not answer. containerd kills this process after 5 s.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::DeleteResponse;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;

use crate::bundle;
use crate::cleanup;
use crate::cli::Arguments;
use crate::id::SandboxId;
use crate::run_dir::RunDir;

/// 128 + SIGKILL: what containerd's own shims answer.
const KILLED: u32 = 137;

/// Removes what is left, and answers what containerd takes for the container's end. A container of a pod whose shim
/// runs has nothing outside of that shim, so nothing else of the pod is touched.
#[must_use]
pub fn delete(arguments: &Arguments, bundle: &Path) -> DeleteResponse {
    let own = SandboxId::from(&arguments.id);
    // The bundle may be gone already; then the container can only be found by its own id.
    let sandbox = bundle::sandbox_of(bundle, &arguments.id).unwrap_or_else(|_| own.clone());
    let run_dir = RunDir::of(&arguments.namespace, &sandbox);
    // Before the lock: whoever has it may be starting a new sandbox of this id.
    let server = cleanup::recorded_server(&run_dir);
    if sandbox == own || std::os::unix::net::UnixStream::connect(run_dir.socket()).is_err() {
        cleanup::remove_sandbox(&run_dir, server);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(now.subsec_nanos()).unwrap_or(0),
            ..Timestamp::default()
        }),
        ..DeleteResponse::default()
    }
}
