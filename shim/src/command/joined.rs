//! Finds the sandbox in which a container is that is to have the network of another sandbox's container (`docker run --network container:NAME`).
//!
//! A specification names the other one by its pid, which is that of a stand-in: a child of its sandbox's shim. A pid that is somebody else's by now is no
//! child of a shim, or the shim refuses to create the container: it knows whose pids they are.

use std::fs;
use std::path::{Path, PathBuf};

use base::process::stat;
use node::bundle::{self, BundleError};
use node::process::ProcessRef;
use node::run_dir::{ROOT, RunDir};
use node::sys;

use crate::id::Namespace;

/// The directory of the sandbox whose container's network the container of this bundle is to have, and its configuration file; none if that is no
/// sandbox's of this namespace, or one of the two is a pod's.
pub(super) fn wanted(namespace: &Namespace, bundle: &Path) -> Result<Option<(RunDir, Option<PathBuf>)>, BundleError> {
    let Some(process) = bundle::network_of(bundle)?.and_then(|process| i32::try_from(process).ok()) else {
        return Ok(None);
    };
    // What else a shim has started, QEMU or a hook, stands for no container.
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    if words.split(|byte| *byte == 0).next() != Some(sys::STAND_IN.as_bytes()) {
        return Ok(None);
    }
    let parent = stat(process).map(|stat| stat.ppid);
    let of = |run_dir: RunDir| {
        let state = run_dir.read_state().ok().flatten()?;
        let joinable = state.pod == Some(false) && state.namespace == namespace.as_str();
        let shim = state.shim.filter(|shim| joinable && Some(shim.pid) == parent);
        shim.filter(ProcessRef::is_alive).map(|_| (run_dir, state.config_path))
    };
    Ok(RunDir::known(Path::new(ROOT)).into_iter().find_map(of))
}

/// The directory of the sandbox that `start` has found for this bundle; none if the bundle is gone.
pub(super) fn found(bundle: &Path) -> Option<RunDir> {
    RunDir::of_address(fs::read_to_string(bundle.join(bundle::ADDRESS)).ok()?.trim())
}

/// Whether another container of containerd's namespace has this server: their bundles are side by side.
pub(super) fn others(bundle: &Path, address: &str) -> bool {
    let siblings = bundle.parent().and_then(|parent| fs::read_dir(parent).ok());
    let mut siblings = siblings.into_iter().flatten().flatten().map(|sibling| sibling.path());
    siblings.any(|sibling| {
        sibling != bundle
            && fs::read_to_string(sibling.join(bundle::ADDRESS)).is_ok_and(|other| other.trim() == address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_names_its_server_and_those_beside_it_are_found() {
        let bundles = tempfile::tempdir().unwrap();
        let named = |bundle: &str, address: &str| {
            let bundle = bundles.path().join(bundle);
            fs::create_dir_all(&bundle).unwrap();
            fs::write(bundle.join(bundle::ADDRESS), address).unwrap();
            bundle
        };
        let address = format!("unix://{ROOT}/first-01234567/shim.sock");
        let first = named("first", &address);
        assert_eq!(found(&first).map(|run_dir| run_dir.address()), Some(address.clone()));
        named("stranger", "unix:///run/tatami/stranger-01234567/shim.sock");
        assert!(!others(&first, &address));
        named("beside", &address);
        assert!(others(&first, &address));
        for elsewhere in ["", "unix:///run/other/first/shim.sock", "vsock://2:1024"] {
            assert_eq!(found(&named("elsewhere", elsewhere)), None, "{elsewhere}");
        }
        assert_eq!(found(&bundles.path().join("gone")), None);
    }
}
