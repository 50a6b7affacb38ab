//! Guest kernels under test: the shipped one and those without a fix, and what a kernel test inside a container found.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::mount::MountFlags;
use serde_json::{Value, json};

use crate::{Error, HostMount, Node, Result, Running, Spec, locate};

/// How long one kernel test may take with its VM's boot, on a machine that does other things as well.
const LIMIT: Duration = Duration::from_secs(240);
/// Small, so that memory runs out soon; two CPUs, as races need them.
const MACHINE: &str = "default_memory = 256\ndefault_vcpus = 2\n";
/// Descriptors that virtiofsd may have: few, so that files that are more than that are made in a moment.
const DESCRIPTORS: usize = 2000;
/// How often a file is replaced: a busy machine may take longer than a name is cached now and then.
const REPLACED: u32 = 20;
/// The tests that are given a bind mount of a host directory.
const ON_A_MOUNT: &[&str] = &[
    "pruned",
    "pruned-by-oom",
    "host-change",
    "submount-acl",
    "close-to-open",
    "kept-open",
    "kept-listing",
    "write-caps",
    "bounded-inodes",
    "compat-readdir",
    "one-superblock",
    "changed-by-name",
];
/// Every capability that Linux 6.12 knows, by linux/capability.h.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a test found of the kernel that it ran on. A test that could not tell is an error instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Right(String),
    /// The kernel has the fault that the test looks for.
    Wrong(String),
}

/// A node whose VMs run one guest kernel.
pub struct KernelNode(Node);

impl KernelNode {
    /// A node with the kernel that the build ships.
    pub fn shipped() -> Result<Self> {
        Self::with(&locate::built("share/vmlinuz", "build")?)
    }

    /// A node with the kernel of `tests/kernel/variant`, which builds it if need be.
    pub fn variant(name: &str) -> Result<Self> {
        Self::with(&variant(name)?)
    }

    fn with(kernel: &Path) -> Result<Self> {
        let dropin = format!(
            "[hypervisor.qemu]\nkernel = {:?}\n{MACHINE}virtio_fs_extra_args = [\"--rlimit-nofile={DESCRIPTORS}\"]\n",
            kernel.display()
        );
        Ok(Self(Node::start_configured(&dropin)?.quiet()))
    }

    /// Runs one test of `guest-probe kernel` in a container that may do everything, with a bind mount for the tests that
    /// need one, and gives its verdict.
    pub fn run(&self, test: &str) -> Result<Verdict> {
        let shared = self.0.dir().join(format!("shared-{test}"));
        std::fs::create_dir(&shared).map_err(Error::io(format!("making {}", shared.display())))?;
        std::fs::write(shared.join("file"), "content").map_err(Error::io("writing a file to share"))?;
        match test {
            "bounded-inodes" => fill(&shared.join("many"), 2 * DESCRIPTORS)?,
            "compat-readdir" => fill(&shared, 200)?,
            _ => {}
        }
        let nested = shared.join("nested");
        let _nested = match test {
            // Of what is mounted below a source the guest is not told when it changes.
            "one-superblock" | "changed-by-name" => Some(HostMount::new(&nested, MountFlags::empty())?),
            _ => None,
        };
        if test == "changed-by-name" {
            std::fs::write(nested.join("name"), "first").map_err(Error::io("writing a file to share"))?;
        }
        let spec = self.spec(test, &shared)?;
        let mut running = self.0.run_spec(test, &spec)?.arg("--rm").limit(LIMIT).spawn()?;
        if test == "host-change" {
            running.shows("watching\n")?;
            let made = shared.join("made-by-the-host");
            std::fs::write(&made, "").map_err(Error::io(format!("making {}", made.display())))?;
        }
        if test == "changed-by-name" {
            replace(&mut running, &nested)?;
        }
        parse(&running.wait()?.success()?.stdout())
    }

    fn spec(&self, test: &str, shared: &Path) -> Result<Spec> {
        let args: &[&str] = if ON_A_MOUNT.contains(&test) {
            &["guest-probe", "kernel", test, "/x"]
        } else {
            &["guest-probe", "kernel", test]
        };
        let access = match test {
            // What is mounted inside a source that is read-only for itself alone is bound by itself: not what is meant here.
            "one-superblock" => "rro",
            "changed-by-name" | "write-caps" => "rw",
            _ => "ro",
        };
        self.0
            .spec(test, args)?
            .set("/process/noNewPrivileges", false)?
            .set(
                "/process/capabilities",
                json!({ "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES }),
            )?
            // The guest's PID namespace, whose first process is the agent: a test has to reach the guest's own mounts.
            .set(
                "/linux/namespaces",
                json!([{ "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }]),
            )?
            .bind(shared, "/x", &[access])
    }
}

/// Puts another file in the place of one, again and again, each time as soon as the test has looked at the name.
fn replace(running: &mut Running, directory: &Path) -> Result<()> {
    let (name, beside) = (directory.join("name"), directory.join("beside"));
    running.shows("looked\n")?;
    for round in 0..REPLACED {
        let kept = directory.join(format!("kept{round}"));
        std::fs::hard_link(&name, &kept).map_err(Error::io(format!("making {}", kept.display())))?;
        std::fs::write(&beside, round.to_string()).map_err(Error::io(format!("making {}", beside.display())))?;
        std::fs::rename(&beside, &name).map_err(Error::io(format!("renaming {}", beside.display())))?;
        running.write(format!("{round}\n").as_bytes())?;
        running.shows(&format!("round {round}\n"))?;
    }
    running.close_stdin();
    Ok(())
}

fn fill(dir: &Path, files: usize) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(format!("making {}", dir.display())))?;
    for number in 0..files {
        let file = dir.join(format!("f{number}"));
        std::fs::write(&file, "").map_err(Error::io(format!("making {}", file.display())))?;
    }
    Ok(())
}

/// A fix of `guest-kernel/fixes.toml`.
#[derive(Debug, Clone)]
pub struct Fix {
    /// Its name, which is also that of the variant without it.
    pub id: String,
    /// The tests of `guest-probe kernel` that prove it.
    pub tests: Vec<String>,
}

/// Whether a test needs a PMU with an AUX area, which is in the variants only.
pub fn needs_test_pmu(test: &str) -> bool {
    test.starts_with("aux-")
}

pub fn fixes() -> Result<Vec<Fix>> {
    let file = locate::workspace().join("guest-kernel/fixes.toml");
    let text = std::fs::read_to_string(&file).map_err(Error::io(format!("reading {}", file.display())))?;
    let wrong = |what: &dyn std::fmt::Display| Error::unexpected(format!("{}: {what}", file.display()));
    let table: toml::Table = text.parse().map_err(|error| wrong(&error))?;
    let fixes = table.get("fix").and_then(toml::Value::as_array);
    fixes
        .ok_or_else(|| wrong(&"no fix"))?
        .iter()
        .map(|fix| {
            let id = fix.get("id").and_then(toml::Value::as_str);
            let tests = fix.get("tests").and_then(toml::Value::as_array);
            Ok(Fix {
                id: id.ok_or_else(|| wrong(&"a fix without id"))?.to_owned(),
                tests: tests
                    .ok_or_else(|| wrong(&"a fix without tests"))?
                    .iter()
                    .filter_map(|test| test.as_str().map(str::to_owned))
                    .collect(),
            })
        })
        .collect()
}

/// The verdict is the last line.
fn parse(said: &str) -> Result<Verdict> {
    let line = said.lines().last().unwrap_or_default();
    let value: Value =
        serde_json::from_str(line).map_err(|error| Error::unexpected(format!("no verdict: {error}: {said:?}")))?;
    let says = value["says"].as_str().unwrap_or_default().to_owned();
    match value["verdict"].as_str() {
        Some("right") => Ok(Verdict::Right(says)),
        Some("wrong") => Ok(Verdict::Wrong(says)),
        _ => Err(Error::unexpected(format!("no verdict: {value}"))),
    }
}

/// The kernel of a variant: below `TATAMI_TEST_VARIANTS`, where kernels from elsewhere can be, or built.
fn variant(name: &str) -> Result<PathBuf> {
    if let Some(dir) = env::var_os("TATAMI_TEST_VARIANTS") {
        return Ok(Path::new(&dir).join(name).join("vmlinuz"));
    }
    let script = locate::workspace().join("tests/kernel/variant");
    let output = Command::new(&script)
        .arg(name)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(Error::io(format!("running {}", script.display())))?;
    if !output.status.success() {
        return Err(Error::unexpected(format!(
            "{} {name}: {}",
            script.display(),
            output.status
        )));
    }
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("vmlinuz"))
}
