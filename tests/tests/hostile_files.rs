//! A guest that asks for files without end, or changes names while others mount below them, harms nobody and reaches nothing else.

mod kata_only {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::Path,
        thread,
        time::{Duration, Instant},
    };

    use framework::{Error, HostMount, Node, Result};
    use rustix::mount::{MountFlags, UnmountFlags, unmount};
    use serde_json::json;

    /// Look-ups, and openings. The number is a million (`TATAMI_HOSTILE_REQUESTS`), which takes minutes.
    const REQUESTS: u64 = 60_000;
    /// More files than virtiofsd may have open.
    const FILES: u64 = 25_000;
    const DESCRIPTORS: u64 = 20_000;
    /// virtiofsd's private memory, in KiB: about 300 bytes for each file that it knows, and its own.
    const MEMORY: u64 = 64 << 10;
    /// ENFILE: as many files are open as may be.
    const ENFILE: &str = "23";
    /// An emulated guest on a busy machine looks up some hundred files a second.
    const LIMIT: Duration = Duration::from_secs(1800);

    /// The private memory of a sandbox's virtiofsd in KiB, and its open files. None if it has ended.
    fn virtiofsd(node: &Node, name: &str) -> Option<(u64, u64)> {
        let processes = node.processes(name).into_iter();
        let of = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            let memory: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some((memory, fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64))
        };
        // Of its two processes one waits for the other.
        let servers = processes.filter(|process| process.program().ends_with("virtiofsd"));
        servers.filter_map(|process| of(process.pid)).max()
    }

    #[test]
    fn files_that_a_guest_looks_up_and_opens_without_end_are_bounded() -> Result<()> {
        let requests = std::env::var("TATAMI_HOSTILE_REQUESTS");
        let requests = requests.ok().and_then(|number| number.parse().ok()).unwrap_or(REQUESTS);
        let dropin = format!("[hypervisor.qemu]\nvirtio_fs_extra_args = [\"--rlimit-nofile={DESCRIPTORS}\"]\n");
        let node = Node::start_configured(&dropin)?;
        node.run("other").arg("-d").program(["sleep", "100000"]).ok()?;
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        for number in 0..FILES {
            fs::write(volume.join(number.to_string()), "x")?;
        }
        // From memory: the container's files are behind the device that is taken away from the kernel.
        let script = format!("cp /bin/guest-probe /tmp/probe && exec /tmp/probe hoard {FILES} {requests}");
        let spec = node.spec("hoard", &["sh", "-c", &script])?.of_the_guest()?;
        let spec = spec.bind(&volume, "/volume", &["rw"])?;
        let hoard = node.run_spec("hoard", &spec)?.arg("--rm").limit(LIMIT);
        let hoard = thread::spawn(move || hoard.output());
        let (mut most, mut neighbour) = ((0, 0), Duration::ZERO);
        for look in 0.. {
            if hoard.is_finished() {
                break;
            }
            let begun = Instant::now();
            // By its exit code: on a busy host ctr now and then loses what a short exec says, with runc as well.
            let exec = node.exec("other", &format!("alive{look}"));
            exec.sh("exit 7").output()?.code(7)?;
            neighbour = neighbour.max(begun.elapsed());
            let (memory, files) = virtiofsd(&node, "hoard").unwrap_or_default();
            most = (most.0.max(memory), most.1.max(files));
        }
        let said = hoard.join().map_err(|_| Error::unexpected("a panic"))??;
        let said = said.success()?.json()?;
        println!(
            "{requests} look-ups and openings: {said}; virtiofsd {} KiB, {} files; an exec {} ms",
            most.0,
            most.1,
            neighbour.as_millis()
        );
        assert_eq!(said["still answers"], json!(true), "{said}");
        for (done, refused) in [("looked up", "not looked up"), ("opened", "not opened")] {
            let number = |count: &serde_json::Value| count.as_u64().unwrap_or_default();
            // Refused for this reason alone, and some were not.
            let for_files = number(&said[refused][ENFILE]);
            assert_eq!(number(&said[done]) + for_files, requests, "{said}");
        }
        assert_eq!(said["known"], json!(FILES / 4));
        assert!(said["opened"].as_u64() > Some(DESCRIPTORS / 4), "{said}");
        assert!(said["not opened"][ENFILE].as_u64() > Some(0), "{said}");
        assert!(most.0 > 0 && most.0 < MEMORY && most.1 <= DESCRIPTORS, "{most:?}");
        node.remove("other")?;
        node.nothing_left()
    }

    /// The mounts of a process, each with the directory of its file system that is shown there (proc_pid_mountinfo(5)).
    fn mounts(pid: u32) -> Result<String> {
        let path = format!("/proc/{pid}/mountinfo");
        fs::read_to_string(&path).map_err(Error::io(path))
    }

    /// Takes away what the test has mounted and the guest has moved.
    fn unmount_below(volume: &Path) -> Result<()> {
        let seen = mounts(std::process::id())?;
        for place in seen.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(place).starts_with(volume) {
                unmount(place, UnmountFlags::DETACH).map_err(|errno| Error::io(place)(errno.into()))?;
            }
        }
        Ok(())
    }

    /// A volume that the guest may write to, with what the storm plays with, and a directory of the host that is none of the guest's.
    fn volume(node: &Node, outside: &Path) -> Result<std::path::PathBuf> {
        let volume = node.dir().join("volume");
        for directory in ["way/deep", "way/part", "mounts", "kept"] {
            fs::create_dir_all(volume.join(directory))?;
        }
        fs::write(volume.join("way/part/marker"), "of the volume")?;
        symlink(outside, volume.join("link"))?;
        Ok(volume)
    }

    #[test]
    fn names_that_a_guest_changes_while_others_mount_below_them_lead_nowhere_else() -> Result<()> {
        const ROUNDS: usize = 6;
        let node = Node::start()?;
        node.run("other").arg("-d").program(["sleep", "1000"]).ok()?;
        let outside = node.dir().join("outside");
        fs::create_dir(&outside)?;
        fs::write(outside.join("secret"), "of the host")?;
        let volume = volume(&node, &outside)?;
        let source = node.dir().join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("marker"), "of the source")?;
        let spec = node.spec("pod", &["/no/such/pause"])?;
        node.run_spec("pod", &spec.of_pod(&node, "sandbox")?)?.arg("-d").ok()?;
        let storm = node.spec("storm", &["guest-probe", "rename-storm", "/volume"])?;
        let storm = storm.bind(&volume, "/volume", &["rw"])?;
        node.run_spec("storm", &storm.of_pod(&node, "container")?)?
            .arg("-d")
            .ok()?;
        let is_shim = |program: &str| program.ends_with("containerd-shim-kata-v2") || program.ends_with("virtiofsd");
        for round in 0..ROUNDS {
            let mounted = HostMount::new(&volume.join("kept"), MountFlags::empty())?;
            // It may be moved or removed before it is mounted on, and afterwards where the guest's mounts have it not.
            let moving = HostMount::new(&volume.join(format!("mounts/{round}")), MountFlags::empty());
            let name = format!("round{round}");
            let spec = node.spec(&name, &["sh", "-c", "cat /part/marker; ls -a /below /part"])?;
            let spec = spec.bind(&volume, "/below", &["rbind", "rw"])?;
            let spec = spec.bind(&volume.join("way/part"), "/part", &["ro"])?;
            let spec = spec.bind(&source, "/below/way/new/deep", &["ro"])?;
            // It is started or refused, by what is where at that moment.
            let ran = node.run_spec(&name, &spec.of_pod(&node, "container")?)?;
            let ran = ran.arg("--rm").output()?;
            let said = format!("{}{}", ran.stdout(), ran.stderr());
            assert!(!ran.stdout().contains("secret"), "{said}");
            for process in node
                .processes("pod")
                .iter()
                .filter(|process| is_shim(process.program()))
            {
                // It may have ended meanwhile.
                let seen = mounts(process.pid).unwrap_or_default();
                let shared = seen
                    .lines()
                    .filter(|line| line.split(' ').nth(3).is_some_and(|root| root.contains("/outside")));
                assert_eq!(shared.collect::<Vec<_>>(), Vec::<&str>::new(), "{}", process.program());
            }
            node.discard(&name)?;
            drop(moving);
            mounted.unmount()?;
            let alive = node.exec("other", &format!("alive{round}"));
            alive.sh("exit 7").output()?.code(7)?;
        }
        assert_eq!(fs::read_to_string(outside.join("secret"))?, "of the host");
        assert_eq!(fs::read_dir(&outside)?.count(), 1, "something was made outside");
        assert_eq!(fs::read_dir(&source)?.count(), 1);
        for name in ["storm", "pod", "other"] {
            node.remove(name)?;
        }
        unmount_below(&volume)?;
        node.nothing_left()
    }
}
