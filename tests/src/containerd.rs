//! A containerd of the test's own: its directories, its process, its log. Knows nothing of containers.
//!
//! Where it serves CRI it runs in a network namespace of its own, because CNI changes the network around it.

use std::{
    env, fs,
    fs::File,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Error, Result,
    locate::{self, Version},
    netns::NetNs,
    sys, wait,
};

/// How long containerd may take to say that it is ready, on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How long containerd may take to end when asked to.
const STOP: Duration = Duration::from_secs(10);

/// A running private containerd.
pub struct Containerd {
    dir: PathBuf,
    version: Version,
    environment: Vec<(String, String)>,
    netns: Option<NetNs>,
    child: Child,
}

impl Containerd {
    /// Starts containerd with everything it owns below `dir`, and waits until it says that it is ready.
    pub fn start(dir: &Path, version: Version, environment: Vec<(String, String)>) -> Result<Self> {
        Self::start_with(dir, version, environment, &configuration(dir), None)
    }

    /// Starts containerd with a configuration and in a network namespace of the caller's choice.
    pub fn start_with(
        dir: &Path,
        version: Version,
        environment: Vec<(String, String)>,
        configuration: &str,
        netns: Option<NetNs>,
    ) -> Result<Self> {
        fs::write(dir.join("config.toml"), configuration).map_err(Error::io("writing containerd's config.toml"))?;
        let child = spawn(dir, version, &environment, netns.as_ref())?;
        Ok(Self {
            dir: dir.to_owned(),
            version,
            environment,
            netns,
            child,
        })
    }

    /// The network namespace that it runs in, if it is not the test's.
    pub fn netns(&self) -> Option<&NetNs> {
        self.netns.as_ref()
    }

    /// The socket that `ctr` connects to.
    pub fn address(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The directory below which the bundles of `namespace` live.
    pub fn bundles(&self, namespace: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(namespace)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// containerd's log so far; shims write into it too.
    pub fn log(&self) -> String {
        fs::read(self.dir.join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Kills containerd as a crash would, then starts it anew on the same state.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.kill();
        self.child = spawn(&self.dir, self.version, &self.environment, self.netns.as_ref())?;
        Ok(())
    }

    /// Ends containerd: asked first, killed if it does not answer.
    pub fn stop(&mut self) {
        let pid = self.child.id();
        if let Ok(raw) = i32::try_from(pid) {
            // It has ended already if this fails.
            let _ = kill(Pid::from_raw(raw), Signal::SIGTERM);
        }
        if wait::gone(pid, STOP).is_err() {
            self.kill();
        }
        let _ = self.child.wait();
    }

    fn kill(&mut self) {
        // Both fail only if it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Plugins that would touch the machine outside of `dir`, or that need what it may not have.
const DISABLED: [&str; 9] = [
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
];

/// CRI, by its name before containerd 2 and by those since.
const CRI: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// The configuration of a containerd whose blockfile snapshotter makes each snapshot a copy of an image file.
pub(crate) fn blockfile_configuration(dir: &Path, scratch: &Path) -> String {
    let text = snapshotter_configuration(dir, "blockfile");
    let scratch = scratch.display();
    format!(
        "{text}[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = \"{scratch}\"\nfs_type = \"ext4\"\n"
    )
}

/// The configuration of a containerd (2.1) that has one more snapshotter.
pub(crate) fn snapshotter_configuration(dir: &Path, snapshotter: &str) -> String {
    configuration(dir).replace(&format!("\"io.containerd.snapshotter.v1.{snapshotter}\", "), "")
}

/// The configuration of a containerd without CRI.
pub(crate) fn configuration(dir: &Path) -> String {
    format!("version = 2\n{}", head(dir, &CRI))
}

/// What every containerd of the tests is configured with, whatever the format's version: everything that it owns is below
/// `dir`. `without` are more plugins that are not to run.
pub(crate) fn head(dir: &Path, without: &[&str]) -> String {
    let dir = dir.display();
    let disabled: Vec<_> = DISABLED.iter().chain(without).collect();
    format!(
        r#"root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = {disabled:?}
[grpc]
address = "{dir}/c.sock"
[debug]
level = "debug"
[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/opt"
"#
    )
}

fn spawn(dir: &Path, version: Version, environment: &[(String, String)], netns: Option<&NetNs>) -> Result<Child> {
    let binary = version.binary("containerd")?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .map_err(Error::io("opening containerd's log"))?;
    // containerd tells a service manager when it serves (sd_notify(3)); here the test is the service manager.
    let notify = dir.join("notify");
    let _ = fs::remove_file(&notify);
    let ready = UnixDatagram::bind(&notify).map_err(Error::io("binding the notification socket"))?;

    let mut path = locate::build().join("bin").into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    let mut command = netns.map_or_else(|| Ok(Command::new(&binary)), |netns| netns.command(&binary))?;
    command
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", path)
        .env("NOTIFY_SOCKET", &notify)
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(Error::io("sharing containerd's log"))?)
        .stderr(log);
    sys::die_with_parent(&mut command);
    let mut child = command
        .spawn()
        .map_err(Error::io(format!("starting {}", binary.display())))?;
    match await_ready(&ready) {
        Ok(()) => Ok(child),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            Err(Error::unexpected(format!("{error}\ncontainerd's log:\n{log}")))
        }
    }
}

fn await_ready(ready: &UnixDatagram) -> Result<()> {
    let mut message = [0_u8; 256];
    loop {
        if !wait::readable(ready, wait::patience(READY))? {
            return Err(Error::Timeout {
                what: "containerd says READY=1".to_owned(),
                limit: READY,
            });
        }
        let length = ready.recv(&mut message)?;
        if String::from_utf8_lossy(&message[..length])
            .lines()
            .any(|line| line == "READY=1")
        {
            return Ok(());
        }
    }
}
