//! A program in a container asks its shim for more than it gets, without end: the shim's memory and its log stay small, and others go
//! on. The table "Bounds" in docs/security.md names this file beside what it measures.

mod kata_only {
    use std::{
        fs::{self, File},
        io::Write,
        net::TcpStream,
        os::unix::{net::UnixListener, process::CommandExt as _},
        path::{Path, PathBuf},
        process::{Command, Stdio},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::{Duration, Instant},
    };

    use framework::{Docker, Error, NetNs, Node, Result, leftovers, locate};
    use serde_json::json;

    /// How much more memory the shim may have had at any time, in KiB.
    const GROWTH: u64 = 16 << 10;
    /// Size of the log in bytes.
    const LOG: usize = 64 << 10;
    /// Timeout for a flood to be over, on a busy machine.
    const LIMIT: Duration = Duration::from_secs(180);

    /// The shim of a sandbox, as it was before a flood.
    struct Shim {
        pid: u32,
        high_water: u64,
        log: usize,
    }

    /// The most memory that a process has had, in KiB.
    fn high_water(pid: u32) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.ok_or_else(|| Error::unexpected(format!("no VmHWM in {status}")))
    }

    impl Shim {
        fn of(processes: &[leftovers::Process], log: usize) -> Result<Self> {
            // What stands for a container is a copy of the shim under another name.
            let is_shim = |process: &&leftovers::Process| process.program().ends_with("containerd-shim-kata-v2");
            let shim = processes.iter().find(is_shim);
            let pid = shim
                .ok_or_else(|| Error::unexpected(format!("no shim in {processes:?}")))?
                .pid;
            // From here on: a start takes more than most floods.
            fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
            let high_water = high_water(pid)?;
            Ok(Self { pid, high_water, log })
        }

        /// Fails unless the same shim is there, has had little more memory, and has said little.
        fn is_well(&self, what: &str, log: usize) -> Result<()> {
            let grown = high_water(self.pid)?.saturating_sub(self.high_water);
            let said = log.saturating_sub(self.log);
            eprintln!("{what}: {grown} KiB more in the shim, {said} bytes in the log");
            assert!(grown < GROWTH, "{what}: {grown} KiB");
            assert!(said < LOG, "{what}: {said} bytes of log");
            Ok(())
        }
    }

    /// A container that floods, and one of another sandbox.
    fn two(node: &Node, spec: &framework::Spec) -> Result<Shim> {
        node.run("other").arg("-d").program(["sleep", "1000"]).ok()?;
        node.run_spec("flood", spec)?.arg("-d").ok()?;
        node.exec("flood", "first").program(["true"]).ok()?;
        Shim::of(&node.processes("flood"), node.log().len())
    }

    /// Programs run beside it, in the same sandbox and in another one.
    fn others_go_on(node: &Node, what: &str) -> Result<()> {
        for name in ["other", "flood"] {
            let began = Instant::now();
            node.exec(name, &format!("beside-{what}"))
                .limit(LIMIT)
                .program(["true"])
                .ok()?;
            eprintln!("{what}: an exec in {name} took {} ms", began.elapsed().as_millis());
        }
        Ok(())
    }

    fn end(node: &Node) -> Result<()> {
        for name in ["flood", "other"] {
            node.remove(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn silent_connections_cost_the_shim_little() -> Result<()> {
        let node = Node::start()?;
        let shim = two(&node, &node.spec("flood", &["sleep", "1000"])?)?;
        let port = "$(sed 's/.*tatami.port=\\([0-9]*\\).*/\\1/' /proc/cmdline)";
        let silence = node
            .exec("flood", "silence")
            .args(["--user", "1000:1000"])
            .sh(&format!("exec guest-probe silence 2 {port} 800"))
            .limit(LIMIT)
            .spawn()?;
        silence.shows("silent")?;
        others_go_on(&node, "silence")?;
        shim.is_well("silent connections", node.log().len())?;
        node.remove("flood")?;
        drop(silence);
        node.remove("other")?;
        node.nothing_left()
    }

    /// Another VM's programs and every user of the host can dial a shim's port where the kernel's vsock is used. With the daemon they
    /// cannot: its sockets are in a directory that they cannot enter (`escape_kata.rs`).
    #[test]
    fn strangers_who_dial_without_end_cost_the_shim_little() -> Result<()> {
        const SECONDS: &str = "15";
        if !Path::new("/dev/vhost-vsock").exists() {
            return Ok(());
        }
        let node = Node::start()?;
        let shim = two(&node, &node.spec("flood", &["sleep", "1000"])?)?;
        let port = "sed 's/.*tatami.port=\\([0-9]*\\).*/\\1/' /proc/cmdline";
        let port = node.exec("flood", "port").sh(port).ok()?.trim().to_owned();
        let vm = node
            .exec("other", "knock")
            .args(["--user", "1000:1000"])
            .program(["guest-probe", "knock", "2", &port, SECONDS])
            .limit(LIMIT)
            .spawn()?;
        vm.shows("begun")?;
        // VMADDR_CID_LOCAL (vsock(7)): by the module vsock_loopback.
        let user = Command::new(locate::guest_probe()?)
            .args(["knock", "1", &port, SECONDS])
            .uid(65_534)
            .gid(65_534)
            .stdout(Stdio::piped())
            .spawn()?;
        others_go_on(&node, "strangers")?;
        let said = [
            vm.wait()?.success()?.stdout(),
            String::from_utf8_lossy(&user.wait_with_output()?.stdout).into_owned(),
        ];
        for said in &said {
            let counts = said.lines().nth(1).unwrap_or_default();
            eprintln!("strangers: {counts}");
            let counts: serde_json::Value = serde_json::from_str(counts)?;
            assert!(counts["made"].as_u64() > Some(20), "{said}");
        }
        shim.is_well("strangers", node.log().len())?;
        end(&node)
    }

    #[test]
    fn output_that_nobody_can_follow_costs_the_shim_little() -> Result<()> {
        let node = Node::start()?;
        let shim = two(&node, &node.spec("flood", &["sleep", "1000"])?)?;
        let yes = node.exec("flood", "yes").limit(LIMIT);
        let yes = yes.sh("timeout 20 yes; timeout 5 yes >&2; true");
        let null = |write: bool| File::options().read(!write).write(write).open("/dev/null");
        let (input, output) = (null(false)?, null(true)?);
        let flood = std::thread::spawn(move || yes.through(input, output));
        others_go_on(&node, "output")?;
        flood.join().map_err(|_| Error::unexpected("a panic"))??.success()?;
        shim.is_well("output", node.log().len())?;
        end(&node)
    }

    /// The guest's console, by who may write to it: a container to which the guest belongs.
    #[test]
    fn a_console_that_is_written_to_without_end_costs_the_shim_little() -> Result<()> {
        let node = Node::start()?;
        let shim = two(&node, &node.spec("flood", &["sleep", "1000"])?.of_the_guest()?)?;
        let device = "n=$(sed 's/.*console=\\([a-zA-Z0-9]*\\).*/\\1/' /proc/cmdline); \
                      mknod /tmp/console c $(sed 's/:/ /' /sys/class/tty/$n/dev)";
        let flood = node
            .exec("flood", "console")
            .limit(LIMIT)
            .sh(&format!(
                "{device}; echo begun; timeout 30 yes 'to the console' > /tmp/console; true"
            ))
            .spawn()?;
        flood.shows("begun")?;
        others_go_on(&node, "console")?;
        flood.wait()?.success()?;
        let directory = leftovers::runtime_dirs(node.namespace());
        // Beside it is its lock.
        let mut ours = directory.iter().filter(|path| path.is_dir());
        let ours = ours.find(|path| path.to_string_lossy().contains("flood"));
        let ours = ours.ok_or_else(|| Error::unexpected(format!("no directory of the sandbox in {directory:?}")))?;
        let size = |name: &str| fs::metadata(ours.join(name)).map_or(0, |file| file.len());
        let kept = size("console.log") + size("console.log.1");
        assert!((1..1200 << 10).contains(&kept), "{kept} bytes of the console are kept");
        shim.is_well("console", node.log().len())?;
        end(&node)
    }

    #[test]
    fn connections_to_a_service_of_the_host_cost_the_shim_little() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let socket: PathBuf = directory.path().join("service");
        // It takes connections, and says nothing.
        let listener = UnixListener::bind(&socket)?;
        let node = Node::start_configured(&format!("[runtime]\nshare_host_sockets = [{socket:?}]\n"))?;
        let spec = node
            .spec("flood", &["sleep", "1000"])?
            .bind(&socket, "/run/service", &[])?;
        let spec = spec.set(
            "/process/rlimits/0",
            json!({ "type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096 }),
        )?;
        let shim = two(&node, &spec)?;
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            let counting = listener.incoming().map_while(std::result::Result::ok).inspect(|_| {
                counted.fetch_add(1, Ordering::SeqCst);
            });
            drop(counting.collect::<Vec<_>>());
        });
        let flood = node
            .exec("flood", "many")
            .limit(LIMIT)
            .sh("echo begun; guest-probe unix many /run/service 600")
            .spawn()?;
        flood.shows("begun")?;
        // The guest carries 128 for each socket.
        let begun = Instant::now();
        let taken = || count.load(Ordering::SeqCst);
        while taken() < 64 && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(taken() >= 64, "only {} connections came", taken());
        // More than are carried are asked for by then.
        std::thread::sleep(Duration::from_secs(5));
        others_go_on(&node, "sockets")?;
        shim.is_well("connections to a service", node.log().len())?;
        node.remove("flood")?;
        drop(flood);
        node.remove("other")?;
        node.nothing_left()
    }

    #[test]
    fn forwarded_connections_cost_the_shim_little() -> Result<()> {
        let node = Node::start()?;
        let pod = NetNs::new(node.namespace(), "pod")?;
        let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        let network = json!({ "type": "network", "path": pod.path() });
        let namespaces: Vec<_> = namespaces.into_iter().chain([network]).collect();
        let spec = |name: &str, args: &[&str], kind: &str| {
            let spec = node.spec(name, args)?.set("/linux/namespaces", namespaces.clone())?;
            spec.of_pod(&node, kind)
        };
        node.run("other").arg("-d").program(["sleep", "1000"]).ok()?;
        node.run_spec("pod", &spec("pod", &["/no/such/pause"], "sandbox")?)?
            .arg("-d")
            .ok()?;
        node.run_spec("flood", &spec("flood", &["httpd", "-f", "-p", "8080"], "container")?)?
            .arg("-d")
            .ok()?;
        let shim = Shim::of(&node.processes("pod"), node.log().len())?;
        // A quarter of those that are carried at a time: each is a process of the guest.
        let dialled = pod.inside(|| {
            let mut streams = Vec::new();
            for _ in 0..64 {
                let mut stream = TcpStream::connect("127.0.0.1:8080")?;
                // A request that never ends. The guest may be too busy for it.
                let _ = stream.write_all(&[b'x'; 4096]);
                streams.push(stream);
            }
            Ok(streams)
        })?;
        others_go_on(&node, "forwarded")?;
        shim.is_well("64 forwarded connections", node.log().len())?;
        drop(dialled);
        for name in ["flood", "pod", "other"] {
            node.remove(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn questions_to_dockers_name_server_cost_the_shim_little() -> Result<()> {
        let docker = Docker::start()?;
        docker.docker(&["network", "create", "net"]).ok()?;
        let run = |name: &str| {
            let run = docker.run(name).args(["-d", "--network", "net"]);
            run.program(["sleep", "1000"]).ok()
        };
        let ids = [run("flood")?, run("other")?];
        docker.docker(&["exec", "flood", "nslookup", "other"]).ok()?;
        let shim = Shim::of(&leftovers::processes(ids[0].trim()), docker.log().len())?;
        let ask = |count: &str| {
            let words = [
                "exec",
                "flood",
                "guest-probe",
                "names",
                "udp",
                "127.0.0.11",
                "other",
                count,
            ];
            docker.docker(&words).limit(LIMIT).output()?.success()?.json()
        };
        // All at once: more than may wait.
        for _ in 0..3 {
            ask("600")?;
        }
        let began = Instant::now();
        docker.docker(&["exec", "other", "true"]).ok()?;
        eprintln!("names: an exec in other took {} ms", began.elapsed().as_millis());
        shim.is_well("names", docker.log().len())?;
        assert_eq!(ask("1")?["answers"], 1);
        for (name, id) in ["flood", "other"].iter().zip(ids) {
            docker.docker(&["rm", "-f", name]).ok()?;
            docker.nothing_left(id.trim())?;
        }
        Ok(())
    }
}
