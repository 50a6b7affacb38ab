//! The io controller: limits and weights of the guest's block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::setting::Setting;

/// Turns a blkio weight (10 to 1000) into a weight of v2 (1 to 10000), linearly, as runc and crun do.
fn weight(v1: u16) -> u64 {
    1 + u64::from(v1.clamp(10, 1000) - 10) * 9999 / 990
}

pub(super) fn settings(block: &LinuxBlockIo) -> Vec<Setting> {
    let mut settings = Vec::new();
    // The kernel has io.weight only with a scheduler that knows weights.
    if let Some(v1) = block.weight().filter(|weight| *weight > 0) {
        settings.push(Setting::new("io.weight", format!("default {}", weight(v1))).optional());
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(v1) = device.weight() {
            let value = format!("{}:{} {}", device.major(), device.minor(), weight(v1));
            settings.push(Setting::new("io.weight", value).optional());
        }
    }
    throttle(&mut settings, "rbps", block.throttle_read_bps_device().as_deref());
    throttle(&mut settings, "wbps", block.throttle_write_bps_device().as_deref());
    throttle(&mut settings, "riops", block.throttle_read_iops_device().as_deref());
    throttle(&mut settings, "wiops", block.throttle_write_iops_device().as_deref());
    settings
}

fn throttle(settings: &mut Vec<Setting>, key: &str, devices: Option<&[LinuxThrottleDevice]>) {
    for device in devices.unwrap_or_default() {
        let rate = if device.rate() == 0 {
            "max".to_owned()
        } else {
            device.rate().to_string()
        };
        settings.push(Setting::new(
            "io.max",
            format!("{}:{} {key}={rate}", device.major(), device.minor()),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_scales_meet() {
        assert_eq!((weight(10), weight(1000)), (1, 10_000));
    }

    #[test]
    fn a_rate_is_set_per_device_and_direction() {
        let block: LinuxBlockIo = serde_json::from_str(
            r#"{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}"#,
        )
        .unwrap();
        assert_eq!(
            settings(&block),
            [
                Setting::new("io.max", "8:0 rbps=1000"),
                Setting::new("io.max", "8:16 wiops=max")
            ]
        );
    }
}
