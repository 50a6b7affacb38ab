//! A running VM: what can be asked of it, and its end.
//!
//! Owns QEMU, the helpers and their sockets. Knows nothing of the guest.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use crate::children::Child;
use crate::console::Console;
use crate::cpus::{self, Sample};
use crate::ended::{self, Ended, Watched};
use crate::files::SocketFile;
use crate::hotplug::{Disk, Hotplug, HotplugError, NicHotplug};
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
    hotplug: Hotplug,
    console: Console,
    stopping: Arc<AtomicBool>,
    ended: watch::Receiver<Option<Arc<Ended>>>,
    _files: Vec<SocketFile>,
}

/// What a VM is made of.
pub(crate) struct Parts {
    pub(crate) qemu: Child,
    pub(crate) helpers: Vec<Child>,
    pub(crate) qmp: Qmp,
    pub(crate) console: Console,
    pub(crate) files: Vec<SocketFile>,
    /// QEMU's name of the thread that serves disks, if it has one.
    pub(crate) iothread: Option<&'static str>,
}

impl Vm {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            qemu,
            helpers,
            qmp,
            console,
            files,
            iothread,
        } = parts;
        let stopping = Arc::new(AtomicBool::new(false));
        let ended = ended::watch(Watched {
            qemu: qemu.handle().clone(),
            helpers: helpers.iter().map(|helper| helper.handle().clone()).collect(),
            qmp: qmp.clone(),
            console: console.clone(),
            stopping: Arc::clone(&stopping),
        });
        let pid = qemu.handle().pid;
        let children = std::iter::once(qemu).chain(helpers).collect();
        Self {
            pid,
            children,
            hotplug: Hotplug::new(qmp.clone(), iothread),
            qmp,
            console,
            stopping,
            ended,
            _files: files,
        }
    }

    /// QEMU's process.
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

    /// Ends the VM: asks QEMU, and kills it after two seconds. Returns when no child is left. May be called again, and
    /// by several.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let asked = async {
            // If QEMU cannot be asked it has ended, or is killed below.
            let _ = self.qmp.execute("quit", Value::Null).await;
            self.ended().await
        };
        if tokio::time::timeout(QUIT_TIMEOUT, asked).await.is_err() {
            self.children.iter().for_each(|child| child.handle().kill());
            self.ended().await;
        }
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

    /// Plugs a disk into the running guest. The answer is the serial number by which the guest finds it.
    ///
    /// # Errors
    /// All places are taken, or QEMU refuses it; nothing is left of it then.
    pub async fn attach_disk(&self, disk: Disk) -> Result<String, HotplugError> {
        self.hotplug.attach(disk).await
    }

    /// Unplugs a disk. When it returns everything that the guest has flushed is on it, and QEMU has closed it.
    ///
    /// # Errors
    /// There is no such disk, or the guest has not let go of it within ten seconds: it stays plugged in, and this may be
    /// called again.
    pub async fn detach_disk(&self, serial: &str) -> Result<(), HotplugError> {
        self.hotplug.detach(serial).await
    }

    /// By which network devices are plugged in. May outlive the VM.
    #[must_use]
    pub fn nics(&self) -> NicHotplug {
        NicHotplug(self.hotplug.clone())
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
