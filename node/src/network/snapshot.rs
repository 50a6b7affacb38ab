//! Reads the contents of a network namespace from its kernel. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{PodNetworkError, cause};

/// How often a list is asked for that changes while it is told.
const ATTEMPTS: u32 = 10;

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Snapshot {
    pub(super) links: Vec<LinkMessage>,
    pub(super) addresses: Vec<AddressMessage>,
    pub(super) routes: Vec<RouteMessage>,
    pub(super) rules: Vec<RuleMessage>,
    pub(super) neighbours: Vec<NeighbourMessage>,
    /// Indexes of the interfaces that have an ingress qdisc.
    pub(super) ingress: BTreeSet<u32>,
    /// What those that have IPv6 make of router advertisements, by their names.
    pub(super) accept_ra: BTreeMap<String, u32>,
    /// Settings of interfaces that differ from the namespace's default, by their names; as the protocol has them.
    pub(super) sysctls: BTreeMap<String, BTreeMap<String, String>>,
}

/// Asks for everything. To be called in the namespace, named for messages.
pub(super) async fn take(netlink: &Handle, namespace: &str) -> Result<Snapshot, PodNetworkError> {
    use RouteNetlinkMessage as Message;

    let failed = |on: &str, source| PodNetworkError::Step {
        namespace: namespace.to_owned(),
        step: "list the",
        on: on.to_owned(),
        source: cause(source),
    };
    let question = Message::GetLink(LinkMessage::default());
    let links = all(netlink, question, |told| match told {
        Message::NewLink(link) => Some(link),
        _ => None,
    });
    let links = links.await.map_err(|error| failed("interfaces", error))?;
    let question = Message::GetAddress(AddressMessage::default());
    let addresses = all(netlink, question, |told| match told {
        Message::NewAddress(address) => Some(address),
        _ => None,
    });
    let mut snapshot = Snapshot {
        addresses: addresses.await.map_err(|error| failed("addresses", error))?,
        accept_ra: links
            .iter()
            .filter_map(name)
            .filter_map(|name| accept_ra(&name).map(|value| (name, value)))
            .collect(),
        sysctls: links
            .iter()
            .filter_map(name)
            .map(|name| {
                let sysctls = sysctls(Path::new("/proc/sys/net"), &name);
                (name, sysctls)
            })
            .collect(),
        links,
        ..Snapshot::default()
    };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let routes = all(netlink, Message::GetRoute(question), |told| match told {
            Message::NewRoute(route) => Some(route),
            _ => None,
        });
        let routes = supported(routes.await).map_err(|error| failed("routes", error))?;
        snapshot.routes.extend(routes);
        let mut question = RuleMessage::default();
        question.header.family = family;
        let rules = all(netlink, Message::GetRule(question), |told| match told {
            Message::NewRule(rule) => Some(rule),
            _ => None,
        });
        let rules = supported(rules.await).map_err(|error| failed("rules", error))?;
        snapshot.rules.extend(rules);
        let mut question = NeighbourMessage::default();
        question.header.family = family;
        let neighbours = all(netlink, Message::GetNeighbour(question), |told| match told {
            Message::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        });
        let neighbours = supported(neighbours.await).map_err(|error| failed("neighbours", error))?;
        snapshot.neighbours.extend(neighbours);
    }
    let disciplines = all(
        netlink,
        Message::GetQueueDiscipline(TcMessage::default()),
        |told| match told {
            Message::NewQueueDiscipline(discipline) => Some(discipline),
            _ => None,
        },
    );
    for discipline in disciplines.await.map_err(|error| failed("qdiscs", error))? {
        let takes_ingress = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "ingress" || kind == "clsact");
        if discipline.attributes.iter().any(takes_ingress) {
            snapshot.ingress.extend(u32::try_from(discipline.header.index));
        }
    }
    Ok(snapshot)
}

/// A whole list. One that has changed while it was told may lack what was there all the time (`NLM_F_DUMP_INTR`, the kernel's
/// userspace-api/netlink/intro.rst) and is asked for again; a namespace that never holds still is taken as it was told last.
async fn all<T>(
    netlink: &Handle,
    question: RouteNetlinkMessage,
    of_list: fn(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, rtnetlink::Error> {
    let mut list = Vec::new();
    for _ in 0..ATTEMPTS {
        list.clear();
        let mut request = NetlinkMessage::from(question.clone());
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = netlink.clone().request(request)?;
        let mut interrupted = false;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(told) => list.extend(of_list(told)),
                NetlinkPayload::Error(error) => return Err(rtnetlink::Error::NetlinkError(error)),
                _ => {}
            }
        }
        if !interrupted {
            break;
        }
    }
    Ok(list)
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

pub(super) fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// `accept_ra` where `disable_ipv6` is not set (the kernel's ip-sysctl.rst). The caller's thread reads them in its own
/// namespace.
fn accept_ra(name: &str) -> Option<u32> {
    // No such file: no IPv6.
    let read = |setting| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/{setting}")).ok();
    let disabled = read("disable_ipv6")?;
    (disabled.trim() == "0").then(|| read("accept_ra")?.trim().parse().ok())?
}

/// Settings that reach the guest otherwise: with the interface (`mtu`), or as fields of their own.
const ELSEWHERE: [&str; 3] = ["mtu", "disable_ipv6", "accept_ra"];

/// What Docker's `com.docker.network.endpoint.sysctls`, CNI's `tuning` or a hook have set for an interface: what differs from
/// `conf/default`. The caller's thread reads them in its own namespace.
fn sysctls(net: &Path, name: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        let conf = net.join(family).join("conf");
        // No such directory: no IPv6. What cannot be read has not been set (`stable_secret`).
        let Ok(entries) = std::fs::read_dir(conf.join(name)) else {
            continue;
        };
        for entry in entries.flatten() {
            let setting = entry.file_name().to_string_lossy().into_owned();
            let read = |of: &str| std::fs::read_to_string(conf.join(of).join(&setting)).ok();
            let (Some(own), default) = (read(name), read("default")) else {
                continue;
            };
            if !ELSEWHERE.contains(&&*setting) && default.as_deref() != Some(&own) {
                found.insert(format!("{family}/conf/%/{setting}"), own.trim().to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_the_default_are_the_interfaces_own() {
        let net = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("ipv4/conf/default/rp_filter", "0\n"),
            ("ipv4/conf/eth0.5/rp_filter", "2\n"),
            ("ipv4/conf/default/forwarding", "1\n"),
            ("ipv4/conf/eth0.5/forwarding", "1\n"),
            ("ipv6/conf/default/mtu", "1280\n"),
            ("ipv6/conf/eth0.5/mtu", "1500\n"),
        ] {
            let path = net.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let wanted = BTreeMap::from([("ipv4/conf/%/rp_filter".to_owned(), "2".to_owned())]);
        assert_eq!(sysctls(net.path(), "eth0.5"), wanted);
        assert_eq!(sysctls(net.path(), "eth1"), BTreeMap::new());
    }
}
