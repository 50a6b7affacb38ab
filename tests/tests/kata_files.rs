//! Kata's own configuration files and pods' annotations start containers, and keys of Kata's have their effect.

use framework::{Error, Node, Result, disk::RawImage, locate};

/// Where Kata's packages would be; nothing is there.
const PREFIX: &str = "/nonexistent/opt/kata";

mod kata_only {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    use super::*;

    fn stock(name: &str) -> Result<String> {
        let path = locate::workspace().join("config/tests/stock").join(name);
        Ok(fs::read_to_string(path)?.replace("@PREFIX@", PREFIX))
    }

    /// A container runs, the log has one warning of what is replaced, and `kata-ctl check` has one line of it.
    fn starts(configuration: &str) -> Result<()> {
        let node = Node::start_with_file(configuration)?;
        assert_eq!(
            node.run("stock").arg("--rm").program(["echo", "hello"]).ok()?,
            "hello\n"
        );
        let log = node.log();
        assert_eq!(
            log.matches("kata-containers.img, another runtime's guest").count(),
            1,
            "{log}"
        );
        let path = node.dir().join("configuration.toml");
        let report = node
            .diagnose()?
            .args(["check", "all", "--path"])
            .arg(&path)
            .output()?
            .stdout();
        let lines: Vec<_> = report.lines().filter(|line| line.contains("replaced")).collect();
        assert_eq!(lines.len(), 1, "{report}");
        assert!(
            lines[0].starts_with("warn") && lines[0].contains("vmlinux.container"),
            "{report}"
        );
        // What Kata's defaults take away is said once for each sandbox, and by the check.
        assert_eq!(log.matches("less confined than by default").count(), 1, "{log}");
        assert!(
            report.contains("confinement") && report.contains("hypervisor.qemu.rootless = false"),
            "{report}"
        );
        assert!(
            !report.contains("fail  kernel") && !report.contains("fail  initrd"),
            "{report}"
        );
        node.nothing_left()
    }

    #[test]
    fn the_go_runtimes_stock_file_starts_a_container_without_katas_packages() -> Result<()> {
        starts(&stock("go.toml")?)
    }

    #[test]
    fn runtime_rs_stock_file_starts_a_container_without_katas_packages() -> Result<()> {
        starts(&stock("runtime-rs.toml")?)
    }

    #[test]
    fn runtime_rs_rule_of_sizes_gives_the_limits_and_the_overhead() -> Result<()> {
        let node = Node::start_with_file(&stock("runtime-rs.toml")?)?;
        let limits = ["--rm", "--memory-limit", "268435456"];
        let memory = "awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo";
        let said = node.run("sized").args(limits).sh(memory).ok()?;
        let seen: u32 = said.trim().parse().unwrap_or(0);
        // 256 + 128, less what the kernel keeps; without the rule it would be 2048 + 256.
        assert!((310..=384).contains(&seen), "{seen} MiB");
        node.nothing_left()
    }

    #[test]
    fn memory_that_is_asked_for_at_boot_is_taken_at_boot() -> Result<()> {
        let taken = |dropin: &str| -> Result<u64> {
            let node = Node::start_configured(dropin)?;
            node.run("taken").arg("-d").program(["sleep", "1000"]).ok()?;
            let used = node.host_memory("taken")?.used()?;
            node.remove("taken")?;
            node.nothing_left()?;
            Ok(used >> 20)
        };
        let table = "[hypervisor.qemu]\ndefault_memory = 512\nreclaim_guest_freed_memory = false\n";
        let (lazy, at_once) = (taken(table)?, taken(&format!("{table}enable_mem_prealloc = true\n"))?);
        assert!(lazy < 512 && at_once >= 512, "{lazy} MiB, {at_once} MiB");
        Ok(())
    }

    #[test]
    fn a_feature_of_the_cpu_that_is_switched_off_is_not_there() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\ncpu_features = \"aes=off\"\n")?;
        let with = Node::start()?;
        let aes = "grep -c -w aes /proc/cpuinfo || true";
        assert_eq!(with.run("with").arg("--rm").sh(aes).ok()?, "1\n");
        assert_eq!(node.run("without").arg("--rm").sh(aes).ok()?, "0\n");
        node.nothing_left()?;
        with.nothing_left()
    }

    /// What no container can see is in QEMU's command line and in the log.
    #[test]
    fn keys_about_qemu_and_the_logs_have_their_effect() -> Result<()> {
        let seen = |configuration: &str| -> Result<(String, String)> {
            let node = Node::start_configured(configuration)?;
            node.run("seen").arg("-d").program(["sleep", "1000"]).ok()?;
            let processes = node.processes("seen").into_iter();
            let lines: Vec<_> = processes.map(|process| process.command).collect();
            node.remove("seen")?;
            node.nothing_left()?;
            Ok((lines.join("\n"), node.log()))
        };
        let qemus = "enable_iothreads = true\nvirtio_fs_queue_size = 256\nseccomp_sandbox = \"on,spawn=deny\"\nmachine_type = \"q35\"\n";
        let (commands, log) = seen(&format!("[hypervisor.qemu]\n{qemus}"))?;
        for part in [
            "iothread,id=disks",
            "queue-size=256",
            "-sandbox on,spawn=deny",
            "-machine q35,",
            "--log-level warn",
        ] {
            assert!(commands.contains(part), "{part}: {commands}");
        }
        // The tests' containerd asks for debug logs itself: what the shim says of its configuration only the key asks for.
        let configuration = "the configuration in effect";
        assert!(!log.contains(configuration) && commands.contains(" quiet "), "{log}");
        let debug = "enable_debug = true\n";
        let (commands, log) = seen(&format!(
            "[hypervisor.qemu]\n{debug}[runtime]\n{debug}[agent.kata]\n{debug}"
        ))?;
        assert!(
            commands.contains("--log-level debug") && !commands.contains(" quiet "),
            "{commands}"
        );
        assert!(log.contains(configuration), "{log}");
        Ok(())
    }

    /// More huge pages for the host, until it is dropped.
    struct HugePages {
        before: u64,
    }

    /// How many pages of 2 MiB hugetlbfs has.
    const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    impl HugePages {
        fn more(pages: u64) -> Result<Self> {
            let number = |text: String| text.trim().parse::<u64>().unwrap_or_default();
            let more = Self {
                before: number(fs::read_to_string(HUGE_PAGES)?),
            };
            fs::write("/proc/sys/vm/compact_memory", "1")?;
            fs::write(HUGE_PAGES, (more.before + pages).to_string())?;
            let has = number(fs::read_to_string(HUGE_PAGES)?);
            match has >= more.before + pages {
                true => Ok(more),
                false => Err(Error::unexpected(format!("the host has {has} huge pages to give"))),
            }
        }

        /// Pages that nobody uses and nobody has reserved.
        fn free() -> Result<u64> {
            let text = fs::read_to_string("/proc/meminfo")?;
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.trim().parse::<u64>().ok())
                    .unwrap_or_default()
            };
            Ok(field("HugePages_Free:") - field("HugePages_Rsvd:"))
        }
    }

    impl Drop for HugePages {
        fn drop(&mut self) {
            let _ = fs::write(HUGE_PAGES, self.before.to_string());
        }
    }

    #[test]
    fn a_vm_on_huge_pages_takes_them_from_the_host_and_gives_them_back() -> Result<()> {
        let pages = HugePages::more(160)?;
        let before = HugePages::free()?;
        let table = "[hypervisor.qemu]\nenable_hugepages = true\ndefault_memory = 256\n";
        let node = Node::start_configured(table)?;
        node.run("huge").arg("-d").program(["sleep", "1000"]).ok()?;
        assert_eq!(node.exec("huge", "look").program(["echo", "hello"]).ok()?, "hello\n");
        let during = HugePages::free()?;
        assert!(during + 128 <= before, "{before} pages before, {during} while it runs");
        node.remove("huge")?;
        node.nothing_left()?;
        assert_eq!(HugePages::free()?, before);
        drop(pages);

        // Without them no sandbox starts (`kata-ctl check` says how many are missing).
        let said = node.run("none").arg("--rm").program(["true"]).fails()?;
        assert!(said.contains("guest RAM: Cannot allocate memory"), "{said}");
        node.discard("none")?;
        node.nothing_left()
    }

    /// A pod may name a kernel, a virtiofsd and a QEMU that match the configuration's lists, and no others.
    #[test]
    fn a_pod_chooses_among_the_paths_that_are_listed() -> Result<()> {
        let place = tempfile::tempdir()?;
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755))?;
        let at = |name: &str| place.path().join(name).display().to_string();
        fs::copy(locate::built("share/vmlinuz", "build")?, at("vmlinuz"))?;
        fs::copy(locate::built("bin/virtiofsd", "build")?, at("virtiofsd"))?;
        symlink(locate::program("qemu-system-x86_64")?, at("qemu"))?;
        let node = Node::start_configured(&format!(
            "[hypervisor.qemu]\nenable_annotations = [\"kernel\", \"virtio_fs_daemon\", \"path\"]\n\
             valid_boot_paths = [\"{0}/vm*\"]\nvalid_virtio_fs_daemon_paths = [\"{0}/virtiofs?\"]\n\
             valid_hypervisor_paths = [\"{0}/qemu\"]\n",
            place.path().display()
        ))?;
        let annotated = |name: &str, chosen: &[(&str, String)]| {
            let mut spec = node.spec(name, &["sleep", "1000"])?;
            for (key, value) in chosen {
                spec = spec.annotation(&format!("io.katacontainers.config.hypervisor.{key}"), value)?;
            }
            node.run_spec(name, &spec)
        };
        let chosen = [
            ("kernel", at("vmlinuz")),
            ("virtio_fs_daemon", at("virtiofsd")),
            ("path", at("qemu")),
        ];
        annotated("chosen", &chosen)?.arg("-d").ok()?;
        let processes = node.processes("chosen");
        let runs = |name: &str| processes.iter().find(|process| process.program() == at(name));
        assert!(runs("virtiofsd").is_some(), "{processes:?}");
        // QEMU sees the kernel under a name of its own.
        let qemu = runs("qemu").ok_or_else(|| Error::unexpected(format!("{processes:?}")))?;
        let seen = fs::metadata(format!("/proc/{}/root/guest/kernel", qemu.pid))?;
        assert_eq!(seen.ino(), fs::metadata(at("vmlinuz"))?.ino());
        node.remove("chosen")?;
        for (key, list) in [
            ("kernel", "valid_boot_paths"),
            ("initrd", "enable_annotations"),
            ("virtio_fs_daemon", "valid_virtio_fs_daemon_paths"),
            ("path", "valid_hypervisor_paths"),
        ] {
            let said = annotated("refused", &[(key, "/bin/sh".to_owned())])?
                .arg("--rm")
                .fails()?;
            assert!(said.contains(list), "{key}: {said}");
            node.discard("refused")?;
        }
        node.nothing_left()
    }

    /// io_uring, or threads where the host has none: a container cannot tell, so what QEMU was asked is in the log.
    #[test]
    fn a_volume_works_with_every_way_of_reading_and_writing_disks() -> Result<()> {
        for (aio, cache) in [("io_uring", true), ("native", true), ("threads", false)] {
            let node = Node::start_configured(&format!(
                "[hypervisor.qemu]\nblock_device_aio = \"{aio}\"\nblock_device_cache_set = {cache}\n\
                 block_device_cache_direct = true\nblock_device_cache_noflush = true\n"
            ))?;
            let image = node.dir().join("disk.img");
            RawImage::ext4(&image, 16 << 20)?;
            let volume = node.dir().join("volume");
            fs::create_dir_all(&volume)?;
            let info = format!(
                "{{\"volume-type\":\"block\",\"device\":\"{}\",\"fstype\":\"ext4\"}}",
                image.display()
            );
            let words = ["direct-volume", "add"];
            node.diagnose()?.args(words).arg(&volume).arg(&info).ok()?;
            let wrote = write_and_read(&node, &volume);
            node.diagnose()?.args(["direct-volume", "remove"]).arg(&volume).ok()?;
            assert_eq!(wrote?, "written\n", "{aio}");
            node.nothing_left()?;
        }
        Ok(())
    }

    fn write_and_read(node: &Node, volume: &Path) -> Result<String> {
        let script = "echo written > /data/file && sync && cat /data/file";
        let spec = node
            .spec("disk", &["sh", "-c", script])?
            .bind(volume, "/data", &["rw"])?;
        node.run_spec("disk", &spec)?.arg("--rm").ok()
    }

    #[test]
    fn a_pod_with_annotations_of_the_runtime_starts_and_one_that_weakens_isolation_does_not() -> Result<()> {
        let node = Node::start()?;
        let prefix = "io.katacontainers.config";
        let annotated = |name: &str, annotation: &str, value: &str| {
            let spec = node.spec(name, &["echo", "hello"])?.annotation(annotation, value)?;
            node.run_spec(name, &spec)
        };
        for (number, (annotation, value)) in [
            ("runtime.create_container_timeout", "30"),
            ("runtime.disable_guest_seccomp", "false"),
            ("agent.enable_tracing", "false"),
            ("hypervisor.default_memory", "300"),
        ]
        .into_iter()
        .enumerate()
        {
            let said = annotated(&format!("ok{number}"), &format!("{prefix}.{annotation}"), value)?
                .arg("--rm")
                .ok()?;
            assert_eq!(said, "hello\n", "{annotation}");
        }
        for (number, (annotation, value, named)) in [
            ("runtime.disable_guest_seccomp", "true", "runtime.disable_guest_seccomp"),
            (
                "hypervisor.virtio_fs_extra_args",
                "--modcaps=+sys_admin",
                "hypervisor.qemu.virtio_fs_extra_args",
            ),
            ("hypervisor.path", "/bin/sh", "enable_annotations"),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("no{number}");
            let said = annotated(&name, &format!("{prefix}.{annotation}"), value)?
                .arg("--rm")
                .fails()?;
            assert!(said.contains(named), "{annotation}: {said}");
            node.discard(&name)?;
        }
        node.nothing_left()
    }
}
