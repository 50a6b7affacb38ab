//! What the containers of a pod share is one file system to them: what one does with a file, the others find done.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use framework::{HostMount, Node, Result, Spec};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

const EROFS: i32 = 30;
const EAGAIN: i32 = 11;

/// A container of the sandbox `pod`; CRI sends these two annotations with each.
fn member(spec: Spec, node: &Node, kind: &str) -> Result<Spec> {
    spec.annotation("io.kubernetes.cri.container-type", kind)?
        .annotation("io.kubernetes.cri.sandbox-id", &node.id("pod"))
}

fn start_pod(node: &Node) -> Result<()> {
    let pod = member(node.spec("pod", &["sleep", "1000"])?, node, "sandbox")?;
    node.run_spec("pod", &pod)?.arg("-d").ok().map(drop)
}

/// Starts a container of the pod with these bind mounts.
fn start(node: &Node, name: &str, program: &[&str], binds: &[(&Path, &str, &str)]) -> Result<()> {
    let mut spec = member(node.spec(name, program)?, node, "container")?;
    for (source, destination, option) in binds {
        spec = spec.bind(source, destination, &[option])?;
    }
    node.run_spec(name, &spec)?.arg("-d").ok().map(drop)
}

/// What `guest-probe meet call` finds where everything meets.
fn all_met() -> Value {
    json!({
        "socket": 0, "flock": EAGAIN, "fcntl": EAGAIN, "ofd": EAGAIN, "fifo": "through the fifo", "mapped": "7",
        "watched": "told", "appended": "scscscsc", "wrong": { "size": 0, "content": 0, "renamed": 0, "removed": 0 },
    })
}

fn meets(node: &Node, container: &str, exec: &str, directories: &[&str]) -> Result<()> {
    let call = ["guest-probe", "meet", "call"].iter().chain(directories);
    let said = node.exec(container, exec).program(call).output()?.success()?.json()?;
    for directory in directories {
        assert_eq!(said[directory], all_met(), "{directory}");
    }
    Ok(())
}

/// Waits until a container's server says that it serves.
fn serve(node: &Node, container: &str, directories: &[&str]) -> Result<framework::Running> {
    let serve = ["guest-probe", "meet", "serve"].iter().chain(directories);
    let serving = node.exec(container, "serve").program(serve).spawn()?;
    serving.shows("serving")?;
    Ok(serving)
}

#[test]
fn sockets_locks_mappings_and_watches_meet_in_whatever_part_of_a_volume_two_containers_have() -> Result<()> {
    let node = Node::start()?;
    let disk = |name: &str| node.dir().join("disk").join(name);
    for volume in ["whole", "up/part", "child/part", "twice"] {
        fs::create_dir_all(disk(volume))?;
    }
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    let (whole, up, child, twice) = (disk("whole"), disk("up"), disk("child/part"), disk("twice"));
    let one: [(&Path, &str, &str); 5] = [
        (&whole, "/whole", "rw"),
        (&up, "/up", "rw"),
        (&child, "/child", "rw"),
        (&twice, "/first", "rw"),
        (&twice, "/second", "rw"),
    ];
    start(&node, "one", &sleep, &one)?;
    let (part, parent) = (disk("up/part"), disk("child"));
    let two: [(&Path, &str, &str); 4] = [
        (&whole, "/whole", "rw"),
        (&whole, "/reader", "ro"),
        (&part, "/part", "rw"),
        (&parent, "/parent", "rw"),
    ];
    start(&node, "two", &sleep, &two)?;
    let serving = serve(&node, "one", &["/whole", "/up/part", "/child", "/first"])?;
    meets(&node, "two", "call", &["/whole", "/part", "/parent/part"])?;
    meets(&node, "one", "again", &["/second"])?;
    serving.wait()?.success()?;

    // What may only be read says so, and shows what is written through the other mount at once.
    let tried = node
        .exec("two", "read")
        .sh("guest-probe try create /reader/new; echo new > /whole/new; cat /reader/new");
    assert_eq!(tried.ok()?, format!("{}\nnew\n", json!({ "/reader/new": EROFS })));
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    node.nothing_left()
}

#[test]
fn the_same_holds_in_volumes_in_memory_where_the_host_has_made_the_directories() -> Result<()> {
    let node = Node::start()?;
    let memory = |name: &str| node.dir().join("kubernetes.io~empty-dir").join(name);
    let mut mounts = Vec::new();
    for name in ["whole", "up", "child"] {
        mounts.push(HostMount::new(&memory(name), MountFlags::empty())?);
        fs::create_dir_all(memory(name).join("a/part"))?;
        let part = memory(name).join("a/part");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o2770))?;
        std::os::unix::fs::chown(&part, Some(1000), Some(2000))?;
    }
    fs::write(memory("up/a/part/of-the-host"), "of the host")?;
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    let (whole, up, child) = (memory("whole"), memory("up"), memory("child/a/part"));
    start(
        &node,
        "one",
        &sleep,
        &[(&whole, "/whole", "rw"), (&up, "/up", "rw"), (&child, "/child", "rw")],
    )?;
    let (part, parent) = (memory("up/a/part"), memory("child"));
    start(
        &node,
        "two",
        &sleep,
        &[
            (&whole, "/whole", "rw"),
            (&part, "/part", "rw"),
            (&parent, "/parent", "rw"),
        ],
    )?;
    let serving = serve(&node, "one", &["/whole", "/up/a/part", "/child"])?;
    meets(&node, "two", "call", &["/whole", "/part", "/parent/a/part"])?;
    serving.wait()?.success()?;
    let look = "stat -c '%a %u:%g' /part /parent/a/part; cat /part/of-the-host";
    assert_eq!(
        node.exec("two", "look").sh(look).ok()?,
        "2770 1000:2000\n2770 1000:2000\nof the host"
    );
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    for mount in mounts {
        mount.unmount()?;
    }
    node.nothing_left()
}

mod kata_only {
    use std::{
        os::unix::fs::MetadataExt,
        time::{Duration, Instant},
    };

    use super::*;

    /// Mounts of the sandbox's shared directory, and descriptors of its virtiofsd below the host's directory `below`.
    fn in_use(node: &Node, below: &Path) -> Result<(usize, usize)> {
        let processes = node.processes("pod");
        let mut mounts = 0;
        let mut descriptors = 0;
        for process in processes {
            if process.command.contains("containerd-shim") {
                let listed = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid))?;
                // What stands for a container on the host is a copy of the shim that has no mount of it.
                mounts += listed.lines().filter(|line| line.contains("/shared/.volumes/")).count();
            } else if process.program().ends_with("virtiofsd") {
                let open = fs::read_dir(format!("/proc/{}/fd", process.pid))?.filter_map(|entry| entry.ok());
                let open = open.filter_map(|entry| fs::metadata(entry.path()).ok());
                let ours: Vec<_> = inodes(below)?;
                descriptors += open.filter(|file| ours.contains(&(file.dev(), file.ino()))).count();
            }
        }
        Ok((mounts, descriptors))
    }

    fn inodes(below: &Path) -> Result<Vec<(u64, u64)>> {
        let own = fs::metadata(below)?;
        let mut found = vec![(own.dev(), own.ino())];
        for entry in fs::read_dir(below)? {
            let path = entry?.path();
            if path.is_dir() {
                found.extend(inodes(&path)?);
            } else {
                let file = fs::symlink_metadata(&path)?;
                found.push((file.dev(), file.ino()));
            }
        }
        Ok(found)
    }

    #[test]
    fn containers_that_come_and_go_on_nested_volumes_leave_nothing_in_the_sandbox() -> Result<()> {
        let node = Node::start()?;
        let top = node.dir().join("top");
        let deep = top.join("a/b");
        fs::create_dir_all(&deep)?;
        start_pod(&node)?;
        let write = ["sh", "-c", "ls -R /d; exec sleep 1000"];
        let middle = top.join("a");
        for (name, source, option) in [
            ("c1", &deep, "rw"),
            ("c2", &top, "ro"),
            ("c3", &middle, "rw"),
            ("c4", &top, "rw"),
        ] {
            start(&node, name, &write, &[(source, "/d", option)])?;
        }
        node.exec("c1", "write").sh("echo nested > /d/file").ok()?;
        assert_eq!(node.exec("c4", "read").sh("cat /d/a/b/file").ok()?, "nested\n");
        node.remove("c4")?;
        node.remove("c1")?;
        assert_eq!(node.exec("c3", "read").sh("cat /d/b/file").ok()?, "nested\n");
        start(&node, "c1", &write, &[(&middle, "/d", "ro")])?;
        assert_eq!(node.exec("c1", "read").sh("cat /d/b/file").ok()?, "nested\n");
        for name in ["c1", "c3", "c2"] {
            node.remove(name)?;
        }
        assert_eq!(in_use(&node, &top)?.0, 0);
        // The guest is told when the deletion has been answered.
        let deadline = Instant::now() + Duration::from_secs(20);
        while in_use(&node, &top)?.1 > 0 {
            assert!(Instant::now() < deadline, "virtiofsd does not let go of the volumes");
            std::thread::yield_now();
        }
        node.remove("pod")?;
        node.nothing_left()
    }
}
