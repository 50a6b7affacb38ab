//! A node that runs pods: a private containerd that serves CRI, with the images and a network.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    Client, Pod, Sandboxer, config,
    messages::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest},
};
use crate::{
    Ctr, Error, Result,
    containerd::Containerd,
    host_cgroup,
    image::{self, Image},
    leftovers,
    locate::{self, Version},
    netns::NetNs,
    node::{self, Runtime},
    pool::{self, Pool},
    wait,
};

const NAMESPACE: &str = "k8s.io";
/// How long what ends by itself after its pod may take.
const ENDS: Duration = Duration::from_secs(30);
/// How much of the log a failed test shows.
const LOG_SHOWN: usize = 20_000;

/// A node that runs pods.
pub struct PodNode {
    tag: String,
    runtime: Runtime,
    client: Client,
    program: PathBuf,
    sandboxes: std::sync::Mutex<Vec<String>>,
    pool: Option<Pool>,
    // Dropped in this order: containerd ends before its directory goes.
    containerd: Containerd,
    dir: TempDir,
}

impl PodNode {
    /// Starts a node with the runtime and the containerd that the environment asks for.
    pub fn start() -> Result<Self> {
        Self::start_with(Version::wanted()?, Sandboxer::Podsandbox, None)
    }

    /// Starts a node whose runtime reads the build's configuration and then `dropin`, a piece of TOML.
    pub fn start_configured(dropin: &str) -> Result<Self> {
        Self::start_with(Version::wanted()?, Sandboxer::Podsandbox, Some(dropin))
    }

    /// Starts a node with a given containerd and a given keeper of its pods.
    pub fn start_with(version: Version, sandboxer: Sandboxer, dropin: Option<&str>) -> Result<Self> {
        Self::start_edited(version, dropin, |base, configured| {
            Ok(base.to_owned() + &config::runtime(version, sandboxer, configured))
        })
    }

    /// Starts a node whose containerd is configured by `edit`, out of a configuration that knows runc alone, and the path of
    /// the runtime's own.
    pub fn start_edited(
        version: Version,
        dropin: Option<&str>,
        edit: impl FnOnce(&str, &Path) -> Result<String>,
    ) -> Result<Self> {
        let runtime = Runtime::wanted()?;
        let image = Image::get()?;
        let tag = node::tag();
        let dir = tempfile::Builder::new().prefix(&tag).rand_bytes(0).tempdir()?;
        let configured = if runtime == Runtime::Kata {
            locate::runtime_parts()?;
            node::configuration(dir.path(), dropin)?
        } else {
            PathBuf::new()
        };
        config::write_network(dir.path(), &tag)?;
        let configuration = edit(&config::for_pods(dir.path(), version)?, &configured)?;
        let netns = NetNs::new(&tag, "node")?;
        let environment = vec![("KATA_CONF_FILE".to_owned(), configured.display().to_string())];
        let containerd = Containerd::start_with(dir.path(), version, environment, &configuration, Some(netns))?;
        let client = Client::new(&containerd.address())?;
        let mut node = Self {
            pool: None,
            tag,
            runtime,
            client,
            program: version.binary("ctr")?,
            sandboxes: std::sync::Mutex::default(),
            containerd,
            dir,
        };
        node.ctr().args(["image", "import"]).arg(image.archive()).ok()?;
        // From containerd's network namespace: a shim's is part of what a warm VM is kept for.
        if let Some(netns) = node.containerd.netns().filter(|_| runtime == Runtime::Kata) {
            node.pool = netns.inside(move || pool::of(&configured))?;
        }
        for name in [image::NAME, image::PAUSE] {
            // CRI learns of an image by an event that nobody else is told of.
            eventually(&format!("CRI knows {name}"), || {
                Ok(node.client.has_image(name)?.then_some(()))
            })?;
        }
        Ok(node)
    }

    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    pub fn cri(&self) -> &Client {
        &self.client
    }

    /// The node's directory on the host, for files that a test shares with a container.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// containerd's log so far; shims write into it too.
    pub fn log(&self) -> String {
        self.containerd.log()
    }

    /// What the first of these files says that is in the cgroup of a pod's sandbox on the host.
    pub fn host_limit(&self, pod: &str, files: &[&str]) -> Result<String> {
        host_cgroup::file(pod, files)
    }

    /// The network namespace that containerd, and the node's side of the pods' network, are in.
    pub fn netns(&self) -> Result<&NetNs> {
        self.containerd
            .netns()
            .ok_or_else(|| Error::unexpected("the node has no network namespace"))
    }

    /// `ctr` in CRI's namespace.
    pub fn ctr(&self) -> Ctr {
        Ctr::new(self.program.clone(), &self.containerd.address(), NAMESPACE)
    }

    /// Kills containerd as a crash would, and starts it anew on the same state.
    pub fn crash_containerd(&mut self) -> Result<()> {
        self.containerd.crash_and_restart()?;
        self.client = Client::new(&self.containerd.address())?;
        // containerd says that it is ready before its CRI plugin is.
        let serves = || match self.client.pods() {
            Ok(_) => Ok(Some(())),
            Err(Error::Rpc { message, .. }) if message.contains("not initialized") => Ok(None),
            Err(error) => Err(error),
        };
        eventually("CRI serves", serves)
    }

    /// The configuration of a pod that asks for nothing, as the kubelet writes it.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{}-{name}", self.tag),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.dir().join("logs").join(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/pod{name}", self.tag),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub fn run(&self, config: &PodSandboxConfig) -> Result<Pod<'_>> {
        fs::create_dir_all(&config.log_directory).map_err(Error::io("making the pod's log directory"))?;
        let handler = match self.runtime {
            Runtime::Kata => "kata",
            Runtime::Runc => "runc",
        };
        let id = self.client.run_pod(RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        })?;
        self.sandboxes
            .lock()
            .map_err(|_| Error::unexpected("another thread failed"))?
            .push(id.clone());
        Ok(Pod::new(self, id, config.clone()))
    }

    /// Runs a pod that asks for nothing.
    pub fn run_pod(&self, name: &str) -> Result<Pod<'_>> {
        self.run(&self.pod(name))
    }

    /// Fails unless everything that the node's pods used is gone from the machine.
    pub fn nothing_left(&self) -> Result<()> {
        if let Some(pool) = &self.pool {
            pool.empty()?;
        }
        leftovers::await_ends(&self.tag, wait::patience(ENDS))?;
        let mut left: Vec<_> = leftovers::all(&self.tag, &self.dir().join("state"))
            .into_iter()
            // The cgroup that the kubelet makes for a pod is the kubelet's to remove.
            .filter(|line| {
                !line.rsplit('/').next().is_some_and(|name| name.starts_with("pod")) || !line.starts_with("cgroup")
            })
            .collect();
        let sandboxes = self
            .sandboxes
            .lock()
            .map_err(|_| Error::unexpected("another thread failed"))?;
        for id in sandboxes.iter() {
            left.extend(leftovers::of_sandbox(id, &self.containerd.address(), NAMESPACE));
        }
        left.extend(leftovers::entries(&self.containerd.bundles(NAMESPACE)));
        left.extend(leftovers::entries(&self.dir().join("state/netns")));
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::unexpected(format!("left behind:\n{}", left.join("\n"))))
    }

    pub(super) fn runtime_dirs(&self) -> Vec<PathBuf> {
        let sandboxes = self.sandboxes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sandboxes.iter().flat_map(|id| leftovers::sandbox_dirs(id)).collect()
    }
}

impl Drop for PodNode {
    /// Prints the log, which the test runner shows only for a failed test, and removes what a failed test left.
    fn drop(&mut self) {
        // containerd writes whole specifications: they hide what happened.
        let log = self.containerd.log();
        let log: Vec<_> = log.lines().filter(|line| line.len() < 2000).collect();
        let log = log.join("\n");
        let from = log.char_indices().rev().nth(LOG_SHOWN).map_or(0, |(at, _)| at);
        eprintln!("--- containerd's log, its end ---\n{}", &log[from..]);
        for dir in self.runtime_dirs() {
            let console = fs::read_to_string(dir.join("console.log")).unwrap_or_default();
            eprintln!("--- guest console in {} ---\n{console}", dir.display());
        }
        self.pool = None;
        leftovers::remove(&self.tag);
        self.containerd.stop();
        leftovers::remove(&self.tag);
        for dir in self.runtime_dirs() {
            let _ = fs::remove_dir_all(dir);
        }
        // CNI's own notes on the pods of a test that failed.
        for note in leftovers::cni_notes(&self.tag) {
            let _ = fs::remove_file(note);
        }
    }
}

/// Asks until there is an answer, for at most two minutes. CRI has no call that waits: the kubelet, too, asks again and again.
pub fn eventually<T>(what: &str, ask: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let limit = wait::patience(Duration::from_secs(120));
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                limit,
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
