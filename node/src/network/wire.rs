//! Joins an interface of the pod's namespace to a tap, so that the VM takes the place of the interface's inner end.
//!
//! `tcfilter`: every frame that arrives at one of them leaves by the other (tc-mirred(8)), by a u32 filter that matches
//! all (tc-u32(8)), because the classifiers `matchall` and `flower` are not in every kernel. `macvtap`: a macvtap in
//! passthru mode on top of the interface, which keeps its MAC address.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::MacVtapMode;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkMacVtap, LinkUnspec};

use super::choice::PodInterface;
use super::error::{PodNetworkError, cause};
use super::plan::Rates;
use super::{answers, rate, tap};

/// Every protocol: `ETH_P_ALL` (packet(7)), in network order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// The place where an ingress qdisc's filters are (tc(8)): `ffff:`.
const INGRESS: u32 = 0xffff_0000;

/// A tap's (drivers/net/tun.c): what fits into 65535 bytes with the Ethernet header. An interface may have more; redirected frames
/// are not measured by it.
const MAX_TAP_MTU: u32 = 65_521;

/// Names the namespace in errors.
#[derive(Clone, Copy)]
pub(super) struct Wiring<'a> {
    pub(super) netlink: &'a Handle,
    pub(super) namespace: &'a str,
    pub(super) rates: Rates,
}

impl Wiring<'_> {
    fn failed(&self, step: &'static str, on: &str) -> impl FnOnce(rtnetlink::Error) -> PodNetworkError {
        let (namespace, on) = (self.namespace.to_owned(), on.to_owned());
        move |source| PodNetworkError::Step {
            namespace,
            step,
            on,
            source: cause(source),
        }
    }

    fn no_device(&self, on: &str) -> impl FnOnce(tap::Failed) -> PodNetworkError {
        let (namespace, on) = (self.namespace.to_owned(), on.to_owned());
        move |(device, source)| PodNetworkError::Tap {
            namespace,
            device,
            on,
            source,
        }
    }

    /// A tap that nothing is joined to yet. It ends with its files.
    pub(super) fn make_tap(&self, name: &str, queues: NonZeroUsize) -> Result<Arc<[OwnedFd]>, PodNetworkError> {
        tap::make(name, queues).map_err(self.no_device(name))
    }

    /// The kernel's half of the device.
    pub(super) fn vhost(&self, name: &str, queues: NonZeroUsize) -> Result<Arc<[OwnedFd]>, PodNetworkError> {
        tap::vhost(queues).map_err(self.no_device(name))
    }

    /// Joins a tap to an interface. What was done until an error is undone.
    pub(super) async fn redirect_or_undo(&self, interface: &PodInterface, name: &str) -> Result<(), PodNetworkError> {
        let redirected = self.redirect(interface, name).await;
        if redirected.is_err() {
            self.remove_ingress(interface.index).await;
            self.unlimit(interface.index).await;
            self.release(name).await;
        }
        redirected
    }

    /// Joins a tap to an interface.
    pub(super) async fn redirect(&self, interface: &PodInterface, name: &str) -> Result<(), PodNetworkError> {
        let tap = self.index(name).await?;
        // The host's kernel has nothing to say on it: no router solicitation, no multicast report.
        let quiet = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        if let Err(error) = quiet {
            tracing::debug!(%error, name, "the host's kernel may send IPv6 frames to the guest");
        }
        for (from, to, on) in [
            (interface.index, tap, interface.name.as_str()),
            (tap, interface.index, name),
        ] {
            let index = i32::try_from(from).unwrap_or(i32::MAX);
            let discipline = self.netlink.qdisc().add(index).ingress().execute().await;
            discipline.map_err(self.failed("put an ingress qdisc on", on))?;
            let filter = self.netlink.traffic_filter(index).add();
            let filter = filter.parent(INGRESS).protocol(ALL_PROTOCOLS).redirect(to);
            let filter = filter.map_err(self.failed("redirect the frames of", on))?;
            filter
                .execute()
                .await
                .map_err(self.failed("redirect the frames of", on))?;
        }
        let mtu = interface.mtu.min(MAX_TAP_MTU);
        let up = LinkUnspec::new_with_index(tap).mtu(mtu).up().build();
        let up = self.netlink.link().set(up).execute().await;
        up.map_err(self.failed("bring up", name))?;
        self.limit(tap, name, self.rates.received).await?;
        self.limit(interface.index, &interface.name, self.rates.sent).await
    }

    /// Limits what leaves by a device. What the guest receives leaves by its tap, what it sends by the interface.
    async fn limit(&self, index: u32, name: &str, bits: u64) -> Result<(), PodNetworkError> {
        if bits == 0 {
            return Ok(());
        }
        let limited = rate::limit(self.netlink, i32::try_from(index).unwrap_or(i32::MAX), bits).await;
        limited.map_err(self.failed("limit the rate of", name))
    }

    pub(super) async fn unlimit(&self, index: u32) {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        if let Err(error) = rate::unlimit(self.netlink, index).await {
            tracing::debug!(%error, index, "there is no limit of the rate to be removed");
        }
    }

    /// Lets what the namespace's own sockets ask name servers be answered, beside an interface that is redirected. In a thread that
    /// is in the namespace.
    pub(super) async fn let_answers_in(&self, interface: &PodInterface, tap: &str) -> Result<(), PodNetworkError> {
        let name = &interface.name;
        std::fs::write(answers::RANGE, answers::PORTS).map_err(|source| PodNetworkError::Step {
            namespace: self.namespace.to_owned(),
            step: "set the range of ports for",
            on: name.clone(),
            source,
        })?;
        let index = i32::try_from(interface.index).unwrap_or(i32::MAX);
        for filter in answers::filters(self.index(tap).await?) {
            let mut request = self.netlink.traffic_filter(index);
            let request = request.add().parent(INGRESS).priority(filter.priority);
            let made = match request.protocol(filter.protocol).u32(&filter.options) {
                Ok(request) => request.execute().await,
                Err(error) => Err(error),
            };
            made.map_err(self.failed("let answers of name servers into", name))?;
        }
        Ok(())
    }

    /// Puts a macvtap on an interface.
    pub(super) async fn macvtap(
        &self,
        interface: &PodInterface,
        name: &str,
        queues: NonZeroUsize,
    ) -> Result<Arc<[OwnedFd]>, PodNetworkError> {
        let link = LinkMacVtap::new(name, interface.index, MacVtapMode::Passthrough)
            .mtu(interface.mtu)
            .up();
        let made = self.netlink.link().add(link.build()).execute().await;
        made.map_err(self.failed("make a macvtap on", &interface.name))?;
        if self.rates.received > 0 {
            tracing::warn!(
                name,
                "rx_rate_limiter_max_rate has no effect with internetworking_model = \"macvtap\""
            );
        }
        self.limit(interface.index, &interface.name, self.rates.sent).await?;
        let index = self.index(name).await?;
        tap::open_macvtap(index, name, queues).map_err(self.no_device(name))
    }

    async fn index(&self, name: &str) -> Result<u32, PodNetworkError> {
        let mut found = self.netlink.link().get().match_name(name.to_owned()).execute();
        let link = found.try_next().await.map_err(self.failed("find", name))?;
        let link = link.ok_or(rtnetlink::Error::RequestFailed);
        link.map(|link| link.header.index).map_err(self.failed("find", name))
    }

    /// Takes the join off an interface that may be gone, or may never have been joined.
    pub(super) async fn remove(&self, interface: u32, name: &str) {
        self.remove_ingress(interface).await;
        self.unlimit(interface).await;
        // A tap has gone with the VM; a macvtap has not.
        if let Ok(index) = self.index(name).await
            && let Err(error) = self.netlink.link().del(index).execute().await
        {
            tracing::debug!(%error, name, "the macvtap has gone");
        }
    }

    /// Takes the join off a tap whose interface has gone.
    pub(super) async fn release(&self, name: &str) {
        if let Ok(index) = self.index(name).await {
            self.remove_ingress(index).await;
            self.unlimit(index).await;
        }
    }

    async fn remove_ingress(&self, index: u32) {
        let mut request = self.netlink.qdisc().del(i32::try_from(index).unwrap_or(i32::MAX));
        request.message_mut().header.parent = TcHandle::INGRESS;
        if let Err(error) = request.execute().await {
            tracing::debug!(%error, index, "there is no ingress qdisc to be removed");
        }
    }
}
