//! One private containerd with the test image, as a test uses it.

use std::{
    cell::{Cell, RefCell},
    env,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    Ctr, Error, Output, Result, Spec,
    containerd::{self, Containerd},
    ctr::LIMIT,
    disk::RawImage,
    events::Events,
    grpc::Connection,
    host_cgroup::{self, HostMemory},
    image::{self, Image},
    leftovers,
    locate::{self, Version},
    wait,
};

/// How long what ends by itself after its container may take: the shim, the VMM, its helpers.
const ENDS: Duration = Duration::from_secs(20);
/// How much of the log a failed test shows.
const LOG_SHOWN: usize = 12_000;

/// The runtime that the tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Ours.
    Kata,
    /// runc, which proves that a test asks for what a container really is.
    Runc,
}

impl Runtime {
    /// The runtime that `TATAMI_TEST_RUNTIME` asks for; ours unless it says otherwise.
    pub fn wanted() -> Result<Self> {
        match env::var("TATAMI_TEST_RUNTIME").as_deref() {
            Err(_) | Ok("" | "kata") => Ok(Self::Kata),
            Ok("runc") => Ok(Self::Runc),
            Ok(other) => Err(Error::unexpected(format!(
                "TATAMI_TEST_RUNTIME={other}: it is kata or runc"
            ))),
        }
    }

    /// The name by which containerd finds it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kata => "io.containerd.kata.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }
}

/// A private containerd with the image imported.
pub struct Node {
    tag: String,
    runtime: Runtime,
    image: Image,
    roots: Cell<u32>,
    quiet: bool,
    program: PathBuf,
    events: RefCell<Events>,
    // Dropped in this order: containerd ends before its directory goes.
    containerd: Containerd,
    dir: TempDir,
}

impl Node {
    /// Starts a node with the runtime and the containerd that the environment asks for.
    pub fn start() -> Result<Self> {
        Self::start_with(Runtime::wanted()?, Version::wanted()?, None)
    }

    /// Starts a node with a given runtime, whatever the environment asks for.
    pub fn start_runtime(runtime: Runtime) -> Result<Self> {
        Self::start_with(runtime, Version::wanted()?, None)
    }

    /// Starts a node with a given containerd.
    pub fn start_version(version: Version) -> Result<Self> {
        Self::start_with(Runtime::wanted()?, version, None)
    }

    /// Starts a node whose runtime reads the build's configuration and then `dropin`, a piece of TOML.
    pub fn start_configured(dropin: &str) -> Result<Self> {
        Self::start_with(Runtime::wanted()?, Version::wanted()?, Some(dropin))
    }

    /// Starts a node whose containerd (2.1) makes root file systems in image files, as its snapshotter `blockfile`.
    pub fn start_blockfile() -> Result<Self> {
        Self::start_by(Runtime::wanted()?, Version::V2_1, None, |dir| {
            let scratch = dir.join("scratch.img");
            RawImage::ext4(&scratch, 32 << 20)?;
            Ok(containerd::blockfile_configuration(dir, &scratch))
        })
    }

    fn start_with(runtime: Runtime, version: Version, dropin: Option<&str>) -> Result<Self> {
        Self::start_by(runtime, version, dropin, |dir| Ok(containerd::configuration(dir)))
    }

    fn start_by(
        runtime: Runtime,
        version: Version,
        dropin: Option<&str>,
        settings: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        let image = Image::get()?;
        let tag = tag();
        let dir = tempfile::Builder::new().prefix(&tag).rand_bytes(0).tempdir()?;
        let mut environment = Vec::new();
        if runtime == Runtime::Kata {
            locate::runtime_parts()?;
            environment.push((
                "KATA_CONF_FILE".to_owned(),
                configuration(dir.path(), dropin)?.display().to_string(),
            ));
        }
        let settings = settings(dir.path())?;
        let containerd = Containerd::start_with(dir.path(), version, environment, &settings, None)?;
        let address = containerd.address();
        let program = version.binary("ctr")?;
        let ctr = || Ctr::new(program.clone(), &address, &tag);
        ctr().args(["image", "import"]).arg(image.archive()).ok()?;
        let events = RefCell::new(Events::subscribe(&tag, ctr)?);
        Ok(Self {
            tag,
            runtime,
            image,
            program,
            roots: Cell::new(0),
            quiet: false,
            events,
            containerd,
            dir,
        })
    }

    /// Has the node print no logs at its end.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The runtime under test.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// The version that this node's containerd says it is.
    pub fn containerd_version(&self) -> Result<String> {
        self.ctr().arg("version").ok()
    }

    /// Kills containerd as a crash would, and starts it anew on the same state.
    pub fn crash_containerd(&mut self) -> Result<()> {
        self.containerd.crash_and_restart()?;
        self.events = RefCell::new(Events::subscribe(&self.tag, || self.ctr())?);
        Ok(())
    }

    /// containerd's log so far; shims write into it too.
    pub fn log(&self) -> String {
        self.containerd.log()
    }

    /// The node's directory on the host, for files that a test shares with a container.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The full id of the container that the test calls `name`.
    pub fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    /// The containerd namespace of this node.
    pub fn namespace(&self) -> &str {
        &self.tag
    }

    /// `ctr` on this node.
    pub fn ctr(&self) -> Ctr {
        Ctr::new(self.program.clone(), &self.containerd.address(), &self.tag)
    }

    /// `kata-ctl` of the build.
    pub fn diagnose(&self) -> Result<Ctr> {
        Ok(Ctr::kata_ctl(locate::built("bin/kata-ctl", "build")?))
    }

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

    /// Changes a container's limits while it runs: `linux.resources` of the OCI specification.
    pub fn update(&self, name: &str, resources: &serde_json::Value) -> Result<()> {
        Connection::new(&self.containerd.address())?.update_task(&self.tag, &self.id(name), resources)
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

    /// Runs the build's `kata-ctl`.
    pub fn kata_ctl(&self, words: &[&str]) -> Result<Output> {
        Ctr::kata_ctl(locate::built("bin/kata-ctl", "build")?)
            .args(words)
            .output()
    }

    /// The processes on the host that belong to a container or its sandbox.
    pub fn processes(&self, name: &str) -> Vec<leftovers::Process> {
        leftovers::processes(&self.id(name))
    }

    /// The memory that a container's sandbox has on the host.
    pub fn host_memory(&self, name: &str) -> Result<HostMemory> {
        HostMemory::find(&leftovers::cgroups(&self.tag), &self.id(name))
    }

    /// What the first of these files says that is in the cgroup of a container's sandbox on the host.
    pub fn host_limit(&self, name: &str, files: &[&str]) -> Result<String> {
        host_cgroup::file(&format!("kata_{}", self.id(name)), files)
    }

    /// Where the snapshotter `blockfile` keeps its files.
    pub fn block_files(&self) -> PathBuf {
        self.dir().join("root/io.containerd.snapshotter.v1.blockfile/snapshots")
    }

    /// Kills, as a crash would, every process of a container's sandbox whose program's name has `program` in it.
    pub fn kill_process(&self, name: &str, program: &str) -> Result<()> {
        self.signal_process(name, program, Signal::SIGKILL)
    }

    /// Sends a signal to every process of a container's sandbox whose program's name has `program` in it.
    pub fn signal_process(&self, name: &str, program: &str, signal: Signal) -> Result<()> {
        let targets: Vec<_> = self
            .processes(name)
            .into_iter()
            .filter(|process| process.program().contains(program))
            .collect();
        if targets.is_empty() {
            return Err(Error::unexpected(format!(
                "no {program} among {:?}",
                self.processes(name)
            )));
        }
        for target in targets {
            let pid = i32::try_from(target.pid).map_err(|_| Error::unexpected("a pid that is no pid"))?;
            kill(Pid::from_raw(pid), signal)
                .map_err(|error| Error::io(format!("signalling {}", target.command))(error.into()))?;
        }
        Ok(())
    }

    /// Waits until containerd's log, in which the runtime's is, has all of these texts.
    pub fn await_log(&self, texts: &[&str]) -> Result<()> {
        let all = |log: &str| texts.iter().all(|text| log.contains(text));
        wait::content(self.dir(), "log", LIMIT, all).map(drop)
    }

    /// The bundle directory of a container's task.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.containerd.bundles(&self.tag).join(self.id(name))
    }

    /// Fails unless everything that the node's containers used is gone from the machine.
    pub fn nothing_left(&self) -> Result<()> {
        for process in leftovers::processes(&self.tag) {
            wait::gone(process.pid, wait::patience(ENDS))
                .map_err(|error| Error::unexpected(format!("{error}: {}", process.command)))?;
        }
        let mut left = leftovers::all(&self.tag, &self.dir().join("state"));
        left.extend(leftovers::entries(&self.containerd.bundles(&self.tag)));
        left.extend(leftovers::entries(
            &self.dir().join("root/io.containerd.runtime.v2.task").join(&self.tag),
        ));
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::unexpected(format!("left behind:\n{}", left.join("\n"))))
    }

    /// What a runtime says of itself while it boots: the guests' consoles, where there are any.
    fn consoles(&self) -> String {
        leftovers::runtime_dirs(&self.tag)
            .iter()
            .filter_map(|dir| std::fs::read_to_string(dir.join("console.log")).ok())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Node {
    /// Prints the log, which the test runner shows only for a failed test, and removes what a failed test left.
    fn drop(&mut self) {
        if !self.quiet {
            let log = self.containerd.log();
            let from = log.char_indices().rev().nth(LOG_SHOWN).map_or(0, |(at, _)| at);
            eprintln!("--- containerd's log, its end ---\n{}", &log[from..]);
            eprintln!("--- guest consoles ---\n{}", self.consoles());
        }
        leftovers::remove(&self.tag);
        self.containerd.stop();
        leftovers::remove(&self.tag);
    }
}

/// The configuration file for a node in `dir`: the build's own, or a copy of it with a drop-in beside it.
pub(crate) fn configuration(dir: &Path, dropin: Option<&str>) -> Result<PathBuf> {
    let built = locate::configuration()?;
    let Some(dropin) = dropin else { return Ok(built) };
    let copy = dir.join("configuration.toml");
    std::fs::copy(built, &copy)?;
    std::fs::create_dir(dir.join("config.d"))?;
    std::fs::write(dir.join("config.d/90-test.toml"), dropin)?;
    Ok(copy)
}

/// A name that no other node on this machine has. Short, because sockets' paths are (108 bytes, unix(7)) and because
/// the runtime's directories show only the first 24 characters of a sandbox's id.
pub(crate) fn tag() -> String {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.subsec_nanos());
    format!("tt{:x}x{:x}", std::process::id(), nanos >> 10)
}
