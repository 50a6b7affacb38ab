//! A VM without a VM: it is launched, may end, and hands over the connections that the fake guest dials.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use config::Mebibytes;
use guest::vm::{Connection, Connections, Ending, LaunchError, Launcher, RunningVm};
use hypervisor::{CpuError, Disk, HotplugError, MemoryError};
use node::sizing::HostLimits;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::fake_guest::Guest;

/// The VMM's pid.
pub(crate) const PID: u32 = 4242;

/// What is on the console.
pub(crate) const CONSOLE: &str = "Kernel panic - not syncing: No working init found";

/// The memory that it boots with, in MiB.
const BOOT: u32 = 256;

/// What becomes of the VM when it is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// The agent calls, says hello, and serves.
    Works,
    /// The VMM cannot be started.
    NoLaunch,
    /// Nothing is ever heard of the guest.
    Silent,
    /// The agent says hello and is not heard of again.
    OnlyHello,
    /// The agent says hello, reports that it cannot set the guest up, and powers off.
    GivesUp,
    /// The VM ends before the agent calls.
    Dies,
}

impl Boot {
    pub(super) fn dial_timeout(self) -> Duration {
        match self {
            Boot::Silent | Boot::OnlyHello => Duration::from_millis(300),
            Boot::Works | Boot::NoLaunch | Boot::GivesUp | Boot::Dies => Duration::from_secs(20),
        }
    }
}

pub(super) struct FakeLauncher {
    boot: Boot,
    guest: Arc<Guest>,
}

impl FakeLauncher {
    pub(super) fn new(boot: Boot, guest: Arc<Guest>) -> Self {
        Self { boot, guest }
    }
}

#[async_trait]
impl Launcher for FakeLauncher {
    async fn launch(&self) -> Result<(Box<dyn RunningVm>, Box<dyn Connections>), LaunchError> {
        if self.boot == Boot::NoLaunch {
            let why = "QEMU did not start: /dev/kvm: Permission denied";
            return Err(LaunchError::Failed(why.to_owned()));
        }
        let connections = FakeConnections {
            dialled: self.guest.take_dialled(),
            ended: self.guest.ended(),
        };
        match self.boot {
            Boot::Works => drop(tokio::spawn(Arc::clone(&self.guest).boot())),
            Boot::OnlyHello => drop(tokio::spawn(Arc::clone(&self.guest).hello())),
            Boot::GivesUp => drop(tokio::spawn(Arc::clone(&self.guest).give_up())),
            Boot::Dies => self.guest.die("QEMU exited with status 1", false),
            Boot::Silent | Boot::NoLaunch => {}
        }
        Ok((Box::new(FakeMachine(Arc::clone(&self.guest))), Box::new(connections)))
    }
}

struct FakeMachine(Arc<Guest>);

#[async_trait]
impl RunningVm for FakeMachine {
    fn pid(&self) -> u32 {
        PID
    }

    async fn ended(&self) -> Ending {
        let mut ended = self.0.ended();
        let ended = ended.wait_for(Option::is_some).await.unwrap();
        ended.clone().unwrap()
    }

    async fn console_tail(&self) -> String {
        CONSOLE.to_owned()
    }

    async fn stop(&self, grace: Duration) {
        let _ = tokio::time::timeout(grace, self.ended()).await;
        self.0.die("it was stopped", false);
    }

    async fn attach_disk(&self, disk: Disk) -> Result<String, HotplugError> {
        self.0.disks.attach(&disk).await
    }

    async fn detach_disk(&self, serial: &str) -> Result<(), HotplugError> {
        self.0.disks.detach(serial)
    }

    async fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError> {
        self.0.size.set_vcpus(count)
    }

    async fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError> {
        self.0.size.set_memory(memory)
    }

    async fn surplus_other_than(&self, before: Mebibytes) -> Result<Mebibytes, MemoryError> {
        tokio::select! {
            beyond = self.0.size.surplus_other_than(before) => Ok(beyond),
            _ = self.ended() => Err(MemoryError::Full),
        }
    }

    async fn limit_host(&self, limits: HostLimits) {
        self.0.size.limit_host(|_| limits);
    }

    async fn raise_host(&self, limits: HostLimits) {
        self.0.size.limit_host(|before| limits.with_room_of(before));
    }
}

/// The size of the fake VM, as it was set, change by change.
#[derive(Default)]
pub(crate) struct FakeSize {
    /// "2 vCPUs", "512 MiB".
    pub(crate) changes: watch::Sender<Vec<String>>,
    /// Changes of the VM's memory, and of what the host allows it.
    steps: watch::Sender<Vec<String>>,
    /// The guest takes no memory any more.
    pub(crate) stuck: AtomicBool,
    /// The guest gives nothing back by itself.
    pub(crate) clings: AtomicBool,
    host: Mutex<HostLimits>,
    asked: AtomicU32,
    /// MiB.
    has: watch::Sender<u32>,
    /// How many wait for the guest to give memory back.
    pub(crate) waited_for: watch::Sender<usize>,
}

impl FakeSize {
    fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError> {
        self.changes
            .send_modify(|changes| changes.push(format!("{count} vCPUs")));
        Ok(())
    }

    fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError> {
        // Asking once more for the same has the guest try again, and is no change.
        if self.asked.swap(memory.0, Ordering::SeqCst) != memory.0 {
            self.changes.send_modify(|changes| changes.push(memory.to_string()));
            self.step(memory.to_string());
        }
        if memory.0 > self.has.borrow().max(BOOT) {
            if self.stuck.load(Ordering::SeqCst) {
                return Err(MemoryError::Stuck {
                    has: Mebibytes(0),
                    asked: memory,
                });
            }
            self.has.send_replace(memory.0);
        } else if !self.clings.load(Ordering::SeqCst) {
            self.has.send_replace(memory.0);
        }
        Ok(self.beyond(*self.has.borrow()))
    }

    fn beyond(&self, has: u32) -> Mebibytes {
        Mebibytes(has.saturating_sub(self.asked.load(Ordering::SeqCst)))
    }

    async fn surplus_other_than(&self, before: Mebibytes) -> Mebibytes {
        let _waits = Waits::new(&self.waited_for);
        let mut has = self.has.subscribe();
        let has = has.wait_for(|has| self.beyond(*has) != before).await;
        self.beyond(*has.unwrap())
    }

    /// The guest has given back what it had beyond this, by itself.
    pub(crate) fn gives_back_to(&self, memory: u32) {
        self.has.send_replace(memory);
    }

    fn limit_host(&self, limits: impl FnOnce(HostLimits) -> HostLimits) {
        let mut host = self.host.lock().unwrap();
        let limits = limits(*host);
        let changes = limits.memory != host.memory;
        *host = limits;
        if changes {
            let memory = limits.memory;
            let memory = memory.map_or("none".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            self.step(format!("host: {memory}"));
        }
    }

    fn step(&self, step: String) {
        self.steps.send_modify(|steps| steps.push(step));
    }

    /// Waits until so many steps have been made, and gives them.
    pub(crate) async fn steps(&self, count: usize) -> Vec<String> {
        let mut steps = self.steps.subscribe();
        let made = steps.wait_for(|steps| steps.len() >= count).await;
        made.unwrap().clone()
    }

    /// Waits until so many changes have been made, and gives them.
    pub(crate) async fn after(&self, count: usize) -> Vec<String> {
        let mut changes = self.changes.subscribe();
        changes
            .wait_for(|changes| changes.len() >= count)
            .await
            .unwrap()
            .clone()
    }
}

/// One who waits.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The disks of the fake VM.
#[derive(Default)]
pub(crate) struct FakeDisks {
    plugged: Mutex<BTreeSet<String>>,
    last: AtomicUsize,
    /// How many can be plugged in; 0 is 31, as in QEMU.
    pub(crate) places: AtomicUsize,
    /// The guest does not let go of a disk.
    pub(crate) clings: AtomicBool,
    /// Plugging in waits until this is false.
    pub(crate) slow: watch::Sender<bool>,
    /// How often plugging in was begun.
    pub(crate) begun: watch::Sender<usize>,
}

impl FakeDisks {
    async fn attach(&self, disk: &Disk) -> Result<String, HotplugError> {
        // The shim hands over a file that is open for what it says.
        let flags = rustix::fs::fcntl_getfl(&disk.file).unwrap();
        let writes = flags.contains(rustix::fs::OFlags::RDWR);
        assert_eq!(writes, !disk.read_only);
        self.begun.send_modify(|begun| *begun += 1);
        let mut slow = self.slow.subscribe();
        slow.wait_for(|slow| !*slow).await.unwrap();
        let places = match self.places.load(Ordering::SeqCst) {
            0 => 31,
            places => places,
        };
        if self.plugged().len() >= places {
            return Err(HotplugError::Full);
        }
        let serial = format!("tatami-{}", self.last.fetch_add(1, Ordering::SeqCst) + 1);
        self.plugged.lock().unwrap().insert(serial.clone());
        Ok(serial)
    }

    fn detach(&self, serial: &str) -> Result<(), HotplugError> {
        if self.clings.load(Ordering::SeqCst) {
            return Err(HotplugError::Held {
                device: format!("disk {serial}"),
                reason: "it clings".to_owned(),
            });
        }
        assert!(
            self.plugged.lock().unwrap().remove(serial),
            "{serial} is unplugged twice"
        );
        Ok(())
    }

    /// The serial numbers of what is plugged in.
    pub(crate) fn plugged(&self) -> Vec<String> {
        self.plugged.lock().unwrap().iter().cloned().collect()
    }
}

struct FakeConnections {
    dialled: mpsc::UnboundedReceiver<UnixStream>,
    ended: watch::Receiver<Option<Ending>>,
}

#[async_trait]
impl Connections for FakeConnections {
    async fn accept(&mut self) -> io::Result<Connection> {
        tokio::select! {
            connection = self.dialled.recv() => match connection {
                Some(connection) => Ok(Box::new(connection)),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            },
            _ = self.ended.wait_for(Option::is_some) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// The guest's ends of its connections: they break when the VM ends.
#[derive(Default)]
pub(super) struct Cables(Mutex<Vec<std::os::unix::net::UnixStream>>);

impl Cables {
    /// A new connection: the guest's end, the host's end.
    pub(super) fn lay(&self) -> io::Result<(UnixStream, UnixStream)> {
        let (guest, host) = std::os::unix::net::UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        host.set_nonblocking(true)?;
        self.0.lock().unwrap().push(guest.try_clone()?);
        Ok((UnixStream::from_std(guest)?, UnixStream::from_std(host)?))
    }

    /// Waits until the host has hung up the first few; false if it has not after 5 s. Blocks.
    pub(super) fn hung_up(&self, count: usize) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let cables: Vec<_> = {
            let cables = self.0.lock().unwrap();
            cables[..count].iter().map(|cable| cable.try_clone().unwrap()).collect()
        };
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        cables
            .iter()
            .all(|cable| poll(&mut [PollFd::new(cable, PollFlags::RDHUP)], Some(&limit)).unwrap() > 0)
    }

    pub(super) fn cut(&self) {
        for cable in self.0.lock().unwrap().drain(..) {
            // One that has been closed already is as good as cut.
            let _ = cable.shutdown(std::net::Shutdown::Both);
        }
    }
}
