//! Kata's direct-assigned volumes: a file by a CSI driver names the device behind a volume's path, and the guest mounts
//! that device (kata-containers, docs/design/direct-blk-device-assignment.md).
//!
//! The file is `<base64url of the path>/mountInfo.json` below a directory in which only root can write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use protocol::agent::Storage;
use serde::Deserialize;

use super::disk::HostDisk;
use super::error::VolumeError;

/// Largest file that is read, in bytes: hundreds of times what one has.
const MAX: u64 = 1 << 20;

/// Kinds of volumes that are disks: the names that Kata's two runtimes and its tools use.
const KINDS: [&str; 5] = ["", "block", "blk", "directvol", "file"];

/// The content of mountInfo.json.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct MountInfo {
    #[serde(rename = "volume-type", default)]
    kind: String,
    /// The block device or raw image on the host.
    pub(super) device: PathBuf,
    fstype: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    options: Vec<String>,
    #[serde(skip)]
    group: Option<u32>,
}

/// What is said of a volume; none if it is not a direct-assigned one.
pub(super) fn find(directory: &Path, volume: &Path) -> Result<Option<MountInfo>, VolumeError> {
    let file = directory.join(directory_of(volume)).join("mountInfo.json");
    let wrong = |reason: String| VolumeError::Direct {
        volume: volume.to_owned(),
        file: file.clone(),
        reason,
    };
    let opened = match File::open(&file) {
        Ok(opened) => opened,
        // A path too long to be the name of a file is the path of no such volume.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.kind() == io::ErrorKind::NotADirectory
                || error.raw_os_error() == Some(libc::ENAMETOOLONG) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(wrong(format!("cannot be opened: {error}"))),
    };
    let mut text = Vec::new();
    opened
        .take(MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if text.len() as u64 > MAX {
        return Err(wrong(format!("has more than {MAX} bytes")));
    }
    parse(&text).map(Some).map_err(wrong)
}

fn parse(text: &[u8]) -> Result<MountInfo, String> {
    let mut info: MountInfo = serde_json::from_slice(text).map_err(|error| format!("is not valid: {error}"))?;
    if !KINDS.contains(&info.kind.as_str()) {
        return Err(format!(
            "asks for volume-type {:?}, which is not supported: it may be block, blk, directvol or file",
            info.kind
        ));
    }
    if !info.device.is_absolute() {
        return Err(format!("names the device {:?}, which is no absolute path", info.device));
    }
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !plain(&info.fstype) {
        return Err(format!("names no file system (fstype {:?})", info.fstype));
    }
    // Kata's own words for where the image is: they say nothing about the file system.
    info.options
        .retain(|option| option != "loop" && !option.starts_with("io.katacontainers."));
    if let Some(group) = info.metadata.get("fsGroup") {
        let group = group
            .parse()
            .map_err(|_| format!("has the fsGroup {group:?}, which is no number"))?;
        info.group = Some(group);
    }
    match info.metadata.get("fsGroupChangePolicy").map(String::as_str) {
        None | Some("" | "Always" | "OnRootMismatch") => Ok(info),
        Some(other) => Err(format!(
            "has the fsGroupChangePolicy {other:?}: it may be Always or OnRootMismatch"
        )),
    }
}

impl MountInfo {
    /// Whether the volume is not to be written to.
    pub(super) fn read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// The file system for the guest to mount.
    pub(super) fn storage(&self, disk: &HostDisk) -> Storage {
        Storage {
            name: disk.storage_name(),
            fstype: self.fstype.clone(),
            options: self.options.clone(),
            group: self.group.filter(|_| !self.read_only()),
            group_on_mismatch: self
                .metadata
                .get("fsGroupChangePolicy")
                .is_some_and(|policy| policy == "OnRootMismatch"),
            ..Storage::default()
        }
    }

    /// What was asked for and has no effect.
    pub(super) fn warnings(&self) -> Vec<String> {
        let known = ["fsGroup", "fsGroupChangePolicy"];
        let unknown = self.metadata.keys().filter(|key| !known.contains(&key.as_str()));
        unknown
            .map(|key| {
                format!(
                    "the metadata {key:?} of the direct-assigned volume on {} has no effect",
                    self.device.display()
                )
            })
            .collect()
    }
}

/// The name of a volume's directory.
pub(super) fn directory_of(volume: &Path) -> String {
    URL_SAFE.encode(volume.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_encoded_as_kata_does() {
        assert_eq!(directory_of(Path::new("/kubelet/a")), "L2t1YmVsZXQvYQ==");
    }

    #[test]
    fn what_kata_writes_is_understood() {
        let text = br#"{"volume-type":"block","device":"/dev/sdf","fstype":"ext4","options":["rw","noatime"],
            "metadata":{"fsGroup":"2000","fsGroupChangePolicy":"OnRootMismatch","other":"x"}}"#;
        let info = parse(text).unwrap();
        assert_eq!(info.group, Some(2000));
        assert!(!info.read_only());
        assert_eq!(info.warnings().len(), 1);
        let image = parse(br#"{"device":"/i.raw","fstype":"xfs","options":["ro","loop"],"volume-type":"directvol"}"#);
        let image = image.unwrap();
        assert!(image.read_only());
        assert_eq!(image.options, ["ro"]);
        // As runtime-rs 4.1 names it.
        parse(br#"{"device":"/dev/sdf","fstype":"ext4","volume-type":"blk"}"#).unwrap();
    }

    #[test]
    fn what_is_no_volume_is_refused_with_the_file_and_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let volume = Path::new("/vol");
        let place = directory.path().join(directory_of(volume));
        std::fs::create_dir(&place).unwrap();
        assert_eq!(find(directory.path(), volume).unwrap(), None);
        assert_eq!(find(directory.path(), Path::new(&"/x".repeat(2000))).unwrap(), None);
        for (text, reason) in [
            ("{".to_owned(), "not valid"),
            (r#"{"device":"/d"}"#.to_owned(), "fstype"),
            (r#"{"device":"d","fstype":"ext4"}"#.to_owned(), "absolute"),
            (r#"{"device":"/d","fstype":"../x"}"#.to_owned(), "no file system"),
            (
                r#"{"device":"/d","fstype":"ext4","volume-type":"spdkvol"}"#.to_owned(),
                "spdkvol",
            ),
            (
                r#"{"device":"/d","fstype":"ext4","metadata":{"fsGroup":"-1"}}"#.to_owned(),
                "fsGroup",
            ),
            (
                format!(r#"{{"device":"/d","x":"{}"}}"#, "y".repeat(10 << 20)),
                "more than",
            ),
        ] {
            std::fs::write(place.join("mountInfo.json"), text).unwrap();
            let error = find(directory.path(), volume).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("mountInfo.json"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_volume_or_an_error(text: Vec<u8>) {
            let _ = parse(&text);
        }

        #[test]
        fn a_name_has_no_slash(path: Vec<u8>) {
            let name = directory_of(Path::new(OsStr::from_bytes(&path)));
            prop_assert!(!name.contains('/') && name.len() == path.len().div_ceil(3) * 4);
        }
    }

    #[test]
    fn fuzz_mount_info() {
        fuzz::run("mount-info", |bytes| {
            if let Ok(info) = parse(bytes) {
                let _ = (info.read_only(), info.warnings());
            }
        });
    }
}
