//! What docs/mounts.md says of mappings, locks, attributes and access lists in each of virtiofsd's cache modes holds.

use std::{fs, process::Command};

use framework::{HostMount, Node, Result, Runtime, locate};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

/// linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

#[test]
fn acls_hold_for_the_users_of_a_container_and_are_the_hosts_own() -> Result<()> {
    const NAME: &str = "system.posix_acl_access";
    const NOBODY: u32 = u32::MAX;
    let node = Node::start()?;
    let data = node.dir().join("data");
    fs::create_dir(&data)?;
    fs::write(data.join("hosted"), "everybody's but one user's")?;
    let hosted = list(&[
        (1, 6, NOBODY),
        (2, 0, 1001),
        (4, 4, NOBODY),
        (16, 4, NOBODY),
        (32, 4, NOBODY),
    ]);
    rustix::fs::setxattr(data.join("hosted"), NAME, &hosted, rustix::fs::XattrFlags::empty())
        .map_err(std::io::Error::from)?;
    let spec = node
        .spec("acl", &["guest-probe", "acl", "/data"])?
        .bind(&data, "/data", &["rw"])?;
    let said = node.run_spec("acl", &spec)?.arg("--rm").output()?.success()?.json()?;
    let one_reads = "owner=6 user1000=4 group=0 mask=4 other=0";
    let wanted = json!({
        "read": [0, 13],
        // The mask is what the group's bits of a mode are.
        "after chmod 600": ["owner=6 user1000=4 group=0 mask=0 other=0", [13, 13]],
        // The process's mask was 077, which a default list takes the place of.
        "inherited": one_reads, "inherited by a directory": one_reads, "read what inherited": [0, 13],
        "mode without a list": "640", "list without a list": "none",
        "read the host's": [0, 13], "the host's list": "owner=6 user1001=0 group=4 mask=4 other=4",
    });
    assert_eq!(said, wanted);
    let mut bytes = [0; 256];
    let length = rustix::fs::getxattr(data.join("parent/inside"), NAME, &mut bytes).map_err(std::io::Error::from)?;
    let inherited = list(&[
        (1, 6, NOBODY),
        (2, 4, 1000),
        (4, 0, NOBODY),
        (16, 4, NOBODY),
        (32, 0, NOBODY),
    ]);
    assert_eq!(bytes[..length], inherited, "what the host sees");
    node.nothing_left()
}

/// The last table of docs/mounts.md, "What files cannot do". On runc it is the host's file system.
#[test]
fn what_files_cannot_do_is_what_the_documentation_says() -> Result<()> {
    const EOPNOTSUPP: i32 = 95;
    const ENOTTY: i32 = 25;
    let node = Node::start()?;
    let memory = HostMount::new(&node.dir().join("memory"), MountFlags::empty())?;
    let spec = node.spec("rare", &["sleep", "1000"])?;
    let mut volumes = Vec::new();
    for name in ["disk", "memory"] {
        let volume = node.dir().join(name).join("volume");
        fs::create_dir_all(&volume)?;
        volumes.push((name, volume));
    }
    let spec = volumes.iter().try_fold(spec, |spec, (name, volume)| {
        spec.bind(volume, &format!("/{name}"), &["rw"])
    })?;
    node.run_spec("rare", &spec)?.arg("-d").ok()?;
    for (name, volume) in volumes {
        let wanted = match node.runtime() {
            Runtime::Kata => json!({
                "O_TMPFILE": EOPNOTSUPP, "collapse": EOPNOTSUPP, "insert": EOPNOTSUPP, "punch": 0, "flags": ENOTTY,
                "birth time": false, "epoll": 0, "O_DIRECT of 3 bytes": 0,
            }),
            Runtime::Runc => {
                let output = Command::new(locate::guest_probe()?).arg("rare").arg(&volume).output()?;
                serde_json::from_slice(&output.stdout).map_err(std::io::Error::other)?
            }
        };
        let place = format!("/{name}");
        let tried = node.exec("rare", name).program(["guest-probe", "rare", &place]);
        assert_eq!(tried.output()?.success()?.json()?, wanted, "{name}");
    }
    node.remove("rare")?;
    memory.unmount()?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// No such device: what a mapping that would have to be shared gives where nothing is cached.
    const ENODEV: i32 = 19;
    const EAGAIN: i32 = 11;
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    const EOPNOTSUPP: i32 = 95;

    /// The answers of `guest-probe files` in a mode, with what is peculiar to it.
    fn expected(mapping: &Value) -> Value {
        json!({
            "mmap shared": mapping,
            // The file keeps what it has: the first mapping's byte, where there was one.
            "mmap private": if *mapping == json!("s") { "s" } else { "a" },
            "fsync": 0,
            "second flock": EAGAIN,
            "second lock": EAGAIN,
            "user.probe": 0,
            // The daemon has no CAP_SYS_ADMIN.
            "trusted.probe": EPERM,
            "security.capability": 0,
            "O_DIRECT": 0,
            "fallocate": 0,
            "access list": [0, EACCES],
        })
    }

    fn mode(mode: &str, arguments: &str, wanted: &Value) -> Result<()> {
        let dropin = format!("[hypervisor.qemu]\nvirtio_fs_cache = \"{mode}\"\nvirtio_fs_extra_args = [{arguments}]\n");
        let node = Node::start_configured(&dropin)?;
        let data = node.dir().join("data");
        fs::create_dir(&data)?;
        fs::write(data.join("held"), "")?;
        let spec = node
            .spec("files", &["sleep", "1000"])?
            .push("/process/capabilities/bounding", "CAP_SETFCAP")?
            .push("/process/capabilities/effective", "CAP_SETFCAP")?
            .push("/process/capabilities/permitted", "CAP_SETFCAP")?
            .bind(&data, "/data", &["rw"])?;
        node.run_spec("files", &spec)?.arg("-d").ok()?;
        let said = node
            .exec("files", "f")
            .program(["guest-probe", "files", "/data"])
            .output()?
            .success()?;
        assert_eq!(said.json()?, *wanted, "{mode}");

        // What was synced is on the host, while the guest still has it open.
        let script = "exec 3> /data/synced; echo synced >&3; sync; echo done; read end";
        let mut writer = node.exec("files", "w").sh(script).spawn()?;
        writer.shows("done")?;
        assert_eq!(fs::read_to_string(data.join("synced"))?, "synced\n");
        writer.close_stdin();
        writer.wait()?;

        // A lock is between programs of the sandbox: the host's own is not asked.
        let held = fs::File::open(data.join("held"))?;
        held.lock()?;
        let tried = ["guest-probe", "try", "flock", "/data/held"];
        let tried = node.exec("files", "l").program(tried).output()?.json()?;
        assert_eq!(tried, json!({ "/data/held": 0 }));

        if mode == "never" {
            // Nothing is older than the question.
            for content in ["one", "two", "three"] {
                fs::write(data.join("now"), content)?;
                assert_eq!(node.exec("files", content).program(["cat", "/data/now"]).ok()?, content);
            }
        }
        node.remove("files")?;
        node.nothing_left()
    }

    #[test]
    fn cache_auto() -> Result<()> {
        mode("auto", "", &expected(&json!("s")))
    }

    #[test]
    fn cache_always() -> Result<()> {
        mode("always", "", &expected(&json!("s")))
    }

    #[test]
    fn cache_never() -> Result<()> {
        mode("never", "", &expected(&json!(ENODEV)))
    }

    #[test]
    fn cache_metadata_with_an_argument_that_allows_mappings() -> Result<()> {
        mode("metadata", "\"--allow-mmap\"", &expected(&json!("s")))
    }

    #[test]
    fn an_operator_turns_attributes_off() -> Result<()> {
        let mut wanted = expected(&json!("s"));
        wanted["user.probe"] = json!(EOPNOTSUPP);
        wanted["access list"] = json!(EOPNOTSUPP);
        // Without the capability that this one takes, which is asked for first.
        wanted["security.capability"] = json!(EPERM);
        let dropin = "[hypervisor.qemu]\nvirtio_fs_extra_args = [\"--posix-acl=never\"]\n";
        let node = Node::start_configured(dropin)?;
        let data = node.dir().join("data");
        fs::create_dir(&data)?;
        let spec = node
            .spec("plain", &["guest-probe", "files", "/data"])?
            .bind(&data, "/data", &["rw"])?;
        assert_eq!(
            node.run_spec("plain", &spec)?.arg("--rm").output()?.success()?.json()?,
            wanted
        );
        node.nothing_left()
    }

    #[test]
    fn a_window_for_mapped_files_is_refused_with_the_reason() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\nvirtio_fs_cache_size = 1024\n")?;
        let said = node.run("dax").arg("--rm").program(["true"]).fails()?;
        for part in ["90-test.toml:2", "virtio_fs_cache_size = 1024", "DAX"] {
            assert!(said.contains(part), "no {part} in {said}");
        }
        node.discard("dax")?;
        node.nothing_left()
    }
}
