//! Tests of the conversion of a namespace's contents.

use super::*;
use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkHeader, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourAddress;
use rtnetlink::packet_route::route::RouteNextHop;

fn link(index: u32, name: &str, mac: [u8; 6]) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header = LinkHeader {
        index,
        link_layer_type: LinkLayerType::Ether,
        flags: LinkFlags::Up,
        ..LinkHeader::default()
    };
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(1450),
        LinkAttribute::Address(mac.to_vec()),
    ];
    link
}

fn address(index: u32, address: &str, prefix_len: u8) -> AddressMessage {
    let address: IpAddr = address.parse().unwrap();
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.header.family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Tentative),
    ];
    message
}

fn route(to: Option<(&str, u8)>, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Static;
    message.header.table = 254;
    if let Some((to, length)) = to {
        message.header.destination_prefix_length = length;
        let to: std::net::Ipv4Addr = to.parse().unwrap();
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    }
    message.attributes.extend(attributes);
    message
}

fn prefix_route(to: &str, length: u8, index: u32) -> RouteMessage {
    let mut message = route(Some((to, length)), vec![RouteAttribute::Oif(index)]);
    message.header.protocol = RouteProtocol::Kernel;
    message
}

/// eth0 is interface 7 of the host.
fn snapshot() -> Snapshot {
    Snapshot {
        links: vec![link(7, "eth0", [2, 0, 0, 0, 0, 1])],
        ..Snapshot::default()
    }
}

fn admit(place: u32, interface: &PodInterface) -> Option<MacAddress> {
    Some(if place == 1 { interface.mac } else { own_mac(place) })
}

fn translated(snapshot: &Snapshot) -> Network {
    wanted(snapshot, "test", &Own::default(), &mut admit).unwrap().network
}

fn routes(network: &Network) -> Vec<RouteMessage> {
    network
        .routes
        .iter()
        .map(|bytes| RouteMessage::parse(bytes).unwrap())
        .collect()
}

fn addresses(network: &Network) -> Vec<AddressMessage> {
    network
        .addresses
        .iter()
        .map(|bytes| AddressMessage::parse(bytes).unwrap())
        .collect()
}

#[test]
fn an_interface_keeps_its_name_mac_address_and_mtu() {
    let network = translated(&snapshot());
    let [interface] = &network.interfaces[..] else {
        panic!("{network:?}")
    };
    assert_eq!(
        (interface.name.as_str(), interface.mtu, interface.up, interface.ipv6),
        ("eth0", 1450, true, false)
    );
    assert_eq!(
        (interface.mac.as_slice(), interface.device.as_slice()),
        (&[2, 0, 0, 0, 0, 1][..], &[2, 0, 0, 0, 0, 1][..])
    );
}

#[test]
fn an_interface_takes_announcements_and_asks_for_addresses_as_the_hosts_does() {
    let mut snapshot = snapshot();
    snapshot.accept_ra.insert("eth0".to_owned(), 2);
    snapshot.links[0].header.flags |= LinkFlags::Noarp;
    let sysctls = [("ipv4/conf/%/rp_filter".to_owned(), "2".to_owned())];
    snapshot.sysctls.insert("eth0".to_owned(), sysctls.clone().into());
    let interface = &translated(&snapshot).interfaces[0];
    assert_eq!((interface.ipv6, interface.accept_ra, interface.no_arp), (true, 2, true));
    assert_eq!(interface.sysctls, sysctls.into());
}

fn of_kind(kind: InfoKind, mut link: LinkMessage, on: LinkAttribute) -> LinkMessage {
    link.attributes
        .extend([LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]), on]);
    link
}

#[test]
fn what_stands_on_another_interface_is_carried_in_its_place_or_both_are_refused() {
    let mut snapshot = snapshot();
    let vlan = link(8, "eth0.5", [2, 0, 0, 0, 0, 1]);
    snapshot
        .links
        .push(of_kind(InfoKind::Vlan, vlan, LinkAttribute::Link(7)));
    snapshot.addresses = vec![address(7, "fe80::1", 64), address(8, "10.1.2.3", 16)];
    let network = translated(&snapshot);
    assert_eq!(network.interfaces.len(), 1);
    assert_eq!(network.interfaces[0].name, "eth0.5");
    snapshot.addresses.push(address(7, "10.2.2.3", 16));
    let error = wanted(&snapshot, "test", &Own::default(), &mut admit)
        .unwrap_err()
        .to_string();
    assert!(error.contains("eth0.5 stands on it"), "{error}");
    // Nobody uses it.
    let vlan = std::mem::replace(&mut snapshot.links[1].header.flags, LinkFlags::empty());
    let lent = snapshot.addresses.remove(1);
    assert_eq!(translated(&snapshot).interfaces[0].name, "eth0");
    snapshot.links[1].header.flags = vlan;
    snapshot.addresses.insert(1, lent);
    // One whose parent is in another namespace, under any number; and a veth has its peer there.
    snapshot.links[1].attributes.push(LinkAttribute::LinkNetNsId(0));
    let veth = link(9, "eth1", [2, 0, 0, 0, 0, 2]);
    snapshot
        .links
        .push(of_kind(InfoKind::Veth, veth, LinkAttribute::Link(7)));
    assert_eq!(translated(&snapshot).interfaces.len(), 3);
}

#[test]
fn a_port_of_a_vrf_is_refused() {
    let mut snapshot = snapshot();
    let vrf = of_kind(InfoKind::Vrf, link(8, "red", [2; 6]), LinkAttribute::Mtu(1500));
    snapshot.links.push(vrf);
    snapshot.links[0].attributes.push(LinkAttribute::Controller(8));
    snapshot.addresses = vec![address(7, "10.1.2.3", 16)];
    let error = wanted(&snapshot, "test", &Own::default(), &mut admit)
        .unwrap_err()
        .to_string();
    assert!(error.contains("port of a VRF"), "{error}");
}

/// As two ipvlan interfaces of one parent are, and a macvlan beside them.
#[test]
fn interfaces_that_share_an_address_keep_it_and_have_devices_that_do_not() {
    let shared = [2, 0, 0, 0, 0, 1];
    let mut snapshot = snapshot();
    snapshot.links.push(link(8, "ipvl1", shared));
    snapshot.links.push(link(9, "macvl1", [2, 0, 0, 0, 0, 9]));
    let mut taken = BTreeSet::new();
    let mut device = |place, interface: &PodInterface| Some(device_mac(&mut taken, place, interface.mac));
    let network = wanted(&snapshot, "test", &Own::default(), &mut device).unwrap().network;
    let macs: Vec<_> = network
        .interfaces
        .iter()
        .map(|interface| interface.mac.clone())
        .collect();
    assert_eq!(macs, [shared, shared, [2, 0, 0, 0, 0, 9]]);
    let devices: BTreeSet<_> = network.interfaces.iter().map(|interface| &interface.device).collect();
    assert_eq!(devices.len(), 3);
    assert_eq!(network.interfaces[0].device, shared);
}

#[test]
fn loopback_ports_and_what_is_unused_are_left_out() {
    let mut snapshot = snapshot();
    let mut loopback = link(1, "lo", [0; 6]);
    loopback.header.flags |= LinkFlags::Loopback;
    let mut port = link(8, "port", [2; 6]);
    port.attributes.push(LinkAttribute::Controller(7));
    let mut unused = link(9, "gretap0", [2; 6]);
    unused.header.flags = LinkFlags::empty();
    let mut tunnel = link(10, "tunl0", [2; 6]);
    tunnel.header.link_layer_type = LinkLayerType::Tunnel;
    snapshot.links.extend([loopback, port, unused, tunnel]);
    assert_eq!(translated(&snapshot).interfaces.len(), 1);
}

#[test]
fn an_interface_without_ethernet_that_is_in_use_is_refused_by_name_and_kind() {
    let mut snapshot = snapshot();
    let mut tunnel = link(10, "wg0", [2; 6]);
    tunnel.header.link_layer_type = LinkLayerType::None;
    tunnel
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    snapshot.links.push(tunnel);
    snapshot.addresses.push(address(10, "10.0.0.1", 32));
    let error = wanted(&snapshot, "test", &Own::default(), &mut admit).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("wg0") && error.contains("wireguard"), "{error}");
}

#[test]
fn what_another_sandbox_has_is_refused_and_what_is_ours_is_not() {
    let mut snapshot = snapshot();
    snapshot.ingress.insert(7);
    let error = wanted(&snapshot, "test", &Own::default(), &mut admit).unwrap_err();
    assert!(matches!(error, PodNetworkError::Taken { name, .. } if name == "eth0"));
    snapshot.links.push(link(8, "tap0_kata", [2; 6]));
    let own = Own {
        taps: ["tap0_kata".to_owned()].into(),
        joined: [7].into(),
    };
    assert_eq!(wanted(&snapshot, "test", &own, &mut admit).unwrap().interfaces.len(), 1);
    snapshot.ingress.clear();
    let error = wanted(&snapshot, "test", &Own::default(), &mut admit).unwrap_err();
    assert!(matches!(error, PodNetworkError::Taken { name, .. } if name == "tap0_kata"));
}

#[test]
fn an_address_brings_the_route_of_its_prefix_only_if_the_host_has_it() {
    let mut snapshot = snapshot();
    snapshot.addresses.push(address(7, "10.1.2.3", 16));
    assert!(flags_of(&addresses(&translated(&snapshot))[0]).contains(AddressFlags::Noprefixroute));
    snapshot.routes.push(prefix_route("10.1.0.0", 16, 7));
    let network = translated(&snapshot);
    let [guest] = &addresses(&network)[..] else {
        panic!("{network:?}")
    };
    assert_eq!((flags_of(guest), guest.header.index), (AddressFlags::empty(), 1));
    assert!(network.routes.is_empty(), "{:?}", routes(&network));
    // A host address has no prefix.
    snapshot.addresses = vec![address(7, "10.1.2.3", 32)];
    let network = translated(&snapshot);
    assert_eq!(flags_of(&addresses(&network)[0]), AddressFlags::empty());
    // And the route, whoever made it, is one of the guest's.
    assert_eq!(network.routes.len(), 1);
}

#[test]
fn an_ipv6_address_is_not_asked_for_again_and_an_announced_one_is_left_to_the_router() {
    let mut snapshot = snapshot();
    snapshot.addresses.push(address(7, "fd00::1", 128));
    let mut announced = address(7, "fd00::2", 64);
    announced.attributes[1] = AddressAttribute::Flags(AddressFlags::Managetempaddr);
    snapshot.addresses.push(announced);
    let network = translated(&snapshot);
    let [guest] = &addresses(&network)[..] else {
        panic!("{network:?}")
    };
    assert_eq!(flags_of(guest), AddressFlags::Nodad);
}

#[test]
fn an_address_that_is_not_preferred_stays_so() {
    let mut snapshot = snapshot();
    let mut old = address(7, "fd00::1", 128);
    old.attributes[1] = AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Deprecated);
    snapshot.addresses.push(old);
    let network = translated(&snapshot);
    let [guest] = &addresses(&network)[..] else {
        panic!("{network:?}")
    };
    let life = guest.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::CacheInfo(life) => Some((life.ifa_preferred, life.ifa_valid)),
        _ => None,
    });
    assert_eq!(life, Some((0, u32::MAX)));
}

#[test]
fn a_gateways_route_comes_after_the_one_that_leads_to_it_and_keeps_its_settings() {
    let mut snapshot = snapshot();
    let gateway = RouteAttribute::Gateway(RouteAddress::Inet([169, 254, 1, 1].into()));
    let mut default = route(
        None,
        vec![gateway, RouteAttribute::Oif(7), RouteAttribute::Priority(50)],
    );
    default.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
    let to_gateway = route(Some(("169.254.1.1", 32)), vec![RouteAttribute::Oif(7)]);
    snapshot.routes = vec![default, to_gateway];
    let network = translated(&snapshot);
    let [first, second] = &routes(&network)[..] else {
        panic!("{network:?}")
    };
    assert!(!has_gateway(first) && has_gateway(second));
    assert_eq!(second.header.flags, RouteFlags::Onlink);
    assert!(second.attributes.contains(&RouteAttribute::Priority(50)));
    assert!(second.attributes.contains(&RouteAttribute::Oif(1)));
}

#[test]
fn routes_of_other_tables_and_those_that_reject_go_along_and_the_kernels_own_do_not() {
    let mut snapshot = snapshot();
    let mut local = route(Some(("10.0.0.1", 32)), vec![RouteAttribute::Oif(7)]);
    local.header.table = 255;
    let other = route(
        Some(("10.5.0.0", 16)),
        vec![RouteAttribute::Oif(7), RouteAttribute::Table(1000)],
    );
    let mut reject = route(Some(("10.6.0.0", 16)), vec![RouteAttribute::Oif(1)]);
    reject.header.kind = RouteType::BlackHole;
    let mut learnt = route(Some(("10.7.0.0", 16)), vec![RouteAttribute::Oif(7)]);
    learnt.header.protocol = RouteProtocol::Ra;
    let elsewhere = route(Some(("10.8.0.0", 16)), vec![RouteAttribute::Oif(99)]);
    snapshot.routes = vec![local, other, reject, learnt, elsewhere];
    let network = translated(&snapshot);
    let [other, reject] = &routes(&network)[..] else {
        panic!("{:?}", routes(&network))
    };
    assert!(other.attributes.contains(&RouteAttribute::Table(1000)));
    assert_eq!(reject.header.kind, RouteType::BlackHole);
    assert!(
        !reject
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, RouteAttribute::Oif(_)))
    );
}

#[test]
fn a_route_with_several_ways_has_them_all() {
    let mut snapshot = snapshot();
    snapshot.links.push(link(9, "eth1", [2, 0, 0, 0, 0, 2]));
    let hop = |index| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.flags = RouteNextHopFlags::Dead;
        hop
    };
    snapshot.routes = vec![route(None, vec![RouteAttribute::MultiPath(vec![hop(7), hop(9)])])];
    let network = translated(&snapshot);
    let [route] = &routes(&network)[..] else {
        panic!("{network:?}")
    };
    let RouteAttribute::MultiPath(hops) = &route.attributes[0] else {
        panic!("{route:?}")
    };
    assert_eq!((hops[0].interface_index, hops[1].interface_index), (1, 2));
    assert_eq!(hops[0].flags, RouteNextHopFlags::empty());
}

#[test]
fn only_neighbours_that_were_set_go_along() {
    let neighbour = |state| {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.ifindex = 7;
        neighbour.header.family = AddressFamily::Inet;
        neighbour.header.state = state;
        neighbour.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(
            [10, 0, 0, 9].into(),
        ))];
        neighbour
    };
    let mut snapshot = snapshot();
    snapshot.neighbours = vec![
        neighbour(NeighbourState::Reachable),
        neighbour(NeighbourState::Permanent),
    ];
    let network = translated(&snapshot);
    let [bytes] = &network.neighbours[..] else {
        panic!("{network:?}")
    };
    let guest = NeighbourMessage::parse(bytes).unwrap();
    assert_eq!(
        (guest.header.ifindex, guest.header.state),
        (1, NeighbourState::Permanent)
    );
}

#[test]
fn rules_beside_the_three_of_every_namespace_go_along() {
    let rule = |priority| {
        let mut rule = RuleMessage::default();
        rule.attributes = vec![RuleAttribute::Priority(priority)];
        rule
    };
    let mut snapshot = snapshot();
    snapshot.rules = [0, 100, 32766, 32767].map(rule).to_vec();
    assert_eq!(translated(&snapshot).rules.len(), 1);
}

#[test]
fn an_interface_without_a_device_is_left_out_with_all_that_belongs_to_it() {
    let mut snapshot = snapshot();
    snapshot.links.insert(0, link(9, "eth1", [2, 0, 0, 0, 0, 2]));
    snapshot.addresses = vec![address(9, "10.9.0.1", 32), address(7, "10.7.0.1", 32)];
    let mut only_eth0 = |_, interface: &PodInterface| (interface.name == "eth0").then_some(interface.mac);
    let network = wanted(&snapshot, "test", &Own::default(), &mut only_eth0)
        .unwrap()
        .network;
    let [guest] = &addresses(&network)[..] else {
        panic!("{network:?}")
    };
    assert_eq!(guest.header.index, 1);
    assert_eq!(network.interfaces[0].name, "eth0");
}

#[test]
fn prefixes_are_masked_at_every_length() {
    let masked4 = |length| masked("10.255.255.255".parse().unwrap(), length).to_string();
    assert_eq!(
        (masked4(0), masked4(9), masked4(32)),
        ("0.0.0.0".into(), "10.128.0.0".into(), "10.255.255.255".into())
    );
    assert_eq!(masked("fd00::1".parse().unwrap(), 0).to_string(), "::");
    assert_eq!(masked("fd00::1".parse().unwrap(), 64).to_string(), "fd00::");
}

#[test]
fn an_interface_that_is_down_has_the_routes_of_its_prefixes_once_it_is_up() {
    let mut snapshot = snapshot();
    snapshot.links[0].header.flags = LinkFlags::empty();
    snapshot.addresses.push(address(7, "10.1.2.3", 16));
    let network = translated(&snapshot);
    assert_eq!(flags_of(&addresses(&network)[0]), AddressFlags::empty());
    assert!(!network.interfaces[0].up);
}
