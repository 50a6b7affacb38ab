//! A sandbox that runs, and bare guests made after it: its QEMU option by option and its virtiofsd, with another kernel
//! or first program and without the shim.
//!
//! The options are read from the sandbox's own processes, so that a change of the runtime's machine changes the floor
//! with it.

use std::{
    cell::Cell,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{
    bare::{Bare, Helper, LIMIT},
    machine::{self, Plan, Share},
};
use crate::{Error, Node, Result, Running, leftovers::Process, locate};

/// What all sections have in common: a node with one idle container, and what its VM is made of.
pub struct Host {
    pub(crate) node: Node,
    idle: Option<Running>,
    qemu: Vec<OsString>,
    virtiofsd: Vec<OsString>,
    /// The vsock daemon's options besides its sockets and the guest's CID. None with vhost-vsock.
    vsock: Vec<OsString>,
    shares: Cell<u32>,
    dir: TempDir,
}

pub(crate) const IDLE: &str = "idle";

const VSOCK_DAEMON: &str = "vhost-device-vsock";

impl Host {
    /// Starts containerd and an idle container.
    ///
    /// # Errors
    /// A part of the runtime is missing, or the container does not start.
    pub fn start() -> Result<Self> {
        let node = Node::start()?.quiet();
        let idle = node
            .run(IDLE)
            .sh("echo up; exec sleep 100000")
            .limit(LIMIT * 10)
            .spawn()?;
        idle.shows("up")?;
        let qemu = arguments(&running(&node, "qemu-system")?)?;
        let virtiofsd = arguments(&running(&node, "virtiofsd")?)?;
        let vsock = match running(&node, VSOCK_DAEMON) {
            Ok(daemon) => without_sockets(&arguments(&daemon)?[1..]),
            Err(_) => Vec::new(),
        };
        Ok(Self {
            idle: Some(idle),
            node,
            qemu,
            virtiofsd,
            vsock,
            shares: Cell::new(0),
            dir: tempfile::tempdir()?,
        })
    }

    /// Ends the container and looks for what is left.
    ///
    /// # Errors
    /// Something is left.
    pub fn finish(mut self) -> Result<()> {
        self.node.task("kill", IDLE).args(["--signal", "9"]).ok()?;
        if let Some(idle) = self.idle.take() {
            idle.wait()?;
        }
        self.node.discard(IDLE)?;
        self.node.nothing_left()
    }

    pub(crate) fn kernel(&self) -> Result<PathBuf> {
        locate::built("share/vmlinuz", "build")
    }

    /// Whether the sandbox's CPUs are emulated.
    pub(crate) fn is_emulated(&self) -> bool {
        machine::is_emulated(&self.qemu)
    }

    /// The tag by which a guest mounts its share.
    pub(crate) fn tag(&self) -> Result<&str> {
        machine::share_tag(&self.qemu).ok_or_else(|| Error::unexpected("the sandbox's QEMU has no virtio-fs device"))
    }

    /// A directory for files of a measurement.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An initrd with the probe as its first program.
    pub(crate) fn probe_initrd(&self) -> Result<PathBuf> {
        let initrd = self.dir().join("probe.img");
        if !initrd.exists() {
            let packer = locate::workspace().join("guest-kernel/initrd");
            let status = Command::new(&packer)
                .arg(locate::guest_probe()?)
                .arg(&initrd)
                .status()?;
            if !status.success() {
                return Err(Error::unexpected(format!("{}: {status}", packer.display())));
            }
        }
        Ok(initrd)
    }

    pub(crate) fn boot(&self, plan: &Plan) -> Result<Bare> {
        self.boot_with(plan, |options| options)
    }

    /// Starts a guest whose clock counts its instructions.
    pub(crate) fn boot_counted(&self, plan: &Plan) -> Result<Bare> {
        self.boot_with(plan, machine::counted)
    }

    fn boot_with(&self, plan: &Plan, change: impl Fn(Vec<OsString>) -> Vec<OsString>) -> Result<Bare> {
        let mut helpers = Vec::new();
        let mut sockets = Vec::new();
        if let Some(share) = &plan.share {
            // The daemon is two processes: the second of the guest before may hold its files a moment longer than the first.
            let number = self.shares.replace(self.shares.get() + 1);
            let socket = self.dir().join(format!("share{number}.sock"));
            helpers.push(self.virtiofsd(share, &socket)?);
            sockets.push(("share", socket));
        }
        let mut agent = None;
        if plan.vsock {
            let (daemon, socket, listener) = self.vsock_daemon()?;
            helpers.push(daemon);
            sockets.push(("vsock", socket));
            agent = Some(listener);
        }
        let args = change(machine::options(&self.qemu[1..], plan, &sockets));
        Bare::start(Command::new(&self.qemu[0]).args(args), agent, helpers)
    }

    fn virtiofsd(&self, share: &Share, socket: &Path) -> Result<Helper> {
        let mut args: Vec<OsString> = Vec::new();
        let mut words = self.virtiofsd[1..].iter();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--fd") => {
                    words.next();
                    args.extend(["--socket-path".into(), socket.into()]);
                }
                Some("--shared-dir") => {
                    words.next();
                    args.extend(["--shared-dir".into(), share.dir.clone().into()]);
                }
                Some("--cache") => {
                    let cache = words.next().cloned().unwrap_or_default();
                    args.extend(["--cache".into(), share.cache.map_or(cache, OsString::from)]);
                }
                Some(option) if share.more.iter().any(|more| name(more) == name(option)) => {}
                _ => args.push(word.clone()),
            }
        }
        args.extend(share.more.iter().map(OsString::from));
        Helper::listening(Command::new(&self.virtiofsd[0]).args(args), socket)
    }

    /// The port of the agent protocol.
    pub(crate) fn port(&self) -> u32 {
        machine::command_line(&self.qemu)
            .and_then(|line| {
                line.split(' ')
                    .find_map(|word| word.strip_prefix("tatami.port=")?.parse().ok())
            })
            .unwrap_or(1024)
    }

    /// The daemon, QEMU's socket, and where the guest's connections to the agent protocol's port arrive.
    fn vsock_daemon(&self) -> Result<(Helper, PathBuf, UnixListener)> {
        let (socket, connections) = (self.dir().join("vsock.sock"), self.dir().join("v"));
        let listen = self.dir().join(format!("v_{}", self.port()));
        for file in [&socket, &connections, &listen] {
            // Of the guest before.
            let _ = fs::remove_file(file);
        }
        let listener = UnixListener::bind(&listen)?;
        let daemon = Helper::listening(
            Command::new(locate::built("bin", "build")?.join(VSOCK_DAEMON))
                .args(["--guest-cid", "3", "--socket"])
                .arg(&socket)
                .arg("--uds-path")
                .arg(&connections)
                .args(&self.vsock),
            &socket,
        )?;
        Ok((daemon, socket, listener))
    }
}

/// The options of a vsock daemon without those that a bare guest's has of its own. Each option has a value.
fn without_sockets(options: &[OsString]) -> Vec<OsString> {
    let own = |option: &OsString| {
        ["--guest-cid", "--socket", "--uds-path"]
            .iter()
            .any(|own| option == own)
    };
    let rest = options.chunks(2).filter(|option| !option.first().is_some_and(own));
    rest.flatten().cloned().collect()
}

/// What comes before an option's value.
fn name(option: &str) -> &str {
    option.split('=').next().unwrap_or(option)
}

/// The process of the idle container's sandbox whose program's name has `name` in it.
pub(crate) fn running(node: &Node, name: &str) -> Result<Process> {
    node.processes(IDLE)
        .into_iter()
        .find(|process| process.program().contains(name))
        .ok_or_else(|| Error::unexpected(format!("no {name} among {:?}", node.processes(IDLE))))
}

fn arguments(process: &Process) -> Result<Vec<OsString>> {
    let path = format!("/proc/{}/cmdline", process.pid);
    let bytes = fs::read(&path).map_err(Error::io(path))?;
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Ok(words.map(|word| OsStr::from_bytes(word).to_owned()).collect())
}
