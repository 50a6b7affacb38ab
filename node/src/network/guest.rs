//! Converts the contents of a namespace into the guest's configuration. Pure.
//!
//! The guest's kernel creates by itself what the host's kernel has created by itself: routes of local addresses and of
//! their prefixes. Everything that somebody has configured goes to the guest. Temporary state (lifetimes, link states,
//! learnt neighbours) does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hypervisor::MacAddress;
use protocol::agent::{Interface, Network};
use rtnetlink::packet_core::Emitable;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo};
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use super::choice::{Choice, Own, PodInterface};
use super::error::PodNetworkError;
use super::snapshot::Snapshot;

/// The table that the kernel alone fills (`RT_TABLE_LOCAL`, rtnetlink(7)).
const LOCAL_TABLE: u32 = 255;

/// Priorities of the rules that every namespace has (ip-rule(8)).
const DEFAULT_RULES: [u32; 3] = [0, 32766, 32767];

/// What the VM and its guest are to have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    /// In the order of the guest's list.
    pub(super) interfaces: Vec<PodInterface>,
    pub(super) network: Network,
}

/// Chooses the interfaces and translates the rest. `device` gives, for a place in the guest's list and an interface, the
/// MAC address of the device that is to be joined to it; without one the interface is left out.
///
/// # Errors
/// An interface is in use for the pod and cannot be had in a VM, or another sandbox has it.
pub(super) fn wanted(
    snapshot: &Snapshot,
    namespace: &str,
    own: &Own,
    device: &mut dyn FnMut(u32, &PodInterface) -> Option<MacAddress>,
) -> Result<Wanted, PodNetworkError> {
    let mut wanted = Wanted::default();
    let mut places = BTreeMap::new();
    let choice = Choice {
        snapshot,
        namespace,
        own,
    };
    for link in &snapshot.links {
        let Some(mut interface) = choice.of(link)? else {
            continue;
        };
        let place = u32::try_from(wanted.interfaces.len() + 1).unwrap_or(u32::MAX);
        let Some(device) = device(place, &interface) else {
            continue;
        };
        interface.device = device;
        places.insert(interface.index, place);
        wanted.network.interfaces.push(Interface {
            device: device.0.to_vec(),
            mac: interface.mac.0.to_vec(),
            name: interface.name.clone(),
            mtu: interface.mtu,
            up: link.header.flags.contains(LinkFlags::Up),
            ipv6: snapshot.accept_ra.contains_key(&interface.name),
            accept_ra: snapshot.accept_ra.get(&interface.name).copied().unwrap_or_default(),
            no_arp: link.header.flags.contains(LinkFlags::Noarp),
            sysctls: snapshot
                .sysctls
                .get(&interface.name)
                .into_iter()
                .flatten()
                .map(owned)
                .collect(),
            ..Interface::default()
        });
        wanted.interfaces.push(interface);
    }
    let network = &mut wanted.network;
    network.addresses = encoded(
        snapshot
            .addresses
            .iter()
            .filter_map(|it| address(it, snapshot, &places)),
    );
    let mut routes: Vec<RouteMessage> = snapshot
        .routes
        .iter()
        .filter_map(|it| route(it, snapshot, &places))
        .collect();
    // A gateway is reached by a route without one.
    routes.sort_by_key(has_gateway);
    network.routes = encoded(routes);
    network.rules = encoded(snapshot.rules.iter().filter(|rule| is_set(rule)).cloned());
    network.neighbours = encoded(snapshot.neighbours.iter().filter_map(|it| neighbour(it, &places)));
    Ok(wanted)
}

/// An address of our own for the device at a place: locally administered (IEEE 802), and not likely in use.
pub(super) fn own_mac(place: u32) -> MacAddress {
    let [.., high, low] = place.to_be_bytes();
    MacAddress([0x02, b't', b'a', b't', high, low])
}

/// The address of the device for an interface that is there at the boot: the interface's own, unless another device has it.
/// ipvlan interfaces share that of their parent, and the guest finds its devices by theirs.
pub(super) fn device_mac(taken: &mut BTreeSet<[u8; 6]>, place: u32, mac: MacAddress) -> MacAddress {
    if taken.insert(mac.0) { mac } else { own_mac(place) }
}

fn owned((setting, value): (&String, &String)) -> (String, String) {
    (setting.clone(), value.clone())
}

fn encoded<T: Emitable>(messages: impl IntoIterator<Item = T>) -> Vec<Vec<u8>> {
    let encode = |message: T| {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    };
    messages.into_iter().map(encode).collect()
}

fn address(address: &AddressMessage, snapshot: &Snapshot, places: &BTreeMap<u32, u32>) -> Option<AddressMessage> {
    let place = *places.get(&address.header.index)?;
    let flags = flags_of(address);
    let ipv6 = address.header.family == AddressFamily::Inet6;
    // What a router has announced to the host, it announces to the guest too.
    let announced = ipv6 && !flags.contains(AddressFlags::Permanent);
    if announced || flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    let mut kept = flags & (AddressFlags::Noprefixroute | AddressFlags::Homeaddress | AddressFlags::Mcautojoin);
    if ipv6 {
        // The host has made sure that nobody else has it, and asking again takes a second.
        kept |= AddressFlags::Nodad;
    }
    let makes_a_route = address.header.prefix_len < if ipv6 { 128 } else { 32 };
    // None is made where the interface is down.
    let up = snapshot
        .links
        .iter()
        .any(|link| link.header.index == address.header.index && link.header.flags.contains(LinkFlags::Up));
    if makes_a_route && up && !snapshot.routes.iter().any(|route| is_prefix_route(route, address)) {
        kept |= AddressFlags::Noprefixroute;
    }
    let mut guest = address.clone();
    guest.header.index = place;
    guest.header.flags = AddressHeaderFlags::from_bits_truncate(kept.bits() as u8);
    guest.attributes.retain(|attribute| {
        matches!(
            attribute,
            AddressAttribute::Address(_)
                | AddressAttribute::Local(_)
                | AddressAttribute::Label(_)
                | AddressAttribute::Broadcast(_)
                | AddressAttribute::RoutePriority(_)
        )
    });
    guest.attributes.push(AddressAttribute::Flags(kept));
    if flags.contains(AddressFlags::Permanent | AddressFlags::Deprecated) {
        // For ever, and never a packet's source of its own accord: `preferred_lft 0` (ip-address(8)).
        let mut life = CacheInfo::default();
        life.ifa_valid = u32::MAX;
        guest.attributes.push(AddressAttribute::CacheInfo(life));
    }
    Some(guest)
}

/// All 32 of them, of which the header has 8.
fn flags_of(address: &AddressMessage) -> AddressFlags {
    let all = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(address.header.flags.bits())))
}

/// Whether it is the route that the kernel makes for the prefix of this address.
fn is_prefix_route(route: &RouteMessage, address: &AddressMessage) -> bool {
    let same_place = route.header.protocol == RouteProtocol::Kernel
        && route.header.address_family == address.header.family
        && route.header.destination_prefix_length == address.header.prefix_len
        && route.attributes.contains(&RouteAttribute::Oif(address.header.index))
        && !has_gateway(route);
    // With a peer IFA_ADDRESS is the peer's, and its prefix is the one that is routed (rtnetlink(7)).
    let own = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(own) => Some(*own),
        _ => None,
    });
    let prefix = own.map(|own| masked(own, address.header.prefix_len));
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
        _ => None,
    });
    same_place && prefix.is_some() && prefix == destination
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

fn has_gateway(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    })
}

fn route(route: &RouteMessage, snapshot: &Snapshot, places: &BTreeMap<u32, u32>) -> Option<RouteMessage> {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let learnt = [RouteProtocol::Ra, RouteProtocol::IcmpRedirect].contains(&route.header.protocol);
    let made = snapshot.addresses.iter().any(|address| is_prefix_route(route, address));
    let cloned = route.header.flags.contains(RouteFlags::Cloned);
    if table.unwrap_or(u32::from(route.header.table)) == LOCAL_TABLE || learnt || made || cloned {
        return None;
    }
    let mut guest = route.clone();
    // The rest is the state of the host's interface.
    guest.header.flags &= RouteFlags::Onlink;
    guest.attributes.retain(|attribute| {
        !matches!(
            attribute,
            RouteAttribute::CacheInfo(_)
                | RouteAttribute::NhId(_)
                | RouteAttribute::Uid(_)
                | RouteAttribute::Expires(_)
                | RouteAttribute::MfcStats(_)
        )
    });
    let rejects = [
        RouteType::BlackHole,
        RouteType::Unreachable,
        RouteType::Prohibit,
        RouteType::Throw,
    ];
    if rejects.contains(&route.header.kind) {
        // IPv6 puts them on the loopback interface.
        guest
            .attributes
            .retain(|attribute| !matches!(attribute, RouteAttribute::Oif(_)));
        return Some(guest);
    }
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut leads_somewhere = false;
    for attribute in &mut guest.attributes {
        match attribute {
            RouteAttribute::Oif(index) => *index = *places.get(index)?,
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    hop.interface_index = *places.get(&hop.interface_index)?;
                    hop.flags &= RouteNextHopFlags::Onlink;
                }
            }
            _ => continue,
        }
        leads_somewhere = true;
    }
    leads_somewhere.then_some(guest)
}

/// Whether somebody has set it.
fn is_set(rule: &RuleMessage) -> bool {
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    !DEFAULT_RULES.contains(&priority.unwrap_or_default())
}

fn neighbour(neighbour: &NeighbourMessage, places: &BTreeMap<u32, u32>) -> Option<NeighbourMessage> {
    if neighbour.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut guest = neighbour.clone();
    guest.header.ifindex = *places.get(&neighbour.header.ifindex)?;
    guest.attributes.retain(|attribute| {
        matches!(
            attribute,
            NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_)
        )
    });
    Some(guest)
}

#[cfg(test)]
mod tests;
