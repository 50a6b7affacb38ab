//! One container of a case: its root, its directory for data, its specification, and what is called on it.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::{root::Root, table::Step};
use crate::{Ctr, Error, Node, Output, Result, Runtime, Spec, locate};

/// What Docker gives a container that asks for nothing, and CAP_NET_ADMIN: without CNI somebody has to set `lo` up.
const CAPABILITIES: [&str; 15] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The container of one case, on one of the runtimes.
pub(super) struct Container<'a> {
    node: &'a Node,
    root: Root,
    dir: PathBuf,
    name: String,
    execs: Cell<u32>,
}

impl<'a> Container<'a> {
    /// Makes the root and the directory for data.
    pub(super) fn new(node: &'a Node, debian: &Path, case: &str) -> Result<Self> {
        let kind = match node.runtime() {
            Runtime::Kata => "kata",
            Runtime::Runc => "runc",
        };
        let name = format!("{case}-{kind}");
        let dir = node.dir().join(&name);
        std::fs::create_dir_all(dir.join("data")).map_err(Error::io("making a directory for data"))?;
        Ok(Self {
            root: Root::new(debian, &dir)?,
            node,
            dir,
            name,
            execs: Cell::new(0),
        })
    }

    /// The host's directory that is the container's `/data`.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// A container that runs `program` with `memory` MiB and one CPU; the scripts are at `/workloads`, the data at `/data`.
    pub(super) fn spec(&self, memory: u64, program: &[&str]) -> Result<Spec> {
        let node = self.node;
        let cgroup = format!("/{}/{}", node.namespace(), node.id(&self.name));
        let scripts = locate::workspace().join("tests/workloads");
        Spec::new(self.root.path(), &cgroup, program)
            .set(
                "/process/env",
                json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]),
            )?
            .set("/process/cwd", "/data")?
            .set("/process/noNewPrivileges", false)?
            .set("/process/rlimits", json!([]))?
            .set(
                "/process/capabilities",
                json!({ "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES }),
            )?
            .set("/linux/resources/memory", json!({ "limit": memory << 20 }))?
            .set("/linux/resources/cpu", json!({ "quota": 100_000, "period": 100_000 }))?
            .own_cgroup()?
            .bind(&scripts, "/workloads", &["ro"])?
            .bind(&self.data(), "/data", &["rw"])
    }

    /// Runs a container to its end, in the foreground, for at most `limit`.
    pub(super) fn run(&self, limit: Duration, spec: &Spec) -> Result<Output> {
        let run = self.node.run_spec(&self.name, spec)?.arg("--rm").limit(limit);
        run.output()
    }

    /// Starts a container in the background.
    pub(super) fn start(&self, spec: &Spec) -> Result<()> {
        self.node.run_spec(&self.name, spec)?.arg("-d").ok().map(drop)
    }

    /// A script in the container, by exec.
    pub(super) fn exec(&self, script: &str) -> Ctr {
        self.execs.set(self.execs.get() + 1);
        let exec = self.node.exec(&self.name, &format!("e{}", self.execs.get()));
        exec.program(["bash", "-euc", script])
    }

    /// Sends a signal to the container's first process, waits for its end, removes the container, and gives the exit status.
    pub(super) fn end(&self, signal: &str) -> Result<u64> {
        self.node.task("kill", &self.name).args(["--signal", signal]).ok()?;
        let status = self.node.await_stopped(&self.name)?;
        self.node.forget(&self.name)?;
        Ok(status)
    }

    /// Removes what a case has left, and the files.
    pub(super) fn clear(self) -> Result<()> {
        let node = self.node;
        if node.status(&self.name)?.is_some() {
            // One that has ended cannot be killed; whether all is gone shows at the end of all cases.
            let _ = node.task("kill", &self.name).args(["--signal", "9"]).output();
            let _ = node.await_stopped(&self.name);
            node.forget(&self.name)?;
        }
        node.discard(&self.name)?;
        drop(self.root);
        std::fs::remove_dir_all(&self.dir).map_err(Error::io(format!("removing {}", self.dir.display())))
    }
}

/// The steps that a script's output tells: lines of `step NAME SECONDS`.
pub(super) fn steps(output: Output) -> Result<Vec<Step>> {
    let text = output.success()?.stdout();
    let step = |line: &str| {
        let (name, seconds) = line.strip_prefix("step ")?.rsplit_once(' ')?;
        Some(Step {
            name: name.to_owned(),
            seconds: seconds.parse().ok()?,
        })
    };
    Ok(text.lines().filter_map(step).collect())
}
