//! What the tests share: an image, a cgroup, and a launch in them.

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use tatami_agent::launch::{LaunchError, LaunchRequest, Launched, Stdio, Target, launch_by};

const AGENT: &str = env!("CARGO_BIN_EXE_tatami-agent");

/// A busybox image, and a cgroup, for one container.
pub(crate) struct Bench {
    pub(crate) image: tempfile::TempDir,
    pub(crate) cgroup: PathBuf,
    parent: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Self {
        // Orphans come to the test as they come to the agent.
        prctl::set_child_subreaper(true).unwrap();
        let image = tempfile::tempdir().unwrap();
        let bin = image.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in [
            "sh", "cat", "id", "ls", "true", "mkdir", "readlink", "sleep", "test", "grep", "tty", "stat", "ipcs", "wc",
            "chmod", "cut", "env", "head",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let tree = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
            .unwrap();
        let tree = PathBuf::from(tree.split(' ').nth(1).unwrap());
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap()
            .to_owned();
        let cgroup = tree.join(format!(
            "tatami-test-{}",
            image.path().file_name().unwrap().to_str().unwrap()
        ));
        std::fs::create_dir(&cgroup).unwrap();
        Self {
            image,
            cgroup,
            parent: tree.join(own),
        }
    }

    pub(crate) fn spec(&self, script: &str, change: impl FnOnce(&mut Value)) -> Box<Spec> {
        let namespaces = ["pid", "mount", "ipc", "uts", "network", "cgroup"].map(|kind| json!({ "type": kind }));
        let mut spec = json!({
            "ociVersion": "1.1.0", "hostname": "tatami",
            "root": { "path": self.image.path().join("rootfs") },
            "process": process(script),
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"] },
            ],
            "linux": { "namespaces": namespaces, "maskedPaths": ["/proc/kcore", "/proc/scsi", "/no/such"],
                       "readonlyPaths": ["/proc/sys"] },
        });
        change(&mut spec);
        Box::new(serde_json::from_value(spec).unwrap())
    }

    pub(crate) async fn launch(&self, target: Target, stdio: Stdio) -> Result<Launched, LaunchError> {
        let procs = |directory: &Path| -> OwnedFd {
            File::options()
                .write(true)
                .open(directory.join("cgroup.procs"))
                .unwrap()
                .into()
        };
        let (cgroup, agent_cgroup) = (procs(&self.cgroup), procs(&self.parent));
        launch_by(
            Path::new(AGENT),
            LaunchRequest {
                id: "box".into(),
                target,
                stdio,
                bundle: "/run/bundle".into(),
                cgroup,
                agent_cgroup,
            },
        )
        .await
    }

    /// Runs a whole program: what it printed, and its exit code.
    pub(crate) async fn run(&self, target: Target) -> Result<(String, i32), LaunchError> {
        let (mut output, stdio) = piped();
        let launched = self.launch(target, stdio).await?;
        launched.gate.open().await?;
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        Ok((text, wait(launched.pid)))
    }

    pub(crate) async fn run_script(&self, script: &str, change: impl FnOnce(&mut Value)) -> (String, i32) {
        self.run(Target::Container {
            spec: self.spec(script, change),
            join: Vec::new(),
        })
        .await
        .unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

pub(crate) fn process(script: &str) -> Value {
    json!({ "args": ["sh", "-c", script], "cwd": "/made/here", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] } })
}

pub(crate) fn piped() -> (File, Stdio) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let stderr = write.try_clone().unwrap();
    (
        read.into(),
        Stdio::Pipes {
            stdin: None,
            stdout: Some(write),
            stderr: Some(stderr),
        },
    )
}

/// How a process ended. It is ours only once the child of the launch that made it has ended (PR_SET_CHILD_SUBREAPER), which
/// may take a moment after both were killed.
pub(crate) fn wait(pid: Pid) -> i32 {
    wait_for(pid, Some(pid))
}

/// The same for a container's init, with whatever else ends before it, as the agent reaps: an exec that was refused is a zombie in the
/// container's PID namespace, and a namespace's init ends only when all others in it have been reaped (pid_namespaces(7)).
pub(crate) fn wait_for_init(pid: Pid) -> i32 {
    wait_for(pid, None)
}

fn wait_for(pid: Pid, reaped: Option<Pid>) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match waitpid(reaped, None) {
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => return code,
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => return 128 + signal as i32,
            Ok(_) if reaped.is_none() => {}
            Err(Errno::ECHILD) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            other => panic!("unexpected end: {other:?}"),
        }
    }
}
