//! A rootfs that is an overlay of file systems on disks: one for each layer of the image, and one for the writable layer. containerd's
//! erofs snapshotter describes it in this way to clients that mount it themselves (2.2, core/mount: `format/`).
//!
//! The options of the overlay, which is the last mount of the list, name the others by templates: `{{ mount 2 }}` is where the third one
//! is mounted, `{{ overlay 0 2 }}` is the first three with a colon between, the uppermost first. The guest mounts each from a disk of
//! its own, and the overlay of them.

use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use protocol::agent::{Storage, StorageEntry};

use super::name::name;
use super::rootfs::{is_managers, kind, refused};
use super::{VolumeError, Volumes, guest_path};
use crate::host::host_ns::HostNamespace;

/// Of the directories for what is written (inode(7)).
const DIRECTORY: u32 = 0o040_755;

impl Volumes {
    /// The place of the overlay in the guest.
    pub(super) fn layers(&mut self, mounts: &[Mount], host: &HostNamespace) -> Result<PathBuf, VolumeError> {
        let Some((overlay, parts)) = mounts.split_last().filter(|(last, _)| kind(last) == "overlay") else {
            let why = "it is one of several layers, and the last of them is no overlay of the others";
            return Err(refused(&mounts[0], why));
        };
        let refuse = |why: String| refused(overlay, &why);
        let first = self.storages.len();
        for part in parts {
            self.on_disk(part, host)?;
        }
        let mut storage = Storage {
            fstype: "overlay".to_owned(),
            ..Storage::default()
        };
        let mut directories = Vec::new();
        for option in overlay.options.iter().filter(|option| !is_managers(option)) {
            match option.split_once('=') {
                Some(("uidmap" | "gidmap", _)) => {
                    return Err(refuse(
                        "layers on disks cannot have their files given to other owners".to_owned(),
                    ));
                }
                Some((key @ ("lowerdir" | "upperdir" | "workdir"), value)) => {
                    let template = Template::parse(value, parts.len());
                    let template = template.ok_or_else(|| refuse(format!("{option:?} names no mounts of the list")))?;
                    for number in template.mounts {
                        let place = guest_path(&self.storages[first + number].0);
                        let place: PathBuf = place.iter().chain(Path::new(template.directory)).collect();
                        // One at a time: fsconfig(2) takes 255 bytes.
                        let key = if key == "lowerdir" { "lowerdir+" } else { key };
                        storage.options.push(format!("{key}={}", place.display()));
                        if key != "lowerdir+" {
                            directories.push((first + number, template.directory.to_owned()));
                        }
                    }
                }
                _ => storage.options.push(option.clone()),
            }
        }
        // An overlay of one layer, to which nothing is written, is that layer; the kernel makes none.
        if directories.is_empty() && parts.len() == 1 {
            return Ok(guest_path(&self.storages[first].0));
        }
        for (index, directory) in directories {
            self.storages[index].0.entries.push(StorageEntry {
                path: directory.into_bytes(),
                mode: DIRECTORY,
                required: true,
                ..StorageEntry::default()
            });
        }
        // The same for the same disks.
        storage.name = name("overlay", storage.options.join(",").as_bytes());
        let place = guest_path(&storage);
        self.storages.push((storage, Vec::new()));
        Ok(place)
    }
}

/// What stands for mounts of the list.
#[derive(Debug, PartialEq, Eq)]
struct Template<'a> {
    /// Their numbers, the uppermost layer first.
    mounts: Vec<usize>,
    /// In the mount: one name, or nothing.
    directory: &'a str,
}

impl<'a> Template<'a> {
    /// None if it is no template, or names what the list does not have.
    fn parse(text: &'a str, count: usize) -> Option<Self> {
        let (inside, rest) = text.strip_prefix("{{")?.split_once("}}")?;
        let words: Vec<&str> = inside.split_whitespace().collect();
        let number = |word: &str| word.parse::<usize>().ok().filter(|number| *number < count);
        let mounts = match words[..] {
            ["mount", mount] => vec![number(mount)?],
            ["overlay", from, to] => match (number(from)?, number(to)?) {
                (from, to) if from <= to => (from..=to).collect(),
                (from, to) => (to..=from).rev().collect(),
            },
            _ => return None,
        };
        let directory = match rest {
            "" => rest,
            rest => rest.strip_prefix('/')?,
        };
        let plain = !directory.contains('/') && !directory.contains("..");
        plain.then_some(Self { mounts, directory })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn template(text: &str) -> Option<(Vec<usize>, &str)> {
        Template::parse(text, 4).map(|template| (template.mounts, template.directory))
    }

    #[test]
    fn templates_name_mounts_of_the_list_and_a_directory_in_them() {
        assert_eq!(template("{{ mount 0 }}/upper"), Some((vec![0], "upper")));
        assert_eq!(template("{{ overlay 1 3 }}"), Some((vec![1, 2, 3], "")));
        assert_eq!(template("{{overlay 3 1}}"), Some((vec![3, 2, 1], "")));
        for wrong in [
            "{{ mount 4 }}",
            "{{ mount }}",
            "/a:/b",
            "{{ mount 0 }}upper",
            "{{ mount 0 }}/../etc",
            "{{ mount 0 }}/a/b",
            "{{ mount -1 }}",
        ] {
            assert_eq!(template(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn layers_become_disks_and_an_overlay_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            type_: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Mount::default()
        };
        let image = |name: &str| {
            let path = directory.path().join(name);
            fs::write(&path, [0; 4096]).unwrap();
            path.display().to_string()
        };
        let device = format!("device={}", image("c"));
        let host = HostNamespace::start_thread().unwrap();
        let mut volumes = Volumes::default();
        let mounts = [
            mount("ext4", &image("upper"), &["X-containerd.mkfs.fs=ext4", "rw", "loop"]),
            mount("erofs", &image("a"), &["ro", "loop"]),
            mount("erofs", &image("b"), &["ro", "loop", &device]),
            mount(
                "format/mkdir/overlay",
                "overlay",
                &[
                    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                    "workdir={{ mount 0 }}/work",
                    "upperdir={{ mount 0 }}/upper",
                    "lowerdir={{ overlay 1 2 }}",
                    "index=off",
                ],
            ),
        ];
        volumes.rootfs(&mounts, &host).unwrap();
        let disks: Vec<_> = volumes.storages.iter().map(|(_, disks)| disks.clone()).collect();
        assert_eq!(disks, [vec![0], vec![1], vec![2, 3], vec![]]);
        let read_only: Vec<_> = volumes.disks.iter().map(|disk| disk.read_only).collect();
        assert_eq!(read_only, [false, true, true, true]);
        let (upper, overlay) = (&volumes.storages[0].0, &volumes.storages[3].0);
        assert_eq!(upper.options, ["rw"]);
        assert_eq!(volumes.storages[2].0.options, ["ro"]);
        let made: Vec<_> = upper.entries.iter().map(|entry| entry.path.as_slice()).collect();
        assert_eq!(made, [&b"work"[..], b"upper"]);
        let place = |index: usize| guest_path(&volumes.storages[index].0).display().to_string();
        assert_eq!(
            overlay.options,
            [
                format!("workdir={}/work", place(0)),
                format!("upperdir={}/upper", place(0)),
                format!("lowerdir+={}", place(1)),
                format!("lowerdir+={}", place(2)),
                "index=off".to_owned(),
            ]
        );
        assert_eq!(volumes.rootfs, Some(guest_path(overlay)));

        let refused = |mounts: &[Mount]| Volumes::default().rootfs(mounts, &host).unwrap_err().to_string();
        let [upper, lower, _, overlay] = &mounts;
        assert!(refused(&[upper.clone(), lower.clone()]).contains("no overlay"));
        let on_the_host = mount("overlay", "overlay", &["lowerdir={{ mount 0 }}", "upperdir=/somewhere"]);
        assert!(refused(&[lower.clone(), on_the_host]).contains("/somewhere"));
        let mut mapped = overlay.clone();
        mapped.options.push("uidmap=0:1:1".to_owned());
        assert!(refused(&[upper.clone(), lower.clone(), lower.clone(), mapped]).contains("other owners"));
    }
}
