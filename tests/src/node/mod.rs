//! One private containerd with the test image, as a test uses it.

mod containers;
mod host;

use std::{
    cell::{Cell, RefCell},
    env,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;

use crate::{
    Ctr, Error, Output, Result,
    containerd::{self, Containerd},
    ctr::LIMIT,
    disk::RawImage,
    events::Events,
    image::Image,
    leftovers,
    locate::{self, Version},
    pool::{self, Pool},
    wait,
};

/// How much of the log a failed test shows.
const LOG_SHOWN: usize = 12_000;

/// The runtime that the tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
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
    pool: Option<Pool>,
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

    /// Starts a node whose runtime reads this configuration, and nothing of the build's.
    pub fn start_with_file(configuration: &str) -> Result<Self> {
        let node = Self::start_configured("")?;
        std::fs::write(node.dir().join("configuration.toml"), configuration)?;
        Ok(node)
    }

    /// Starts a node whose containerd (2.1) makes root file systems in image files, as its snapshotter `blockfile`.
    pub fn start_blockfile() -> Result<Self> {
        let runtime = Runtime::wanted()?;
        let environment = |dir: &Path| environment(dir, runtime, None);
        Self::start_by(runtime, Version::V2_1, environment, |dir| {
            let scratch = dir.join("scratch.img");
            RawImage::ext4(&scratch, 32 << 20)?;
            Ok(containerd::blockfile_configuration(dir, &scratch))
        })
    }

    /// Starts a node whose containerd (2.1) has one more snapshotter, which finds its own directory below the containerd's: a test may
    /// mount a file system there first.
    pub fn start_snapshotter(snapshotter: &str, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let runtime = Runtime::wanted()?;
        let environment = |dir: &Path| environment(dir, runtime, None);
        Self::start_by(runtime, Version::V2_1, environment, |dir| {
            let own = dir.join(format!("root/io.containerd.snapshotter.v1.{snapshotter}"));
            std::fs::create_dir_all(&own)?;
            prepare(&own)?;
            Ok(containerd::snapshotter_configuration(dir, snapshotter))
        })
    }

    /// Starts a node with a given runtime and containerd, and a drop-in if there is one.
    pub(crate) fn start_with(runtime: Runtime, version: Version, dropin: Option<&str>) -> Result<Self> {
        let environment = |dir: &Path| environment(dir, runtime, dropin);
        Self::start_by(runtime, version, environment, |dir| Ok(containerd::configuration(dir)))
    }

    /// Starts a node whose runtime is what an archive of the packages has, unpacked: it has not the build's.
    pub fn start_unpacked(prefix: &Path) -> Result<Self> {
        let environment = |_: &Path| {
            let path = env::var("PATH").unwrap_or_default();
            let conf = prefix.join("etc/configuration.toml");
            Ok(vec![
                ("KATA_CONF_FILE".to_owned(), conf.display().to_string()),
                (
                    "PATH".to_owned(),
                    format!("{}/bin:{path}:/usr/sbin:/sbin", prefix.display()),
                ),
            ])
        };
        let version = Version::wanted()?;
        Self::start_by(Runtime::Kata, version, environment, |dir| {
            Ok(containerd::configuration(dir))
        })
    }

    fn start_by(
        runtime: Runtime,
        version: Version,
        environment: impl FnOnce(&Path) -> Result<Vec<(String, String)>>,
        settings: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        let image = Image::get()?;
        let tag = tag();
        let dir = tempfile::Builder::new().prefix(&tag).rand_bytes(0).tempdir()?;
        let environment = environment(dir.path())?;
        let settings = settings(dir.path())?;
        let containerd = Containerd::start_with(dir.path(), version, environment, &settings, None)?;
        let address = containerd.address();
        let program = version.binary("ctr")?;
        let ctr = || Ctr::new(program.clone(), &address, &tag);
        ctr().args(["image", "import"]).arg(image.archive()).ok()?;
        let events = RefCell::new(Events::subscribe(&tag, ctr)?);
        let pool = pool::of(&dir.path().join("configuration.toml"))?;
        Ok(Self {
            pool,
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

    /// The file that the node's runtime is configured by; the build's own, unless the node was started with a drop-in or a pool.
    pub fn configuration(&self) -> PathBuf {
        self.dir().join("configuration.toml")
    }

    /// Has containers run on another runtime from now on. One that was started for ours has what runc needs, too.
    pub fn switch(&mut self, runtime: Runtime) {
        self.runtime = runtime;
    }

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

    pub fn namespace(&self) -> &str {
        &self.tag
    }

    pub fn ctr(&self) -> Ctr {
        Ctr::new(self.program.clone(), &self.containerd.address(), &self.tag)
    }

    /// `kata-ctl` of the build.
    pub fn diagnose(&self) -> Result<Ctr> {
        Ok(Ctr::kata_ctl(locate::built("bin/kata-ctl", "build")?))
    }

    pub fn kata_ctl(&self, words: &[&str]) -> Result<Output> {
        Ctr::kata_ctl(locate::built("bin/kata-ctl", "build")?)
            .args(words)
            .output()
    }

    /// Waits until containerd's log, in which the runtime's is, has all of these texts.
    pub fn await_log(&self, texts: &[&str]) -> Result<()> {
        let all = |log: &str| texts.iter().all(|text| log.contains(text));
        wait::content(self.dir(), "log", LIMIT, all).map(drop)
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
        // Before what looks for processes of the node.
        self.pool = None;
        leftovers::remove(&self.tag);
        self.containerd.stop();
        leftovers::remove(&self.tag);
    }
}

/// What containerd's environment has for the runtime: where the configuration is.
fn environment(dir: &Path, runtime: Runtime, dropin: Option<&str>) -> Result<Vec<(String, String)>> {
    if runtime != Runtime::Kata {
        return Ok(Vec::new());
    }
    locate::runtime_parts()?;
    let file = configuration(dir, dropin)?.display().to_string();
    Ok(vec![("KATA_CONF_FILE".to_owned(), file)])
}

/// The configuration file for a node in `dir`: the build's own, or a copy of it with a drop-in beside it.
pub(crate) fn configuration(dir: &Path, dropin: Option<&str>) -> Result<PathBuf> {
    let built = locate::configuration()?;
    let warm = pool::dropin(&dir.join("templates"))?;
    if dropin.is_none() && warm.is_none() {
        return Ok(built);
    }
    let copy = dir.join("configuration.toml");
    std::fs::copy(built, &copy)?;
    let dropins = dir.join("config.d");
    std::fs::create_dir(&dropins)?;
    if let Some(warm) = warm {
        std::fs::write(dropins.join(pool::NAME), warm)?;
    }
    if let Some(dropin) = dropin {
        std::fs::write(dropins.join("90-test.toml"), dropin)?;
    }
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
