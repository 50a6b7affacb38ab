//! Tests of specifications with files of this machine: images, a tmpfs, a hugetlbfs. As root, in the tests' own mount
//! namespace.

use std::fs;

use config::EmptyDirMode;
use rustix::mount::{MountFlags, mount, unmount};
use serde_json::json;

use super::*;

fn spec(change: impl Into<serde_json::Value>) -> Spec {
    let change = change.into();
    let mut spec = json!({ "ociVersion": "1.0.2" });
    spec.as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn host() -> HostNamespace {
    HostNamespace::start_thread().unwrap()
}

fn bind(source: &Path, destination: &str) -> serde_json::Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro", "size=1m"] })
}

#[test]
fn a_rootfs_in_an_image_becomes_a_disk() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    fs::write(&image, [0; 4096]).unwrap();
    let rootfs = RootfsMount {
        type_: "ext4".to_owned(),
        source: image.to_str().unwrap().to_owned(),
        options: ["loop", "rw", "discard"].map(str::to_owned).to_vec(),
        ..RootfsMount::default()
    };
    let volumes = Volumes::plan(
        &mut spec(json!({})),
        std::slice::from_ref(&rootfs),
        EmptyDirMode::SharedFs,
        &host(),
    )
    .unwrap();
    let (storage, disk) = &volumes.storages[0];
    assert_eq!((storage.fstype.as_str(), disk.clone()), ("ext4", vec![0]));
    assert_eq!(storage.options, ["rw", "discard"]);
    assert_eq!(volumes.rootfs, Some(guest_path(storage)));
    let opened = volumes.disks[0].open().unwrap();
    assert_eq!((opened.kind, opened.read_only), (hypervisor::DiskKind::File, false));

    let layers = [rootfs.clone(), rootfs.clone()];
    let error = Volumes::plan(&mut spec(json!({})), &layers, EmptyDirMode::SharedFs, &host()).unwrap_err();
    assert!(error.to_string().contains("several layers"), "{error}");
    let missing = RootfsMount {
        source: "/not/there".to_owned(),
        ..rootfs.clone()
    };
    let error = Volumes::plan(&mut spec(json!({})), &[missing], EmptyDirMode::SharedFs, &host()).unwrap_err();
    assert!(error.to_string().contains("/not/there"), "{error}");
    let no_disk = RootfsMount {
        source: "/dev/null".to_owned(),
        ..rootfs
    };
    let error = Volumes::plan(&mut spec(json!({})), &[no_disk], EmptyDirMode::SharedFs, &host()).unwrap_err();
    assert!(matches!(error, VolumeError::NoDisk { .. }), "{error}");
}

#[test]
fn a_direct_assigned_volume_becomes_a_disk_and_one_disk_for_two_mounts() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    fs::write(&image, [0; 4096]).unwrap();
    let volume = directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let places = Places {
        direct: directory.path().join("direct"),
        ..Places::default()
    };
    let place = places.direct.join(direct::directory_of(&volume));
    fs::create_dir_all(&place).unwrap();
    fs::write(
        place.join("mountInfo.json"),
        json!({ "volume-type": "file", "device": image, "fstype": "ext4", "options": ["ro"] }).to_string(),
    )
    .unwrap();
    let mut spec = spec(json!({ "mounts": [bind(&volume, "/a"), bind(&volume, "/b"), bind(directory.path(), "/c")] }));
    let volumes = Volumes::plan_at(&places, &mut spec, &[], &host()).unwrap();
    assert_eq!((volumes.disks.len(), volumes.storages.len()), (1, 2));
    assert!(volumes.disks[0].read_only);
    let mounts = spec.mounts().clone().unwrap();
    assert_eq!(mounts[0].source(), &Some(guest_path(&volumes.storages[0].0)));
    assert_eq!(
        mounts[0].options().as_deref(),
        Some(&["rbind", "ro"].map(str::to_owned)[..])
    );
    assert_eq!(
        mounts[2].source().as_deref(),
        Some(directory.path()),
        "no volume: shared as any other"
    );
}

#[test]
fn a_tmpfs_of_the_pods_memory_is_the_guests() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("kubernetes.io~empty-dir/cache");
    let disk = directory.path().join("kubernetes.io~empty-dir/disk");
    fs::create_dir_all(&cache).unwrap();
    fs::create_dir_all(&disk).unwrap();
    mount("tmpfs", &cache, "tmpfs", MountFlags::empty(), c"size=1m,mode=0777").unwrap();
    // As the kubelet does for a subPath.
    fs::create_dir_all(cache.join("a/part")).unwrap();
    fs::write(cache.join("a/part/file"), "content").unwrap();
    let part = directory.path().join("subpath");
    fs::create_dir(&part).unwrap();
    rustix::mount::mount_bind(cache.join("a/part"), &part).unwrap();
    let mut spec = spec(json!({ "mounts": [
        bind(&cache, "/cache"), bind(&disk, "/disk"), bind(&cache, "/dev/shm"), bind(&part, "/part")
    ] }));
    let planned = Volumes::plan(&mut spec, &[], EmptyDirMode::SharedFs, &host());
    for path in [&part, &cache] {
        unmount(path, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    let volumes = planned.unwrap();
    assert_eq!(volumes.storages.len(), 3);
    assert_eq!(volumes.storages[0].0.name, volumes.storages[2].0.name);
    let entries: Vec<_> = volumes.storages[2].0.entries.iter().collect();
    let told = |path: &[u8]| entries.iter().find(|entry| entry.path == path).unwrap();
    assert!(told(b"a").required && told(b"a/part").required && !told(b"a/part/file").required);
    assert_eq!(told(b"a/part/file").content, b"content");
    assert_eq!(volumes.storages[0].0.name, volumes.storages[1].0.name);
    assert!(volumes.storages[0].0.options.contains(&"size=1048576".to_owned()));
    let mounts = spec.mounts().clone().unwrap();
    assert_eq!(mounts[1].source().as_deref(), Some(disk.as_path()));
    assert_eq!(
        mounts[3].source().clone().unwrap(),
        guest_path(&volumes.storages[0].0).join("a/part")
    );
}

#[test]
fn a_name_of_the_guests_own_cannot_be_a_source() {
    let inside = Path::new(protocol::STORAGE_DIRECTORY).join("disk-of-another");
    let mut spec = spec(json!({ "mounts": [bind(&inside, "/x")] }));
    let error = Volumes::plan(&mut spec, &[], EmptyDirMode::SharedFs, &host()).unwrap_err();
    assert!(error.to_string().contains("/x"), "{error}");
}

#[test]
fn an_empty_image_and_a_device_that_is_not_there_are_named() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let disk = HostDisk::locate(&host(), empty.path(), false).unwrap();
    assert!(matches!(disk.open(), Err(VolumeError::Empty { .. })));
    let device = json!({ "path": "/dev/gone", "type": "b", "major": 4000, "minor": 9 });
    let mut few = spec(json!({ "linux": { "devices": [device] } }));
    let error = Volumes::plan(&mut few, &[], EmptyDirMode::SharedFs, &host()).unwrap_err();
    assert!(
        error.to_string().contains("/dev/gone") && error.to_string().contains("4000:9"),
        "{error}"
    );
    let mut all = spec(json!({ "linux": {
        "devices": [device], "resources": { "devices": [{ "allow": true, "access": "rwm" }] }
    } }));
    let volumes = Volumes::plan(&mut all, &[], EmptyDirMode::SharedFs, &host()).unwrap();
    assert_eq!(volumes.warnings.len(), 1);
    assert!(all.linux().clone().unwrap().devices().as_ref().unwrap().is_empty());
}

#[test]
fn only_a_whole_tmpfs_is_shared_memory() {
    let plan = |source: &Path| {
        let bind = json!({ "destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind", "ro"] });
        let mut spec = spec(json!({ "mounts": [bind] }));
        let volumes = Volumes::plan(&mut spec, &[], EmptyDirMode::SharedFs, &host()).unwrap();
        let mount = spec.mounts().clone().unwrap().remove(0);
        (volumes.storages.len(), mount)
    };
    let (storages, mount) = plan(Path::new("/dev/shm"));
    assert_eq!(storages, 1);
    assert!(mount.options().clone().unwrap().contains(&"ro".to_owned()));
    let part = tempfile::tempdir_in("/dev/shm").unwrap();
    let (storages, mount) = plan(part.path());
    assert_eq!((storages, mount.source().as_deref()), (0, Some(part.path())));
}
