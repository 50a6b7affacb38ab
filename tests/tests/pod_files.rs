//! What the containers of a pod share is one file system to them: what one does with a file, the others find done.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use framework::{HostMount, Node, Result};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

const EROFS: i32 = 30;
const EAGAIN: i32 = 11;

fn start_pod(node: &Node) -> Result<()> {
    let pod = node.spec("pod", &["sleep", "1000"])?.of_pod(node, "sandbox")?;
    node.run_spec("pod", &pod)?.arg("-d").ok().map(drop)
}

/// Starts a container of the pod with these bind mounts.
fn start(node: &Node, name: &str, program: &[&str], binds: &[(&Path, &str, &str)]) -> Result<()> {
    let mut spec = node.spec(name, program)?.of_pod(node, "container")?;
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

/// The volumes are in a directory of the node's with this name. A part is a directory of a volume, or, as the kubelet has it for a `subPath`,
/// a mount of that directory elsewhere.
fn all_meet_on_a_disk(volumes: &str) -> Result<()> {
    let node = Node::start()?;
    let disk = |name: &str| node.dir().join(volumes).join(name);
    for volume in ["whole", "up/part", "child/part", "mounted/part", "twice"] {
        fs::create_dir_all(disk(volume))?;
    }
    let mounted_part = node.dir().join("volume-subpaths/mounted/two/0");
    let mount = HostMount::bind(&disk("mounted/part"), &mounted_part)?;
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    let (whole, up, child, twice) = (disk("whole"), disk("up"), disk("child/part"), disk("twice"));
    let mounted = disk("mounted");
    let one: [(&Path, &str, &str); 6] = [
        (&mounted, "/mounted", "rw"),
        (&whole, "/whole", "rw"),
        (&up, "/up", "rw"),
        (&child, "/child", "rw"),
        (&twice, "/first", "rw"),
        (&twice, "/second", "rw"),
    ];
    start(&node, "one", &sleep, &one)?;
    let (part, parent) = (disk("up/part"), disk("child"));
    let two: [(&Path, &str, &str); 5] = [
        (&mounted_part, "/subpath", "rw"),
        (&whole, "/whole", "rw"),
        (&whole, "/reader", "ro"),
        (&part, "/part", "rw"),
        (&parent, "/parent", "rw"),
    ];
    start(&node, "two", &sleep, &two)?;
    let serving = serve(
        &node,
        "one",
        &["/whole", "/up/part", "/child", "/mounted/part", "/first"],
    )?;
    meets(&node, "two", "call", &["/whole", "/part", "/parent/part", "/subpath"])?;
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
    mount.unmount()?;
    node.nothing_left()
}

#[test]
fn sockets_locks_mappings_and_watches_meet_in_whatever_part_of_a_volume_two_containers_have() -> Result<()> {
    all_meet_on_a_disk("disk")
}

/// The kubelet's name for it makes no difference if it is not in memory.
#[test]
fn they_meet_in_an_emptydir_on_the_disk_too() -> Result<()> {
    all_meet_on_a_disk("kubernetes.io~empty-dir")
}

#[test]
fn the_same_holds_in_volumes_in_memory_where_the_host_has_made_the_directories() -> Result<()> {
    let node = Node::start()?;
    let memory = |name: &str| node.dir().join("kubernetes.io~empty-dir").join(name);
    let mut mounts = Vec::new();
    for name in ["whole", "up", "child", "mounted"] {
        mounts.push(HostMount::new(&memory(name), MountFlags::empty())?);
        fs::create_dir_all(memory(name).join("a/part"))?;
        let part = memory(name).join("a/part");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o2770))?;
        std::os::unix::fs::chown(&part, Some(1000), Some(2000))?;
    }
    fs::write(memory("up/a/part/of-the-host"), "of the host")?;
    let mounted_part = node.dir().join("volume-subpaths/mounted/two/0");
    mounts.push(HostMount::bind(&memory("mounted/a/part"), &mounted_part)?);
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    let (whole, up, child, mounted) = (memory("whole"), memory("up"), memory("child/a/part"), memory("mounted"));
    start(
        &node,
        "one",
        &sleep,
        &[
            (&whole, "/whole", "rw"),
            (&up, "/up", "rw"),
            (&child, "/child", "rw"),
            (&mounted, "/mounted", "rw"),
        ],
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
            (&mounted_part, "/subpath", "rw"),
        ],
    )?;
    let serving = serve(&node, "one", &["/whole", "/up/a/part", "/child", "/mounted/a/part"])?;
    meets(&node, "two", "call", &["/whole", "/part", "/parent/a/part", "/subpath"])?;
    serving.wait()?.success()?;
    let look = "stat -c '%a %u:%g' /part /parent/a/part; cat /part/of-the-host";
    assert_eq!(
        node.exec("two", "look").sh(look).ok()?,
        "2770 1000:2000\n2770 1000:2000\nof the host"
    );
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    for mount in mounts.into_iter().rev() {
        mount.unmount()?;
    }
    node.nothing_left()
}

#[test]
fn what_the_host_has_mounted_inside_a_volume_is_one_file_system_to_all_containers_too() -> Result<()> {
    let node = Node::start()?;
    let volume = node.dir().join("volume");
    let outer = HostMount::new(&volume, MountFlags::empty())?.shared()?;
    let nested = HostMount::new(&volume.join("nested"), MountFlags::empty())?;
    for part in ["whole", "part", "again"] {
        fs::create_dir(volume.join("nested").join(part))?;
    }
    fs::create_dir(volume.join("later"))?;
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    let one: [(&Path, &str, &str); 2] = [(&volume, "/d", "rslave"), (&volume, "/again", "rslave")];
    start(&node, "one", &sleep, &one)?;
    let part = volume.join("nested");
    let two: [(&Path, &str, &str); 3] = [
        (&volume, "/d", "rslave"),
        (&part, "/nested", "rslave"),
        (&volume, "/reader", "rro"),
    ];
    start(&node, "two", &sleep, &two)?;
    let serving = serve(&node, "one", &["/d/nested/whole", "/d/nested/part", "/d/nested/again"])?;
    meets(&node, "two", "call", &["/d/nested/whole", "/nested/part"])?;
    meets(&node, "one", "again", &["/again/nested/again"])?;
    serving.wait()?.success()?;
    let tried = node
        .exec("two", "read")
        .sh("guest-probe try create /reader/nested/new; echo new > /d/nested/new; cat /reader/nested/new");
    assert_eq!(
        tried.ok()?,
        format!("{}\nnew\n", json!({ "/reader/nested/new": EROFS }))
    );

    // And what it mounts there later.
    let later = HostMount::new(&volume.join("later"), MountFlags::empty())?;
    fs::write(volume.join("later/mounted"), "")?;
    for name in ["one", "two"] {
        node.exec(name, "wait")
            .sh("until [ -e /d/later/mounted ]; do :; done")
            .ok()?;
    }
    let serving = serve(&node, "one", &["/d/later"])?;
    meets(&node, "two", "later", &["/d/later"])?;
    serving.wait()?.success()?;
    for mount in [later, nested] {
        mount.unmount()?;
    }
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    outer.unmount()?;
    node.nothing_left()
}

/// `ro` is of the mount alone: what the host has mounted below can be written to, and is bound by itself for that. It is the same file
/// system as in a container that has it inside a writable mount, whichever of the two comes first.
#[test]
fn what_is_mounted_below_a_source_that_is_itself_read_only_is_one_file_system_to_all_containers_too() -> Result<()> {
    let node = Node::start()?;
    let volumes = ["first", "second"].map(|name| node.dir().join(name));
    let mut mounts = Vec::new();
    for volume in &volumes {
        mounts.push(HostMount::new(&volume.join("nested"), MountFlags::empty())?);
        fs::create_dir(volume.join("nested/part"))?;
    }
    // Something that the host may mount more into: so the volumes receive mounts, and what is mounted below does not.
    mounts.push(HostMount::new(&node.dir().join("beside"), MountFlags::empty())?.shared()?);
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    let [first, second] = &volumes;
    start(
        &node,
        "one",
        &sleep,
        &[(first, "/first", "rw"), (second, "/second", "ro")],
    )?;
    start(
        &node,
        "two",
        &sleep,
        &[(first, "/first", "ro"), (second, "/second", "rw")],
    )?;
    let parts = ["/first/nested/part", "/second/nested/part"];
    let serving = serve(&node, "one", &parts)?;
    meets(&node, "two", "call", &parts)?;
    serving.wait()?.success()?;
    for (name, read_only) in [("one", "/second/new"), ("two", "/first/new")] {
        let tried = node
            .exec(name, "try")
            .program(["guest-probe", "try", "create", read_only]);
        assert_eq!(tried.output()?.json()?, json!({ read_only: EROFS }));
    }
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    for mount in mounts {
        mount.unmount()?;
    }
    node.nothing_left()
}

#[test]
fn a_part_that_a_later_container_writes_to_meets_in_a_read_only_mount_that_is_there() -> Result<()> {
    let node = Node::start()?;
    let whole = node.dir().join("whole");
    let part = whole.join("a/part");
    fs::create_dir_all(&part)?;
    fs::write(whole.join("a/beside"), "beside")?;
    start_pod(&node)?;
    let sleep = ["sleep", "1000"];
    start(&node, "reader", &sleep, &[(&whole, "/reader", "ro")])?;
    node.exec("reader", "before").sh("ls /reader/a/part").ok()?;
    // One that was to write there and cannot be created changes nothing for the next one.
    let failing = node.spec("failing", &sleep)?.of_pod(&node, "container")?;
    let failing = failing
        .bind(&part, "/part", &["rw"])?
        .set("/hooks", json!({ "createRuntime": [{ "path": "/bin/false" }] }))?;
    node.run_spec("failing", &failing)?.arg("-d").fails()?;
    node.discard("failing")?;
    start(&node, "writer", &sleep, &[(&part, "/part", "rw")])?;
    // What a reader can meet: a socket, and a lock on what it may open.
    let serving = serve(&node, "writer", &["/part"])?;
    let lock = ["guest-probe", "try", "flock-read", "/reader/a/part/flock"];
    let lock = node.exec("reader", "lock").program(lock).output()?.json()?;
    assert_eq!(lock, json!({ "/reader/a/part/flock": EAGAIN }));
    let connect = ["guest-probe", "try", "connect", "/reader/a/part/socket"];
    let connect = node.exec("reader", "connect").program(connect).output()?.json()?;
    assert_eq!(connect, json!({ "/reader/a/part/socket": 0 }));
    serving.wait()?.success()?;
    let tried = node
        .exec("reader", "read")
        .sh("guest-probe try create /reader/a/part/new; cat /reader/a/beside");
    assert_eq!(
        tried.ok()?,
        format!("{}\nbeside", json!({ "/reader/a/part/new": EROFS }))
    );
    for name in ["writer", "reader", "pod"] {
        node.remove(name)?;
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

    /// Containers of the stress below; `TATAMI_CHURN` is another number.
    const CHURN: usize = 12;
    const NESTED: usize = 20;

    /// Kibibytes of memory that the sandbox's shim has.
    fn shim_memory(node: &Node) -> Result<u64> {
        let shim = node
            .processes("pod")
            .into_iter()
            .find(|process| process.command.contains("containerd-shim"));
        let pid = shim.map(|shim| shim.pid).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(resident
            .and_then(|kibibytes| kibibytes.trim().parse().ok())
            .unwrap_or_default())
    }

    #[test]
    fn many_containers_in_turns_on_nested_volumes_leave_nothing_behind() -> Result<()> {
        let count = std::env::var("TATAMI_CHURN")
            .ok()
            .and_then(|count| count.parse().ok())
            .unwrap_or(CHURN);
        let node = Node::start()?;
        let top = node.dir().join("top");
        let mut volumes = vec![top.clone()];
        for number in 1..NESTED {
            // Some beside each other and some one in the other.
            let above = &volumes[number / 2];
            let volume = above.join(format!("v{number}"));
            fs::create_dir_all(&volume)?;
            volumes.push(volume);
        }
        start_pod(&node)?;
        node.start_guest_viewer("viewer")?;
        // The first line is there in any case: the list could be read.
        let count_mounts = "head -n 1 /proc/1/mountinfo | wc -l; grep -c /.volumes/ /proc/1/mountinfo || :";
        let guest_mounts = |exec: &str| node.exec("viewer", exec).sh(count_mounts).ok();
        assert_eq!(guest_mounts("before")?, "1\n0\n");
        let mut memory = 0;
        let mut alive: Vec<String> = Vec::new();
        for number in 0..count {
            let name = format!("c{number}");
            // Parents before and after their children, read-only and writable.
            let binds: Vec<(&Path, String, &str)> = (0..4)
                .map(|bind| {
                    let volume = (number * 7 + bind * 5) % NESTED;
                    let option = if (number + bind) % 3 == 0 { "ro" } else { "rw" };
                    (volumes[volume].as_path(), format!("/d{bind}"), option)
                })
                .collect();
            let binds: Vec<(&Path, &str, &str)> = binds
                .iter()
                .map(|(source, at, option)| (*source, at.as_str(), *option))
                .collect();
            start(
                &node,
                &name,
                &["sh", "-c", "ls -R /d? > /dev/null; exec sleep 1000"],
                &binds,
            )?;
            alive.push(name);
            // Three at a time.
            if alive.len() > 3 {
                node.remove(&alive.remove(0))?;
            }
            if number == count / 2 {
                memory = shim_memory(&node)?;
            }
        }
        let grown = shim_memory(&node)?.saturating_sub(memory);
        for name in alive {
            node.remove(&name)?;
        }
        eprintln!("{count} containers; the shim has {memory} kB at half of them, and {grown} kB more at the end");
        assert!(
            grown < 4096,
            "the shim has {grown} kB more after {} containers",
            count - count / 2
        );
        assert_eq!(in_use(&node, &top)?.0, 0);
        assert_eq!(guest_mounts("after")?, "1\n0\n");
        let deadline = Instant::now() + Duration::from_secs(20);
        while in_use(&node, &top)?.1 > 0 {
            assert!(Instant::now() < deadline, "virtiofsd does not let go of the volumes");
            std::thread::yield_now();
        }
        node.remove("viewer")?;
        node.remove("pod")?;
        node.nothing_left()
    }
}
