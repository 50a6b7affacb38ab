//! The guest's network: applies the configuration of the pod's network namespace on the host to the VM's devices.
//!
//! It owns everything that the host has sent: names, addresses, routes, rules, neighbours of the devices. What a
//! container adds is the container's and stays. It knows no container.

mod devices;
mod error;
mod message;
mod parked_interfaces;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use protocol::agent::{Interface, Network};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec};
use tokio::runtime;
use tokio::sync::{Mutex, OnceCell, oneshot};

use self::devices::{Devices, passing_name};
pub(crate) use self::error::NetworkError;
use self::error::step;
use self::message::Given;
use self::parked_interfaces::ParkedInterfaces;

/// The guest's network as far as the host decides it.
///
/// It is worked on by a thread of its own: the kernel carries out a message of netlink while it is sent, which waits for whoever else
/// changes a network of the guest. The agent's one thread answers signals meanwhile.
#[derive(Debug, Default)]
pub(crate) struct GuestNetwork {
    state: Arc<Mutex<State>>,
    /// Of the thread, once there is one.
    runtime: OnceCell<runtime::Handle>,
}

#[derive(Debug, Default)]
struct State {
    given: Given,
    /// Not all of it may be there: the last call has failed.
    incomplete: bool,
    /// Made when the first device has no interface.
    parked: Option<ParkedInterfaces>,
}

impl GuestNetwork {
    /// Makes the network what the host wants: adds what is new, and removes what an earlier call gave and this one does
    /// not. May be called again after an error. Dropped, it goes on.
    ///
    /// # Errors
    /// The first step that failed.
    pub(crate) async fn apply(&self, network: &Network) -> Result<(), NetworkError> {
        let (state, network) = (Arc::clone(&self.state), network.clone());
        let work = async move { Box::pin(state.lock().await.apply(&network)).await };
        let applied = self.runtime().await.map_err(NetworkError::Thread)?.spawn(work).await;
        applied.unwrap_or_else(|error| Err(NetworkError::Thread(io::Error::other(error))))
    }

    async fn runtime(&self) -> io::Result<&runtime::Handle> {
        let start = async || {
            let (tell, told) = oneshot::channel();
            let drive = move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                // Whoever asked may have gone.
                let _ = match &runtime {
                    Ok(runtime) => tell.send(Ok(runtime.handle().clone())),
                    Err(error) => tell.send(Err(error.kind().into())),
                };
                if let Ok(runtime) = runtime {
                    runtime.block_on(std::future::pending::<()>());
                }
            };
            thread::Builder::new().name("network".to_owned()).spawn(drive)?;
            told.await.map_err(io::Error::other)?
        };
        self.runtime.get_or_try_init(start).await
    }
}

impl State {
    async fn apply(&mut self, network: &Network) -> Result<(), NetworkError> {
        let Self {
            given,
            incomplete,
            parked,
        } = self;
        let was_incomplete = std::mem::replace(incomplete, true);
        let mut devices = Devices::open()?;
        let macs: Vec<&[u8]> = network
            .interfaces
            .iter()
            .map(|interface| interface.device.as_slice())
            .collect();
        let links = devices.take(&macs, parked).await?;
        let wanted = message::resolve(network, links)?;
        let netlink = devices.handle();
        remove(netlink, given, &wanted).await?;
        // From here on both may be there; what is there twice is no error.
        let mut before = std::mem::replace(given, wanted.clone());
        if was_incomplete {
            before = Given::default();
        }
        give_way(netlink, network, &wanted.links).await?;
        for (interface, index) in network.interfaces.iter().zip(&wanted.links) {
            configure(netlink, interface, *index).await?;
        }
        add(netlink, &before, &wanted, network).await?;
        *incomplete = false;
        Ok(())
    }
}

/// Those of `these` that are not in `those`.
fn without<'a, T: PartialEq>(these: &'a [T], those: &'a [T]) -> impl DoubleEndedIterator<Item = &'a T> {
    these.iter().filter(|this| !those.contains(this))
}

/// What the kernel says of something to be removed that has gone by itself: with its device, or by a container.
const GONE: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::ENODEV];

/// In the reverse order of [`add`]: what needs something else goes first.
async fn remove(netlink: &Handle, given: &Given, wanted: &Given) -> Result<(), NetworkError> {
    for neighbour in without(&given.neighbours, &wanted.neighbours) {
        let done = netlink.neighbours().del(neighbour.clone()).execute().await;
        step("remove neighbour", neighbour, &GONE, done)?;
    }
    for rule in without(&given.rules, &wanted.rules) {
        let done = netlink.rule().del(rule.clone()).execute().await;
        step("remove rule", rule, &GONE, done)?;
    }
    for route in without(&given.routes, &wanted.routes).rev() {
        let done = netlink.route().del(route.clone()).execute().await;
        step("remove route", route, &GONE, done)?;
    }
    for address in without(&given.addresses, &wanted.addresses).rev() {
        let done = netlink.address().del(address.clone()).execute().await;
        step("remove address", address, &GONE, done)?;
    }
    Ok(())
}

/// Two devices may have each other's names, as the kernel gave them: those that get another one leave their own first.
async fn give_way(netlink: &Handle, network: &Network, links: &[u32]) -> Result<(), NetworkError> {
    for (interface, index) in network.interfaces.iter().zip(links) {
        let named = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", interface.name));
        if named.is_ok_and(|named| named.trim() == index.to_string()) {
            continue;
        }
        let message = LinkUnspec::new_with_index(*index).name(passing_name(*index));
        let done = netlink.link().set(message.build()).execute().await;
        step("rename interface", index, &[], done)?;
    }
    Ok(())
}

/// The interface itself. It is not up yet, so that it comes up with its addresses.
async fn configure(netlink: &Handle, interface: &Interface, index: u32) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(index)
        .name(interface.name.clone())
        .mtu(interface.mtu)
        .arp(!interface.no_arp)
        .address(interface.mac.clone());
    let done = netlink.link().set(message.build()).execute().await;
    step("set name, MTU and MAC address of", &interface.name, &[], done)?;
    let mut settings = vec![("disable_ipv6", if interface.ipv6 { "0" } else { "1" }.to_owned())];
    if interface.ipv6 {
        settings.push(("accept_ra", interface.accept_ra.to_string()));
    }
    settings
        .into_iter()
        .try_for_each(|(setting, value)| set_ipv6(&interface.name, setting, value))?;
    for (setting, value) in &interface.sysctls {
        let path = setting.replace('%', &interface.name);
        // A kernel of the host's may have settings that the guest's has not: nobody asked for those of them that differ.
        if let Err(error) = std::fs::write(Path::new("/proc/sys/net").join(&path), value) {
            tracing::warn!(setting = path, value, %error, "a setting of an interface is not the host's");
        }
    }
    Ok(())
}

/// The host's interface may be without IPv6 (`disable_ipv6`, the kernel's ip-sysctl.rst), as Docker's are.
fn set_ipv6(name: &str, setting: &str, value: String) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
    match std::fs::write(&path, &value) {
        // A kernel without IPv6 at all, started with `ipv6.disable=1`.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| NetworkError::Sysctl { path, value, source }),
    }
}

async fn add(netlink: &Handle, before: &Given, wanted: &Given, network: &Network) -> Result<(), NetworkError> {
    for address in without(&wanted.addresses, &before.addresses) {
        let mut request = netlink
            .address()
            .add(0, std::net::Ipv4Addr::UNSPECIFIED.into(), 0)
            .replace();
        *request.message_mut() = address.clone();
        step("add address", address, &[], request.execute().await)?;
    }
    for (interface, index) in network.interfaces.iter().zip(&wanted.links) {
        let message = LinkUnspec::new_with_index(*index);
        let message = if interface.up { message.up() } else { message.down() };
        let done = netlink.link().set(message.build()).execute().await;
        step("bring up", &interface.name, &[], done)?;
    }
    for route in without(&wanted.routes, &before.routes) {
        step("add route", route, &[libc::EEXIST], add_route(netlink, route).await)?;
    }
    for rule in without(&wanted.rules, &before.rules) {
        let mut request = netlink.rule().add();
        *request.message_mut() = rule.clone();
        step("add rule", rule, &[libc::EEXIST], request.execute().await)?;
    }
    for neighbour in without(&wanted.neighbours, &before.neighbours) {
        let mut request = netlink
            .neighbours()
            .add(0, std::net::Ipv4Addr::UNSPECIFIED.into())
            .replace();
        *request.message_mut() = neighbour.clone();
        step("add neighbour", neighbour, &[], request.execute().await)?;
    }
    Ok(())
}

/// rtnetlink's own request refuses a second route to one destination, which is how IPv6 has several ways to it.
async fn add_route(netlink: &Handle, route: &RouteMessage) -> Result<(), rtnetlink::Error> {
    use rtnetlink::packet_core::{NLM_F_APPEND, NetlinkMessage, NetlinkPayload};

    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route.clone()));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let mut answers = netlink.clone().request(request)?;
    while let Some(answer) = futures::StreamExt::next(&mut answers).await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}
