//! Records which sandbox uses a direct-assigned volume: a file next to the volume's mountInfo.json, named after the
//! sandbox, as in Kata's runtime (`RecordSandboxID` in kata-containers, src/runtime/pkg/direct-volume/utils.go).
//! `kata-ctl` uses it to find the sandbox by the volume's path.
//!
//! Kata's file is empty. Here it has one line for each containerd namespace in which a sandbox of that id uses the
//! volume.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::direct::directory_of;
use super::disk::HostDisk;
use lifecycle::id::SandboxId;

/// Kata's directory of direct-assigned volumes.
pub const ROOT: &str = "/run/kata-containers/shared/direct-volumes";

/// A direct-assigned volume that a container has.
#[derive(Debug, Clone)]
pub struct DirectVolume {
    /// On the host: what it is asked for by.
    pub path: PathBuf,
    /// Its name among the storages of the guest.
    pub storage: String,
    /// The disk that holds its file system.
    pub disk: HostDisk,
}

/// Largest file that is read, in bytes: thousands of namespaces.
const MAX: u64 = 1 << 20;

/// Leaves word that a sandbox uses a volume.
///
/// # Errors
/// The file cannot be made.
pub fn write(root: &Path, volume: &Path, namespace: &str, sandbox: &SandboxId) -> io::Result<()> {
    let file = root.join(directory_of(volume)).join(sandbox.as_str());
    change(&file, true, |namespaces| {
        namespaces.insert(namespace.to_owned());
    })
}

/// Takes back all words of a sandbox. It knows the volumes by the files alone: whoever wrote them may be dead.
pub fn forget(root: &Path, namespace: &str, sandbox: &str) {
    if SandboxId::new(sandbox).is_err() {
        return;
    }
    // No directory: there are no volumes.
    let Ok(volumes) = fs::read_dir(root) else { return };
    for volume in volumes.filter_map(Result::ok) {
        // Most volumes are others'.
        let _ = change(&volume.path().join(sandbox), false, |namespaces| {
            namespaces.remove(namespace);
        });
    }
}

/// Changes a file's lines, and removes it where none is left. Blocks while another sandbox of the same id does that.
fn change(path: &Path, create: bool, change: impl Fn(&mut BTreeSet<String>)) -> io::Result<()> {
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.lock()?;
        // Whoever had it may have removed the name, and somebody may have made another file by now.
        let identity = |file: &fs::Metadata| (file.dev(), file.ino());
        let named = fs::symlink_metadata(path).ok();
        if named.as_ref().map(identity) != Some(identity(&file.metadata()?)) {
            continue;
        }
        let mut lines = namespaces(&mut file)?;
        change(&mut lines);
        if lines.is_empty() {
            return fs::remove_file(path);
        }
        file.rewind()?;
        file.set_len(0)?;
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        return file.write_all(text.as_bytes());
    }
}

fn namespaces(file: &mut File) -> io::Result<BTreeSet<String>> {
    let mut text = String::new();
    file.take(MAX).read_to_string(&mut text)?;
    Ok(text.lines().map(str::to_owned).collect())
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
        write(root.path(), one, "n", &id("mine")).unwrap();
        write(root.path(), one, "n", &id("mine")).unwrap();
        write(root.path(), one, "n", &id("yours")).unwrap();
        write(root.path(), other, "n", &id("mine")).unwrap();
        assert!(write(root.path(), Path::new("/pods/unknown"), "n", &id("mine")).is_err());
        forget(root.path(), "n", "mine");
        forget(root.path(), "n", "../../mountInfo.json");
        assert!(!file(one, "mine").exists() && !file(other, "mine").exists());
        assert!(file(one, "yours").exists() && file(one, "mountInfo.json").exists());
        forget(Path::new("/nonexistent"), "n", "mine");
    }

    #[test]
    fn a_sandbox_of_the_same_id_in_another_namespace_keeps_its_word() {
        let root = tempfile::tempdir().unwrap();
        let volume = Path::new("/pods/one");
        let directory = root.path().join(directory_of(volume));
        fs::create_dir(&directory).unwrap();
        let id = SandboxId::new("same").unwrap();
        write(root.path(), volume, "default", &id).unwrap();
        write(root.path(), volume, "k8s.io", &id).unwrap();
        forget(root.path(), "default", "same");
        forget(root.path(), "default", "same");
        assert_eq!(fs::read_to_string(directory.join("same")).unwrap(), "k8s.io\n");
        forget(root.path(), "k8s.io", "same");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        // Kata's own.
        fs::write(directory.join("same"), "").unwrap();
        forget(root.path(), "default", "same");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
