//! Limits the rate of a device by a token bucket at its egress (tc-tbf(8)), and removes the bucket again.
//!
//! Kata uses HTB for the same keys, and an additional device (ifb) for the frames that the guest sends. Here these frames leave by
//! the interface that the tap is joined to, so the bucket is at that interface, and only the kernel's `sch_tbf` is needed.

use futures::StreamExt as _;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::{Error, Handle};

/// The discipline's handle, by which it is known as ours: `6b74:`.
const OURS: TcHandle = TcHandle {
    major: 0x6b74,
    minor: 0,
};

/// Least burst, in bytes: four of the largest frames that are cut only later (GSO).
const BURST: u32 = 256 << 10;

// Attributes of the discipline (linux/pkt_sched.h).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

/// `TC_LINKLAYER_ETHERNET`: the kernel computes the times itself and wants no table.
const ETHERNET: u8 = 1;

/// Puts a bucket at the egress of a device. `bits` is the rate in bits per second.
pub(super) async fn limit(netlink: &Handle, index: i32, bits: u64) -> Result<(), Error> {
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = OURS;
    message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
    message.attributes.push(TcAttribute::Options(options(bits / 8)));
    let request = RouteNetlinkMessage::NewQueueDiscipline(message);
    send(netlink, request, NLM_F_CREATE | NLM_F_EXCL).await
}

/// Takes it off. Another's discipline stays: the kernel compares the handle.
pub(super) async fn unlimit(netlink: &Handle, index: i32) -> Result<(), Error> {
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = OURS;
    send(netlink, RouteNetlinkMessage::DelQueueDiscipline(message), 0).await
}

async fn send(netlink: &Handle, request: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut answers = netlink.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// `struct tc_tbf_qopt`: two rates of 12 bytes, the queue's limit, the bucket and its largest packet. Rate and bucket are in
/// attributes of their own, with 64 bits and in bytes.
fn options(bytes: u64) -> Vec<TcOption> {
    // A tenth of a second, so that timers need not be exact.
    let burst = u32::try_from(bytes / 10).unwrap_or(u32::MAX).max(BURST);
    let rate = u32::try_from(bytes).unwrap_or(u32::MAX);
    let mut parameters = vec![0; 36];
    parameters[1] = ETHERNET;
    parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
    parameters[24..28].copy_from_slice(&burst.saturating_mul(2).to_ne_bytes());
    vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters)),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst.to_ne_bytes().to_vec())),
        TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, bytes.to_ne_bytes().to_vec())),
    ]
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Nla as _;

    use super::*;

    #[test]
    fn a_rate_has_a_bucket_of_a_tenth_of_a_second_and_never_a_small_one() {
        let burst = |bytes| {
            let mut value = [0; 4];
            options(bytes)[1].emit_value(&mut value);
            u32::from_ne_bytes(value)
        };
        assert_eq!(burst(1_000_000), 256 << 10);
        assert_eq!(burst(125_000_000), 12_500_000);
        assert_eq!(burst(u64::MAX), u32::MAX);
    }
}
