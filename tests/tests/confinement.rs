//! What the processes of a sandbox are allowed on the host, read from /proc: the table of docs/security.md.
//!
//! Only a runtime that has a VM has such processes.

use std::{collections::BTreeMap, fs, path::PathBuf};

use framework::{Error, Node, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What containerd's service gives all its children, in the direction in which a machine without CAP_SYS_RESOURCE can.
const OF_CONTAINERD: i32 = 300;
/// What the container asks for.
const OF_CONTAINER: i32 = 450;
/// The usual soft limit of open files.
const SOFT: u64 = 1024;

/// The processes of a container's sandbox, by their program.
fn processes(node: &Node, name: &str) -> BTreeMap<String, u32> {
    let processes = node.processes(name).into_iter();
    let named = processes.map(|process| {
        let program = process.program().rsplit('/').next().unwrap_or_default();
        let program = if program.starts_with("qemu-system") {
            "qemu"
        } else {
            program
        };
        (program.to_owned(), process.pid)
    });
    named.collect()
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(Error::io(path))
}

/// The soft and hard limit of a row of /proc/PID/limits.
fn limit(pid: u32, row: &str) -> Result<(String, String)> {
    let limits = read(pid, "limits")?;
    let found = limits.lines().find_map(|line| line.strip_prefix(row));
    let mut words = found.unwrap_or_default().split_whitespace().map(str::to_owned);
    match (words.next(), words.next()) {
        (Some(soft), Some(hard)) => Ok((soft, hard)),
        _ => Err(Error::unexpected(format!("no {row} in {limits}"))),
    }
}

/// A line of /proc/PID/status.
fn status(pid: u32, key: &str) -> Result<String> {
    let status = read(pid, "status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
        .ok_or_else(|| Error::unexpected(format!("no {key} in {status}")))
}

/// A namespace's name, such as `net:[4026531840]`.
fn namespace(pid: impl std::fmt::Display, kind: &str) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/{kind}"))?)
}

mod kata_only {
    use super::*;

    #[test]
    fn no_process_of_a_sandbox_inherits_what_containerd_has() -> Result<()> {
        // This process is the test's alone, and its containerd inherits this.
        fs::write("/proc/self/oom_score_adj", OF_CONTAINERD.to_string())?;
        let hard = getrlimit(Resource::Nofile).maximum;
        let low = Rlimit {
            current: Some(SOFT),
            maximum: hard,
        };
        setrlimit(Resource::Nofile, low).map_err(|error| Error::io("lowering a limit")(error.into()))?;
        let files = hard.map_or(1 << 16, |hard| hard.min(1 << 16));

        let node = Node::start()?;
        let spec = node
            .spec("a", &["sleep", "1000"])?
            .set("/process/oomScoreAdj", OF_CONTAINER)?;
        node.run_spec("a", &spec)?.arg("-d").ok()?;
        let processes = processes(&node, "a");
        assert!(processes.len() >= 3, "{processes:?}");
        for (program, pid) in &processes {
            let pid = *pid;
            // What stands for a container is a copy of the shim, and as hard to do without.
            let is_shim = ["containerd-shim-kata-v2", "tatami-container"].contains(&program.as_str());
            let score = read(pid, "oom_score_adj")?.trim().to_owned();
            let wanted = if is_shim { OF_CONTAINERD + 1 } else { OF_CONTAINER };
            assert_eq!(score, wanted.to_string(), "{program}");
            let (soft, _) = limit(pid, "Max open files")?;
            // virtiofsd takes what it can have.
            let enough = soft.parse::<u64>().is_ok_and(|soft| soft >= files);
            assert!(enough, "{program}: {soft} open files");
            if !is_shim {
                let core = ("1".to_owned(), "1".to_owned());
                assert_eq!(limit(pid, "Max core file size")?, core, "{program}");
                assert_eq!(read(pid, "environ")?, "", "{program}");
            }
        }
        node.remove("a")?;
        node.nothing_left()
    }

    const NO_CAPABILITY: &str = "0000000000000000";
    const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

    /// It is a user and group that nobody else has, without capabilities, and can get no more.
    fn is_nobody(name: &str, pid: u32) -> Result<()> {
        for key in ["Uid", "Gid"] {
            let said = status(pid, key)?;
            let ids: Vec<u32> = said.split_whitespace().filter_map(|id| id.parse().ok()).collect();
            let nobody = ids.len() == 4 && ids.iter().all(|id| (0x7000_0000..0x8000_0000).contains(id));
            assert!(nobody, "{key} of {name}: {said}");
        }
        assert_eq!(status(pid, "Groups")?, "", "{name}");
        for set in CAPABILITIES {
            assert_eq!(status(pid, set)?, NO_CAPABILITY, "{set} of {name}");
        }
        Ok(())
    }

    fn gets_no_more_and_is_filtered(name: &str, pid: u32) -> Result<()> {
        assert_eq!(status(pid, "NoNewPrivs")?, "1", "{name}");
        assert_eq!(status(pid, "Seccomp")?, "2", "{name}");
        Ok(())
    }

    fn has_its_own(name: &str, pid: u32, namespaces: &[&str]) -> Result<()> {
        for kind in namespaces {
            assert_ne!(namespace(pid, kind)?, namespace("self", kind)?, "{kind} of {name}");
        }
        Ok(())
    }

    /// Interfaces of its network namespace (proc_pid_net(5), dev).
    fn interfaces(pid: u32) -> Result<Vec<String>> {
        let devices = read(pid, "net/dev")?;
        let lines = devices
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        Ok(lines.collect())
    }

    /// The directories at the top of what it sees, and whether it could write there.
    fn root(pid: u32) -> Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(format!("/proc/{pid}/root"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// The hard and soft limits are both this.
    fn is_limited(name: &str, pid: u32, row: &str, most: &str) -> Result<()> {
        assert_eq!(limit(pid, row)?, (most.to_owned(), most.to_owned()), "{row} of {name}");
        Ok(())
    }

    /// Workers of the host's kernel for NICs and vsock.
    const VHOST: u64 = 32 * 8 + 1;

    /// QEMU's memory and threads are limited, those of its threads that there may be included; as root it has the threads of everybody.
    fn qemu_is_limited(pid: u32, own_user: bool) -> Result<()> {
        let number = |row: &str| Ok::<_, Error>(limit(pid, row)?.1.parse::<u64>().unwrap_or(u64::MAX));
        let data = number("Max data size")?;
        assert!(((640 << 20)..(4 << 30)).contains(&data), "QEMU: {data} bytes");
        let threads = number("Max processes")?;
        let has = fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64;
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let most = 64 + 16 + VHOST + cpus;
        assert!(
            !own_user || (threads <= most && has + 64 <= threads),
            "QEMU: {has} of {threads} threads"
        );
        Ok(())
    }

    /// What it needs to act as any user of the guest: CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD and SETFCAP
    /// (capabilities(7)).
    const OF_FILE_SYSTEMS: &str = "00000000880000db";

    /// Of virtiofsd's two processes one serves the guest, and the other waits for it with nothing.
    fn virtiofsd_is_confined(node: &Node, name: &str) -> Result<()> {
        let processes = node.processes(name).into_iter();
        let pids = processes.filter(|process| process.program().ends_with("virtiofsd"));
        let mut servers = 0;
        for pid in pids.map(|process| process.pid) {
            is_limited("virtiofsd", pid, "Max data size", &(1_u64 << 30).to_string())?;
            assert_eq!(status(pid, "NoNewPrivs")?, "1");
            has_its_own("virtiofsd", pid, &["mnt", "net", "ipc", "uts"])?;
            let serves = status(pid, "Seccomp")? == "2";
            servers += u32::from(serves);
            let wanted = if serves { OF_FILE_SYSTEMS } else { NO_CAPABILITY };
            for set in CAPABILITIES {
                let has = ["CapPrm", "CapEff"].contains(&set);
                let wanted = if has { wanted } else { NO_CAPABILITY };
                assert_eq!(status(pid, set)?, wanted, "{set} of virtiofsd");
            }
            sees_the_shared_directory_alone(pid)?;
        }
        assert_eq!(servers, 1, "{name}");
        Ok(())
    }

    /// Of which it can open no device, and execute nothing with another user's rights.
    fn sees_the_shared_directory_alone(pid: u32) -> Result<()> {
        for line in read(pid, "mountinfo")?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let options: Vec<&str> = words[5].split(',').collect();
            let inert = ["nosuid", "nodev"].iter().all(|option| options.contains(option));
            assert!(inert, "virtiofsd: {line}");
        }
        let sees = root(pid)?;
        let hosts = ["proc", "etc", "usr", "dev", "sys", "run"];
        assert!(
            !sees.is_empty() && sees.iter().all(|name| !hosts.contains(&name.as_str())),
            "virtiofsd: {sees:?}"
        );
        Ok(())
    }

    /// With the kernel's vsock there is none.
    fn vsock_daemon_is_confined(processes: &BTreeMap<String, u32>) -> Result<()> {
        let name = "vhost-device-vsock";
        let Some(daemon) = processes.get(name).copied() else {
            assert!(std::path::Path::new("/dev/vhost-vsock").exists(), "{processes:?}");
            return Ok(());
        };
        is_nobody(name, daemon)?;
        gets_no_more_and_is_filtered(name, daemon)?;
        has_its_own(name, daemon, &["mnt", "net", "ipc", "uts"])?;
        is_limited(name, daemon, "Max data size", &(256_u64 << 20).to_string())?;
        is_limited(name, daemon, "Max processes", "16")?;
        let sees = root(daemon)?;
        assert!(
            !sees.is_empty() && sees.iter().all(|name| name.contains("vsock.sock")),
            "{sees:?}"
        );
        Ok(())
    }

    #[test]
    fn each_process_of_a_sandbox_has_the_rights_and_files_that_its_work_needs() -> Result<()> {
        let node = Node::start()?;
        node.run("a").arg("-d").program(["sleep", "1000"]).ok()?;
        let processes = processes(&node, "a");
        let qemu = processes["qemu"];
        is_nobody("QEMU", qemu)?;
        qemu_is_limited(qemu, true)?;
        gets_no_more_and_is_filtered("QEMU", qemu)?;
        has_its_own("QEMU", qemu, &["mnt", "net", "ipc", "uts"])?;
        // Itself, its libraries and firmware, the guest's kernel and initrd.
        let sees = root(qemu)?;
        let wanted = ["dev", "etc", "guest", "lib", "lib64", "proc", "usr"];
        assert!(sees.iter().all(|name| wanted.contains(&name.as_str())), "{sees:?}");
        let below = |directory: &str| -> Result<Vec<String>> {
            let entries = fs::read_dir(format!("/proc/{qemu}/root/{directory}"))?;
            let mut names: Vec<String> = entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            names.sort();
            Ok(names)
        };
        assert_eq!(below("dev")?, ["null"]);
        assert_eq!(below("guest")?, ["initrd", "kernel"]);
        assert_eq!(below("etc")?, ["ld.so.cache"]);
        assert_eq!(below("proc/self")?, ["exe"]);
        let programs = below("usr/bin")?;
        assert!(
            programs.len() == 1 && programs[0].starts_with("qemu-system"),
            "{programs:?}"
        );
        // Every mount that it has, the root's included, is read-only, and none is of the host's but those.
        let mounts = read(qemu, "mountinfo")?;
        for line in mounts.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let options: Vec<&str> = words[5].split(',').collect();
            let devices = if words[4] == "/dev/null" { "noexec" } else { "nodev" };
            assert!(
                ["ro", "nosuid", devices].iter().all(|option| options.contains(option)),
                "{line}"
            );
        }
        let shared = format!("/proc/{qemu}/root/run");
        assert!(fs::symlink_metadata(&shared).is_err(), "{shared} is there");
        virtiofsd_is_confined(&node, "a")?;
        vsock_daemon_is_confined(&processes)?;
        node.remove("a")?;
        node.nothing_left()
    }

    #[test]
    fn with_rootless_off_qemu_is_root_without_capabilities_but_one() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\nrootless = false\n")?;
        node.run("a").arg("-d").program(["sleep", "1000"]).ok()?;
        let processes = processes(&node, "a");
        let qemu = processes["qemu"];
        assert_eq!(status(qemu, "Uid")?.split_whitespace().next(), Some("0"));
        qemu_is_limited(qemu, false)?;
        gets_no_more_and_is_filtered("QEMU", qemu)?;
        has_its_own("QEMU", qemu, &["net", "ipc", "uts"])?;
        // CAP_DAC_READ_SEARCH (capabilities(7)).
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status(qemu, set)?, "0000000000000004", "{set} of QEMU");
        }
        virtiofsd_is_confined(&node, "a")?;
        vsock_daemon_is_confined(&processes)?;
        node.remove("a")?;
        node.nothing_left()
    }

    /// What Kata's file of runtime-rs has, with a value that says so.
    #[test]
    fn with_seccompsandbox_off_qemu_has_no_filter_and_the_helpers_keep_theirs() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\nseccompsandbox = \"off\"\n")?;
        node.run("a").arg("-d").program(["sleep", "1000"]).ok()?;
        let processes = processes(&node, "a");
        assert_eq!(status(processes["qemu"], "Seccomp")?, "0");
        is_nobody("QEMU", processes["qemu"])?;
        virtiofsd_is_confined(&node, "a")?;
        node.remove("a")?;
        node.nothing_left()
    }

    #[test]
    fn a_sandbox_that_asks_for_the_hosts_network_has_nothing_of_it() -> Result<()> {
        let node = Node::start()?;
        let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
        let spec = node.spec("a", &["sleep", "1000"])?;
        let spec = spec.set("/linux/namespaces", namespaces.to_vec())?;
        node.run_spec("a", &spec)?.arg("-d").ok()?;
        let processes = processes(&node, "a");
        for name in ["qemu", "virtiofsd"] {
            let pid = processes[name];
            has_its_own(name, pid, &["net"])?;
            assert_eq!(interfaces(pid)?, ["lo"], "{name}");
        }
        node.remove("a")?;
        node.nothing_left()
    }

    #[test]
    fn the_processes_of_a_vm_are_limited_together_whether_its_container_is_or_not() -> Result<()> {
        let node = Node::start()?;
        let spec = |name: &str| node.spec(name, &["sleep", "1000"]);
        let limited = spec("limited")?.set("/linux/resources/memory/limit", 128 << 20)?;
        // The VM's memory, in MiB; a pod's is the kubelet's.
        for (name, spec, memory) in [
            ("limited", limited, Some(256 + 128 + 2)),
            ("free", spec("free")?, Some(256)),
            ("pod", spec("pod")?.of_pod(&node, "sandbox")?, None),
        ] {
            node.run_spec(name, &spec)?.arg("-d").ok()?;
            let allowed = node.host_memory(name)?.limit()?.map(|bytes| bytes >> 20);
            match (allowed, memory) {
                (Some(allowed), Some(vm)) => {
                    let least = vm + vm / 8 + 128;
                    // What TCG may keep of translated code comes on top.
                    assert!((least..=least + 1025).contains(&allowed), "{name}: {allowed} MiB");
                }
                (None, None) => {}
                _ => panic!("{name}: {allowed:?} MiB"),
            }
            let pids = node.host_limit(name, &["pids.max"])?;
            let cpus = std::thread::available_parallelism()?.get() as u64;
            let most = cpus + 64 + 16 + VHOST + 16 + 16 + 32 + 1;
            assert!(
                pids.parse::<u64>().is_ok_and(|pids| pids <= most),
                "{name}: {pids} of {most}"
            );
            node.remove(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_kernel_that_only_root_may_read_is_given_to_qemu_all_the_same() -> Result<()> {
        let private = tempfile::tempdir()?;
        let mut keys = String::from("[hypervisor.qemu]\n");
        for (key, file) in [("kernel", "vmlinuz"), ("initrd", "initrd.img")] {
            let copy = private.path().join(file);
            fs::copy(framework::locate::build().join("share").join(file), &copy)?;
            fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            keys += &format!("{key} = {copy:?}\n");
        }
        let node = Node::start_configured(&keys)?;
        assert_eq!(node.run("a").arg("--rm").program(["echo", "runs"]).ok()?, "runs\n");
        node.nothing_left()
    }
}
