//! What is mounted in a container is what its spec says, and a mount that cannot be made is named.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    time::Duration,
};

use framework::{Node, Result};
use serde_json::json;

#[test]
fn directories_and_files_of_the_host_are_bound_writable_and_read_only() -> Result<()> {
    let node = Node::start()?;
    let host = node.dir().join("host");
    fs::create_dir_all(host.join("rw"))?;
    fs::create_dir_all(host.join("ro"))?;
    fs::write(host.join("ro/data"), "from the host")?;
    fs::write(host.join("file"), "one file")?;
    let script = "cat /mnt/ro/data /mnt/file; echo from the guest > /mnt/rw/new; echo changed > /mnt/file; \
                  guest-probe try create /mnt/ro/no /mnt/rw/yes /mnt/rofile";
    let spec = node
        .spec("bind", &["sh", "-c", script])?
        .bind(&host.join("rw"), "/mnt/rw", &["rw", "nosuid", "nodev"])?
        .bind(&host.join("ro"), "/mnt/ro", &["ro"])?
        .bind(&host.join("file"), "/mnt/file", &["rw"])?
        .bind(&host.join("ro/data"), "/mnt/rofile", &["ro"])?;
    let output = node.run_spec("bind", &spec)?.arg("--rm").output()?.success()?;
    let said = output.stdout();
    let tried = said.strip_prefix("from the hostone file").unwrap_or(&said);
    let tried: serde_json::Value = serde_json::from_str(tried)?;
    assert_eq!(
        tried,
        json!({ "/mnt/ro/no": 30, "/mnt/rw/yes": 0, "/mnt/rofile": 30 }),
        "EROFS is 30"
    );
    assert_eq!(fs::read_to_string(host.join("rw/new"))?, "from the guest\n");
    assert_eq!(fs::read_to_string(host.join("file"))?, "changed\n");
    node.nothing_left()
}

#[test]
fn mounts_have_their_sizes_options_and_types() -> Result<()> {
    let node = Node::start()?;
    fs::create_dir(node.dir().join("flags"))?;
    let spec = node
        .spec("types", &["guest-probe", "report"])?
        .push(
            "/mounts",
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "noexec", "mode=1777", "size=1m"] }),
        )?
        .push(
            "/mounts",
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "ro"] }),
        )?
        .bind(&node.dir().join("flags"), "/mnt", &["ro", "nosuid", "nodev", "noexec"])?;
    let report = node.report("types", &spec)?;
    assert_eq!(report.fact("/sizes")["/dev/shm"], 64 << 20);
    assert_eq!(report.fact("/sizes")["/tmp"], 1 << 20);
    for (point, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ] {
        assert_eq!(report.mount(point)?["type"], kind, "{point}");
    }
    report.mount("/sys/fs/cgroup")?;
    for (point, wanted) in [
        ("/tmp", ["nosuid", "nodev", "noexec"].as_slice()),
        ("/mnt", &["ro", "nosuid", "nodev", "noexec"]),
        ("/sys", &["ro"]),
    ] {
        let options = report.mount(point)?["options"].clone();
        for option in wanted {
            assert!(
                options.as_array().is_some_and(|all| all.contains(&json!(option))),
                "{point}: no {option} in {options}"
            );
        }
    }
    node.nothing_left()
}

#[test]
fn a_read_only_root_cannot_be_written_and_what_is_mounted_on_it_can() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec(
            "ro",
            &["guest-probe", "try", "create", "/file", "/etc/passwd", "/dev/shm/file"],
        )?
        .set("/root/readonly", true)?;
    let tried = node.run_spec("ro", &spec)?.arg("--rm").output()?.success()?.json()?;
    assert_eq!(tried, json!({ "/file": 30, "/etc/passwd": 30, "/dev/shm/file": 0 }));
    node.nothing_left()
}

#[test]
fn a_destination_behind_a_symlink_stays_inside_the_root() -> Result<()> {
    let node = Node::start()?;
    let bound = node.dir().join("bound");
    fs::create_dir(&bound)?;
    fs::write(bound.join("data"), "inside")?;
    let spec = node.spec("link", &["cat", "/escape/sub/data", "/tmp/outside/sub/data"])?;
    let root = spec.root();
    // An absolute link and one that climbs: both are to be read as the container reads them.
    symlink("/../../tmp/outside", root.join("escape"))?;
    let spec = spec.bind(&bound, "/escape/sub", &["rw"])?;
    let output = node.run_spec("link", &spec)?.arg("--rm").ok()?;
    assert_eq!(output, "insideinside");
    assert!(
        !std::path::Path::new("/tmp/outside").exists(),
        "the host's own /tmp was written to"
    );
    node.nothing_left()
}

#[test]
fn a_source_that_does_not_exist_is_named() -> Result<()> {
    let node = Node::start()?;
    let missing = node.dir().join("not-there");
    let spec = node.spec("lost", &["true"])?.bind(&missing, "/mnt", &["rw"])?;
    let said = node.run_spec("lost", &spec)?.arg("--rm").fails()?;
    assert!(said.contains("not-there"), "{said}");
    node.discard("lost")?;
    node.nothing_left()
}

#[test]
fn a_bound_socket_is_a_socket_in_the_container() -> Result<()> {
    let node = Node::start()?;
    let path = node.dir().join("host.sock");
    let _listener = UnixListener::bind(&path)?;
    let spec = node
        .spec("sock", &["sh", "-c", "test -S /mnt/host.sock && echo socket"])?
        .bind(&path, "/mnt/host.sock", &["rw"])?;
    assert_eq!(node.run_spec("sock", &spec)?.arg("--rm").ok()?, "socket\n");
    node.nothing_left()
}

#[test]
fn a_file_that_the_host_changes_is_changed_in_the_container() -> Result<()> {
    let node = Node::start()?;
    let shared = node.dir().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("value"), "old")?;
    let spec = node.spec("live", &["sleep", "1000"])?.bind(&shared, "/mnt", &["ro"])?;
    node.run_spec("live", &spec)?.arg("-d").ok()?;
    assert_eq!(node.exec("live", "before").program(["cat", "/mnt/value"]).ok()?, "old");
    // As configmaps change: a new file takes the place of the old one.
    fs::write(shared.join(".new"), "the new value")?;
    fs::rename(shared.join(".new"), shared.join("value"))?;
    // With virtiofsd's cache "auto" the guest may know the old one for another second, and nothing tells it earlier.
    let watch = "until grep -q 'the new value' /mnt/value; do :; done";
    node.exec("live", "after")
        .sh(watch)
        .limit(Duration::from_secs(10))
        .ok()?;
    node.remove("live")?;
    node.nothing_left()
}

/// What virtiofsd needs its capabilities for (docs/decisions/0026-confined-helpers.md).
#[test]
fn what_each_user_of_a_container_makes_on_a_mount_is_that_users_on_the_host() -> Result<()> {
    let node = Node::start()?;
    let host = node.dir().join("host");
    fs::create_dir(&host)?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o777))?;
    let spec = node.spec("a", &["sleep", "1000"])?.bind(&host, "/mnt", &["rw"])?;
    node.run_spec("a", &spec)?.arg("-d").ok()?;
    let root = "echo x > /mnt/root && mknod /mnt/node c 1 3 && echo x > /mnt/given && chown 3000:4000 /mnt/given && chmod 4755 /mnt/given";
    node.exec("a", "root").sh(root).ok()?;
    let user = node.exec("a", "user").args(["--user", "1000:2000"]);
    user.sh("echo x > /mnt/user && mkdir /mnt/directory").ok()?;
    for (name, owner) in [
        ("root", (0, 0)),
        ("node", (0, 0)),
        ("given", (3000, 4000)),
        ("user", (1000, 2000)),
        ("directory", (1000, 2000)),
    ] {
        let found = fs::symlink_metadata(host.join(name))?;
        assert_eq!((found.uid(), found.gid()), owner, "{name}");
    }
    let node_of_a_device = fs::symlink_metadata(host.join("node"))?;
    assert!(node_of_a_device.file_type().is_char_device());
    assert_eq!(fs::metadata(host.join("given"))?.mode() & 0o7777, 0o4755);
    node.remove("a")?;
    node.nothing_left()
}
