//! What a network namespace holds, as its kernel tells it. Changes nothing.

use std::collections::BTreeSet;

use futures::{Stream, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::tc::TcAttribute;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::error::{NetworkError, cause};

/// What is in the namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) links: Vec<LinkMessage>,
    pub(super) addresses: Vec<AddressMessage>,
    pub(super) routes: Vec<RouteMessage>,
    pub(super) rules: Vec<RuleMessage>,
    pub(super) neighbours: Vec<NeighbourMessage>,
    /// Indexes of the interfaces that have an ingress qdisc.
    pub(super) ingress: BTreeSet<u32>,
    /// Names of those that are without IPv6.
    pub(super) without_ipv6: BTreeSet<String>,
}

/// Asks for everything. To be called in the namespace, named for messages.
pub(super) async fn look(netlink: &Handle, namespace: &str) -> Result<Seen, NetworkError> {
    let failed = |on: &str, source| NetworkError::Step {
        namespace: namespace.to_owned(),
        step: "list the",
        on: on.to_owned(),
        source: cause(source),
    };
    let links = all(netlink.link().get().execute());
    let links: Vec<LinkMessage> = links.await.map_err(|error| failed("interfaces", error))?;
    let addresses = all(netlink.address().get().execute());
    let mut seen = Seen {
        addresses: addresses.await.map_err(|error| failed("addresses", error))?,
        without_ipv6: links
            .iter()
            .filter_map(name)
            .filter(|name| is_without_ipv6(name))
            .collect(),
        links,
        ..Seen::default()
    };
    for (version, family) in [
        (IpVersion::V4, AddressFamily::Inet),
        (IpVersion::V6, AddressFamily::Inet6),
    ] {
        let mut every = RouteMessageBuilder::<std::net::IpAddr>::default();
        every.get_mut().header.address_family = family;
        let routes = all(netlink.route().get(every.build()).execute());
        seen.routes
            .extend(supported(routes.await).map_err(|error| failed("routes", error))?);
        let rules = all(netlink.rule().get(version).execute());
        seen.rules
            .extend(supported(rules.await).map_err(|error| failed("rules", error))?);
        let neighbours = all(netlink.neighbours().get().set_address_family(family).execute());
        seen.neighbours
            .extend(supported(neighbours.await).map_err(|error| failed("neighbours", error))?);
    }
    let disciplines = all(netlink.qdisc().get().execute()).await;
    for discipline in disciplines.map_err(|error| failed("qdiscs", error))? {
        let takes_ingress = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "ingress" || kind == "clsact");
        if discipline.attributes.iter().any(takes_ingress) {
            seen.ingress.extend(u32::try_from(discipline.header.index));
        }
    }
    Ok(seen)
}

async fn all<T>(messages: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, rtnetlink::Error> {
    messages.try_collect().await
}

/// A kernel without IPv6, or without rules, has none of them.
fn supported<T>(listed: Result<Vec<T>, rtnetlink::Error>) -> Result<Vec<T>, rtnetlink::Error> {
    match listed {
        Err(rtnetlink::Error::NetlinkError(error))
            if [libc::EOPNOTSUPP, libc::EAFNOSUPPORT].contains(&-error.raw_code()) =>
        {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

/// An interface's name.
pub(super) fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// `disable_ipv6` (the kernel's ip-sysctl.rst), which the caller's thread reads in its own namespace.
fn is_without_ipv6(name: &str) -> bool {
    let value = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    // No such file: no IPv6.
    value.map_or(true, |value| value.trim() != "0")
}
