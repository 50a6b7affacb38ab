//! Which sandbox uses a direct-assigned volume: an empty file, named by the sandbox, beside the volume's mountInfo.json, as
//! Kata's runtime leaves it (`RecordSandboxID` in kata-containers, src/runtime/pkg/direct-volume/utils.go). Whoever asks
//! for a volume by its path finds the sandbox by it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::direct::directory_of;
use super::disk::HostDisk;
use crate::id::SandboxId;

/// Kata's directory of direct-assigned volumes.
pub const ROOT: &str = "/run/kata-containers/shared/direct-volumes";

/// A direct-assigned volume that a container has.
#[derive(Debug, Clone)]
pub struct DirectVolume {
    /// On the host: what it is asked for by.
    pub path: PathBuf,
    /// Its name among the storages of the guest.
    pub storage: String,
    /// What it is on.
    pub disk: HostDisk,
}

/// Leaves word that a sandbox uses a volume.
///
/// # Errors
/// The file cannot be made.
pub fn write(root: &Path, volume: &Path, sandbox: &SandboxId) -> io::Result<()> {
    let file = root.join(directory_of(volume)).join(sandbox.as_str());
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file)
        .map(drop)
}

/// Takes back all words of a sandbox. It knows the volumes by the files alone: whoever wrote them may be dead.
pub fn forget(root: &Path, sandbox: &str) {
    if SandboxId::new(sandbox).is_err() {
        return;
    }
    // No directory: there are no volumes.
    let Ok(volumes) = fs::read_dir(root) else { return };
    for volume in volumes.filter_map(Result::ok) {
        // Most volumes are others'.
        let _ = fs::remove_file(volume.path().join(sandbox));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_left_for_each_volume_and_taken_back_for_all_of_one_sandbox() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (Path::new("/pods/one"), Path::new("/pods/other"));
        for volume in [one, other] {
            fs::create_dir(root.path().join(directory_of(volume))).unwrap();
        }
        let file = |volume: &Path, name: &str| root.path().join(directory_of(volume)).join(name);
        fs::write(file(one, "mountInfo.json"), "{}").unwrap();
        let id = |name: &str| SandboxId::new(name).unwrap();
        write(root.path(), one, &id("mine")).unwrap();
        write(root.path(), one, &id("mine")).unwrap();
        write(root.path(), one, &id("yours")).unwrap();
        write(root.path(), other, &id("mine")).unwrap();
        assert!(write(root.path(), Path::new("/pods/unknown"), &id("mine")).is_err());
        forget(root.path(), "mine");
        forget(root.path(), "../../mountInfo.json");
        assert!(!file(one, "mine").exists() && !file(other, "mine").exists());
        assert!(file(one, "yours").exists() && file(one, "mountInfo.json").exists());
        forget(Path::new("/nonexistent"), "mine");
    }
}
