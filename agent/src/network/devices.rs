//! The guest's network devices, identified by the MAC address that the host gave them.

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup};
use tokio::task::JoinHandle;

use super::error::{APPEARS, NetworkError, cause, step};
use super::parked_interfaces::ParkedInterfaces;
use crate::common::timeouts::scaled;

/// A netlink connection that is told of new devices.
pub(super) struct Devices {
    handle: Handle,
    news: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Devices {
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// There is no socket.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, news) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(NetworkError::Socket)?;
        Ok(Self {
            handle,
            news,
            connection: tokio::spawn(connection),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The indexes of the devices that were made with these MAC addresses, which may still be on their way; all others go to
    /// [`ParkedInterfaces`].
    ///
    /// # Errors
    /// One does not come, or cannot be moved.
    pub(super) async fn take(
        &mut self,
        macs: &[&[u8]],
        parked: &mut Option<ParkedInterfaces>,
    ) -> Result<Vec<u32>, NetworkError> {
        let listed = listed(&self.handle).await?;
        if parked.is_none()
            && listed
                .iter()
                .any(|link| made_with(link).is_some_and(|mac| !macs.contains(&mac)))
        {
            *parked = Some(ParkedInterfaces::new().map_err(NetworkError::Parking)?);
        }
        if let Some(parked) = parked {
            let unused = listed
                .iter()
                .filter(|link| made_with(link).is_some_and(|mac| !macs.contains(&mac)));
            for link in unused {
                stow(&self.handle, link.header.index, parked.descriptor()).await?;
            }
            let used = self::listed(parked.handle()).await?;
            let used = used
                .iter()
                .filter(|link| made_with(link).is_some_and(|mac| macs.contains(&mac)));
            for link in used {
                stow(parked.handle(), link.header.index, parked.root()).await?;
            }
        }
        let mut indexes = Vec::with_capacity(macs.len());
        for mac in macs {
            indexes.push(self.find(mac).await?);
        }
        Ok(indexes)
    }

    async fn find(&mut self, mac: &[u8]) -> Result<u32, NetworkError> {
        let is = |link: &LinkMessage| made_with(link) == Some(mac);
        // News are queued from the connection's beginning, so that a device that comes after the list is not missed.
        if let Some(link) = listed(&self.handle).await?.iter().find(|link| is(link)) {
            return Ok(link.header.index);
        }
        let announced = async {
            while let Some((message, _)) = self.news.next().await {
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload
                    && is(&link)
                {
                    return Some(link.header.index);
                }
            }
            None
        };
        let found = tokio::time::timeout(scaled(APPEARS), announced).await;
        found
            .ok()
            .flatten()
            .ok_or_else(|| NetworkError::NoDevice { mac: shown(mac) })
    }
}

async fn listed(netlink: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    let links = netlink.link().get().execute().try_collect().await;
    links.map_err(|source| NetworkError::Step {
        step: "list",
        on: String::from("interfaces"),
        source: cause(source),
    })
}

/// Moves a device, under a name that no other has there, and without its addresses and routes.
async fn stow(netlink: &Handle, index: u32, to: i32) -> Result<(), NetworkError> {
    let renamed = LinkUnspec::new_with_index(index).down().name(passing_name(index));
    let renamed = netlink.link().set(renamed.build()).execute().await;
    step("rename interface", index, &[], renamed)?;
    let moved = LinkUnspec::new_with_index(index).setns_by_fd(to);
    let moved = netlink.link().set(moved.build()).execute().await;
    step("move interface", index, &[], moved)
}

/// The permanent address is the one that the VMM gave the device; only devices have one, so nothing that a container makes
/// is taken for one (IFLA_PERM_ADDRESS, rtnetlink(7)).
fn made_with(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::PermAddress(mac) => Some(mac.as_slice()),
        _ => None,
    })
}

/// As ip(8) has it.
fn shown(mac: &[u8]) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// A name for a while, which is not likely one of the host's.
pub(super) fn passing_name(index: u32) -> String {
    format!("tatami-{index}")
}
