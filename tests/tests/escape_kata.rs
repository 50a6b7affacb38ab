//! What broke out of Kata Containers' VMs, and what containerd's and other shims left open to programs of the host, tried here: one test, or
//! one line of a test, for each CVE.
//!
//! Elsewhere: CVE-2020-2024 and CVE-2020-2026 (the guest leads the host's mounts astray by links in the shared directory), in
//! `escape.rs` and `hostile_files.rs`; CVE-2026-47243 (links by absolute names), in `escape.rs`; CVE-2020-2025 (a guest's changes of its image
//! are kept on the host), by `confinement.rs`: QEMU has the kernel and the initrd read-only, and there is no image; CVE-2020-27151
//! (annotations with paths of programs), in `config/tests/annotations.rs`; CVE-2025-23266 (a hook of the host has the image's environment), in
//! `oci_hooks.rs`.

mod kata_only {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt, net::UnixStream},
        path::{Path, PathBuf},
        thread,
    };

    use framework::{Error, Mount, Node, Result, disk::RawImage, leftovers};
    use rustix::{
        process::{Gid, Uid},
        thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
    };
    use serde_json::json;

    const EROFS: i32 = 30;

    /// CVE-2020-2023, CVE-2026-24834: a container makes a node of the device that its guest's root is on, or another container's files, and
    /// writes to it. CAP_MKNOD is one of the capabilities that containers have by default.
    #[test]
    fn nodes_of_the_guests_devices_are_of_no_use_in_a_container() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "of the other container", 8 << 20)?;
        let disk = image.loop_device()?;
        let member = |name: &str, args: &[&str], kind: &str| node.spec(name, args)?.of_pod(&node, kind);
        let pod = member("pod", &["/no/such/pause"], "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let other = disk.given_to(member("other", &["sleep", "1000"], "container")?, "/dev/disk", "rwm")?;
        node.run_spec("other", &other)?.arg("-d").ok()?;
        let read = node.exec("other", "read").sh("head -c 22 /dev/disk").ok()?;
        assert_eq!(read, "of the other container");
        // Every disk of the guest, and its memory and ports.
        let script = "n=0; for d in b:$(cat /sys/class/block/*/dev | tr '\\n' ' ' | sed 's/ $//; s/ / b:/g') c:1:1 c:1:2 c:1:4; do \
                      t=${d%%:*}; d=${d#*:}; rm -f /tmp/node; mknod /tmp/node $t ${d%:*} ${d#*:} || continue; n=$((n + 1)); \
                      (: < /tmp/node) 2>/dev/null && echo read $t $d; (: >> /tmp/node) 2>/dev/null && echo wrote $t $d; done; \
                      [ $n -ge 4 ] && echo tried; ls /sys/bus/nd/devices 2>/dev/null; true";
        let spec = member("look", &["sh", "-c", script], "container")?;
        let said = node.run_spec("look", &spec)?.arg("--rm").ok()?;
        assert_eq!(said, "tried\n");
        node.remove("other")?;
        disk.detach()?;
        assert_eq!(image.text(0)?, "of the other container");
        node.remove("pod")?;
        node.nothing_left()
    }

    /// CVE-2020-28914: one file that is mounted read-only is so in the guest alone.
    #[test]
    fn a_file_that_is_mounted_read_only_is_so_on_the_host() -> Result<()> {
        let node = Node::start()?;
        let file = node.dir().join("file");
        fs::write(&file, "unchanged")?;
        let spec = node.spec("a", &["sleep", "1000"])?.of_the_guest()?;
        let spec = spec.bind(&file, "/file", &["ro"])?;
        node.run_spec("a", &spec)?.arg("-d").ok()?;
        let said = node
            .exec("a", "write")
            .sh("mount -o remount,rw,bind /file; guest-probe try write /file")
            .ok()?;
        assert_eq!(said, format!("{}\n", json!({ "/file": EROFS })));
        assert_eq!(fs::read_to_string(&file)?, "unchanged");
        node.remove("a")?;
        node.nothing_left()
    }

    /// CVE-2026-24054: for an image without layers containerd's snapshotter describes the root as a directory that is bound, and the disk that it
    /// is on was plugged into the VM.
    #[test]
    fn a_root_that_is_a_directory_is_never_taken_for_the_disk_that_it_is_on() -> Result<()> {
        let node = Node::start()?;
        // On a disk of its own, by which the plugging would be seen.
        let image = RawImage::ext4(&node.dir().join("disk"), 64 << 20)?;
        let disk = image.loop_device()?;
        let place = node.dir().join("mounted");
        fs::create_dir(&place)?;
        let mounted = On::mount(disk.path(), &place)?;
        let root = place.join("fs");
        fs::create_dir(&root)?;
        let spec = node.spec("a", &["/bin/busybox", "sleep", "1000"])?;
        fs::create_dir(root.join("bin"))?;
        fs::copy(spec.root().join("bin/busybox"), root.join("bin/busybox"))?;
        let bind = Mount {
            kind: String::from("bind"),
            source: root.display().to_string(),
            options: ["rbind", "rw"].map(String::from).to_vec(),
        };
        node.start_on("a", &spec, vec![bind])?;
        for process in node.processes("a") {
            opens_nothing_of(process.pid, disk.path())?;
        }
        let script = "/bin/busybox ls /sys/class/block; echo written > /file";
        let disks = node.exec("a", "disks").program(["/bin/busybox", "sh", "-c", script]);
        assert_eq!(disks.ok()?, "");
        assert_eq!(fs::read_to_string(root.join("file"))?, "written\n");
        node.remove("a")?;
        drop(mounted);
        disk.detach()?;
        node.nothing_left()
    }

    /// A file system that is mounted for a test.
    struct On(PathBuf);

    impl On {
        fn mount(device: &Path, place: &Path) -> Result<Self> {
            framework::disk::run("mount", &[&device.display().to_string(), &place.display().to_string()])?;
            Ok(Self(place.to_owned()))
        }
    }

    impl Drop for On {
        fn drop(&mut self) {
            let _ = framework::disk::run("umount", &[&self.0.display().to_string()]);
        }
    }

    fn opens_nothing_of(pid: u32, device: &Path) -> Result<()> {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let leads_to = fs::read_link(entry.path()).unwrap_or_default();
            assert_ne!(leads_to, device, "process {pid}");
        }
        Ok(())
    }

    /// What a thread without rights comes to.
    fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
        let nobody = 65_534;
        let leave = || {
            let (uid, gid) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
            set_thread_groups(&[])?;
            set_thread_res_gid(gid, gid, gid)?;
            // Of this thread alone: it is the kernel's call, not the C library's.
            set_thread_res_uid(uid, uid, uid)
        };
        let done = thread::scope(|scope| scope.spawn(|| leave().map(|()| work())).join());
        let done = done.map_err(|_| Error::unexpected("a panic"))?;
        done.map_err(|errno| Error::io("leaving root's rights")(errno.into()))
    }

    /// All sockets below a directory.
    fn sockets(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        use std::os::unix::fs::FileTypeExt as _;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_socket() {
                found.push(entry.path());
            } else if kind.is_dir() && entry.file_name() != "shared" {
                sockets(&entry.path(), found)?;
            }
        }
        Ok(())
    }

    /// CVE-2020-15257: a shim's socket without a path, which every program of the host's network namespace can dial. CVE-2024-25621: directories
    /// that everybody may enter. And the floods of a local user: there is nothing that they could flood but the kernel's vsock (`floods.rs`).
    #[test]
    fn a_user_of_the_host_reaches_no_socket_of_a_sandbox() -> Result<()> {
        let node = Node::start()?;
        node.run("a").arg("-d").program(["sleep", "1000"]).ok()?;
        let directories = leftovers::sandbox_dirs(&node.id("a"));
        let directory = directories.into_iter().find(|path| path.join("sandbox.json").exists());
        let directory = directory.ok_or_else(|| Error::unexpected("no directory of the sandbox"))?;
        assert_eq!(fs::metadata(&directory)?.permissions().mode() & 0o7777, 0o700);
        let mut found = Vec::new();
        sockets(&directory, &mut found)?;
        assert!(found.iter().any(|socket| socket.ends_with("shim.sock")), "{found:?}");
        let refused = as_nobody(|| {
            let denied = |result: std::io::Result<()>| {
                result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
            };
            let sockets: Vec<bool> = found
                .iter()
                .map(|socket| denied(UnixStream::connect(socket).map(drop)))
                .collect();
            (denied(fs::read_dir(&directory).map(drop)), sockets)
        })?;
        assert!(
            refused.0 && refused.1.iter().all(|denied| *denied),
            "{refused:?} {found:?}"
        );
        // Those that have no file have no name either.
        for process in node.processes("a") {
            let named = fs::read_to_string(format!("/proc/{}/net/unix", process.pid))?;
            let own: Vec<String> = fs::read_dir(format!("/proc/{}/fd", process.pid))?
                .flatten()
                .filter_map(|entry| {
                    fs::read_link(entry.path())
                        .ok()?
                        .to_str()?
                        .strip_prefix("socket:[")?
                        .strip_suffix(']')
                        .map(str::to_owned)
                })
                .collect();
            for line in named.lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let abstract_name = words.get(7).is_some_and(|name| name.starts_with('@'));
                let is_own = words.get(6).is_some_and(|inode| own.iter().any(|own| own == inode));
                assert!(!(abstract_name && is_own), "{}: {line}", process.program());
            }
        }
        node.remove("a")?;
        node.nothing_left()
    }

    /// The program that holds a pod's namespaces is the guest's agent by another name: who shares the pod's processes finds its file.
    #[test]
    fn the_sandboxs_own_program_cannot_be_changed_by_who_sees_its_process() -> Result<()> {
        let node = Node::start()?;
        let pod = node.spec("pod", &["/no/such/pause"])?.of_pod(&node, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let pids = format!("/proc/{}/ns/pid", node.pid("pod")?);
        let spec = node.spec("look", &["sleep", "1000"])?.of_pod(&node, "container")?;
        let spec = spec.set(
            "/linux/namespaces",
            json!([
                { "type": "pid", "path": pids }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" },
            ]),
        )?;
        let spec = ["bounding", "effective", "permitted"]
            .iter()
            .try_fold(spec, |spec, set| {
                spec.push(&format!("/process/capabilities/{set}"), "CAP_SYS_PTRACE")
            })?;
        node.run_spec("look", &spec)?.arg("-d").ok()?;
        let program = "/proc/1/root$(readlink /proc/1/exe)";
        let script = format!(
            "p={program}; [ -f $p ] && echo found $p; (: >> $p) 2>/dev/null && echo wrote; chmod 777 $p 2>/dev/null && echo chmod; \
             chown 1 $p 2>/dev/null && echo chown; (: >> /proc/1/exe) 2>/dev/null && echo wrote exe; \
             rm -f $p 2>/dev/null && echo removed; true"
        );
        let said = node.exec("look", "change").sh(&script).ok()?;
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with("found /proc/1/root/"),
            "{said}"
        );
        node.remove("look")?;
        node.remove("pod")?;
        node.nothing_left()
    }
}
