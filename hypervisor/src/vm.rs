//! A running VM: the operations on it, and its end.
//!
//! Owns QEMU, the helpers and their sockets. Knows nothing about the guest.

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use config::{Mebibytes, Vsock};
use serde_json::Value;
use tokio::sync::watch;

use crate::hotplug::cpu::CpuError;
use crate::hotplug::memory::MemoryError;
use crate::hotplug::{Backend, DeviceManager, Disk, HotplugError, Machine, NicHotplug};
use crate::machine::accel::Accel;
use crate::observe::console::Console;
use crate::observe::cpus::{self, Sample};
use crate::observe::dump::{Dump, Dumper};
use crate::observe::ended::{self, Ended, Watched};
use crate::process::children::Child;
use crate::process::files::SocketFile;
use crate::process::pinning::{self, PinError};
use crate::qmp::{Qmp, QmpError};

/// How long QEMU may take to end when it is told to.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// A VM that runs, or has ended. Dropping it kills what is left of it.
#[derive(Debug)]
pub struct Vm {
    pid: u32,
    // Fields are dropped in this order: the children before the sockets that they may still make.
    children: Vec<Child>,
    qmp: Qmp,
    devices: DeviceManager,
    dumper: Option<Dumper>,
    console: Console,
    vsock: Vsock,
    stopping: Arc<AtomicBool>,
    ended: watch::Receiver<Option<Arc<Ended>>>,
    _files: Vec<SocketFile>,
}

pub(crate) struct Parts {
    pub(crate) qemu: Child,
    pub(crate) helpers: Vec<Child>,
    pub(crate) qmp: Qmp,
    pub(crate) console: Console,
    pub(crate) files: Vec<SocketFile>,
    /// What connects guest and host: one of the two, never `auto`.
    pub(crate) vsock: Vsock,
    /// Where its memory goes when the guest has crashed.
    pub(crate) dump: Option<Dump>,
    pub(crate) name: String,
    pub(crate) machine: Machine,
}

impl Vm {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            qemu,
            helpers,
            qmp,
            console,
            files,
            vsock,
            dump,
            name,
            machine,
        } = parts;
        let stopping = Arc::new(AtomicBool::new(false));
        let ended = ended::watch(Watched {
            qemu: qemu.handle().clone(),
            helpers: helpers.iter().map(|helper| helper.handle().clone()).collect(),
            qmp: qmp.clone(),
            console: console.clone(),
            stopping: Arc::clone(&stopping),
        });
        let dumper = dump.map(|dump| Dumper::start(qmp.clone(), dump, name));
        let pid = qemu.handle().pid;
        let children = std::iter::once(qemu).chain(helpers).collect();
        let devices = DeviceManager::new(qmp.clone(), machine);
        Self {
            pid,
            children,
            devices,
            dumper,
            qmp,
            console,
            vsock,
            stopping,
            ended,
            _files: files,
        }
    }

    /// The pid of QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// QEMU's and the helpers' processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.children.iter().map(|child| child.handle().pid)
    }

    /// QEMU's monitor.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The end of what the guest has printed, at most 16 KiB, harmless to a terminal.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.console.tail.text()
    }

    /// Waits for the VM's end, however it comes about. May be awaited by several, and outlive the VM.
    pub fn ended(&self) -> impl Future<Output = Arc<Ended>> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
            match end {
                Some(end) => end,
                // The runtime is going down, and this task with it.
                None => std::future::pending().await,
            }
        }
    }

    /// Names the sandbox, of a VM that has booted for nobody.
    pub fn rename(&self, sandbox: &str) {
        if let Some(dumper) = &self.dumper {
            dumper.rename(sandbox);
        }
    }

    /// Ends the VM: asks QEMU, and kills it after two seconds. A dump of the guest's memory is waited for. Returns when no child is left. May be called again, and
    /// by several.
    pub async fn stop(&self) {
        if let Some(dumper) = &self.dumper {
            dumper.idle().await;
        }
        self.stopping.store(true, Ordering::Release);
        let asked = async {
            // If QEMU cannot be asked it has ended, or is killed below.
            let _ = self.qmp.execute("quit", Value::Null).await;
            self.ended().await
        };
        if tokio::time::timeout(self.qmp.scale().of(QUIT_TIMEOUT), asked)
            .await
            .is_err()
        {
            self.children.iter().for_each(|child| child.handle().kill());
            self.ended().await;
        }
    }

    /// What connects guest and host: `vhost` or `vhost-user`.
    #[must_use]
    pub fn vsock(&self) -> Vsock {
        self.vsock
    }

    /// What runs the guest's instructions, as QEMU itself says (`query-kvm`, qapi/accelerator.json).
    ///
    /// # Errors
    /// QEMU has ended or does not answer.
    pub async fn accelerator(&self) -> Result<Accel, QmpError> {
        let answer = self.qmp.execute("query-kvm", Value::Null).await?;
        let kvm = answer["enabled"].as_bool().unwrap_or(false);
        Ok(if kvm { Accel::Kvm } else { Accel::Tcg })
    }

    /// QEMU's run state, such as `running` (RunState in QEMU's qapi/run-state.json).
    ///
    /// # Errors
    /// QEMU has ended or does not answer.
    pub async fn status(&self) -> Result<String, QmpError> {
        let answer = self.qmp.execute("query-status", Value::Null).await?;
        Ok(answer["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Where the vCPUs are.
    ///
    /// # Errors
    /// QEMU has ended or does not answer.
    pub async fn sample(&self) -> Result<Sample, QmpError> {
        cpus::sample(&self.qmp).await
    }

    /// Pins each vCPU to one of these CPUs of the host if there are as many, and says whether it did.
    ///
    /// # Errors
    /// QEMU has ended or does not answer; the kernel refuses.
    pub async fn pin_vcpus(&self, cpus: &[usize]) -> Result<bool, PinError> {
        pinning::pin(&self.qmp, self.pid(), cpus).await
    }

    /// Lets each vCPU run on all CPUs of its cgroup.
    ///
    /// # Errors
    /// As for pinning.
    pub async fn unpin_vcpus(&self) -> Result<(), PinError> {
        pinning::unpin(&self.qmp, self.pid()).await
    }

    /// Gives a disk so many bytes, and tells the guest. An image that is larger is cut off: the caller has looked.
    ///
    /// # Errors
    /// There is no such disk, or QEMU refuses: a block device has to have the size already.
    pub async fn resize_disk(&self, serial: &str, bytes: u64) -> Result<(), HotplugError> {
        self.devices.resize_disk(serial, bytes).await
    }

    /// Plugs a disk into the running guest. The answer is the serial number by which the guest finds it.
    ///
    /// # Errors
    /// All places are taken, or QEMU refuses it or does not answer; what is left of it then goes when QEMU answers.
    pub async fn attach_disk(&self, disk: Disk) -> Result<String, HotplugError> {
        self.devices.attach_disk(disk).await
    }

    /// Unplugs a disk. When it returns everything that the guest has flushed is on it, and QEMU has closed it.
    ///
    /// # Errors
    /// There is no such disk, or the guest has not let go of it within ten seconds: it stays plugged in, and this may be
    /// called again.
    pub async fn detach_disk(&self, serial: &str) -> Result<(), HotplugError> {
        self.devices.detach_disk(serial).await
    }

    /// Gives the VM so many vCPUs, never fewer than it booted with. Those that come have to be brought online in the guest;
    /// when it returns, those that were to go are gone. Under TCG none goes.
    ///
    /// # Errors
    /// More than its largest size, QEMU refuses, or the guest does not let go of one within fifteen seconds. Some may have come
    /// or gone; this may be called again.
    pub async fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError> {
        self.devices.set_vcpus(count).await
    }

    /// Waits until vCPUs have been added that an earlier [`Vm::set_vcpus`] could not add, because the guest kept others in their places. One task may
    /// wait; nothing is lost while none does.
    pub async fn vcpus_came_late(&self) {
        self.devices.vcpus_came_late().await;
    }

    /// Asks the guest to have so much memory in all, never less than it booted with, rounded up to 4 MiB. Returns when it has taken
    /// what it lacked. The answer is what it has beyond, which it gives back when it can.
    ///
    /// # Errors
    /// More than its largest size, QEMU refuses, or the guest has not got on for fifteen seconds: it may do so later, unless
    /// this is called again with another amount.
    pub async fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError> {
        self.devices.set_memory(memory).await
    }

    /// Waits until what the guest has beyond what it was last asked to have is another amount than `before`, which was not nothing,
    /// for as long as that takes. The answer is that amount.
    ///
    /// # Errors
    /// QEMU has ended or does not answer.
    pub async fn surplus_other_than(&self, before: Mebibytes) -> Result<Mebibytes, MemoryError> {
        let surplus = self.devices.surplus().await;
        surplus.other_than(before).await
    }

    /// By which network devices are plugged in. May outlive the VM.
    #[must_use]
    pub fn nics(&self) -> NicHotplug {
        NicHotplug(self.devices.clone())
    }

    /// Plugs a device in that leads to a helper or to the host's kernel.
    pub(crate) async fn plug_backend(&self, backend: Backend) -> Result<(), HotplugError> {
        self.devices.plug_backend(backend).await
    }

    /// Stops the guest's vCPUs. Nothing happens if they are stopped.
    ///
    /// # Errors
    /// QEMU has ended or does not answer.
    pub async fn pause(&self) -> Result<(), QmpError> {
        self.qmp.execute("stop", Value::Null).await.map(drop)
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// QEMU has ended or does not answer.
    pub async fn resume(&self) -> Result<(), QmpError> {
        self.qmp.execute("cont", Value::Null).await.map(drop)
    }
}
