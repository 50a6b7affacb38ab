//! `kata-ctl direct-volume`: direct-assigned volumes of Kata: for a path of a pod, the runtime gives the guest a block
//! device instead of a mount of the host's.
//!
//! The format is Kata's (docs/design/direct-blk-device-assignment.md there): below
//! `/run/kata-containers/shared/direct-volumes/` is a directory named by the base64url of the volume's path (RFC 4648,
//! with padding), which contains `mountInfo.json`. A runtime that uses the volume adds a file named after its sandbox.
//! Our runtime writes into it the containerd namespaces in which a sandbox of that id uses the volume.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::sandboxes::{self, FindError, Found, Shim, ShimError};

/// Where Kata's runtimes look.
const ROOT: &str = "/run/kata-containers/shared/direct-volumes";

/// Where volumes and sandboxes are written down.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub(crate) volumes: &'a Path,
    pub(crate) sandboxes: &'a Path,
}

impl Default for Places<'_> {
    fn default() -> Self {
        Self {
            volumes: Path::new(ROOT),
            sandboxes: Path::new(sandboxes::ROOT),
        }
    }
}

const FILE: &str = "mountInfo.json";

/// Largest mount information, in bytes.
const MAX: usize = 64 << 10;

/// Longest path of a volume: its name in base64 has to be a file's (NAME_MAX, 255 bytes).
const LONGEST: usize = 189;

/// What the guest is to mount, with Kata's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MountInfo {
    /// "block", or another kind that the runtime knows.
    volume_type: String,
    device: String,
    #[serde(rename = "fstype", alias = "fs-type", alias = "fs_type", default)]
    fs_type: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    options: Vec<String>,
}

/// Why a volume is not changed or shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectVolumeError {
    #[error("the volume path {path:?} must be absolute and at most {LONGEST} bytes long")]
    Path { path: String },
    #[error("the mount information is not {{\"volume-type\", \"device\", \"fstype\", \"metadata\", \"options\"}}")]
    Json(#[source] serde_json::Error),
    /// It is too large, or has values that mean nothing.
    #[error("the mount information {0}")]
    Information(&'static str),
    #[error("cannot {operation} {}{hint}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        /// What it means, if that is plain.
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("no running sandbox uses the volume {volume}: only the guest that has it mounted can {operation}{users}")]
    NotInUse {
        operation: &'static str,
        volume: String,
        /// Who is written down, as the end of the sentence.
        users: String,
    },
    #[error(transparent)]
    Find(#[from] FindError),
    /// Who has it says no, or nothing.
    #[error("sandbox {sandbox}")]
    Shim {
        sandbox: String,
        #[source]
        source: ShimError,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectVolumeError {
    let path = path.to_owned();
    move |source| DirectVolumeError::Io {
        operation,
        path,
        hint: match source.kind() {
            io::ErrorKind::NotFound => " (there is no such volume)",
            io::ErrorKind::PermissionDenied => " (only root can)",
            _ => "",
        },
        source,
    }
}

fn directory(root: &Path, volume: &str) -> Result<PathBuf, DirectVolumeError> {
    if !Path::new(volume).is_absolute() || volume.len() > LONGEST {
        return Err(DirectVolumeError::Path {
            path: volume.to_owned(),
        });
    }
    Ok(root.join(URL_SAFE.encode(volume)))
}

/// Tells the runtime of a volume. One that is known is replaced.
pub(crate) fn add(root: &Path, volume: &str, information: &str) -> Result<Report, DirectVolumeError> {
    if information.len() > MAX {
        return Err(DirectVolumeError::Information("is larger than 64 KiB"));
    }
    let information: MountInfo = serde_json::from_str(information).map_err(DirectVolumeError::Json)?;
    if information.device.is_empty() || information.volume_type.is_empty() {
        return Err(DirectVolumeError::Information("names no device or no volume-type"));
    }
    let directory = directory(root, volume)?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(failed("create", &directory))?;
    let text = serde_json::to_string(&information).map_err(DirectVolumeError::Json)?;
    let (path, new) = (directory.join(FILE), directory.join(".mountInfo.json.new"));
    // A runtime that reads it sees the old one or the new one, whole.
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(failed("write", &path))?;
    Ok(done())
}

/// Forgets a volume. A sandbox that uses it keeps it.
pub(crate) fn remove(root: &Path, volume: &str) -> Result<Report, DirectVolumeError> {
    let directory = directory(root, volume)?;
    fs::remove_dir_all(&directory).map_err(failed("remove", &directory))?;
    Ok(done())
}

/// How full a volume is inside the guest, as JSON: with Kata's keys (the answer of its agent's GetVolumeStats, in which the
/// unit 1 is bytes and 2 is inodes), and then what the guest mounts, who uses it, and how large its device is on the host.
pub(crate) async fn stats(places: &Places<'_>, volume: &str) -> Result<Report, DirectVolumeError> {
    let directory = directory(places.volumes, volume)?;
    let information = read(&directory)?;
    let (users, shim) = user(places, &directory, volume, "say how full it is").await?;
    let answer = shim.volume_stats(volume).await;
    let stats = answer.map_err(|source| asked(&shim, source))?;
    let text = serde_json::json!({
        "usage": [
            { "available": stats.available_bytes, "total": stats.total_bytes, "used": stats.used_bytes, "unit": 1 },
            { "available": stats.available_inodes, "total": stats.total_inodes, "used": stats.used_inodes, "unit": 2 },
        ],
        "volume_condition": { "abnormal": false, "message": "" },
        "volume": volume,
        "mount": information,
        "sandboxes": users,
        "device_bytes": size(Path::new(&information.device)).ok(),
    });
    Ok(Report {
        text: format!("{text:#}\n"),
        good: true,
    })
}

/// Makes a volume of a running sandbox larger: an image file, the disk in the guest, and the file system on it. A block
/// device must have grown already.
pub(crate) async fn resize(places: &Places<'_>, volume: &str, size: u64) -> Result<Report, DirectVolumeError> {
    let directory = directory(places.volumes, volume)?;
    read(&directory)?;
    let (_, shim) = user(places, &directory, volume, "make its file system larger").await?;
    let answer = shim.resize_volume(volume, size).await;
    answer.map_err(|source| asked(&shim, source))?;
    Ok(done())
}

/// Everybody who is written down as using a volume, and the first of them that runs.
async fn user(
    places: &Places<'_>,
    directory: &Path,
    volume: &str,
    operation: &'static str,
) -> Result<(Vec<String>, Shim), DirectVolumeError> {
    let users = users(directory)?;
    let running = sandboxes::all(places.sandboxes)?;
    let mut alive = running
        .iter()
        .filter(|found| found.shim().is_ok() && users.iter().any(|user| is_user(directory, user, found)));
    let Some(found) = alive.next() else {
        return Err(DirectVolumeError::NotInUse {
            operation,
            volume: volume.to_owned(),
            users: match users.is_empty() {
                true => String::new(),
                false => format!(" (it was used by {}, whose shim is gone)", users.join(", ")),
            },
        });
    };
    let connected = Shim::connect(found).await;
    let shim = connected.map_err(|source| DirectVolumeError::Shim {
        sandbox: found.id().to_owned(),
        source,
    })?;
    Ok((users, shim))
}

/// Whether what is written down is a sandbox of the host.
fn is_user(directory: &Path, user: &str, found: &Found) -> bool {
    let namespaces = fs::read_to_string(directory.join(user)).unwrap_or_default();
    let its = found.state.as_ref().map_or("", |state| &state.namespace);
    // Kata's files are empty.
    user == found.id() && (namespaces.is_empty() || namespaces.lines().any(|namespace| namespace == its))
}

fn asked(shim: &Shim, source: ShimError) -> DirectVolumeError {
    DirectVolumeError::Shim {
        sandbox: shim.sandbox().to_owned(),
        source,
    }
}

fn done() -> Report {
    Report {
        text: String::new(),
        good: true,
    }
}

fn read(directory: &Path) -> Result<MountInfo, DirectVolumeError> {
    let path = directory.join(FILE);
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    serde_json::from_str(&text).map_err(DirectVolumeError::Json)
}

fn users(directory: &Path) -> Result<Vec<String>, DirectVolumeError> {
    let entries = fs::read_dir(directory).map_err(failed("read", directory))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name != FILE && !name.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

/// Of a block device or a file, in bytes.
fn size(device: &Path) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    fs::File::open(device)?.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INFORMATION: &str =
        r#"{"volume-type":"block","device":"/dev/vdb","fstype":"ext4","metadata":{"a":"b"},"options":["ro"]}"#;

    #[tokio::test]
    async fn a_volume_is_added_replaced_and_removed_and_only_its_guest_knows_more() {
        let root = tempfile::tempdir().unwrap();
        let volume = "/var/lib/kubelet/pods/1/volumes/x";
        add(root.path(), volume, INFORMATION).unwrap();
        let file = root.path().join(URL_SAFE.encode(volume)).join(FILE);
        assert_eq!(fs::read_to_string(&file).unwrap(), INFORMATION);
        let run = tempfile::tempdir().unwrap();
        let places = Places {
            volumes: root.path(),
            sandboxes: run.path(),
        };
        let refused = stats(&places, volume).await.unwrap_err().to_string();
        assert!(refused.contains("no running sandbox uses"), "{refused}");
        fs::write(file.with_file_name("sandbox-1"), "").unwrap();
        let dead = r#"{"id":"sandbox-1","shim":{"pid":2147483646,"start_time":1}}"#;
        sandboxes::tests::make(run.path(), "sandbox-1", dead);
        let refused = resize(&places, volume, 1 << 30).await.unwrap_err().to_string();
        assert!(refused.contains("used by sandbox-1, whose shim is gone"), "{refused}");
        let unknown = stats(&places, "/nowhere").await.unwrap_err().to_string();
        assert!(unknown.contains("there is no such volume"), "{unknown}");
        add(root.path(), volume, &INFORMATION.replace("ext4", "xfs")).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("xfs"));
        remove(root.path(), volume).unwrap();
        let gone = remove(root.path(), volume).unwrap_err().to_string();
        assert!(gone.contains("there is no such volume"), "{gone}");
    }

    #[test]
    fn of_two_sandboxes_with_one_id_the_one_in_the_namespace_that_is_written_down_is_the_user() {
        let (volume, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for namespace in ["default", "k8s.io"] {
            let state = format!(r#"{{"id":"same","namespace":"{namespace}"}}"#);
            sandboxes::tests::make(run.path(), namespace, &state);
        }
        let is_user_in = |text: &str| {
            fs::write(volume.path().join("same"), text).unwrap();
            let found = sandboxes::all(run.path()).unwrap();
            let users = found.iter().filter(|found| is_user(volume.path(), "same", found));
            users.map(|found| found.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(is_user_in("k8s.io\n"), ["k8s.io"]);
        assert_eq!(is_user_in("").len(), 2);
        assert!(is_user_in("moby\n").is_empty());
    }

    #[test]
    fn what_is_no_volume_is_refused_before_anything_is_made() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            add(root.path(), "a/b", INFORMATION),
            Err(DirectVolumeError::Path { .. })
        ));
        assert!(matches!(
            add(root.path(), &format!("/{}", "a".repeat(200)), INFORMATION),
            Err(DirectVolumeError::Path { .. })
        ));
        assert!(matches!(add(root.path(), "/a", "{}"), Err(DirectVolumeError::Json(_))));
        let empty = r#"{"volume-type":"block","device":""}"#;
        assert!(matches!(
            add(root.path(), "/a", empty),
            Err(DirectVolumeError::Information(_))
        ));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn no_volume_leads_out_of_the_directory(volume in "/\\PC{0,60}") {
            if let Ok(path) = directory(Path::new("/root"), &volume) {
                prop_assert_eq!(path.parent(), Some(Path::new("/root")));
                prop_assert!(path.file_name().is_some_and(|name| name.len() <= 255));
            }
        }
    }
}
