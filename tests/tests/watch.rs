//! A program in a container that watches a mount sees what the host changes in it, in order, and at once.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use framework::{Node, Result};

/// What the kubelet does to a configmap's directory when its content changes (its atomic writer).
fn publish(volume: &Path, version: &str, content: &str) -> Result<()> {
    let old = fs::read_link(volume.join("..data")).ok();
    fs::create_dir(volume.join(version))?;
    fs::write(volume.join(version).join("key"), content)?;
    symlink(version, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

#[test]
fn a_configmap_that_changes_is_seen_in_order_and_read_anew() -> Result<()> {
    let node = Node::start()?;
    let volume = node.dir().join("configmap");
    fs::create_dir(&volume)?;
    publish(&volume, "..v1", "old")?;
    symlink("..data/key", volume.join("key"))?;
    let spec = node
        .spec("configmap", &["guest-probe", "watch", "5", "/etc/config"])?
        .bind(&volume, "/etc/config", &["ro"])?;
    let running = node.run_spec("configmap", &spec)?.arg("--rm").spawn()?;
    running.shows("watching\n")?;
    publish(&volume, "..v2", "new")?;
    let said = running.wait()?.success()?.stdout();
    let events: Vec<&str> = said.lines().skip(1).collect();
    // The path, the event, the name, whether it is half of a rename, and what the name leads to by now.
    let wanted = [
        "/etc/config create ..v2 0",
        "/etc/config create ..data_tmp 0",
        "/etc/config moved-from ..data_tmp 1",
        "/etc/config moved-to ..data 1 ..v2",
        "/etc/config delete ..v1 0",
    ];
    let mut events = events.iter();
    for wanted in wanted {
        assert!(
            events.any(|event| event.trim_end().starts_with(wanted)),
            "{wanted}: {said}"
        );
    }
    node.nothing_left()
}

#[test]
fn a_single_file_and_a_directory_below_a_mount_are_watched_too() -> Result<()> {
    let node = Node::start()?;
    let host = node.dir().join("data");
    fs::create_dir_all(host.join("deep/er"))?;
    fs::write(host.join("file"), "before")?;
    fs::write(host.join("deep/er/page"), "before")?;
    let spec = node
        .spec("deep", &["guest-probe", "watch", "3", "/data/deep/er", "/file"])?
        .bind(&host, "/data", &["rw"])?
        .bind(&host.join("file"), "/file", &["ro"])?;
    let running = node.run_spec("deep", &spec)?.arg("--rm").spawn()?;
    running.shows("watching\n")?;
    // Open files are written to in place: no name changes.
    fs::write(host.join("deep/er/page"), "after")?;
    running.shows("/data/deep/er close-write page 0 after")?;
    fs::set_permissions(host.join("file"), fs::Permissions::from_mode(0o600))?;
    let said = running.wait()?.success()?.stdout();
    assert!(said.contains("/data/deep/er modify page"), "{said}");
    assert!(said.contains("/file attrib - 0 before"), "{said}");
    node.nothing_left()
}

#[test]
fn what_a_container_changes_itself_is_told_to_it_once() -> Result<()> {
    let node = Node::start()?;
    let host = node.dir().join("own");
    fs::create_dir(&host)?;
    let script = "guest-probe watch 5 /data & echo $! >/tmp/pid; read line; echo x >/data/mine; mv /data/mine /data/yours; \
                  read line; echo y >/tmp/ignored; wait";
    let spec = node.spec("own", &["sh", "-c", script])?.bind(&host, "/data", &["rw"])?;
    let mut running = node.run_spec("own", &spec)?.arg("--rm").spawn()?;
    running.shows("watching\n")?;
    running.write(b"go\n")?;
    running.shows("moved-to yours")?;
    let said_before = running.shows("close-write mine");
    assert!(said_before.is_ok());
    running.write(b"end\n")?;
    let said = running.wait()?.success()?.stdout();
    for event in ["create mine", "modify mine", "close-write mine"] {
        assert_eq!(said.matches(event).count(), 1, "{event}: {said}");
    }
    node.nothing_left()
}
