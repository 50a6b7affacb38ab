//! A node's containers by `ctr`: they are run, looked at, waited for, removed.

use serde_json::json;

use super::Node;
use crate::{Ctr, Error, Mount, Result, Spec, Tasks, ctr::LIMIT, grpc::Connection, image, wait};

impl Node {
    /// `ctr run` of the test image; flags may follow, and the program to run.
    pub fn run(&self, name: &str) -> Ctr {
        self.ctr()
            .args(["run", "--runtime", self.runtime.name()])
            .tail([image::NAME, &self.id(name)])
    }

    /// `ctr container create` of the test image; flags may follow, and the program to run.
    pub fn create(&self, name: &str) -> Ctr {
        self.ctr()
            .args(["container", "create", "--runtime", self.runtime.name()])
            .tail([image::NAME, &self.id(name)])
    }

    /// `ctr run` of an OCI spec.
    pub fn run_spec(&self, name: &str, spec: &Spec) -> Result<Ctr> {
        let file = self.dir().join(format!("{name}.json"));
        std::fs::write(&file, spec.text()).map_err(Error::io(format!("writing {}", file.display())))?;
        Ok(self
            .ctr()
            .args(["run", "--runtime", self.runtime.name(), "--config"])
            .arg(&file)
            .tail([self.id(name)]))
    }

    /// A spec whose root is a fresh copy of the image's files.
    pub fn spec(&self, name: &str, args: &[&str]) -> Result<Spec> {
        let number = self.roots.replace(self.roots.get() + 1);
        let root = self.dir().join(format!("rootfs{number}"));
        self.image.copy_root(&root)?;
        Ok(Spec::new(&root, &format!("/{}/{}", self.tag, self.id(name)), args))
    }

    /// Starts a container of the sandbox that the test calls `pod` in the guest's own PID namespace: its `/proc/1` is the agent,
    /// whose mounts and descriptors it may read.
    pub fn start_guest_viewer(&self, name: &str) -> Result<()> {
        let namespaces = ["mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
        let mut viewer = self
            .spec(name, &["sleep", "100000"])?
            .of_pod(self, "container")?
            .set("/linux/namespaces", json!(namespaces))?;
        for set in ["bounding", "effective", "permitted"] {
            viewer = viewer.push(&format!("/process/capabilities/{set}"), "CAP_SYS_PTRACE")?;
        }
        self.run_spec(name, &viewer)?.arg("-d").ok().map(drop)
    }

    /// Runs a spec to its end in the foreground and gives the report that its program, the probe, prints.
    pub fn report(&self, name: &str, spec: &Spec) -> Result<crate::Report> {
        crate::Report::parse(&self.run_spec(name, spec)?.arg("--rm").output()?.success()?)
    }

    /// Removes the container of a task that could not be created: some versions of `ctr run --rm` leave it.
    pub fn discard(&self, name: &str) -> Result<()> {
        let listed = self.ctr().args(["container", "ls", "-q"]).ok()?;
        let id = self.id(name);
        if listed.lines().any(|line| line == id) {
            self.ctr().args(["container", "rm"]).arg(id).ok()?;
        }
        Ok(())
    }

    /// `ctr task exec` in a container; flags may follow, and the program to run.
    pub fn exec(&self, name: &str, exec: &str) -> Ctr {
        self.ctr()
            .args(["task", "exec", "--exec-id", exec])
            .tail([self.id(name)])
    }

    /// `ctr task VERB` with a container's id as the last argument.
    pub fn task(&self, verb: &str, name: &str) -> Ctr {
        self.ctr().args(["task", verb]).tail([self.id(name)])
    }

    /// The state that `ctr task ls` shows for a container; none if there is no task.
    pub fn status(&self, name: &str) -> Result<Option<String>> {
        let list = self.ctr().args(["task", "ls"]).ok()?;
        let id = self.id(name);
        Ok(list.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(&id)).then(|| words.nth(1).unwrap_or_default().to_owned())
        }))
    }

    /// Starts a container in the background whose rootfs is made of these mounts, as its snapshotter would describe them. It has no
    /// standard streams.
    pub fn start_on(&self, name: &str, spec: &Spec, rootfs: Vec<Mount>) -> Result<()> {
        self.create_spec(name, spec)?;
        let (tasks, id) = (self.tasks()?, self.id(name));
        tasks.create_on(&id, rootfs)?;
        tasks.start(&id, "")
    }

    /// containerd's tasks of the node's namespace, step by step.
    pub fn tasks(&self) -> Result<Tasks> {
        Ok(Tasks::new(Connection::new(&self.containerd.address())?, &self.tag))
    }

    /// Makes a container of a specification, for [`Node::tasks`] to run.
    pub fn create_spec(&self, name: &str, spec: &Spec) -> Result<()> {
        let file = self.dir().join(format!("{name}.json"));
        std::fs::write(&file, spec.text()).map_err(Error::io(format!("writing {}", file.display())))?;
        let create = self
            .ctr()
            .args(["container", "create", "--runtime", self.runtime.name(), "--config"]);
        create.arg(&file).tail([self.id(name)]).ok().map(drop)
    }

    /// Changes a container's limits while it runs: `linux.resources` of the OCI specification.
    pub fn update(&self, name: &str, resources: &serde_json::Value) -> Result<()> {
        self.tasks()?.update(&self.id(name), resources)
    }

    /// The host pid that containerd knows for a container.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let list = self.ctr().args(["task", "ls"]).ok()?;
        let id = self.id(name);
        list.lines()
            .find(|line| line.split_whitespace().next() == Some(&id))
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .ok_or_else(|| Error::unexpected(format!("no pid for {id} in:\n{list}")))
    }

    /// Kills a container's init, waits for its end, and removes task and container.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.task("kill", name).args(["--signal", "9"]).ok()?;
        self.await_stopped(name)?;
        self.forget(name)
    }

    /// Removes a stopped task and its container.
    pub fn forget(&self, name: &str) -> Result<()> {
        // Some versions end with the exit code of the container's init, so a failure shows in what is left instead.
        self.task("rm", name).output()?;
        self.ctr()
            .args(["container", "rm"])
            .tail([self.id(name)])
            .ok()
            .map(drop)
    }

    /// Waits until containerd announces that a container's init has ended, and gives its exit status.
    pub fn await_stopped(&self, name: &str) -> Result<u64> {
        self.events
            .borrow_mut()
            .await_exit(&self.id(name), wait::patience(LIMIT))
    }

    /// Waits for the same, and gives when that was, as containerd has it of the runtime (RFC 3339).
    pub fn await_exit_time(&self, name: &str) -> Result<String> {
        self.events
            .borrow_mut()
            .await_exit_time(&self.id(name), wait::patience(LIMIT))
    }

    /// Waits for the same, and gives the exit status and how many OOM kills in the container were announced until then.
    pub fn await_end(&self, name: &str) -> Result<(u64, usize)> {
        self.events
            .borrow_mut()
            .await_end(&self.id(name), wait::patience(LIMIT))
    }

    /// Waits until containerd announces that the kernel killed a process of a container for its memory.
    pub fn await_oom(&self, name: &str) -> Result<()> {
        self.events
            .borrow_mut()
            .await_topic("/tasks/oom ", &self.id(name), wait::patience(LIMIT))
    }
}
