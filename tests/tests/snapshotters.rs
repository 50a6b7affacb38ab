//! Root file systems as containerd's snapshotters other than overlayfs make them, by the snapshotters themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use framework::{Error, Node, Result, disk::run, image};

/// Reads from both layers, writes, removes what is in a layer, and finds it so.
const SCRIPT: &str = "cat /etc/second-layer && [ -x /bin/guest-probe ] && echo written > /etc/new && cat /etc/new && \
                      rm /etc/passwd && ls /etc && ln /etc/new /etc/linked && mv /etc/linked /bin/moved && cat /bin/moved && \
                      chown 12:34 /bin/moved && stat -c %u:%g /bin/moved";
const SAID: &str = "second\nwritten\ngroup\nnew\nsecond-layer\nwritten\n12:34\n";

/// What is mounted below a directory. It is unmounted with this: a snapshotter leaves it for the containerd that comes next.
struct Below(PathBuf);

impl Drop for Below {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let inside: Vec<&str> = points.filter(|point| Path::new(point).starts_with(&self.0)).collect();
        for point in inside.into_iter().rev() {
            if let Err(error) = run("umount", &["-l", point]) {
                eprintln!("{error}");
            }
        }
    }
}

/// A container of an image with two layers, twice, so that the second one finds the layers there.
fn two_layers_are_one_root(node: &Node, snapshotter: &str) -> Result<()> {
    for name in ["first", "second"] {
        let run = node.ctr().args(["run", "--rm", "--snapshotter", snapshotter]);
        let run = run.args(["--runtime", node.runtime().name()]);
        let run = run.program([image::PAUSE, &node.id(name), "sh", "-c", SCRIPT]);
        assert_eq!(run.ok()?, SAID, "{name}");
    }
    Ok(())
}

/// It mounts each layer on the host by a loop device, and makes an overlay of them.
#[test]
fn layers_of_the_erofs_snapshotter_are_a_root_that_can_be_written_to() -> Result<()> {
    let node = Node::start_snapshotter("erofs", |_| Ok(()))?;
    let below = Below(node.dir().to_owned());
    two_layers_are_one_root(&node, "erofs")?;
    drop(below);
    node.nothing_left()
}

/// A snapshot is a subvolume, which the host mounts.
#[test]
fn a_subvolume_of_the_btrfs_snapshotter_is_a_root() -> Result<()> {
    let images = tempfile::tempdir()?;
    let image = images.path().join("btrfs.img").display().to_string();
    let mut below = None;
    let node = Node::start_snapshotter("btrfs", |own| {
        below = Some(Below(own.to_owned()));
        fs::File::create(&image)?.set_len(256 << 20)?;
        run("mkfs.btrfs", &["-q", &image])?;
        run("mount", &["-o", "loop", &image, &own.display().to_string()]).map(drop)
    })?;
    // After a failure it goes before the node.
    let below = below;
    two_layers_are_one_root(&node, "btrfs")?;
    drop(below);
    node.nothing_left()
}

/// As the snapshotter of that name has it: the mount is a program's work, which serves the files until it is unmounted.
#[test]
fn a_root_that_fuse_overlayfs_serves_is_a_root_that_can_be_written_to() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("fuse", &["sleep", "100000"])?
        .set("/root", serde_json::json!({ "path": "rootfs" }))?;
    let at = |name: &str| node.dir().join(name).display().to_string();
    for name in ["second/etc", "upper", "work"] {
        fs::create_dir_all(node.dir().join(name))?;
    }
    fs::write(node.dir().join("second/etc/second-layer"), "second\n")?;
    let rootfs = framework::Mount {
        kind: "fuse3.fuse-overlayfs".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            format!("lowerdir={}:{}", at("second"), at("rootfs0")),
            format!("upperdir={}", at("upper")),
            format!("workdir={}", at("work")),
        ],
    };
    node.start_on("fuse", &spec, vec![rootfs])?;
    assert_eq!(node.exec("fuse", "script").sh(SCRIPT).ok()?, SAID);
    // A file of a lower layer that is read, written and read again in the same moment.
    let again = "cat /etc/second-layer && echo more >> /etc/second-layer && cat /etc/second-layer";
    assert_eq!(node.exec("fuse", "again").sh(again).ok()?, "second\nsecond\nmore\n");
    assert_eq!(
        fs::read_to_string(node.dir().join("upper/etc/second-layer"))?,
        "second\nmore\n"
    );
    node.remove("fuse")?;
    node.nothing_left()
}

mod kata_only {
    use framework::{Mount, disk::RawImage};
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    use serde_json::json;

    use super::*;

    fn mount(kind: &str, source: &Path, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.display().to_string(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    /// The sandbox's shim runs when the layers are mounted, and a host whose `/` passes no mounts on does not show them to it.
    #[test]
    fn a_later_container_of_a_pod_has_the_layers_that_were_mounted_for_it() -> Result<()> {
        let node = Node::start_snapshotter("erofs", |_| Ok(()))?;
        let below = Below(node.dir().to_owned());
        let pod = node.spec("pod", &["sleep", "1000"])?.of_pod(&node, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let run = node.ctr().args(["run", "--rm", "--snapshotter", "erofs"]);
        let run = run.args(["--runtime", node.runtime().name()]);
        let sandbox = format!("io.kubernetes.cri.sandbox-id={}", node.id("pod"));
        let run = run.args(["--annotation", "io.kubernetes.cri.container-type=container"]);
        let run = run.args(["--annotation", &sandbox]);
        let run = run.program([image::PAUSE, &node.id("later"), "sh", "-c", SCRIPT]);
        assert_eq!(run.ok()?, SAID);
        node.remove("pod")?;
        drop(below);
        node.nothing_left()
    }

    /// As the erofs snapshotter of containerd 2.2 describes a root to a runtime that mounts it itself: a disk for what is written, a
    /// layer, and one whose files are on a second disk. Two containers of the image have the layers' disks once.
    #[test]
    fn layers_of_erofs_on_disks_are_an_overlay_of_the_guest() -> Result<()> {
        let node = Node::start()?;
        let spec = |name: &str| -> Result<framework::Spec> {
            let kind = if name == "pod" { "sandbox" } else { "container" };
            node.spec(name, &["sleep", "1000"])?.of_pod(&node, kind)
        };
        let pod = spec("pod")?;
        let at = |name: &str| node.dir().join(name);
        let (base, blob, upper_layer) = (at("base.erofs"), at("base.blob"), at("second.erofs"));
        // The root's files of the pod are the base layer's.
        let files = node.dir().join("rootfs0").display().to_string();
        let [base_path, blob_path] = [&base, &blob].map(|path| path.display().to_string());
        let blob_option = format!("--blobdev={blob_path}");
        run("mkfs.erofs", &["--chunksize=4096", &blob_option, &base_path, &files])?;
        let second = at("second/etc");
        fs::create_dir_all(&second)?;
        fs::write(second.join("second-layer"), "second\n")?;
        // A whiteout of overlayfs: the name is not there.
        let whiteout = (FileType::CharacterDevice, Mode::empty(), makedev(0, 0));
        mknodat(CWD, second.join("group"), whiteout.0, whiteout.1, whiteout.2)
            .map_err(|errno| Error::io("making a whiteout")(errno.into()))?;
        let second = at("second").display().to_string();
        run("mkfs.erofs", &[&upper_layer.display().to_string(), &second])?;

        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        for name in ["one", "two"] {
            let written = RawImage::ext4(&at(&format!("{name}.ext4")), 32 << 20)?;
            let rootfs = vec![
                mount("ext4", written.path(), &["rw", "loop"]),
                mount("erofs", &upper_layer, &["ro", "loop"]),
                mount("erofs", &base, &["ro", "loop", &format!("device={blob_path}")]),
                mount(
                    "format/mkdir/overlay",
                    Path::new("overlay"),
                    &[
                        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                        "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                        "workdir={{ mount 0 }}/work",
                        "upperdir={{ mount 0 }}/upper",
                        "lowerdir={{ overlay 1 2 }}",
                    ],
                ),
            ];
            let spec = spec(name)?.set("/root", json!({ "path": "rootfs" }))?;
            node.start_on(name, &spec, rootfs)?;
            let script = "cat /etc/second-layer && [ ! -e /etc/group ] && guest-probe try create /etc/new && ls /etc && \
                          grep ' / ' /proc/mounts | cut -d' ' -f3; ls /sys/block | grep -c ^vd; sha256sum /bin/busybox";
            let sum = Command::new("sha256sum").arg(format!("{files}/bin/busybox")).output()?;
            let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
            let (sum, _) = sum.split_once(' ').unwrap_or_default();
            let disks = if name == "one" { 4 } else { 5 };
            let said = node.exec(name, "look").sh(script).ok()?;
            let created = json!({ "/etc/new": 0 });
            let wanted =
                format!("second\n{created}\nnew\npasswd\nsecond-layer\noverlay\n{disks}\n{sum}  /bin/busybox\n");
            assert_eq!(said, wanted, "{name}");
        }
        for name in ["one", "two"] {
            node.remove(name)?;
            let written = RawImage::existing(&at(&format!("{name}.ext4")));
            assert!(written.is_clean()?, "{name}");
            assert_eq!(written.file("upper/etc/new")?, "", "{name}");
        }
        node.remove("pod")?;
        node.nothing_left()
    }
}
