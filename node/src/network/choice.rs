//! Decides which interfaces of a namespace the VM gets. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hypervisor::MacAddress;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

use super::error::PodNetworkError;
use super::snapshot::{Snapshot, name};
use super::tap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodInterface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) mac: MacAddress,
    /// Of the VM's device when it comes up.
    pub(super) device: MacAddress,
}

/// Devices in the namespace that the shim made.
#[derive(Debug, Clone, Default)]
pub(super) struct Own {
    pub(super) taps: BTreeSet<String>,
    /// Indexes of the interfaces that we have joined.
    pub(super) joined: BTreeSet<u32>,
}

/// Chooses in one namespace.
pub(super) struct Choice<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Its name in errors.
    pub(super) namespace: &'a str,
    pub(super) own: &'a Own,
}

impl Choice<'_> {
    /// The interface, if the VM gets it. Not in use, and so left out, are loopback, ports of bridges, what only carries others, and
    /// what is down and has no address: the fallback devices of tunnels, which every namespace has.
    ///
    /// # Errors
    /// It is in use and cannot be had in a VM, or another sandbox has it.
    pub(super) fn of(&self, link: &LinkMessage) -> Result<Option<PodInterface>, PodNetworkError> {
        let index = link.header.index;
        let Some(name) = name(link).filter(|name| !self.own.taps.contains(name)) else {
            return Ok(None);
        };
        if tap::is_name(&name) {
            return Err(self.taken(name));
        }
        let loopback = link.header.flags.contains(LinkFlags::Loopback);
        if loopback || !self.in_use(link) || self.is_port(link, &name)? || self.carries_another(index, &name)? {
            return Ok(None);
        }
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(mac) => mac.as_slice().try_into().ok().map(MacAddress),
            _ => None,
        });
        // An interface of layer 3 (netkit's default mode): QEMU would take another address, and the guest not find the device.
        let mac = mac.filter(|mac| mac.0 != [0; 6]);
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        match (link.header.link_layer_type, mac) {
            (LinkLayerType::Ether, Some(_))
                if self.snapshot.ingress.contains(&index) && !self.own.joined.contains(&index) =>
            {
                Err(self.taken(name))
            }
            (LinkLayerType::Ether, Some(mac)) => Ok(Some(PodInterface {
                index,
                name,
                mtu: mtu.unwrap_or_default(),
                mac,
                device: mac,
            })),
            _ if self.has_address(index) => Err(self.unsupported(name, kind(link))),
            _ => Ok(None),
        }
    }

    fn taken(&self, name: String) -> PodNetworkError {
        PodNetworkError::Taken {
            name,
            namespace: self.namespace.to_owned(),
        }
    }

    fn unsupported(&self, name: String, kind: String) -> PodNetworkError {
        PodNetworkError::Unsupported {
            name,
            namespace: self.namespace.to_owned(),
            kind,
        }
    }

    fn has_address(&self, index: u32) -> bool {
        self.snapshot
            .addresses
            .iter()
            .any(|address| address.header.index == index)
    }

    fn in_use(&self, link: &LinkMessage) -> bool {
        link.header.flags.contains(LinkFlags::Up) || self.has_address(link.header.index)
    }

    /// A port of a bridge or a bond has its frames by that. One of a VRF has them for itself, by a table that the guest has not.
    fn is_port(&self, link: &LinkMessage, name: &str) -> Result<bool, PodNetworkError> {
        let controller = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        });
        let mut links = self.snapshot.links.iter();
        let controller_kind = links.find(|it| Some(it.header.index) == controller).and_then(info_kind);
        if controller_kind == Some(&InfoKind::Vrf) && self.has_address(link.header.index) {
            return Err(self.unsupported(name.to_owned(), String::from("port of a VRF")));
        }
        Ok(controller.is_some())
    }

    /// Frames that are redirected never come to what stands on the interface: one of the two has them.
    fn carries_another(&self, index: u32, name: &str) -> Result<bool, PodNetworkError> {
        let stands_on_it = |upper: &&LinkMessage| {
            let ours = self::name(upper).is_some_and(|name| tap::is_name(&name));
            lower(upper) == Some(index) && self.in_use(upper) && !ours
        };
        let Some(upper) = self.snapshot.links.iter().find(stands_on_it) else {
            return Ok(false);
        };
        let mut own = self
            .snapshot
            .addresses
            .iter()
            .filter(|address| address.header.index == index);
        if own.all(is_link_local) {
            return Ok(true);
        }
        Err(PodNetworkError::Stacked {
            name: name.to_owned(),
            namespace: self.namespace.to_owned(),
            upper: self::name(upper).unwrap_or_default(),
        })
    }
}

/// The interface of the same namespace that this one shares the frames of.
fn lower(link: &LinkMessage) -> Option<u32> {
    let shares = [
        InfoKind::Vlan,
        InfoKind::MacVlan,
        InfoKind::MacVtap,
        InfoKind::IpVlan,
        InfoKind::IpVtap,
    ];
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    if !info_kind(link).is_some_and(|kind| shares.contains(kind)) || link.attributes.iter().any(elsewhere) {
        return None;
    }
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// As the kernel gives to what is up, by itself.
fn is_link_local(address: &AddressMessage) -> bool {
    address
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, AddressAttribute::Address(IpAddr::V6(own)) if own.is_unicast_link_local()))
}

fn info_kind(link: &LinkMessage) -> Option<&InfoKind> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn kind(link: &LinkMessage) -> String {
    let layer = format!("{:?}", link.header.link_layer_type).to_lowercase();
    match info_kind(link) {
        Some(InfoKind::Other(kind)) => format!("{kind}, link layer {layer}"),
        Some(kind) => format!("{kind}, link layer {layer}"),
        None => layer,
    }
}
