//! Volumes that are not directories of the host: block devices, file systems on them, memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use framework::{
    Node, Result, Spec,
    cri::{PodNode, messages},
    disk::RawImage,
    leftovers,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// A file system that the host has mounted for a test.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, path: PathBuf, options: &str) -> Result<Self> {
        fs::create_dir_all(&path)?;
        mount(Some(kind), &path, Some(kind), MsFlags::empty(), Some(options)).map_err(std::io::Error::from)?;
        Ok(Self(path))
    }

    /// Unmounts it: nobody may use it any more.
    fn unmount(self) -> Result<()> {
        Ok(umount2(&self.0, MntFlags::empty()).map_err(std::io::Error::from)?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A failed test may still use it.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A container of the sandbox `pod`, as CRI writes it.
fn member(spec: Spec, node: &Node, kind: &str, pod: &str) -> Result<Spec> {
    spec.annotation("io.kubernetes.cri.container-type", kind)?
        .annotation("io.kubernetes.cri.sandbox-id", &node.id(pod))
}

/// The specification without its own /dev/shm.
fn without_shm(spec: Spec) -> Result<Spec> {
    let mounts = spec.get("/mounts").as_array().cloned().unwrap_or_default();
    let others: Vec<Value> = mounts
        .into_iter()
        .filter(|mount| mount["destination"] != "/dev/shm")
        .collect();
    spec.set("/mounts", others)
}

#[test]
fn a_block_device_of_the_host_is_written_to_and_let_go_of() -> Result<()> {
    let node = Node::start()?;
    let image = RawImage::with(&node.dir().join("disk"), "from the host", 8 << 20)?;
    let host = image.loop_device()?;
    let script = "head -c 13 /dev/disk; \
                  echo from the guest | dd of=/dev/disk bs=512 seek=4 conv=fsync 2>/dev/null && echo; stat -c %a /dev/disk";
    let spec = host.given_to(node.spec("disk", &["sh", "-c", script])?, "/dev/disk", "rwm")?;
    let said = node.run_spec("disk", &spec)?.arg("--rm").ok()?;
    assert_eq!(said, "from the host\n660\n");
    host.detach()?;
    assert_eq!(image.loop_devices()?, "", "somebody still has the device open");
    assert_eq!(image.text(2048)?, "from the guest\n");
    node.nothing_left()
}

#[test]
fn a_block_device_that_is_only_to_be_read_cannot_be_written() -> Result<()> {
    let node = Node::start()?;
    let image = RawImage::with(&node.dir().join("disk"), "keep me", 8 << 20)?;
    let host = image.loop_device()?;
    let script = "head -c 7 /dev/disk; echo x | dd of=/dev/disk 2>&1 | grep -o -m1 'Operation not permitted'";
    let spec = host.given_to(node.spec("ro", &["sh", "-c", script])?, "/dev/disk", "r")?;
    let said = node.run_spec("ro", &spec)?.arg("--rm").ok()?;
    assert_eq!(said, "keep meOperation not permitted\n");
    assert_eq!(image.text(0)?, "keep me");
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// Nodes cannot be made in a user namespace: the guest's own is bound, whatever the container calls the disk.
    #[test]
    fn a_block_device_of_a_container_with_a_user_namespace_is_found_by_its_number() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "from the host", 8 << 20)?;
        let host = image.loop_device()?;
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let script = "test -b /dev/disk && cat /sys/dev/block/$((0x$(stat -c %t /dev/disk))):$((0x$(stat -c %T /dev/disk)))/size";
        let spec = host.given_to(node.spec("mapped", &["sh", "-c", script])?, "/dev/disk", "rwm")?;
        let owner = Some(100_000);
        std::os::unix::fs::chown(spec.root(), owner, owner)?;
        // The directory that leads to the root has to let others through.
        fs::set_permissions(node.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let spec = spec
            .push("/linux/namespaces", json!({ "type": "user" }))?
            .set("/linux/uidMappings", map.clone())?
            .set("/linux/gidMappings", map)?;
        // Sectors of 512 bytes.
        let said = node.run_spec("mapped", &spec)?.arg("--rm").ok()?;
        assert_eq!(said, format!("{}\n", (8 << 20) / 512));
        host.detach()?;
        node.nothing_left()
    }

    /// A direct-assigned volume, as a CSI driver tells Kata of it; forgotten when dropped.
    struct DirectVolume {
        path: PathBuf,
        place: PathBuf,
    }

    impl DirectVolume {
        fn new(path: PathBuf, info: &str) -> Result<Self> {
            fs::create_dir_all(&path)?;
            let name = std::process::Command::new("sh")
                .args(["-c", "printf %s \"$0\" | base64 -w0 | tr +/ -_"])
                .arg(&path)
                .output()?;
            let place = Path::new("/run/kata-containers/shared/direct-volumes")
                .join(String::from_utf8_lossy(&name.stdout).as_ref());
            fs::create_dir_all(&place)?;
            fs::write(place.join("mountInfo.json"), info)?;
            Ok(Self { path, place })
        }
    }

    impl Drop for DirectVolume {
        fn drop(&mut self) {
            // What is left of it is of no use to anybody. The directories above go with the last volume.
            let _ = fs::remove_dir_all(&self.place);
            leftovers::remove_direct_volumes();
        }
    }

    #[test]
    fn a_direct_assigned_volume_is_mounted_in_the_guest_and_clean_once_the_container_is_deleted() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::ext4(&node.dir().join("volume.img"), 16 << 20)?;
        let info = json!({ "volume-type": "file", "device": image.path(), "fstype": "ext4",
            "options": ["noatime"], "metadata": { "fsGroup": "2000" } });
        let volume = DirectVolume::new(node.dir().join("volume"), &info.to_string())?;
        let script =
            "grep ' /data ' /proc/mounts | cut -d' ' -f1-3; stat -c %g /data; echo kept > /data/file; sleep 1000";
        let spec = node
            .spec("first", &["sh", "-c", script])?
            .bind(&volume.path, "/data", &["rw"])?;
        node.run_spec("first", &spec)?.arg("-d").ok()?;
        let shown =
            "until [ -s /data/file ]; do :; done; grep ' /data ' /proc/mounts | cut -d' ' -f1-3; stat -c %g /data";
        assert_eq!(
            node.exec("first", "look").sh(shown).ok()?,
            "/dev/vda /data ext4\n2000\n"
        );
        node.task("kill", "first").args(["--signal", "9"]).ok()?;
        node.await_stopped("first")?;
        node.task("rm", "first").output()?;
        // At once: whoever detaches the volume now must find everything on it.
        assert!(image.is_clean()?);
        assert_eq!(image.file("file")?, "kept\n");
        node.ctr().args(["container", "rm"]).arg(node.id("first")).ok()?;

        let again = node
            .spec("again", &["cat", "/data/file"])?
            .bind(&volume.path, "/data", &["ro"])?;
        assert_eq!(node.run_spec("again", &again)?.arg("--rm").ok()?, "kept\n");
        assert!(image.is_clean()?);
        node.nothing_left()
    }

    #[test]
    fn volumes_in_memory_and_on_disks_can_be_mapped_to_other_owners() -> Result<()> {
        let node = Node::start()?;
        let memory = Mounted::new(
            "tmpfs",
            node.dir().join("kubernetes.io~empty-dir/cache"),
            "size=2m,mode=0755",
        )?;
        let image = RawImage::ext4(&node.dir().join("volume.img"), 16 << 20)?;
        let info = json!({ "volume-type": "file", "device": image.path(), "fstype": "ext4", "options": [] });
        let disk = DirectVolume::new(node.dir().join("volume"), &info.to_string())?;
        let map = json!([{ "containerID": 0, "hostID": 3000, "size": 10 }]);
        let mapped = |source: &Path, destination: &str| {
            json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "idmap"],
                "uidMappings": map, "gidMappings": map })
        };
        let spec = node
            .spec("mapped", &["sleep", "1000"])?
            .bind(&memory.0, "/plain", &["rw"])?
            .push("/mounts", mapped(&memory.0, "/cache"))?
            .push("/mounts", mapped(&disk.path, "/disk"))?;
        node.run_spec("mapped", &spec)?.arg("-d").ok()?;
        // The owner on the volume is root, who is 3000 here.
        let look = "touch /cache/own /disk/own; stat -c '%n %u:%g' /cache /cache/own /disk /disk/own /plain/own";
        let said = node
            .exec("mapped", "look")
            .args(["--user", "3000:3000"])
            .sh(look)
            .ok()?;
        assert_eq!(
            said,
            "/cache 3000:3000\n/cache/own 3000:3000\n/disk 3000:3000\n/disk/own 3000:3000\n/plain/own 0:0\n"
        );
        node.remove("mapped")?;
        assert!(image.is_clean()?);
        memory.unmount()?;
        node.nothing_left()
    }

    #[test]
    fn a_volume_that_cannot_be_had_is_an_error_that_says_why_and_leaves_nothing() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("volume.img"), "no file system", 8 << 20)?;
        let info = |device: &Path, fstype: &str| json!({ "device": device, "fstype": fstype }).to_string();
        for (name, info, wanted) in [
            ("broken", "{".to_owned(), "mountInfo.json"),
            (
                "huge",
                format!("{{\"device\":\"{}\"}}", "x".repeat(10 << 20)),
                "more than",
            ),
            ("gone", info(&node.dir().join("not-there"), "ext4"), "not-there"),
            ("unformatted", info(image.path(), "ext4"), "ext4"),
            ("unknown", info(image.path(), "zfs"), "no such file system"),
        ] {
            let volume = DirectVolume::new(node.dir().join(name), &info)?;
            let spec = node.spec(name, &["true"])?.bind(&volume.path, "/data", &["rw"])?;
            let said = node.run_spec(name, &spec)?.arg("--rm").fails()?;
            assert!(said.contains(wanted), "{name}: {said}");
            node.discard(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_device_that_the_host_uses_is_not_given_away() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::ext4(&node.dir().join("disk"), 8 << 20)?;
        let host = image.loop_device()?;
        let place = node.dir().join("mounted");
        fs::create_dir(&place)?;
        mount(Some(host.path()), &place, Some("ext4"), MsFlags::empty(), None::<&str>).map_err(std::io::Error::from)?;
        let mounted = Mounted(place);
        let spec = host.given_to(node.spec("busy", &["true"])?, "/dev/disk", "rwm")?;
        let said = node.run_spec("busy", &spec)?.arg("--rm").fails()?;
        assert!(said.contains("in use on the host"), "{said}");
        node.discard("busy")?;
        mounted.unmount()?;
        node.nothing_left()
    }

    #[test]
    fn a_disk_is_free_again_after_its_vm_was_killed() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "x", 8 << 20)?;
        let host = image.loop_device()?;
        let spec = host.given_to(node.spec("killed", &["sleep", "1000"])?, "/dev/disk", "rwm")?;
        node.run_spec("killed", &spec)?.arg("-d").ok()?;
        node.kill_process("killed", "qemu-system")?;
        assert_eq!(node.await_stopped("killed")?, 137);
        node.forget("killed")?;
        node.nothing_left()?;
        host.detach()?;
        assert_eq!(image.loop_devices()?, "");
        Ok(())
    }

    #[test]
    fn two_containers_of_a_pod_share_one_disk_and_the_memory_of_the_pod() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "shared", 8 << 20)?;
        let host = image.loop_device()?;
        let shm = Mounted::new("tmpfs", node.dir().join("shm"), "size=3m,mode=1777")?;
        let memory = Mounted::new(
            "tmpfs",
            node.dir().join("kubernetes.io~empty-dir/cache"),
            "size=2m,mode=0777",
        )?;
        let disk = node.dir().join("kubernetes.io~empty-dir/disk");
        fs::create_dir_all(&disk)?;
        let with_volumes = |spec: Spec| -> Result<Spec> {
            let spec = without_shm(spec)?
                .bind(&shm.0, "/dev/shm", &["rw"])?
                .bind(&memory.0, "/cache", &["rw"])?
                .bind(&disk, "/disk", &["rw"])?;
            host.given_to(spec, "/dev/disk", "rwm")
        };
        let sandbox = node.spec("pod", &["sleep", "1000"])?;
        node.run_spec("pod", &member(sandbox, &node, "sandbox", "pod")?)?
            .arg("-d")
            .ok()?;
        let first = with_volumes(node.spec("first", &["sleep", "1000"])?)?;
        node.run_spec("first", &member(first, &node, "container", "pod")?)?
            .arg("-d")
            .ok()?;
        let second = with_volumes(node.spec("app", &["sleep", "1000"])?)?;
        let second = member(second, &node, "container", "pod")?;
        node.run_spec("app", &second)?.arg("-d").ok()?;

        let write = "echo one > /dev/shm/file; echo two > /cache/file; echo three > /disk/file; \
                     df -k /dev/shm /cache | tail -n +2 | tr -s ' ' | cut -d' ' -f2,6";
        assert_eq!(
            node.exec("first", "write").sh(write).ok()?,
            "3072 /dev/shm\n2048 /cache\n"
        );
        let read = "cat /dev/shm/file /cache/file /disk/file; head -c 6 /dev/disk";
        assert_eq!(node.exec("app", "read").sh(read).ok()?, "one\ntwo\nthree\nshared");
        assert_eq!(
            fs::read_to_string(disk.join("file"))?,
            "three\n",
            "emptyDir on disk is the host's"
        );
        assert!(!memory.0.join("file").exists(), "and in memory it is the guest's");

        // The disk stays with the other, and what was in memory is there for the next one.
        node.remove("app")?;
        assert_eq!(node.exec("first", "still").sh("head -c 6 /dev/disk").ok()?, "shared");
        let third = with_volumes(node.spec("app", &["cat", "/cache/file"])?)?;
        let third = member(third, &node, "container", "pod")?;
        assert_eq!(node.run_spec("app", &third)?.arg("--rm").ok()?, "two\n");
        node.remove("first")?;
        node.remove("pod")?;
        host.detach()?;
        assert_eq!(image.loop_devices()?, "");
        shm.unmount()?;
        memory.unmount()?;
        node.nothing_left()
    }

    #[test]
    fn volumes_of_a_kubernetes_pod_reach_all_its_containers() -> Result<()> {
        let node = PodNode::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "a block volume", 8 << 20)?;
        let host = image.loop_device()?;
        let memory = Mounted::new(
            "tmpfs",
            node.dir().join("kubernetes.io~empty-dir/cache"),
            "size=2m,mode=0777",
        )?;
        let pod = node.run_pod("volumes")?;
        let container = |name: &str| {
            let mut config = pod.container(name, &["sleep", "1000"]);
            config.mounts.push(messages::Mount {
                container_path: "/cache".to_owned(),
                host_path: memory.0.display().to_string(),
                ..messages::Mount::default()
            });
            config.devices.push(messages::Device {
                container_path: "/dev/xvda".to_owned(),
                host_path: host.path().display().to_string(),
                permissions: "rwm".to_owned(),
            });
            pod.start(&config)
        };
        let one = container("one")?;
        let other = container("other")?;
        one.sh("echo in shared memory > /dev/shm/file; echo in memory > /cache/file")?;
        assert_eq!(
            other.sh("cat /dev/shm/file /cache/file; head -c 14 /dev/xvda")?,
            "in shared memory\nin memory\na block volume"
        );
        // A container that ends and comes again finds what is the pod's.
        one.stop(0)?;
        other.stop(0)?;
        let again = container("again")?;
        assert_eq!(
            again.sh("cat /dev/shm/file /cache/file")?,
            "in shared memory\nin memory\n"
        );
        pod.stop()?;
        host.detach()?;
        assert_eq!(image.loop_devices()?, "");
        memory.unmount()?;
        pod.remove()?;
        node.nothing_left()
    }

    #[test]
    fn huge_pages_are_the_guests_and_too_many_are_refused() -> Result<()> {
        // Huge pages are counted in the VM's size, which is cut here.
        let node = Node::start_configured("[hypervisor.qemu]\ndefault_maxmemory = 512\n")?;
        let pages = Mounted::new("hugetlbfs", node.dir().join("huge"), "pagesize=2M")?;
        let spec = |name: &str, bytes: i64| -> Result<Spec> {
            node.spec(
                name,
                &[
                    "sh",
                    "-c",
                    "grep HugePages_Total /proc/meminfo; grep ' /huge ' /proc/mounts | cut -d' ' -f3",
                ],
            )?
            .bind(&pages.0, "/huge", &["rw"])?
            .push(
                "/linux/resources/hugepageLimits",
                json!({ "pageSize": "2MB", "limit": bytes }),
            )
        };
        let said = node.run_spec("some", &spec("some", 16 << 20)?)?.arg("--rm").ok()?;
        assert_eq!(said, "HugePages_Total:       8\nhugetlbfs\n");
        let said = node.run_spec("many", &spec("many", 16 << 30)?)?.arg("--rm").fails()?;
        assert!(
            said.contains("8192 huge pages") && said.contains("default_memory"),
            "{said}"
        );
        node.discard("many")?;
        pages.unmount()?;
        node.nothing_left()
    }

    #[test]
    fn a_container_maps_huge_pages_up_to_its_own_limit() -> Result<()> {
        let node = Node::start()?;
        let pages = Mounted::new("hugetlbfs", node.dir().join("huge"), "pagesize=2M")?;
        let spec = |name: &str, args: &[&str]| -> Result<Spec> {
            let cgroup =
                json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
            node.spec(name, args)?
                .bind(&pages.0, "/huge", &["rw"])?
                .push("/mounts", cgroup)?
                .push("/linux/namespaces", json!({ "type": "cgroup" }))?
                .push(
                    "/linux/resources/hugepageLimits",
                    json!({ "pageSize": "2MB", "limit": 8 << 20 }),
                )
        };
        let pod = member(spec("pod", &["sleep", "1000"])?, &node, "sandbox", "pod")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let other = member(spec("other", &["sleep", "1000"])?, &node, "container", "pod")?;
        node.run_spec("other", &other)?.arg("-d").ok()?;
        // The guest has enough for both containers: what bounds this one is its cgroup. What is in a file stays there.
        let script = "grep HugePages_Total /proc/meminfo; cat /sys/fs/cgroup/hugetlb.2MB.max; probe='guest-probe huge-pages'; \
                      $probe - 4; $probe - 5; $probe /huge/file 3; $probe - 1; $probe - 2; rm /huge/file; $probe - 4; \
                      grep HugePages_Free /proc/meminfo";
        let said = spec("app", &["sh", "-c", script])?;
        let said = node
            .run_spec("app", &member(said, &node, "container", "pod")?)?
            .arg("--rm")
            .ok()?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let total: u32 = words[1].parse().unwrap_or(0);
        assert!(total >= 8, "{said}");
        let enomem = "12";
        let wanted = [
            "8388608",
            "0",
            enomem,
            "0",
            "0",
            enomem,
            "0",
            "HugePages_Free:",
            words[1],
        ];
        assert_eq!(words[2..], wanted, "{said}");
        node.remove("other")?;
        node.remove("pod")?;
        pages.unmount()?;
        node.nothing_left()
    }

    #[test]
    fn a_root_on_a_block_device_is_a_disk_of_the_guest_and_is_let_go_of() -> Result<()> {
        let node = Node::start_blockfile()?;
        let script = "grep ' / ' /proc/mounts | cut -d' ' -f1-3; echo written > /file && cat /file";
        node.create("root")
            .args(["--snapshotter", "blockfile"])
            .sh(script)
            .ok()?;
        // What the devmapper snapshotter sends is a link to a device: here it takes the place of the snapshot's file.
        let newest = |paths: fs::ReadDir| -> Result<PathBuf> {
            let paths: Vec<PathBuf> = paths.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
            let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
            let newest = paths.into_iter().max_by_key(number);
            newest.ok_or_else(|| framework::Error::unexpected("no snapshot"))
        };
        let snapshot = newest(fs::read_dir(node.block_files())?)?;
        let moved = node.dir().join("root.img");
        fs::rename(&snapshot, &moved)?;
        let image = RawImage::existing(&moved);
        let host = image.loop_device()?;
        std::os::unix::fs::symlink(host.path(), &snapshot)?;
        assert_eq!(node.task("start", "root").ok()?, "/dev/vda / ext4\nwritten\n");
        node.forget("root")?;
        host.detach()?;
        assert_eq!(image.loop_devices()?, "", "somebody still has the device open");
        assert!(image.is_clean()?);
        assert_eq!(image.file("file")?, "written\n");
        node.nothing_left()
    }

    #[test]
    fn a_root_in_an_image_file_of_the_blockfile_snapshotter_is_a_disk_of_the_guest() -> Result<()> {
        let node = Node::start_blockfile()?;
        let script = "grep ' / ' /proc/mounts | cut -d' ' -f1-3; echo written > /file && cat /file";
        let said = node
            .run("block")
            .args(["--rm", "--snapshotter", "blockfile"])
            .sh(script)
            .ok()?;
        assert_eq!(said, "/dev/vda / ext4\nwritten\n");
        node.nothing_left()
    }
}
