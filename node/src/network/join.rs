//! The changes in the namespace: creates devices, joins them to interfaces, and watches for changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use base::chain;
use config::InterNetworking;
use futures::StreamExt;
use hypervisor::{MacAddress, Nic};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;

use super::choice::{Own, PodInterface};
use super::error::PodNetworkError;
use super::guest::{self, Wanted};
use super::plan::{NetworkPlan, Rates};
use super::wire::Wiring;
use super::{snapshot, tap};

/// A change comes in many messages: they are told once when none has come for this long.
const SETTLES: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) mac: MacAddress,
    pub(super) tap: String,
    /// Its name, if it was plugged in after the VM's start.
    pub(super) plugged: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Devices {
    /// By the indexes of the interfaces that they are joined to.
    joined: BTreeMap<u32, Device>,
    pub(super) spare: VecDeque<Device>,
    /// How many there have been: no two have one MAC address or one tap's name.
    pub(super) made: usize,
}

/// What came of a look at the namespace.
pub(super) struct Rejoined {
    /// Or why it cannot be had: the devices are as they were left.
    pub(super) wanted: Result<Wanted, PodNetworkError>,
    pub(super) devices: Devices,
    /// Names of the interfaces for which there was no device.
    pub(super) without: Vec<String>,
}

/// Looks what is there before anything is made.
pub(super) async fn look(netlink: Handle, namespace: String) -> Result<Wanted, PodNetworkError> {
    let snapshot = snapshot::take(&netlink, &namespace).await?;
    let mut taken = BTreeSet::new();
    guest::wanted(&snapshot, &namespace, &Own::default(), &mut |place, interface| {
        Some(guest::device_mac(&mut taken, place, interface.mac))
    })
}

/// A device for each interface.
pub(super) async fn join_all(
    netlink: Handle,
    namespace: String,
    plan: NetworkPlan,
    interfaces: Vec<PodInterface>,
) -> Result<Vec<Nic>, PodNetworkError> {
    let wiring = Wiring {
        netlink: &netlink,
        namespace: &namespace,
        rates: plan.rates,
    };
    let mut nics = Vec::with_capacity(interfaces.len());
    for (place, interface) in interfaces.iter().enumerate() {
        let name = tap::name(place);
        let taps = if plan.model == InterNetworking::Macvtap {
            wiring.macvtap(interface, &name, plan.queues).await?
        } else {
            let taps = wiring.make_tap(&name, plan.queues)?;
            wiring.redirect(interface, &name).await?;
            taps
        };
        nics.push(nic(&wiring, interface.device, &name, taps, &plan)?);
    }
    Ok(nics)
}

fn nic(
    wiring: &Wiring<'_>,
    mac: MacAddress,
    name: &str,
    taps: Arc<[OwnedFd]>,
    plan: &NetworkPlan,
) -> Result<Nic, PodNetworkError> {
    let vhost = if plan.vhost {
        wiring.vhost(name, plan.queues)?
    } else {
        Arc::new([])
    };
    Ok(Nic { mac, taps, vhost })
}

/// A device that nothing is joined to yet.
pub(super) async fn make_spare(
    netlink: Handle,
    namespace: String,
    plan: NetworkPlan,
    place: usize,
) -> Result<(Nic, Device), PodNetworkError> {
    let wiring = Wiring {
        netlink: &netlink,
        namespace: &namespace,
        rates: plan.rates,
    };
    let device = Device {
        mac: guest::own_mac(u32::try_from(place + 1).unwrap_or(u32::MAX)),
        tap: tap::name(place),
        plugged: None,
    };
    let taps = wiring.make_tap(&device.tap, plan.queues)?;
    let nic = nic(&wiring, device.mac, &device.tap, taps, &plan)?;
    Ok((nic, device))
}

/// Joins what is new, as far as there are devices for it, and takes back the devices of what has gone.
pub(super) async fn rejoin(
    netlink: Handle,
    namespace: String,
    rates: Rates,
    mut devices: Devices,
) -> Result<Rejoined, PodNetworkError> {
    let wiring = Wiring {
        netlink: &netlink,
        namespace: &namespace,
        rates,
    };
    let snapshot = snapshot::take(&netlink, &namespace).await?;
    // One that has come back under the number of one that went, or that somebody has taken the join off, is a new one.
    let gone = devices
        .joined
        .extract_if(.., |index, _| !snapshot.ingress.contains(index));
    for (index, device) in gone.collect::<Vec<_>>() {
        wiring.unlimit(index).await;
        wiring.release(&device.tap).await;
        devices.spare.push_back(device);
    }
    let own = Own {
        // Also those of devices that could not be plugged in: QEMU may have them open still. No number is used twice.
        taps: (0..devices.made).map(tap::name).collect(),
        joined: devices.joined.keys().copied().collect(),
    };
    let (mut new, mut without) = (BTreeMap::new(), Vec::new());
    let wanted = guest::wanted(&snapshot, &namespace, &own, &mut |_, interface| {
        if let Some(device) = devices.joined.get(&interface.index) {
            return Some(device.mac);
        }
        let Some(device) = devices.spare.pop_front() else {
            without.push(interface.name.clone());
            return None;
        };
        let mac = device.mac;
        new.insert(interface.index, device);
        Some(mac)
    });
    let interfaces = wanted.as_ref().map_or(&[][..], |wanted| &wanted.interfaces);
    let mut failed = None;
    for interface in interfaces {
        let Some(device) = new.remove(&interface.index) else {
            continue;
        };
        // It may have gone since the look.
        match wiring.redirect_or_undo(interface, &device.tap).await {
            Ok(()) => {
                if let Err(error) = wiring.let_answers_in(interface, &device.tap).await {
                    let error = chain(&error);
                    tracing::warn!(
                        error,
                        "Docker's name server does not reach the servers of the container's network"
                    );
                }
                devices.joined.insert(interface.index, device);
            }
            Err(error) => {
                devices.spare.push_back(device);
                failed = Some(error);
            }
        }
    }
    devices.spare.extend(new.into_values());
    let wanted = failed.map_or(wanted, Err);
    Ok(Rejoined {
        wanted,
        devices,
        without,
    })
}

/// Sends a word for every change, until the receiver is gone.
pub(super) async fn tell_changes(sender: mpsc::Sender<()>) -> Result<(), std::io::Error> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    let (connection, _handle, mut news) = rtnetlink::new_multicast_connection(&groups)?;
    let connection = tokio::spawn(connection);
    loop {
        tokio::select! {
            () = sender.closed() => break,
            change = news.next() => if change.is_none() { break },
        }
        // More may be on the way; each of them starts the wait anew.
        while let Ok(Some(_)) = tokio::time::timeout(SETTLES, news.next()).await {}
        // A full channel: the word is there, and not taken yet.
        let _ = sender.try_send(());
    }
    connection.abort();
    Ok(())
}
