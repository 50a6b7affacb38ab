//! A Docker of the test's own, on a containerd of its own. Its bridge and its iptables rules are in a network namespace of the
//! test, so that the machine's own network is left alone.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use rustix::mount::MountFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Ctr, Error, HostMount, NetNs, Result, Runtime,
    containerd::Containerd,
    host_cgroup::{self, HostMemory},
    image::Image,
    leftovers,
    locate::{self, Version},
    node,
    pool::{self, Pool},
    sys, wait,
};

/// How long the daemon may take to make its socket, on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How long what ends by itself after its container may take.
const ENDS: Duration = Duration::from_secs(20);
/// How long a command may take that starts or stops several containers.
const COMPOSE: Duration = Duration::from_secs(240);
pub const IMAGE: &str = "tatami/test:1";

/// A running Docker with the image loaded.
pub struct Docker {
    program: PathBuf,
    runtime: Runtime,
    daemon: Child,
    // Dropped in this order: the daemon ends before what it needs goes.
    containerd: Containerd,
    namespace: NetNs,
    _pool: Option<Pool>,
    // What the daemon keeps, where it has mounts of its own.
    _data: Option<HostMount>,
    dir: TempDir,
}

/// The first user of the host that a daemon with `userns-remap` gives its containers; they get 65,536.
pub const REMAPPED: u32 = 1_200_000;

impl Docker {
    pub fn start() -> Result<Self> {
        Self::start_with(None, "{}", false)
    }

    /// Starts one whose runtime has a drop-in of its own.
    pub fn start_configured(dropin: &str) -> Result<Self> {
        Self::start_with(Some(dropin), "{}", false)
    }

    /// Starts one with a daemon.json.
    pub fn start_with_settings(settings: &str) -> Result<Self> {
        Self::start_with(None, settings, false)
    }

    /// Starts one with `userns-remap`: its containers' users are others on the host, from [`REMAPPED`] on.
    pub fn start_remapped() -> Result<Self> {
        Self::start_remapped_with(json!({}))
    }

    /// The same with a daemon.json of more.
    pub fn start_remapped_with(mut settings: Value) -> Result<Self> {
        settings["userns-remap"] = "nobody:nogroup".into();
        Self::start_with(None, &settings.to_string(), true)
    }

    fn start_with(dropin: Option<&str>, settings: &str, remapped: bool) -> Result<Self> {
        let runtime = Runtime::wanted()?;
        locate::runtime_parts()?;
        let program = locate::built("docker/bin/docker", "deps-containerd")?;
        let tag = node::tag();
        let dir = tempfile::Builder::new().prefix(&tag).rand_bytes(0).tempdir()?;
        let configuration = node::configuration(dir.path(), dropin)?.display().to_string();
        let environment = vec![("KATA_CONF_FILE".to_owned(), configuration)];
        let containerd = Containerd::start(dir.path(), Version::V1_7, environment)?;
        let namespace = NetNs::new(&tag, "docker")?;
        let pool = pool::of(&dir.path().join("configuration.toml"))?;
        let data = if remapped { Some(remap(dir.path())?) } else { None };
        // The machine's own is of no concern here.
        fs::write(dir.path().join("daemon.json"), settings).map_err(Error::io("writing daemon.json"))?;
        let daemon = spawn(dir.path(), &containerd.address(), &namespace, remapped)?;
        let docker = Self {
            _pool: pool,
            program,
            runtime,
            daemon,
            containerd,
            namespace,
            _data: data,
            dir,
        };
        wait::changed(docker.dir(), READY, || docker.socket().exists().then_some(()))?;
        docker.docker(&["load", "-i"]).arg(Image::get()?.archive()).ok()?;
        Ok(docker)
    }

    /// The directory on the host, for files that a test shares with a container.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("d.sock")
    }

    /// containerd's log so far; shims write into it too.
    pub fn log(&self) -> String {
        self.containerd.log()
    }

    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// The namespace that the daemon's bridge is in.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// `docker` with these arguments; more may follow.
    pub fn docker(&self, args: &[&str]) -> Ctr {
        Ctr::docker(self.program.clone(), &self.socket()).args(args)
    }

    /// `docker-compose` for a project of services; a command and its arguments may follow.
    pub fn compose(&self, project: &str, file: &Path) -> Result<Ctr> {
        let program = locate::program("docker-compose")?;
        let compose = Ctr::docker(program, &self.socket())
            .args(["-p", project, "-f"])
            .arg(file);
        Ok(compose.limit(COMPOSE))
    }

    /// `docker run` on the runtime under test; flags may follow, and the program to run.
    pub fn run(&self, name: &str) -> Ctr {
        self.container("run", name)
    }

    /// `docker create`, in the same way.
    pub fn create(&self, name: &str) -> Ctr {
        self.container("create", name)
    }

    fn container(&self, verb: &str, name: &str) -> Ctr {
        self.docker(&[verb, "--runtime", self.runtime.name(), "--name", name])
            .tail([IMAGE])
    }

    /// The memory that a container's VM has on the host.
    pub fn host_memory(&self, id: &str) -> Result<HostMemory> {
        HostMemory::find(&leftovers::cgroups(id), id)
    }

    /// What the first of these files says that is in a cgroup of a container's VM on the host: v1 and v2 have names of their own.
    pub fn host_limit(&self, id: &str, files: &[&str]) -> Result<String> {
        host_cgroup::file(id, files)
    }

    /// Fails unless what belongs to the container with this id is gone from the machine.
    pub fn nothing_left(&self, id: &str) -> Result<()> {
        leftovers::await_ends(id, wait::patience(ENDS))?;
        // The directory's name has the first 24 characters.
        let left = leftovers::runtime_dirs(id.get(..24).unwrap_or(id));
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::unexpected(format!("left behind: {left:?}")))
    }
}

impl Drop for Docker {
    /// Prints the logs, which the test runner shows only for a failed test, and removes what a failed test left.
    fn drop(&mut self) {
        // What cannot be removed now is removed with its processes below.
        let _ = self.docker(&["ps", "-aq", "--no-trunc"]).ok().map(|ids| {
            for id in ids.lines() {
                let _ = self.docker(&["rm", "-f", id]).output();
                leftovers::remove(id.get(..24).unwrap_or(id));
            }
        });
        let log = fs::read_to_string(self.dir().join("dockerd.log")).unwrap_or_default();
        eprintln!(
            "--- dockerd's log ---\n{log}\n--- containerd's log ---\n{}",
            self.containerd.log()
        );
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        self.containerd.stop();
        leftovers::remove(&self.dir().display().to_string());
    }
}

/// Writes whose users a remapped daemon gives away, and mounts what it keeps its data on: its overlays have to get from its mount
/// namespace to the shim's. The directories above are those of a host, which every user may pass.
fn remap(dir: &Path) -> Result<HostMount> {
    fs::set_permissions(dir, Permissions::from_mode(0o711))
        .map_err(Error::io("opening the test's directory to all"))?;
    fs::write(dir.join("subordinate"), format!("nobody:{REMAPPED}:65536\n"))
        .map_err(Error::io("writing subordinate users"))?;
    let data = HostMount::new(&dir.join("docker"), MountFlags::empty())?.shared()?;
    fs::set_permissions(dir.join("docker"), Permissions::from_mode(0o711))
        .map_err(Error::io("opening Docker's directory to all"))?;
    Ok(data)
}

/// Gives a program files of its own for /etc/subuid and /etc/subgid, in a mount namespace in which all else is the host's.
const WITH_SUBORDINATES: &str =
    "mount --make-private / && mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";

fn spawn(dir: &Path, containerd: &Path, namespace: &NetNs, remapped: bool) -> Result<Child> {
    let binaries = locate::built("docker/bin", "deps-containerd")?;
    let mut path = binaries.clone().into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    let log = File::create(dir.join("dockerd.log")).map_err(Error::io("making dockerd.log"))?;
    let option = |name: &str, file: &str| format!("--{name}={}", dir.join(file).display());
    // Of the network namespace alone: its mounts have to be where containerd and the shim see them.
    let mut command = if remapped {
        let mut command = namespace.command("unshare")?;
        command
            .args(["--mount", "--propagation", "unchanged", "sh", "-c", WITH_SUBORDINATES])
            .arg(dir.join("subordinate"))
            .arg(binaries.join("dockerd"));
        command
    } else {
        namespace.command(binaries.join("dockerd"))?
    };
    command
        .args([
            option("config-file", "daemon.json"),
            option("data-root", "docker"),
            option("exec-root", "exec"),
            option("pidfile", "d.pid"),
            format!("--containerd={}", containerd.display()),
            format!("--host=unix://{}", dir.join("d.sock").display()),
            "--storage-driver=overlay2".to_owned(),
            "--bip=10.95.0.1/24".to_owned(),
            "--default-address-pool=base=10.96.0.0/16,size=24".to_owned(),
        ])
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(Error::io("sharing dockerd.log"))?)
        .stderr(log);
    sys::die_with_parent(&mut command);
    command.spawn().map_err(Error::io("starting dockerd"))
}
