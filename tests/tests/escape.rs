//! A guest that is in the hands of an attacker gets what its sandbox was given, and nothing else of the host.

mod kata_only {
    use std::{fs, os::unix::fs::symlink};

    use framework::{Node, Result, Spec};
    use serde_json::{Value, json};

    /// EROFS: what was mounted read-only is so on the host.
    const EROFS: i32 = 30;
    const EXDEV: i32 = 18;
    const ENOENT: i32 = 2;
    const ENOSYS: i32 = 38;
    const ENOMEM: i32 = 12;

    /// What the guest must not see, a directory that it may write to, and one that it may read.
    fn files(node: &Node, spec: Spec) -> Result<Spec> {
        let dir = node.dir();
        fs::write(dir.join("secret"), "of the host")?;
        for name in ["rw", "ro"] {
            fs::create_dir(dir.join(name))?;
        }
        fs::write(dir.join("ro/file"), "unchanged")?;
        symlink(dir.join("secret"), dir.join("rw/absolute"))?;
        symlink("../../../../../../../../../..", dir.join("rw/up"))?;
        spec.of_the_guest()?
            .bind(&dir.join("rw"), "/rw", &["rw"])?
            .bind(&dir.join("ro"), "/ro", &["ro"])
    }

    fn untouched(node: &Node) -> Result<()> {
        let dir = node.dir();
        assert_eq!(fs::read_to_string(dir.join("secret"))?, "of the host");
        assert_eq!(fs::read_to_string(dir.join("ro/file"))?, "unchanged");
        assert_eq!(fs::read_dir(dir.join("ro"))?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_guest_that_speaks_fuse_by_itself_gets_its_own_shared_directory_only() -> Result<()> {
        let node = Node::start()?;
        let secret = node.dir().join("secret");
        // From memory: the device that the container's files are behind is taken away from the kernel.
        let script = format!(
            "cp /bin/guest-probe /tmp/probe && exec /tmp/probe escape {}",
            secret.display()
        );
        let spec = files(&node, node.spec("fuse", &["sh", "-c", &script])?)?;
        let said = node.run_spec("fuse", &spec)?.arg("--rm").output()?.success()?.json()?;
        let mut wanted = json!({
            "guessed nodes": 0, "guessed handles": 0, "mapping": ENOSYS,
            "..": true, "../..": true, "../../../../..": true, "/": true, ".": true,
            "the secret": ENOENT, "the secret from above": ENOENT, "the secret by /proc": ENOENT,
            "the secret by the daemon's root": ENOENT, "/proc": ENOENT, "proc": ENOENT, "passwd": ENOENT,
            // The one container's directory, that of the volumes, and the kernel's modules.
            "the root's entries": 3,
            "reading a link": true, "opening a link with 0": false, "opening a link with 2": false,
            "through the absolute link": ENOENT, "through the link upwards": ENOENT, "above the mount": ENOENT,
            "the link upwards stays": true,
            "create": EROFS, "mknod": EROFS, "mkdir": EROFS, "symlink": EROFS, "unlink": EROFS,
            "unlink by a longer name": said["unlink by a longer name"],
            "rename inside": EROFS, "rename out": EXDEV, "link inside": EROFS, "link out": EXDEV,
            "chmod": EROFS, "setxattr": EROFS, "open for writing": EROFS,
            "mkdir in the shared directory": EROFS, "link beside the volumes": EROFS, "rename of a volume": EROFS,
            "making a device": 0, "opening a device": false,
        });
        // CVE-2026-47243: it is one of the shared directory, whichever directory it is asked for in.
        wanted["link by an absolute name"] = json!(EROFS);
        assert_eq!(said, wanted);
        // The name leads to the other mount, within the sandbox: that it stays read-only is what counts.
        assert_ne!(said["unlink by a longer name"], Value::from(0));
        untouched(&node)?;
        node.nothing_left()
    }

    #[test]
    fn lengths_that_are_not_true_are_not_believed() -> Result<()> {
        let node = Node::start()?;
        let script = "cp /bin/guest-probe /tmp/probe && exec /tmp/probe lengths";
        let spec = files(&node, node.spec("lengths", &["sh", "-c", script])?)?;
        let said = node
            .run_spec("lengths", &spec)?
            .arg("--rm")
            .output()?
            .success()?
            .json()?;
        let wanted = json!({
            "a request of 4 GiB": ENOMEM, "no request": ENOSYS, "4 G nodes to forget": ENOMEM,
            "an attribute of 4 GiB": ENOMEM, "names of 4 GiB": ENOMEM,
            "the file that was read for 4 GiB": "unchanged", "writing more than there is": true,
            "and it still answers": true,
        });
        assert_eq!(said, wanted);
        // Nothing of the guest's memory beyond what was sent, and nothing of the daemon's.
        assert_eq!(fs::read_to_string(node.dir().join("rw/written"))?, "data");
        untouched(&node)?;
        node.nothing_left()
    }

    #[test]
    fn a_guest_that_breaks_the_protocol_ends_its_own_sandbox_alone() -> Result<()> {
        let node = Node::start()?;
        let script = "cp /bin/guest-probe /tmp/probe && exec /tmp/probe fatal";
        let spec = files(&node, node.spec("fatal", &["sh", "-c", script])?)?;
        let other = node.spec("other", &["sleep", "1000"])?;
        node.run_spec("other", &other)?.arg("-d").ok()?;
        node.run_spec("fatal", &spec)?.arg("-d").ok()?;
        assert_eq!(node.await_stopped("fatal")?, 137);
        node.await_log(&["virtiofsd ended with"])?;
        untouched(&node)?;
        node.forget("fatal")?;
        assert_eq!(node.exec("other", "alive").program(["echo", "alive"]).ok()?, "alive\n");
        node.remove("other")?;
        node.nothing_left()
    }

    #[test]
    fn handles_that_are_guessed_open_nothing_of_the_host() -> Result<()> {
        let node = Node::start()?;
        let secret = node.dir().join("secret");
        let probe = |directory: &str| format!("guest-probe handles {directory} {}", secret.display());
        let script = format!("{}; {}; {}", probe("/rw"), probe("/ro"), probe("/"));
        let spec = files(&node, node.spec("handles", &["sh", "-c", &script])?)?;
        let said = node.run_spec("handles", &spec)?.arg("--rm").ok()?;
        assert_eq!(said.lines().count(), 3, "{said}");
        for line in said.lines() {
            let said: Value = serde_json::from_str(line)?;
            // The kernel lets it try: what the guest knows already is opened.
            assert_eq!(said, json!({ "some were opened": true, "the secret": 0 }));
        }
        untouched(&node)?;
        node.nothing_left()
    }

    #[test]
    fn the_guests_root_gets_no_further_by_mounting_and_remounting() -> Result<()> {
        let node = Node::start()?;
        let spec = files(&node, node.spec("root", &["sleep", "1000"])?)?;
        node.run_spec("root", &spec)?.arg("-d").ok()?;
        let sh = |exec: &str, script: &str| node.exec("root", exec).sh(script).ok();
        // What the guest itself sees, and the device mounted once more (whichever of its file systems that gives).
        let share = "/run/tatami/shared";
        let busybox = format!("{share}/{}/rootfs/bin/busybox", node.id("root"));
        let in_guest = |exec: &str, command: &str| sh(exec, &format!("nsenter -t 1 -m {busybox} {command}"));
        assert_eq!(
            in_guest("all", &format!("ls -a {share}"))?,
            format!(".\n..\n.modules\n.volumes\n{}\n", node.id("root"))
        );
        assert_eq!(in_guest("own", &format!("ls {share}/.volumes"))?, "1\n2\n");
        let tag = "grep ' virtiofs ' /proc/1/mounts | head -n 1 | cut -d' ' -f1";
        sh(
            "again",
            &format!("mkdir /tmp/again && mount -t virtiofs $({tag}) /tmp/again"),
        )?;
        // The guest may believe what it likes.
        let remount = "mount -o remount,rw,bind /ro; guest-probe try create /ro/new; guest-probe try write /ro/file";
        let said = sh("remount", remount)?;
        assert_eq!(
            said,
            format!("{}\n{}\n", json!({ "/ro/new": EROFS }), json!({ "/ro/file": EROFS }))
        );
        let climb = "cat /rw/absolute /rw/up/etc/hostname /tmp/again/../../../secret 2>/dev/null; ls -R /tmp/again /rw/up/tmp; true";
        let seen = sh("climb", climb)?;
        assert!(!seen.contains("of the host"), "{seen}");
        // A link to it that the guest makes, and that the host's own programs might follow, is a link and no more.
        sh(
            "link",
            &format!(
                "ln -s {} /rw/link && ! cat /rw/link 2>/dev/null",
                node.dir().join("secret").display()
            ),
        )?;
        untouched(&node)?;
        node.remove("root")?;
        node.nothing_left()
    }

    #[test]
    fn a_part_that_may_be_written_to_does_not_open_the_rest_of_a_read_only_directory() -> Result<()> {
        let node = Node::start()?;
        let parent = node.dir().join("parent");
        fs::create_dir_all(parent.join("part"))?;
        let both = |spec: Spec| {
            spec.bind(&parent, "/parent", &["ro"])?
                .bind(&parent.join("part"), "/part", &["rw"])
        };
        let spec = both(node.spec("part", &["sleep", "1000"])?.of_the_guest()?)?;
        node.run_spec("part", &spec)?.arg("-d").ok()?;
        let sh = |exec: &str, script: &str| node.exec("part", exec).sh(script).ok();
        // The part is the same file system by both names, and stays read-only where it was asked for so.
        sh(
            "write",
            "echo written > /part/file && grep -q written /parent/part/file",
        )?;
        let tried = sh("try", "guest-probe try create /parent/new /parent/part/new")?;
        assert_eq!(
            tried,
            format!("{}\n", json!({ "/parent/new": EROFS, "/parent/part/new": EROFS }))
        );
        // As the guest's root, which gets at the volumes themselves: the host does not allow it either.
        let volumes = "/run/tatami/shared/.volumes";
        let probe = format!("/run/tatami/shared/{}/rootfs/bin/guest-probe", node.id("part"));
        let tried = sh(
            "hostile",
            &format!("nsenter -t 1 -m {probe} try create {volumes}/1/new {volumes}/1/part/new {volumes}/2/new"),
        )?;
        let wanted = json!({ format!("{volumes}/1/new"): EROFS, format!("{volumes}/1/part/new"): EROFS, format!("{volumes}/2/new"): 0 });
        assert_eq!(serde_json::from_str::<Value>(&tried)?, wanted);
        assert_eq!(fs::read_dir(&parent)?.count(), 1);
        node.remove("part")?;
        node.nothing_left()
    }
}
