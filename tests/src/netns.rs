//! Network namespaces of the tests' own, in which all their addresses and interfaces are. The machine's own is left alone.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::{Error, Result, locate};

/// A network namespace with a name, removed when dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    gone: AtomicBool,
}

impl NetNs {
    /// Makes one. `tag` is the node's namespace, which no other test has; it is not in the name as it is, because whatever
    /// has it in its name must be gone with the node's containers.
    pub fn new(tag: &str, name: &str) -> Result<Self> {
        let namespace = Self {
            name: format!("{}-{name}", tag.replacen("tt", "ns", 1)),
            gone: AtomicBool::new(false),
        };
        run(Command::new(locate::program("ip")?).args(["netns", "add", &namespace.name]))?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `--with-ns` of `ctr run`.
    pub fn flag(&self) -> String {
        format!("--with-ns=network:{}", self.path().display())
    }

    /// `ip` in it.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        run(Command::new(locate::program("ip")?).args(["-n", &self.name]).args(args))
    }

    /// `ip` in it, for each line.
    pub fn ip_lines(&self, lines: &[&str]) -> Result<()> {
        lines
            .iter()
            .try_for_each(|line| self.ip(&line.split(' ').collect::<Vec<_>>()).map(drop))
    }

    /// A program in it, run to its end, with a /sys that shows it.
    pub fn exec(&self, args: &[&str]) -> Result<String> {
        run(Command::new(locate::program("ip")?)
            .args(["netns", "exec", &self.name])
            .args(args))
    }

    /// A veth pair: `name` here, `other_name` there, both up.
    pub fn veth(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        self.ip(&[
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            other_name,
            "netns",
            &other.name,
        ])?;
        self.ip(&["link", "set", name, "up"])?;
        other.ip(&["link", "set", other_name, "up"]).map(drop)
    }

    /// A command that runs a program in it. The program keeps the pid of what is spawned, and the mounts of the test.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(locate::program("nsenter")?);
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        Ok(command)
    }

    /// Does something in it, in a thread of its own: a socket made there is the namespace's (network_namespaces(7)).
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let file = File::open(self.path()).map_err(Error::io(format!("opening {}", self.path().display())))?;
        let thread = thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::io("entering a network namespace")(errno.into()))?;
            work()
        });
        joined(thread)
    }

    /// Removes its name; it goes when nobody is in it any more.
    pub fn remove(&self) -> Result<()> {
        self.gone.store(true, Ordering::Relaxed);
        run(Command::new(locate::program("ip")?).args(["netns", "del", &self.name])).map(drop)
    }

    /// `tc` in it, its arguments apart by blanks.
    pub fn tc(&self, line: &str) -> Result<String> {
        let args = line.split(' ');
        run(Command::new(locate::program("tc")?).args(["-n", &self.name]).args(args))
    }

    /// What a runtime may leave: taps, and ingress qdiscs with what they redirect to.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let links = self.ip(&["-o", "link", "show"])?;
        let qdiscs = self.tc("qdisc show")?;
        let left = links.lines().filter(|line| line.contains("_kata"));
        let left = left.chain(
            qdiscs
                .lines()
                .filter(|line| line.contains("ingress") || line.contains("tbf")),
        );
        Ok(left.map(str::to_owned).collect())
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if !self.gone.load(Ordering::Relaxed) {
            // There is nobody to be told.
            let _ = self.remove();
        }
    }
}

/// What a thread came to; its panic goes on here.
pub fn joined<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command.output().map_err(Error::io(format!("running {line}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Command {
        command: line,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
