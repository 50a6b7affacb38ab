//! A VM without a VM: it is launched, may end, and hands over the connections that the fake guest dials.

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use config::Mebibytes;
use guest::vm::{Connection, Connections, Ending, Launcher, RunningVm, VmLaunchError};
use hypervisor::{CpuError, Disk, HotplugError, MemoryError};
use node::network::PodNetworkError;
use node::sizing::HostLimits;
use protocol::agent::Network;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::fake_guest::Guest;

pub(crate) const PID: u32 = 4242;

pub(crate) const CONSOLE: &str = "Kernel panic - not syncing: No working init found";

/// What becomes of the VM when it is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// The agent calls, says hello, and serves.
    Works,
    /// The same, but the VMM starts only when the guest is released.
    Late,
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
            Boot::Works | Boot::Late | Boot::NoLaunch | Boot::GivesUp | Boot::Dies => Duration::from_secs(20),
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
    async fn launch(&self) -> Result<(Box<dyn RunningVm>, Box<dyn Connections>), VmLaunchError> {
        if self.boot == Boot::NoLaunch {
            let why = "QEMU did not start: /dev/kvm: Permission denied";
            return Err(VmLaunchError::Failed(why.to_owned()));
        }
        if self.boot == Boot::Late {
            self.guest.until_released().await;
        }
        let connections = FakeConnections {
            dialled: self.guest.take_dialled(),
            ended: self.guest.ended(),
        };
        match self.boot {
            Boot::Works | Boot::Late => drop(tokio::spawn(Arc::clone(&self.guest).boot())),
            Boot::OnlyHello => drop(tokio::spawn(Arc::clone(&self.guest).hello())),
            Boot::GivesUp => drop(tokio::spawn(Arc::clone(&self.guest).give_up())),
            Boot::Dies => self.guest.die("QEMU exited with status 1", false),
            Boot::Silent | Boot::NoLaunch => {}
        }
        Ok((Box::new(FakeVm(Arc::clone(&self.guest))), Box::new(connections)))
    }
}

struct FakeVm(Arc<Guest>);

#[async_trait]
impl RunningVm for FakeVm {
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

    async fn refresh_network(&self, again: bool) -> Result<Option<Network>, PodNetworkError> {
        let changed = self.0.network.has_changed();
        Ok((changed || again).then(Network::default))
    }

    async fn network_changed(&self) {
        self.0.network.next_change().await;
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
