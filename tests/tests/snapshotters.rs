//! Root file systems as containerd's snapshotters other than overlayfs make them, by the snapshotters themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use framework::{Error, Node, Result, image};

/// Reads from both layers, writes, removes what is in a layer, and finds it so.
const SCRIPT: &str = "cat /etc/second-layer && [ -x /bin/guest-probe ] && echo written > /etc/new && cat /etc/new && \
                      rm /etc/passwd && ls /etc && ln /etc/new /etc/linked && mv /etc/linked /bin/moved && cat /bin/moved && \
                      chown 12:34 /bin/moved && stat -c %u:%g /bin/moved";
const SAID: &str = "second\nwritten\ngroup\nnew\nsecond-layer\nwritten\n12:34\n";

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(Error::io(format!("running {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::unexpected(format!("{program} {args:?}: {said}")))
}

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
        run("mount", &["-o", "loop", &image, &own.display().to_string()])
    })?;
    // After a failure it goes before the node.
    let below = below;
    two_layers_are_one_root(&node, "btrfs")?;
    drop(below);
    node.nothing_left()
}
