//! What broke out of runc in ten years, tried here: one test or one line of a test for each CVE. The containers of a test are of one
//! pod, so that what one reaches is the guest that the others live in.
//!
//! Not here, as nothing of the kind is there: CVE-2016-3697 (users by name are containerd's matter), CVE-2021-43784 (a length in a
//! netlink message: none is used to start a process), CVE-2019-16884 and CVE-2025-52881 as far as they are about AppArmor's and SELinux's
//! labels, which the guest's kernel has not.

mod kata_only {
    use std::{fs, os::unix::fs::symlink, path::Path, sync::atomic::AtomicBool, sync::atomic::Ordering, thread};

    use framework::{Node, Result, Spec};
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use serde_json::{Value, json};

    const TYPE: &str = "io.kubernetes.cri.container-type";
    const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
    const POD: &str = "pod";

    fn member(spec: Spec, node: &Node, kind: &str) -> Result<Spec> {
        spec.annotation(TYPE, kind)?.annotation(SANDBOX, &node.id(POD))
    }

    /// A node with a pod in which nothing runs yet.
    fn pod() -> Result<Node> {
        let node = Node::start()?;
        let pause = member(node.spec(POD, &["/no/such/pause"])?, &node, "sandbox")?;
        node.run_spec(POD, &pause)?.arg("-d").ok()?;
        Ok(node)
    }

    /// Nothing is left, and the guest was not harmed: it still runs containers.
    fn unharmed(node: &Node) -> Result<()> {
        let after = member(node.spec("after", &["echo", "unharmed"])?, node, "container")?;
        assert_eq!(node.run_spec("after", &after)?.arg("--rm").ok()?, "unharmed\n");
        node.task("kill", POD).args(["--signal", "SIGTERM"]).ok()?;
        assert_eq!(node.await_stopped(POD)?, 0);
        node.forget(POD)?;
        node.nothing_left()
    }

    /// What is said of a container that must not start.
    fn refused(node: &Node, name: &str, spec: Spec) -> Result<String> {
        let said = node
            .run_spec(name, &member(spec, node, "container")?)?
            .arg("--rm")
            .fails()?;
        node.discard(name)?;
        Ok(said)
    }

    /// CVE-2016-9962: a process that joins a container shows it descriptors of what is outside. CVE-2019-5736: and its program, to be
    /// written over. The container's first process looks at all that comes for as long as execs come. With CAP_SYS_PTRACE it would see them, as with runc.
    #[test]
    fn who_joins_a_container_brings_nothing_along() -> Result<()> {
        let node = pod()?;
        let watch = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] && continue; \
                     ( : >> $p/exe ) 2>/dev/null && echo \"wrote $p/exe\" >> /found; \
                     for f in $p/fd/* $p/cwd $p/root; do l=$(readlink $f 2>/dev/null); \
                     case \"$l\" in ''|/|pipe:*|socket:*|/dev/*|/proc/*|/found*) ;; *) echo \"$f $l\" >> /found;; esac; \
                     done; done; done";
        let spec = node.spec("watch", &["sh", "-c", watch])?;
        // What the image calls a shell is whoever executes it.
        let root = spec.root();
        fs::write(root.join("script"), "#!/proc/self/exe\n")?;
        fs::set_permissions(root.join("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        symlink("/proc/self/exe", root.join("link"))?;
        node.run_spec("watch", &member(spec, &node, "container")?)?
            .arg("-d")
            .ok()?;
        for number in 0..12 {
            let exec = |name: &str| node.exec("watch", &format!("{name}{number}"));
            exec("true").program(["true"]).ok()?;
            // Whatever they are, they are not the agent's program.
            let _ = exec("script").program(["/script"]).output()?;
            let _ = exec("link").program(["/link"]).output()?;
        }
        let found = node.exec("watch", "found").sh("cat /found 2>/dev/null; true").ok()?;
        assert_eq!(found, "");
        node.remove("watch")?;
        unharmed(&node)
    }

    /// CVE-2024-21626: the working directory by a leaked descriptor; for the first process and for an exec.
    #[test]
    fn a_working_directory_is_inside_the_root() -> Result<()> {
        let node = pod()?;
        let spec = member(node.spec("cwd", &["sleep", "1000"])?, &node, "container")?;
        node.run_spec("cwd", &spec)?.arg("-d").ok()?;
        for fd in 0..16 {
            let cwd = format!("/proc/self/fd/{fd}");
            let tried = node.exec("cwd", &format!("exec{fd}")).args(["--cwd", &cwd]);
            let tried = tried
                .sh("cat ../../../../../../run/tatami/shared/*/config.json ../../../../../../init; pwd -P")
                .output()?;
            // A standard stream is no directory; nothing else is open.
            assert_ne!(tried.code, Some(0), "{cwd}: {}", tried.stdout());
            assert!(!tried.stdout().contains('/'), "{cwd}: {}", tried.stdout());
        }
        for fd in [3, 6, 7, 8, 9] {
            let spec = node
                .spec("first", &["true"])?
                .set("/process/cwd", format!("/proc/self/fd/{fd}"))?;
            refused(&node, "first", spec)?;
        }
        node.remove("cwd")?;
        unharmed(&node)
    }

    /// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: /proc and /sys of the image are links. CVE-2019-16884: a volume on /proc.
    /// CVE-2025-52881: a file system of the image's choice where the runtime writes below /proc. CVE-2025-31133: what masks is not
    /// /dev/null.
    #[test]
    fn what_the_runtime_itself_writes_to_is_what_it_takes_it_for() -> Result<()> {
        let node = pod()?;
        for directory in ["proc", "sys"] {
            let spec = node.spec("link", &["true"])?;
            let place = spec.root().join(directory);
            if place.exists() {
                fs::remove_dir(&place)?;
            }
            symlink("tmp", &place)?;
            let said = refused(&node, "link", spec)?;
            assert!(said.contains(directory), "{directory}: {said}");
        }
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        let said = refused(
            &node,
            "proc",
            node.spec("proc", &["true"])?.bind(&volume, "/proc", &["rw"])?,
        )?;
        assert!(said.contains("/proc"), "{said}");
        for place in ["/proc/self", "/proc/sys", "/proc/self/attr"] {
            let mount = json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": [] });
            let spec = node.spec("tmpfs", &["true"])?.push("/mounts", mount)?;
            let spec = spec.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))?;
            let said = refused(&node, "tmpfs", spec)?;
            assert!(said.contains(place), "{place}: {said}");
        }
        // A /dev of the image's, with files that lead to what has an effect.
        let dev = node.dir().join("dev");
        fs::create_dir(&dev)?;
        let trigger = "/proc/sys/kernel/core_pattern";
        for name in ["null", "console", "ptmx", "fd", "stdin", "stdout", "stderr"] {
            symlink(trigger, dev.join(name))?;
        }
        let with_dev = |name: &str| -> Result<Spec> {
            let spec = node.spec(name, &["cat", trigger])?;
            let mounts = spec.get("/mounts").as_array().cloned().unwrap_or_default();
            let others: Vec<Value> = mounts
                .into_iter()
                .filter(|mount| !mount["destination"].as_str().unwrap_or_default().starts_with("/dev"))
                .collect();
            spec.set("/mounts", others)?.bind(&dev, "/dev", &["rw"])
        };
        let masked = with_dev("null")?.set("/linux/maskedPaths", json!(["/proc/keys", "/proc/timer_list"]))?;
        let said = refused(&node, "null", masked)?;
        assert!(said.contains("null"), "{said}");
        unharmed(&node)
    }

    /// CVE-2025-52565: the terminal is shown as /dev/console before paths are masked, and /dev is of the image's choice: console leads to
    /// what has an effect, and /dev/pts becomes a link to it while the terminal is made.
    #[test]
    fn a_terminal_is_the_containers_own_wherever_its_names_lead() -> Result<()> {
        let node = pod()?;
        let pattern = "cat /proc/sys/kernel/core_pattern";
        let look = member(node.spec("look", &["sleep", "1000"])?, &node, "container")?;
        node.run_spec("look", &look)?.arg("-d").ok()?;
        let before = node.exec("look", "before").sh(pattern).ok()?;
        let mut other = node.exec("look", "tty").arg("-t").program(["sh"]).terminal(24, 80)?;
        let dev = node.dir().join("dev");
        fs::create_dir_all(dev.join("pts"))?;
        fs::create_dir(dev.join("shm"))?;
        fs::create_dir(dev.join("mqueue"))?;
        symlink("pts/ptmx", dev.join("ptmx"))?;
        symlink("/proc/sys/kernel", dev.join("link"))?;
        let (stop, pts, link) = (AtomicBool::new(false), dev.join("pts"), dev.join("link"));
        thread::scope(|scope| -> Result<()> {
            let tried = || -> Result<()> {
                for (number, leads_to) in [
                    "/proc/sys/kernel/core_pattern",
                    "/proc/sysrq-trigger",
                    "/dev/pts/0",
                    "pts/ptmx",
                    "/proc/self/fd/0",
                    "/proc/1/fd/0",
                ]
                .into_iter()
                .enumerate()
                {
                    let console = dev.join("console");
                    let _ = fs::remove_file(&console);
                    symlink(leads_to, &console)?;
                    let name = format!("tty{number}");
                    let script = "for f in /dev/console /proc/sys/kernel/core_pattern /proc/sysrq-trigger /dev/pts/*; do \
                                  (echo '|/evil' > $f) 2>/dev/null; done; echo over";
                    let spec = node.spec(&name, &["sh", "-c", script])?.bind(&dev, "/dev", &["rw"])?;
                    // The volume is below what is mounted on it.
                    let mut mounts = spec.get("/mounts").as_array().cloned().unwrap_or_default();
                    mounts.retain(|mount| mount["destination"] != "/dev" || mount["type"] == "bind");
                    mounts.sort_by_key(|mount| mount["type"] != "bind");
                    let spec = spec.set("/mounts", mounts)?.set("/process/terminal", true)?;
                    let spec = spec
                        .set("/linux/maskedPaths", json!(["/proc/keys", "/proc/timer_list"]))?
                        .set("/linux/readonlyPaths", json!(["/proc/sys", "/proc/sysrq-trigger"]))?;
                    // It is refused or runs, by where it leads and by who is the first.
                    let spec = member(spec, &node, "container")?;
                    let terminal = node.run_spec(&name, &spec)?.args(["--rm", "-t"]).terminal(24, 80)?;
                    let _ = terminal.wait();
                    node.discard(&name)?;
                    if number == 0 {
                        scope.spawn(|| exchange(&pts, &link, &stop));
                    }
                }
                Ok(())
            };
            let tried = tried();
            stop.store(true, Ordering::Relaxed);
            tried
        })?;
        assert_eq!(node.exec("look", "after").sh(pattern).ok()?, before);
        other.types("echo st'ill'-$((40 + 2)); exit 5\n")?;
        let screen = other.shows("still-42")?;
        assert!(!screen.contains("evil"), "{screen}");
        assert_eq!(other.wait()?, Some(5));
        node.remove("look")?;
        unharmed(&node)
    }

    /// CVE-2022-24769, CVE-2022-29162: capabilities that a program inherits, of the first process and of an exec.
    /// CVE-2023-25809: a cgroup mount that may be written to. And what masks and what is read-only is so.
    #[test]
    fn a_container_that_asks_for_nothing_has_nothing_to_inherit_and_nothing_to_write_to() -> Result<()> {
        let node = pod()?;
        let spec = node.spec("plain", &["sleep", "1000"])?.own_cgroup()?;
        let spec = spec
            .set(
                "/linux/maskedPaths",
                json!(["/proc/kcore", "/proc/keys", "/sys/firmware"]),
            )?
            .set("/linux/readonlyPaths", json!(["/proc/sys", "/proc/sysrq-trigger"]))?;
        node.run_spec("plain", &member(spec, &node, "container")?)?
            .arg("-d")
            .ok()?;
        let none = "CapInh:\t0000000000000000\n";
        for pid in ["1", "self"] {
            let said = node
                .exec("plain", pid)
                .sh(&format!("grep CapInh /proc/{pid}/status"))
                .ok()?;
            assert_eq!(said, none, "{pid}");
        }
        let written = "for f in /sys/fs/cgroup/cgroup.procs /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do \
                       (echo x > $f) 2>/dev/null && echo \"wrote $f\"; done; \
                       mkdir /sys/fs/cgroup/new 2>/dev/null && echo made; head -c 1 /proc/kcore /proc/keys 2>/dev/null; \
                       ls /sys/firmware; true";
        let said = node.exec("plain", "write").sh(written).ok()?;
        let said: Vec<_> = said
            .lines()
            .filter(|line| !line.starts_with("==>") && !line.is_empty())
            .collect();
        assert!(said.is_empty(), "{said:?}");
        node.remove("plain")?;
        unharmed(&node)
    }

    /// Exchanges two names until it is told to stop.
    fn exchange(one: &Path, other: &Path, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
        }
    }

    /// CVE-2021-30465: a directory on the way to a mount's destination is a link by the time that it is mounted.
    /// CVE-2024-45310: or by the time that the missing directories are made.
    #[test]
    fn a_directory_that_becomes_a_link_while_it_is_mounted_below_leads_nowhere() -> Result<()> {
        let node = pod()?;
        let (volume, source) = (node.dir().join("volume"), node.dir().join("source"));
        let outside = node.dir().join("outside");
        for directory in [&volume, &source, &outside] {
            fs::create_dir(directory)?;
        }
        fs::create_dir(volume.join("way"))?;
        symlink("/", volume.join("link"))?;
        fs::write(source.join("marker"), "mounted")?;
        let stop = AtomicBool::new(false);
        let spec = |name: &str| -> Result<Spec> {
            let spec = node.spec(name, &["true"])?.bind(&volume, "/volume", &["rw"])?;
            // As the guest's root sees itself, and as the host does.
            let spec = spec.bind(&source, "/volume/way/run/tatami/new/deep", &["ro"])?;
            spec.bind(&source, &format!("/volume/way{}/new", outside.display()), &["ro"])
        };
        thread::scope(|scope| -> Result<()> {
            scope.spawn(|| exchange(&volume.join("way"), &volume.join("link"), &stop));
            let tried = (0..8).try_for_each(|number| {
                let name = format!("race{number}");
                let spec = member(spec(&name)?, &node, "container")?;
                // It is started or refused, by who is the first.
                let _ = node.run_spec(&name, &spec)?.arg("--rm").output()?;
                node.discard(&name)
            });
            stop.store(true, Ordering::Relaxed);
            tried
        })?;
        assert_eq!(fs::read_dir(&outside)?.count(), 0, "made on the host");
        // In the guest, outside of all containers: looked at by one that has its first process's namespaces.
        let mut look = node.spec("look", &["sleep", "1000"])?;
        for set in ["bounding", "effective", "permitted"] {
            for capability in ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT"] {
                look = look.push(&format!("/process/capabilities/{set}"), capability)?;
            }
        }
        let look = look.set("/linux/namespaces", json!([{ "type": "mount" }]))?;
        node.run_spec("look", &member(look, &node, "container")?)?
            .arg("-d")
            .ok()?;
        let said = node
            .exec("look", "guest")
            .sh("cat /proc/1/mounts; ls -d /proc/1/root/run/tatami/new /proc/1/root/tmp/*/outside 2>/dev/null; true")
            .ok()?;
        assert!(!said.contains("/run/tatami/new") && !said.contains("outside"), "{said}");
        node.remove("look")?;
        unharmed(&node)
    }
}
