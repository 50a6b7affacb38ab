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
            let is_shim = program == "containerd-shim-kata-v2";
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

    #[test]
    fn each_process_of_a_sandbox_has_the_rights_that_its_work_needs() -> Result<()> {
        const NONE: &str = "0000000000000000";
        let node = Node::start()?;
        node.run("a").arg("-d").program(["sleep", "1000"]).ok()?;
        let processes = processes(&node, "a");

        let qemu = processes["qemu"];
        assert_eq!(status(qemu, "NoNewPrivs")?, "1");
        assert_eq!(status(qemu, "Seccomp")?, "2");
        // CAP_DAC_READ_SEARCH (capabilities(7)).
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status(qemu, set)?, "0000000000000004", "{set} of QEMU");
        }

        let virtiofsd = processes["virtiofsd"];
        assert_eq!(status(virtiofsd, "NoNewPrivs")?, "1");
        assert_eq!(status(virtiofsd, "Seccomp")?, "2");
        for kind in ["mnt", "net"] {
            assert_ne!(
                namespace(virtiofsd, kind)?,
                namespace("self", kind)?,
                "{kind} of virtiofsd"
            );
        }

        // With the kernel's vsock there is none.
        if let Some(daemon) = processes.get("vhost-device-vsock").copied() {
            let user = status(daemon, "Uid")?;
            let ids: Vec<u32> = user.split_whitespace().filter_map(|id| id.parse().ok()).collect();
            assert!(
                ids.len() == 4 && ids.iter().all(|id| (0x7000_0000..0x8000_0000).contains(id)),
                "{user}"
            );
            assert_eq!(status(daemon, "Groups")?, "");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(daemon, set)?, NONE, "{set} of the vsock daemon");
            }
            assert_eq!(status(daemon, "NoNewPrivs")?, "1");
            assert_eq!(status(daemon, "Seccomp")?, "2");
            for kind in ["mnt", "net", "ipc", "uts"] {
                assert_ne!(
                    namespace(daemon, kind)?,
                    namespace("self", kind)?,
                    "{kind} of the vsock daemon"
                );
            }
            let bytes = (256_u64 << 20).to_string();
            assert_eq!(limit(daemon, "Max data size")?, (bytes.clone(), bytes));
            assert_eq!(limit(daemon, "Max processes")?, ("16".to_owned(), "16".to_owned()));
            let sees: Vec<_> = fs::read_dir(format!("/proc/{daemon}/root"))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            assert!(
                !sees.is_empty() && sees.iter().all(|name| name.contains("vsock.sock")),
                "{sees:?}"
            );
        } else {
            assert!(std::path::Path::new("/dev/vhost-vsock").exists(), "{processes:?}");
        }
        node.remove("a")?;
        node.nothing_left()
    }
}
