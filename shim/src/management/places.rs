//! Where Kata's tools look for a sandbox's management socket: `/run/vc/sbs/<sandbox id>/shim-monitor.sock` is the Go
//! runtime's, `/run/kata/<sandbox id>/shim-monitor.sock` runtime-rs's. For kata-monitor each directory below `/run/vc/sbs` is a
//! sandbox. Both have to be sockets, not links to ours: kata-monitor's own container has `/run/vc/sbs` and not `/run/tatami`.
//!
//! Kata does not know containerd's namespaces: if two sandboxes have the same id, or one of Kata's has it, the first one keeps the
//! directory. The link `tatami` in it shows the owner: it names the sandbox's own directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use node::path_error::PathError;
use node::run_dir::RunDir;
use tokio::net::UnixListener;

use crate::id::SandboxId;

/// The directories of Kata's two runtimes.
pub(crate) const ROOTS: [&str; 2] = ["/run/vc/sbs", "/run/kata"];

/// Kata's name of the socket.
const SOCKET: &str = protocol::MONITOR_SOCKET;

/// The link that says whose a directory is.
const OWNER: &str = "tatami";

/// Makes all sockets of a sandbox. One that cannot be made is logged: the others do.
pub(crate) fn listen(roots: &[&Path], run_dir: &RunDir, id: &SandboxId) -> Vec<UnixListener> {
    let katas = roots.iter().map(|root| {
        let directory = root.join(id.as_str());
        claim(&directory, run_dir.path())
            .map_err(|source| PathError::new("use", &directory, source))
            .map(|()| directory)
    });
    let own = std::iter::once(Ok(run_dir.path().to_owned()));
    let sockets = own.chain(katas).map(|directory| bind(&directory?.join(SOCKET)));
    sockets
        .filter_map(|socket| {
            let log = |error: &PathError| {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, "Kata's tools do not find this sandbox there; kata-ctl does");
            };
            socket.inspect_err(log).ok()
        })
        .collect()
}

fn bind(path: &Path) -> Result<UnixListener, PathError> {
    let bind = || {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|source: io::Error| PathError::new("listen on", path, source))
}

/// Makes the directory, or takes one that is nobody's: an empty one, which `kata-ctl` of Kata makes when it is asked for a
/// sandbox that it does not find, or one whose sandbox is gone.
fn claim(directory: &Path, sandbox: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    match fs::read_link(directory.join(OWNER)) {
        Ok(owner) if owner != sandbox && owner.exists() => return Err(taken(&owner.display().to_string())),
        Ok(owner) => release(directory, &owner)?,
        Err(_) if fs::read_dir(directory)?.next().is_some() => return Err(taken("another runtime")),
        Err(_) => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // One that was there already.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    symlink(sandbox, directory.join(OWNER))
}

fn taken(owner: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!("a sandbox of the same id has it: {owner}"),
    )
}

/// Removes what [`listen`] has made for the sandbox with this directory, and nothing of another's. The roots stay: kata-monitor
/// watches the first.
pub(crate) fn remove(roots: &[&Path], sandbox: &Path, id: &SandboxId) {
    for directory in roots.iter().map(|root| root.join(id.as_str())) {
        if let Err(error) = release(&directory, sandbox) {
            tracing::warn!(%error, path = %directory.display(), "cannot remove the directory of Kata's tools");
        }
    }
}

/// Removes a directory if it is this sandbox's.
fn release(directory: &Path, sandbox: &Path) -> io::Result<()> {
    let owner: Option<PathBuf> = fs::read_link(directory.join(OWNER)).ok();
    match owner {
        Some(owner) if owner != sandbox => return Ok(()),
        // Its maker was killed before it could say whose it is, or somebody else's tool has made it: empty, it is nobody's.
        None => {
            return match fs::remove_dir(directory) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                    Err(error)
                }
                _ => Ok(()),
            };
        }
        Some(_) => {}
    }
    // The link last: until then it says whose the rest is.
    for name in [SOCKET, OWNER] {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Namespace;

    fn sandbox(root: &Path, namespace: &str) -> RunDir {
        let id = SandboxId::new("pod").unwrap();
        let run_dir = RunDir::below(root, &Namespace::new(namespace).unwrap(), &id);
        run_dir.create().unwrap();
        run_dir
    }

    #[tokio::test]
    async fn two_sandboxes_of_one_id_do_not_take_each_others_place() {
        let root = tempfile::tempdir().unwrap();
        let (go, rust) = (root.path().join("vc/sbs"), root.path().join("kata"));
        let roots = [go.as_path(), rust.as_path()];
        let id = SandboxId::new("pod").unwrap();
        let (first, second) = (sandbox(root.path(), "one"), sandbox(root.path(), "two"));
        // What kata-ctl leaves where it finds nothing.
        fs::create_dir_all(rust.join("pod")).unwrap();
        assert_eq!(listen(&roots, &first, &id).len(), 3);
        assert_eq!(listen(&roots, &second, &id).len(), 1);
        remove(&roots, second.path(), &id);
        assert!(go.join("pod/shim-monitor.sock").exists() && rust.join("pod/shim-monitor.sock").exists());
        remove(&roots, first.path(), &id);
        // Of one that was killed before it had said whose it is.
        fs::create_dir_all(rust.join("pod")).unwrap();
        remove(&roots, first.path(), &id);
        for root in roots {
            assert_eq!(fs::read_dir(root).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn a_directory_of_a_sandbox_that_is_gone_is_taken_and_one_of_katas_is_not() {
        let root = tempfile::tempdir().unwrap();
        let kata = root.path().join("kata");
        let id = SandboxId::new("pod").unwrap();
        let gone = sandbox(root.path(), "gone");
        assert_eq!(listen(&[&kata], &gone, &id).len(), 2);
        fs::remove_dir_all(gone.path()).unwrap();
        let next = sandbox(root.path(), "next");
        assert_eq!(listen(&[&kata], &next, &id).len(), 2);
        assert_eq!(fs::read_link(kata.join("pod/tatami")).unwrap(), next.path());
        remove(&[&kata], next.path(), &id);
        fs::create_dir_all(kata.join("pod")).unwrap();
        fs::write(kata.join("pod/persist.json"), "{}").unwrap();
        fs::remove_file(next.path().join("shim-monitor.sock")).unwrap();
        assert_eq!(listen(&[&kata], &next, &id).len(), 1);
        remove(&[&kata], next.path(), &id);
        assert!(kata.join("pod/persist.json").exists());
    }
}
