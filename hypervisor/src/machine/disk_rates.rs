//! Rates of a VM's disks. Pure.

use config::Hypervisor;

/// The rates that all disks of a VM share, as QEMU's object; none if there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRates {
    /// Bytes per second; 0: any.
    bytes: u64,
    /// Requests per second; 0: any.
    operations: u64,
}

impl DiskRates {
    /// QEMU's name of the group.
    pub(crate) const GROUP: &'static str = "disk-rates";

    pub(crate) fn of(config: &Hypervisor) -> Option<Self> {
        let (bits, operations) = (
            config.disk_rate_limiter_bw_max_rate,
            config.disk_rate_limiter_ops_max_rate,
        );
        (bits > 0 || operations > 0).then_some(Self {
            bytes: bits.div_ceil(8),
            operations,
        })
    }

    /// `-object` (qemu(1), "throttle-group").
    pub(crate) fn object(self) -> String {
        let Self { bytes, operations } = self;
        format!(
            "throttle-group,id={},x-bps-total={bytes},x-iops-total={operations}",
            Self::GROUP
        )
    }
}
