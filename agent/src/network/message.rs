//! The host's rtnetlink messages: decodes them, and replaces list positions of interfaces by the guest's indexes. Pure.

use protocol::agent::Network;
use rtnetlink::packet_core::{DecodeError, Parseable};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;

use super::error::NetworkError;

/// What the host has given, with the guest's numbers of the devices.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Given {
    /// By their place in the host's list.
    pub(super) links: Vec<u32>,
    pub(super) addresses: Vec<AddressMessage>,
    pub(super) routes: Vec<RouteMessage>,
    pub(super) rules: Vec<RuleMessage>,
    pub(super) neighbours: Vec<NeighbourMessage>,
}

fn unclear(what: &'static str, reason: &(impl ToString + ?Sized)) -> NetworkError {
    NetworkError::Message {
        what,
        reason: reason.to_string(),
    }
}

/// What the host wants, on the devices with these indexes.
pub(super) fn resolve(network: &Network, links: Vec<u32>) -> Result<Given, NetworkError> {
    let index = |what, place: u32| {
        let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        let index = place.and_then(|place| links.get(place)).copied();
        index.ok_or_else(|| unclear(what, "there is no such interface"))
    };
    let mut addresses: Vec<AddressMessage> = decode("an address", &network.addresses)?;
    for address in &mut addresses {
        address.header.index = index("an address", address.header.index)?;
    }
    let mut routes: Vec<RouteMessage> = decode("a route", &network.routes)?;
    for attribute in routes.iter_mut().flat_map(|route| &mut route.attributes) {
        match attribute {
            RouteAttribute::Oif(place) => *place = index("a route", *place)?,
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    hop.interface_index = index("a route", hop.interface_index)?;
                }
            }
            _ => {}
        }
    }
    // Rules name interfaces by their names, which are the host's.
    let rules: Vec<RuleMessage> = decode("a rule", &network.rules)?;
    let mut neighbours: Vec<NeighbourMessage> = decode("a neighbour", &network.neighbours)?;
    for neighbour in &mut neighbours {
        neighbour.header.ifindex = index("a neighbour", neighbour.header.ifindex)?;
    }
    Ok(Given {
        links,
        addresses,
        routes,
        rules,
        neighbours,
    })
}

fn decode<T>(what: &'static str, messages: &[Vec<u8>]) -> Result<Vec<T>, NetworkError>
where
    T: Parseable<[u8]>,
    DecodeError: ToString,
{
    let decode = |message: &Vec<u8>| T::parse(message).map_err(|error| unclear(what, &error));
    messages.iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Emitable;
    use rtnetlink::packet_route::route::RouteNextHop;

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn route(attribute: RouteAttribute) -> Network {
        let mut message = RouteMessage::default();
        message.header.address_family = rtnetlink::packet_route::AddressFamily::Inet;
        message.attributes.push(attribute);
        Network {
            routes: vec![bytes(&message)],
            ..Network::default()
        }
    }

    #[test]
    fn places_become_the_guests_indexes() {
        let mut address = AddressMessage::default();
        address.header.index = 2;
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.ifindex = 1;
        let network = Network {
            addresses: vec![bytes(&address)],
            neighbours: vec![bytes(&neighbour)],
            ..Network::default()
        };
        let given = resolve(&network, vec![70, 80]).unwrap();
        assert_eq!(given.addresses[0].header.index, 80);
        assert_eq!(given.neighbours[0].header.ifindex, 70);
        let given = resolve(&route(RouteAttribute::Oif(2)), vec![70, 80]).unwrap();
        assert_eq!(given.routes[0].attributes, [RouteAttribute::Oif(80)]);
    }

    #[test]
    fn each_way_of_a_route_has_its_interface() {
        let mut hop = RouteNextHop::default();
        hop.interface_index = 1;
        let network = route(RouteAttribute::MultiPath(vec![hop]));
        let given = resolve(&network, vec![70]).unwrap();
        let RouteAttribute::MultiPath(hops) = &given.routes[0].attributes[0] else {
            panic!("{given:?}")
        };
        assert_eq!(hops[0].interface_index, 70);
    }

    #[test]
    fn a_message_about_an_interface_that_is_not_there_or_that_is_cut_off_is_an_error() {
        for place in [0, 3, u32::MAX] {
            assert!(resolve(&route(RouteAttribute::Oif(place)), vec![70, 80]).is_err());
        }
        let mut cut = route(RouteAttribute::Oif(1));
        cut.routes[0].pop();
        assert!(resolve(&cut, vec![70]).is_err());
        cut.routes[0].clear();
        assert!(resolve(&cut, vec![70]).is_err());
    }

    /// Messages of netlink from the host: all bytes as each kind.
    #[test]
    fn fuzz_netlink() {
        fuzz::run("netlink", |bytes| {
            let message = || vec![bytes.to_vec()];
            for network in [
                Network {
                    addresses: message(),
                    ..Network::default()
                },
                Network {
                    routes: message(),
                    ..Network::default()
                },
                Network {
                    rules: message(),
                    ..Network::default()
                },
                Network {
                    neighbours: message(),
                    ..Network::default()
                },
            ] {
                let _ = resolve(&network, vec![1, 2]);
            }
        });
    }
}
