//! From a request to a running QEMU, in phases: check, start the helpers, start QEMU, wait for its monitor.
//!
//! A value owns what a phase has created, and undoes it when dropped: children are killed, sockets removed. So an error
//! in a later phase, or its cancellation, undoes the earlier phases without any code here.

pub(crate) mod argv;
pub(crate) mod command_line;
pub(crate) mod process_limits;
pub(crate) mod template;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Hypervisor, SharedFs, Vsock};
use rustix::thread::CapabilitySet;
use tokio::net::UnixStream;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use crate::boot_error::BootError;
use crate::helpers::virtiofsd::{self, Share};
use crate::hotplug::{DiskOptions, Machine};
use crate::listener::GuestListener;
use crate::machine::accel::{self, Accel};
use crate::machine::descriptor::number;
use crate::machine::disk_rates::DiskRates;
use crate::machine::request::{NetworkNamespace, VmRequest};
use crate::machine::size::{self, Size};
use crate::machine::spec::{Backing, Beginning, VirtioFs, VmSpec, VsockDevice};
use crate::machine::vsock::{self, Backend};
use crate::observe::console::Console;
use crate::observe::dump::Dump;
use crate::process::child_name::ChildName;
use crate::process::children::{Child, Program, spawn};
use crate::process::files::{self, SocketFile};
use crate::process::rootless::Rootless;
use crate::process::sys::child::Network;
use crate::process::sys::root::Root;
use crate::qmp::{Qmp, QmpError};
use crate::vm::{Parts, Vm};

use crate::helpers::vsock_daemon;
use crate::machine::{arch, nic};
use crate::process::{qemu_root, vm_time};

/// `VMADDR_PORT_ANY` (vsock(7)): the kernel picks a free port.
const ANY_PORT: u32 = u32::MAX;

/// Boots a VM. Returns once QEMU runs the guest; whether the guest gets anywhere shows at the listener.
///
/// May be cancelled: then nothing is left of it. Must be called in a tokio runtime with I/O and time.
///
/// # Errors
/// Each names what failed and where; see [`BootError`].
pub async fn boot(config: &Hypervisor, request: VmRequest) -> Result<(Vm, GuestListener), BootError> {
    let plan = Plan::check(config)?;
    let (share, guest, root) = tokio::try_join!(
        start_share(&plan, config, &request),
        start_vsock(config, &request, PortChoice::Free),
        describe_root(&plan, &request)
    )?;
    let start_timeout = request.start_timeout;
    let port = format!("{}={}", request.port_parameter, guest.port);
    let command_line = command_line::build(config, &request, plan.accel, &port)?;
    let (share_child, share) = share.map(|share| (share.child, share.socket)).unzip();
    let inherited = Inherited {
        root,
        command_line: Some(command_line),
        share,
        vsock: Some((guest.device, guest.cid)),
        backend: backend(guest.cid),
        helpers: share_child.into_iter().chain(guest.daemon).collect(),
        files: guest.files,
    };
    let vm = start_qemu(plan, config, request, inherited).await?;
    wait_for_monitor(&vm, &config.kernel, start_timeout).await?;
    Ok((vm, guest.listener))
}

/// Phase 1: all that can be known to be wrong before anything runs.
pub(crate) struct Plan {
    qemu: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    virtiofsd: Option<PathBuf>,
    pub(crate) accel: Accel,
    rootless: Option<Rootless>,
    size: Size,
    largest: Size,
}

impl Plan {
    pub(crate) fn check(config: &Hypervisor) -> Result<Self, BootError> {
        let virtiofsd = match config.shared_fs {
            SharedFs::VirtioFs => Some(files::program("virtio_fs_daemon", &config.virtio_fs_daemon)?),
            SharedFs::None => None,
        };
        let kernel = files::readable("kernel", &config.kernel)?;
        let initrd = files::readable("initrd", &config.initrd)?;
        let accel = accel::choose(config.accelerator)?;
        let rootless = config.rootless.then(|| Rootless::prepare(accel)).transpose()?;
        Ok(Self {
            qemu: files::program("hypervisor path", &config.path)?,
            kernel,
            initrd,
            virtiofsd,
            accel,
            rootless,
            size: size::boot_size(config),
            largest: size::largest_size(config),
        })
    }
}

/// Phase 2, beside the helpers: what QEMU will see, if it is not to see what we see.
pub(crate) async fn describe_root(plan: &Plan, request: &VmRequest) -> Result<Option<Root>, BootError> {
    if plan.rootless.is_none() {
        return Ok(None);
    }
    let (qemu, kernel, initrd) = (plan.qemu.clone(), plan.kernel.clone(), plan.initrd.clone());
    let directory = request.run_dir.join("qemu");
    let described = tokio::task::spawn_blocking(move || qemu_root::of(&qemu, &kernel, &initrd, &directory));
    let described = described.await.map_err(|error| BootError::Task(error.to_string()))?;
    Ok(Some(described?))
}

/// Phase 2, first half.
pub(crate) async fn start_share(
    plan: &Plan,
    config: &Hypervisor,
    request: &VmRequest,
) -> Result<Option<Share>, BootError> {
    let Some(program) = plan.virtiofsd.clone() else {
        return Ok(None);
    };
    let socket = request.run_dir.join("virtiofsd.sock");
    let share = virtiofsd::start(program, config, socket, request);
    share.await.map(Some)
}

/// The vsock's parts: what QEMU gets, what stays here.
pub(crate) struct GuestChannel {
    pub(crate) device: OwnedFd,
    pub(crate) cid: Option<vsock::Cid>,
    port: u32,
    pub(crate) listener: GuestListener,
    pub(crate) daemon: Option<Child>,
    pub(crate) files: Vec<SocketFile>,
}

/// The port of the kernel's vsock that the host listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortChoice {
    /// Any; the command line tells the guest.
    Free,
    /// The guest's CID: a guest that has booted knows it as soon as it has the device.
    Cid,
}

/// Phase 2, second half.
pub(crate) async fn start_vsock(
    config: &Hypervisor,
    request: &VmRequest,
    port: PortChoice,
) -> Result<GuestChannel, BootError> {
    match vsock::choose(config.vsock)? {
        Backend::Vhost { device, cid } => {
            let port = match port {
                PortChoice::Free => ANY_PORT,
                PortChoice::Cid => cid.number().max(request.host_port),
            };
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map_err(BootError::Listen)?;
            let port = listener.local_addr().map_err(BootError::Listen)?.port();
            let listener = GuestListener::vhost(listener, cid);
            let device = device.into();
            Ok(GuestChannel {
                device,
                cid: Some(cid),
                port,
                listener,
                daemon: None,
                files: Vec::new(),
            })
        }
        Backend::VhostUser => {
            let program = files::program("vsock_daemon", &config.vsock_daemon)?;
            let port = request.host_port;
            let daemon = vsock_daemon::start(program, request, port).await?;
            let pid = daemon.child.handle().pid;
            let listener = GuestListener::vhost_user(daemon.listener, daemon.listener_file, pid);
            let (device, child, files) = (daemon.socket, daemon.child, daemon.files);
            Ok(GuestChannel {
                device,
                cid: None,
                port,
                listener,
                daemon: Some(child),
                files,
            })
        }
    }
}

/// What QEMU gets from phase 2.
pub(crate) struct Inherited {
    pub(crate) root: Option<Root>,
    /// None: it is given a saved VM.
    pub(crate) command_line: Option<String>,
    /// Devices that are there from the beginning.
    pub(crate) share: Option<OwnedFd>,
    pub(crate) vsock: Option<(OwnedFd, Option<vsock::Cid>)>,
    /// What connects guest and host, whenever it comes.
    pub(crate) backend: Vsock,
    pub(crate) helpers: Vec<Child>,
    pub(crate) files: Vec<SocketFile>,
}

/// The back end of a vsock device: only the kernel's has a CID of the host.
pub(crate) fn backend(cid: Option<vsock::Cid>) -> Vsock {
    if cid.is_some() { Vsock::Vhost } else { Vsock::VhostUser }
}

/// Phase 3: everything that QEMU gets, it inherits as a connected socket; it makes no file and connects to none.
pub(crate) async fn start_qemu(
    plan: Plan,
    config: &Hypervisor,
    request: VmRequest,
    inherited: Inherited,
) -> Result<Vm, BootError> {
    let (monitor, qemus_monitor) = socket_pair().map_err(BootError::SocketPair)?;
    let (console, qemus_console) = socket_pair().map_err(BootError::SocketPair)?;
    let (nics, nic_descriptors) = nic::devices(&request.nics).map_err(BootError::Nics)?;

    let rootless = plan.rootless.as_ref();
    let disks = DiskOptions::of(config);
    let dump = Dump::of(config);
    let spec = VmSpec {
        name: request.id.clone(),
        arch: arch::HOST,
        machine_type: config.machine_type.as_str(),
        accel: plan.accel,
        kvm: rootless.and_then(Rootless::kvm),
        size: plan.size,
        largest: plan.largest,
        beginning: beginning(
            inherited.command_line,
            inherited.root.is_some(),
            plan.kernel,
            plan.initrd,
        ),
        seccomp: config.seccompsandbox.clone(),
        monitor: number(qemus_monitor.as_fd()),
        console: number(qemus_console.as_fd()),
        share: inherited.share.as_ref().map(|socket| VirtioFs {
            tag: request.share_tag.clone(),
            queue_size: config.virtio_fs_queue_size,
            socket: number(socket.as_fd()),
        }),
        vsock: inherited.vsock.as_ref().map(|(device, cid)| vsock_device(device, *cid)),
        reports_free: Backing::of(config).gives_back(config),
        iothread: disks.iothread,
        waits_at_end: dump.is_some(),
        disk_rates: DiskRates::of(config),
        cpu_features: config.cpu_features.clone(),
        backing: Backing::of(config),
        nics,
    };
    let args = argv::render(&spec);
    tracing::debug!(id = request.id, "{} {}", plan.qemu.display(), argv::readable(&args));

    let program = Program {
        child: ChildName::Qemu,
        path: plan.qemu,
        args,
        network: match request.netns {
            NetworkNamespace::Empty => Network::Empty,
            NetworkNamespace::Of(namespace) => Network::Entered(namespace),
        },
        root: inherited.root,
        user: rootless.map(Rootless::user),
        // All else that it works on it is given, open.
        capabilities: Some(CapabilitySet::DAC_READ_SEARCH),
        jail: None,
        limits: process_limits::of_qemu(config, rootless.is_some()),
        cgroup_procs: request.cgroup_procs,
        score: request.score,
        pass: [qemus_monitor, qemus_console]
            .into_iter()
            .chain(inherited.vsock.map(|(device, _)| device))
            .chain(inherited.share)
            .chain(nic_descriptors)
            .chain(plan.rootless.into_iter().flat_map(Rootless::descriptors))
            .collect(),
    };
    let qemu = spawn(program).await?;
    Ok(Vm::new(Parts {
        qemu,
        helpers: inherited.helpers,
        qmp: Qmp::new(monitor, request.scale),
        console: Console::collect(console, request.run_dir.join("console.log")),
        files: inherited.files,
        vsock: inherited.backend,
        dump,
        name: spec.name,
        machine: Machine {
            disks,
            accel: spec.accel,
            backing: spec.backing,
            size: spec.size,
            largest: spec.largest,
        },
    }))
}

fn beginning(command_line: Option<String>, has_root: bool, kernel: PathBuf, initrd: PathBuf) -> Beginning {
    let Some(command_line) = command_line else {
        return Beginning::Saved;
    };
    let (kernel, initrd) = if has_root {
        (qemu_root::KERNEL.into(), qemu_root::INITRD.into())
    } else {
        (kernel, initrd)
    };
    Beginning::Kernel {
        kernel,
        initrd,
        command_line,
    }
}

fn vsock_device(device: &OwnedFd, cid: Option<vsock::Cid>) -> VsockDevice {
    let fd = number(device.as_fd());
    match cid {
        Some(cid) => VsockDevice::Vhost { device: fd, cid },
        None => VsockDevice::VhostUser { socket: fd },
    }
}

/// The last phase: waits until the monitor answers.
pub(crate) async fn wait_for_monitor(vm: &Vm, kernel: &Path, limit: Duration) -> Result<(), BootError> {
    let failed = |ended| BootError::Ended {
        kernel: kernel.to_owned(),
        ended,
    };
    let monitor = async {
        match vm.qmp().negotiate().await {
            // QEMU is about to end: how, is a better answer.
            Err(QmpError::Closed) => Err(failed(vm.ended().await)),
            other => other.map_err(BootError::from),
        }
    };
    tokio::select! {
        ended = vm.ended() => Err(failed(ended)),
        answer = monitor => answer,
        () = vm_time::has_passed(limit, || vm.pids().collect()) => Err(BootError::MonitorTimeout(limit)),
    }
}

/// A socket for us, and one for QEMU.
fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}
