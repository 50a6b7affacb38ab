//! Where the cases run: a node with one runtime, and on ours a pod whose VM the containers share.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::{Error, Fifos, Node, Output, Report, Result, Runtime, Spec, locate::Version};

/// The annotations by which CRI puts a container into a pod's sandbox.
const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const POD: &str = "pod";

/// For what has not run: a program's code is not negative.
const NO_CODE: i32 = -1;

pub struct Bench {
    node: Node,
    last: Cell<u32>,
}

impl Bench {
    /// Starts containerd; its newest release, because older ones do not pass on what they do not know of a specification.
    pub fn start(runtime: Runtime) -> Result<Self> {
        let node = Node::start_with(runtime, Version::V2_1, None)?.quiet();
        Ok(Self {
            node,
            last: Cell::new(0),
        })
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn is_runc(&self) -> bool {
        self.node.runtime() == Runtime::Runc
    }

    /// A name that no other container has.
    pub fn name(&self) -> String {
        let number = self.last.get() + 1;
        self.last.set(number);
        format!("c{number}")
    }

    /// Sees to it that there is a VM.
    pub fn ready(&self) -> Result<()> {
        if self.is_runc() || self.node.status(POD)?.as_deref() == Some("RUNNING") {
            return Ok(());
        }
        if self.node.status(POD)?.is_some() {
            self.node.forget(POD)?;
        }
        let pause = self.node.spec(POD, &["pause"])?.annotation(TYPE, "sandbox")?;
        let pause = pause.annotation(SANDBOX, &self.node.id(POD))?;
        self.node.run_spec(POD, &pause)?.arg("-d").ok().map(drop)
    }

    /// Removes the VM, and fails if anything is left on the machine.
    pub fn end(&self) -> Result<()> {
        if !self.is_runc() && self.node.status(POD)?.is_some() {
            self.node.remove(POD)?;
        }
        self.node.nothing_left()
    }

    /// A specification that asks for nothing, in the pod.
    pub fn spec(&self, name: &str, args: &[&str]) -> Result<Spec> {
        let spec = self.node.spec(name, args)?;
        if self.is_runc() {
            return Ok(spec);
        }
        spec.annotation(TYPE, "container")?
            .annotation(SANDBOX, &self.node.id(POD))
    }

    /// Runs a specification to its end. Where it cannot be run, the reason is in the standard error, and the code is none of a program's.
    pub fn output(&self, name: &str, spec: &Spec) -> Result<Output> {
        self.node.create_spec(name, spec)?;
        let (tasks, id) = (self.node.tasks()?, self.node.id(name));
        let fifos = Fifos::new(self.node.dir(), name)?;
        let ended = tasks.create_with(&id, &fifos).and_then(|()| {
            let ended = tasks.start(&id, "").and_then(|()| tasks.wait(&id, ""));
            let deleted = tasks.delete(&id);
            ended.and_then(|code| deleted.map(|()| code))
        });
        self.node.discard(name)?;
        come_to_an_end(name, ended, fifos)
    }

    /// Runs a changed specification whose program is a script; what it printed, on both streams.
    pub fn script(&self, script: &str, change: impl FnOnce(Spec) -> Result<Spec>) -> Result<String> {
        let name = self.name();
        let spec = change(self.spec(&name, &["sh", "-c", script])?)?;
        let output = self.output(&name, &spec)?;
        Ok(output.stdout() + &output.stderr())
    }

    /// Runs a changed specification whose program is the probe.
    pub fn report(&self, change: impl FnOnce(Spec) -> Result<Spec>) -> Result<Report> {
        let name = self.name();
        let spec = change(self.spec(&name, &["guest-probe", "report"])?)?;
        Report::parse(&self.output(&name, &spec)?.success()?)
    }

    /// Tries to run a changed specification, and gives what was said to that; nothing if it was run.
    pub fn refusal(&self, change: impl FnOnce(Spec) -> Result<Spec>) -> Result<String> {
        let name = self.name();
        self.refused(&name, &change(self.spec(&name, &["echo", "it was run"])?)?)
    }

    /// The same with a container that is in no pod.
    pub fn refusal_alone(&self, change: impl FnOnce(Spec) -> Result<Spec>) -> Result<String> {
        let name = self.name();
        self.refused(&name, &change(self.node.spec(&name, &["echo", "it was run"])?)?)
    }

    fn refused(&self, name: &str, spec: &Spec) -> Result<String> {
        let output = self.output(name, spec)?;
        match output.stdout().contains("it was run") || output.code == Some(0) {
            true => Ok(String::new()),
            false => Ok((output.stdout() + &output.stderr()).to_lowercase()),
        }
    }

    /// Starts a changed specification that waits to be removed; its name.
    pub fn idle(&self, change: impl FnOnce(Spec) -> Result<Spec>) -> Result<String> {
        let name = self.name();
        let spec = change(self.spec(&name, &["sleep", "10000"])?)?;
        self.node.run_spec(&name, &spec)?.arg("-d").ok()?;
        Ok(name)
    }

    /// Runs a script by an exec; what it printed, on both streams.
    pub fn exec(&self, container: &str, script: &str) -> Result<String> {
        let output = self.exec_output(container, |process| process["args"] = json!(["sh", "-c", script]))?;
        Ok(output.stdout() + &output.stderr())
    }

    /// Runs an exec to its end: the container's process after a change.
    pub fn exec_output(&self, container: &str, change: impl FnOnce(&mut Value)) -> Result<Output> {
        let spec = std::fs::read(self.node.dir().join(format!("{container}.json")))?;
        let mut spec: Value = serde_json::from_slice(&spec).map_err(|error| Error::unexpected(error.to_string()))?;
        let mut process = spec["process"].take();
        change(&mut process);
        let (tasks, id, exec) = (self.node.tasks()?, self.node.id(container), self.name());
        let fifos = Fifos::new(self.node.dir(), &exec)?;
        let ended = tasks.exec_with(&id, &exec, &process, &fifos).and_then(|()| {
            let ended = tasks.start(&id, &exec).and_then(|()| tasks.wait(&id, &exec));
            let deleted = tasks.delete_exec(&id, &exec);
            ended.and_then(|code| deleted.map(|()| code))
        });
        come_to_an_end(&exec, ended, fifos)
    }

    /// A line of the text after its key, or an error that shows the text.
    pub fn line<'a>(text: &'a str, key: &str) -> Result<&'a str> {
        let found = text.lines().find_map(|line| line.strip_prefix(key));
        found
            .map(str::trim)
            .ok_or_else(|| Error::unexpected(format!("no {key} in {text}")))
    }
}

/// What came of a process that has ended, or was refused.
fn come_to_an_end(name: &str, ended: Result<u32>, fifos: Fifos) -> Result<Output> {
    let [stdout, mut stderr] = fifos.read()?;
    let code = match ended {
        Ok(code) => i32::try_from(code).unwrap_or(NO_CODE),
        Err(Error::Rpc { message, .. }) => {
            stderr.extend(message.into_bytes());
            NO_CODE
        }
        Err(error) => return Err(error),
    };
    Ok(Output::of(name, code, [stdout, stderr]))
}
