//! The sandbox's network: from a network namespace of the host to the VM's devices and the guest's configuration.
//!
//! ```text
//! host, pod's namespace                                    VM
//! veth, macvlan, … ◄── every frame, both ways ──► tap ═══ virtio-net, same name, MAC address, MTU
//! addresses, routes, rules, neighbours ── as they are ──► the guest's
//! ```
//! It owns the taps, the redirection, and the watch for changes. It changes nothing else in a namespace, nothing at all
//! in the host's own namespace, and nothing because of messages from a guest.

mod answers;
mod choice;
mod error;
mod guest;
mod join;
mod namespace;
mod plan;
mod rate;
mod record;
mod snapshot;
mod sys;
mod tap;
mod vm;
mod wire;

use std::time::Duration;

use base::chain;
use config::{HostNetwork, InterNetworking};
use hypervisor::{HotplugError, NetworkNamespace, Nic, NicHotplug, QmpError};
use protocol::agent::Network;
use tokio::sync::{mpsc, oneshot};

pub use self::error::PodNetworkError;
use self::guest::Wanted;
use self::join::{Device, Devices};
use self::namespace::{Claim, Namespace};
pub use self::plan::{NetworkPlan, Place};
pub use self::record::{NetworkRecord, remove};
pub use self::vm::VmNetwork;

/// Pause between two attempts to unplug a device.
const RETRY: Duration = Duration::from_secs(10);

/// Interfaces at the boot: each has a slot of the VM's first bus, which has 32, some for other devices.
const MOST_AT_BOOT: usize = 16;

/// The network namespace of one sandbox, and the taps that join it to the VM.
#[derive(Debug)]
pub struct PodNetwork {
    plan: NetworkPlan,
    /// None: the host's, of which nothing is used.
    namespace: Option<Namespace>,
    wanted: Wanted,
    devices: Devices,
    /// From the look to the last redirection, by which later ones know that somebody is there: of two sandboxes that start at once
    /// the one that is too late must not remove what is the other's.
    claim: Option<Claim>,
}

impl PodNetwork {
    /// Finds or makes the namespace and looks what is in it. Changes nothing there.
    ///
    /// # Errors
    /// The namespace is gone, or holds what a VM cannot have.
    pub async fn open(plan: NetworkPlan) -> Result<Self, PodNetworkError> {
        let namespace = match &plan.place {
            Place::Host => None,
            Place::At(path) => not_own(Namespace::open(path)?)?,
            Place::New { .. } => Some(Namespace::create()?),
        };
        if namespace.is_none() {
            if plan.host_network == HostNetwork::Deny {
                return Err(PodNetworkError::HostNetwork);
            }
            tracing::warn!(
                "the container asks for the host's network, which a VM cannot have: it runs without a network \
                 (runtime.host_network)"
            );
        }
        let mut pod = Self {
            plan,
            namespace,
            wanted: Wanted::default(),
            devices: Devices::default(),
            claim: None,
        };
        if let (Place::At(path), Some(namespace), true) = (&pod.plan.place, &pod.namespace, pod.is_wanted()) {
            pod.claim = Some(namespace.claim(path)?);
            let name = namespace.name().to_owned();
            let wanted = namespace.run(move |netlink| join::look(netlink, name)).await?;
            let count = wanted.interfaces.len();
            if count > MOST_AT_BOOT {
                return Err(PodNetworkError::TooMany {
                    namespace: namespace.name().to_owned(),
                    count,
                    most: MOST_AT_BOOT,
                });
            }
            pod.wanted = wanted;
        }
        Ok(pod)
    }

    fn is_wanted(&self) -> bool {
        self.plan.model != InterNetworking::None
    }

    /// The network namespace in which QEMU runs.
    #[must_use]
    pub fn vm_namespace(&self) -> NetworkNamespace {
        match &self.namespace {
            None => NetworkNamespace::Empty,
            Some(namespace) => NetworkNamespace::Of(namespace.descriptor()),
        }
    }

    /// What [`PodNetwork::wire`] is going to change, for [`remove`]; none if it goes by itself.
    #[must_use]
    pub fn record(&self) -> Option<NetworkRecord> {
        let indexes: Vec<u32> = self.wanted.interfaces.iter().map(|interface| interface.index).collect();
        match (&self.plan.place, &self.namespace) {
            (Place::At(path), Some(namespace)) if !indexes.is_empty() => Some(NetworkRecord {
                path: path.clone(),
                identity: namespace.identity(),
                interfaces: indexes,
            }),
            _ => None,
        }
    }

    /// What the guest is told when it boots; none if there is no network, or not yet.
    #[must_use]
    pub fn guest(&self) -> Option<Network> {
        (!self.wanted.interfaces.is_empty()).then(|| self.wanted.network.clone())
    }

    /// Whether the network comes, and changes, after the VM's start.
    #[must_use]
    pub fn comes_later(&self) -> bool {
        self.is_wanted() && matches!(self.plan.place, Place::New { .. })
    }

    /// Makes the taps, joins them to the interfaces, and gives the VM's devices.
    ///
    /// # Errors
    /// The kernel refuses. What was done until then is for [`remove`].
    pub async fn wire(&mut self) -> Result<Vec<Nic>, PodNetworkError> {
        let Some(namespace) = &self.namespace else {
            return Ok(Vec::new());
        };
        if self.is_wanted() && self.plan.place == (Place::New { filled_later: true }) {
            // One for the network that is there when the container starts. What comes later is plugged in.
            let (nic, device) = self.make_spare(namespace).await?;
            self.devices.made += 1;
            self.devices.spare.push_back(device);
            return Ok(vec![nic]);
        }
        let (plan, name) = (self.plan.clone(), namespace.name().to_owned());
        let interfaces = self.wanted.interfaces.clone();
        if interfaces.is_empty() {
            self.claim = None;
            return Ok(Vec::new());
        }
        let nics = namespace
            .run(move |netlink| join::join_all(netlink, name, plan, interfaces))
            .await?;
        self.claim = None;
        Ok(nics)
    }

    async fn make_spare(&self, namespace: &Namespace) -> Result<(Nic, Device), PodNetworkError> {
        let (plan, name, place) = (self.plan.clone(), namespace.name().to_owned(), self.devices.made);
        namespace
            .run(move |netlink| join::make_spare(netlink, name, plan, place))
            .await
    }

    /// Looks again where the network comes later, joins what is new, plugs in devices for it and unplugs those of what has
    /// gone, and gives what the guest is to have; none if that is what it was told, and not to be told again.
    ///
    /// # Errors
    /// As [`PodNetwork::open`] and [`PodNetwork::wire`].
    pub async fn refresh(&mut self, nics: &NicHotplug, again: bool) -> Result<Option<Network>, PodNetworkError> {
        let Some(namespace) = self.namespace.clone().filter(|_| self.comes_later()) else {
            return Ok(None);
        };
        let (mut wanted, without) = self.rejoin(&namespace).await?;
        if !without.is_empty() {
            self.plug_in(&namespace, nics, &without).await;
            (wanted, _) = self.rejoin(&namespace).await?;
        }
        self.unplug_spare(nics).await;
        let changed = wanted.network != self.wanted.network;
        self.wanted = wanted;
        Ok((changed || again).then(|| self.wanted.network.clone()))
    }

    async fn rejoin(&mut self, namespace: &Namespace) -> Result<(Wanted, Vec<String>), PodNetworkError> {
        let (name, devices) = (namespace.name().to_owned(), self.devices.clone());
        let rates = self.plan.rates;
        let joined = namespace
            .run(move |netlink| join::rejoin(netlink, name, rates, devices))
            .await?;
        self.devices = joined.devices;
        Ok((joined.wanted?, joined.without))
    }

    /// A device for each of these interfaces. One that cannot be had is told; the network is what can be had.
    async fn plug_in(&mut self, namespace: &Namespace, nics: &NicHotplug, interfaces: &[String]) {
        for name in interfaces {
            let made = self.make_spare(namespace).await;
            // Whatever comes of it, its number is used up.
            self.devices.made += 1;
            let plugged = match made {
                Ok((nic, mut device)) => match attach(nics.clone(), nic).await {
                    Ok(plugged) => {
                        device.plugged = Some(plugged);
                        Ok(device)
                    }
                    Err(error) => Err(chain(&error)),
                },
                Err(error) => Err(chain(&error)),
            };
            match plugged {
                Ok(device) => self.devices.spare.push_back(device),
                Err(error) => tracing::warn!(name, error, "the container does not get this interface"),
            }
        }
    }

    /// Before the guest is told: it finds the device gone, as it finds the interface gone. A device that the guest does not let go of
    /// at once is tried again in a task of its own.
    async fn unplug_spare(&mut self, nics: &NicHotplug) {
        let spare = std::mem::take(&mut self.devices.spare);
        let mut tried = Vec::new();
        for device in spare {
            match &device.plugged {
                // Given to no interface any more: it may go at any moment.
                Some(plugged) => tried.push(unplug(nics.clone(), plugged.clone())),
                None => self.devices.spare.push_back(device),
            }
        }
        for tried in tried {
            // An end without an answer is that of the VM.
            let _ = tried.await;
        }
    }

    /// Tells of changes where the network comes later, until nobody listens any more. Those that follow one another
    /// closely are told once.
    #[must_use]
    pub fn watch(&self) -> mpsc::Receiver<()> {
        let (sender, changes) = mpsc::channel(1);
        if let Some(namespace) = self.namespace.clone().filter(|_| self.comes_later()) {
            tokio::spawn(async move {
                let inside = namespace.clone();
                let told = namespace.run(move |_| async move {
                    let told = join::tell_changes(sender).await;
                    told.map_err(|source| inside.cannot_enter(source))
                });
                if let Err(error) = told.await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "later changes of the network are not seen");
                }
            });
        }
        changes
    }
}

/// None if it is the one that we are in, which is the host's.
fn not_own(namespace: Namespace) -> Result<Option<Namespace>, PodNetworkError> {
    Ok((!namespace.is_own()?).then_some(namespace))
}

/// Plugs a device in. If the caller gives up meanwhile, nobody knows the device's name, and it is unplugged again.
async fn attach(nics: NicHotplug, nic: Nic) -> Result<String, HotplugError> {
    let (sender, plugged) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(Ok(plugged)) = sender.send(nics.attach(nic).await) {
            drop(unplug(nics, plugged));
        }
    });
    plugged.await.unwrap_or(Err(HotplugError::Interrupted))
}

/// Unplugs a device, however often the guest has to be asked. The answer comes after the first attempt.
fn unplug(nics: NicHotplug, plugged: String) -> oneshot::Receiver<()> {
    let (sender, tried) = oneshot::channel();
    tokio::spawn(async move {
        let mut sender = Some(sender);
        loop {
            match nics.detach(&plugged).await {
                Ok(()) | Err(HotplugError::Unknown(_)) => return,
                Err(
                    HotplugError::Interrupted
                    | HotplugError::Step {
                        source: QmpError::Closed,
                        ..
                    },
                ) => return,
                Err(error) if sender.is_some() => {
                    let error = chain(&error);
                    tracing::warn!(
                        plugged,
                        error,
                        "the VM keeps a network device: the guest is asked again"
                    );
                }
                Err(_) => {}
            }
            if let Some(sender) = sender.take() {
                // Nobody need wait for it.
                let _ = sender.send(());
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    tried
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use config::Config;
    use hypervisor::MacAddress;
    use hypervisor::scripted::{Guest, ScriptedQemu};

    use super::*;

    fn nic() -> (MacAddress, Nic) {
        let mac = MacAddress([2, 0, 0, 0, 0, 7]);
        let nic = Nic {
            mac,
            taps: Arc::new([File::open("/dev/null").unwrap().into()]),
            vhost: Arc::new([]),
        };
        (mac, nic)
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_the_guest_holds_is_given_to_no_network_and_goes_when_the_guest_lets_go() {
        let (qemu, nics) = ScriptedQemu::with_nics();
        let (mac, nic) = nic();
        let device = Device {
            mac,
            tap: "tap".to_owned(),
            plugged: Some(nics.attach(nic).await.unwrap()),
        };
        let mut pod = PodNetwork {
            plan: NetworkPlan::new(Place::New { filled_later: true }, &Config::default()),
            namespace: None,
            wanted: Wanted::default(),
            devices: Devices::default(),
            claim: None,
        };
        pod.devices.spare.push_back(device);
        qemu.set_guest(Guest::Refuses);
        pod.unplug_spare(&nics).await;
        assert!(pod.devices.spare.is_empty());
        qemu.set_guest(Guest::LetsGo);
        tokio::time::sleep(RETRY * 2).await;
        assert_eq!(qemu.has(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_nobody_waits_for_is_unplugged_again() {
        let (qemu, nics) = ScriptedQemu::with_nics();
        let attaching = attach(nics, nic().1);
        assert!(tokio::time::timeout(Duration::ZERO, attaching).await.is_err());
        tokio::time::sleep(RETRY).await;
        assert!(qemu.asked().contains(&"device_del".to_owned()));
        assert_eq!(qemu.has(), Vec::<String>::new());
    }
}
