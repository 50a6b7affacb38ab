//! Filters that let the answers to dockerd's own queries into the namespace.
//!
//! For names that it does not know, Docker's name server asks the servers of the host's network, by sockets in the container's
//! namespace. Every frame that arrives there is redirected to the VM, so these sockets would get no answers. These filters precede the
//! one that redirects everything, and give the namespace's own stack what it needs: ARP, which the VM gets as well, and name servers'
//! answers to the ports of these sockets. The guest's kernel never chooses these ports by itself (its range is the
//! default one, up to 60999). This module defines the filters; `wire` installs them.

use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcFilterU32Option,
    TcMirror, TcMirrorActionType, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

// ETH_P_IP, ETH_P_ARP (linux/if_ether.h), in network order.
const IP: u16 = 0x0800_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();

/// The ports that sockets of the namespace get: those that begin with four ones.
pub(super) const PORTS: &str = "61440 65535";
const PORTS_BITS: u32 = 0xf000;

/// Where a namespace keeps them.
pub(super) const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The port of name servers.
const PORT: u32 = 53;

/// Ports of an IPv4 packet without options: source and destination.
const PORTS_AT: i32 = 20;

// Their protocols (protocols(5)).
const TCP: u32 = 6;
const UDP: u32 = 17;

/// A filter at the ingress of an interface.
pub(super) struct Filter {
    pub(super) priority: u16,
    /// Of Ethernet frames, in network order.
    pub(super) protocol: u16,
    pub(super) options: Vec<TcFilterU32Option>,
}

/// What lets answers in, for a VM whose tap has this index.
pub(super) fn filters(tap: u32) -> Vec<Filter> {
    let mirror = || TcFilterU32Option::Action(vec![mirror(tap)]);
    // What has no action goes to the namespace alone: of TCP both ends would answer.
    let filters = [
        (ARP, vec![selector(vec![TcU32Key::default()]), mirror()]),
        (IP, vec![selector(answers(UDP)), mirror()]),
        (IP, vec![selector(answers(TCP))]),
    ];
    (1..)
        .zip(filters)
        .map(|(priority, (protocol, options))| Filter {
            priority,
            protocol,
            options,
        })
        .collect()
}

fn selector(keys: Vec<TcU32Key>) -> TcFilterU32Option {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    selector.keys = keys;
    TcFilterU32Option::Selector(selector)
}

/// What a name server sends to a port of the namespace's.
fn answers(protocol: u32) -> Vec<TcU32Key> {
    vec![
        // Without options.
        key(0, 0x0f00_0000, 5 << 24),
        key(8, 0x00ff_0000, protocol << 16),
        key(PORTS_AT, 0xffff_0000 | PORTS_BITS, PORT << 16 | PORTS_BITS),
    ]
}

fn key(at: i32, mask: u32, value: u32) -> TcU32Key {
    let mut key = TcU32Key::default();
    key.off = at;
    key.mask = mask;
    key.val = value;
    key
}

/// To the VM as well as to the namespace.
fn mirror(tap: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Ok;
    mirror.eaction = TcMirrorActionType::EgressMirror;
    mirror.ifindex = tap;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}
