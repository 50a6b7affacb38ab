//! Converts I/O limits from the host's device numbers to the guest's. Pure.
//!
//! A limit names a device by the host's number, which in the guest means nothing, or another container's disk. A device
//! that the host has plugged in for this container gets its number of the guest. A limit for any other device is left
//! out.

use std::collections::{BTreeSet, HashMap};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDevice,
    LinuxWeightDeviceBuilder,
};

use super::Plugged;

/// What a unified key of the io controller begins with.
const IO: &str = "io.";

/// The disks of a container, and which devices were asked for that are none of them.
struct Known<'a> {
    disks: &'a [Plugged],
    missing: BTreeSet<(i64, i64)>,
}

impl Known<'_> {
    fn guest(&mut self, major: i64, minor: i64) -> Option<(i64, i64)> {
        let host = (major, minor);
        let disk = self.disks.iter().find(|disk| disk.host == host);
        if disk.is_none() {
            self.missing.insert(host);
        }
        disk.map(|disk| disk.guest)
    }

    /// `leafWeight` is of version 1, and nothing here.
    fn weights(&mut self, list: Option<&Vec<LinuxWeightDevice>>) -> Option<Vec<LinuxWeightDevice>> {
        let mapped = list?.iter().filter_map(|device| {
            let (major, minor) = self.guest(device.major(), device.minor())?;
            let mut mapped = LinuxWeightDeviceBuilder::default().major(major).minor(minor);
            if let Some(weight) = device.weight() {
                mapped = mapped.weight(weight);
            }
            mapped.build().ok()
        });
        Some(mapped.collect())
    }

    fn throttles(&mut self, list: Option<&Vec<LinuxThrottleDevice>>) -> Option<Vec<LinuxThrottleDevice>> {
        let mapped = list?.iter().filter_map(|device| {
            let (major, minor) = self.guest(device.major(), device.minor())?;
            let mapped = LinuxThrottleDeviceBuilder::default().major(major).minor(minor);
            mapped.rate(device.rate()).build().ok()
        });
        Some(mapped.collect())
    }

    fn block_io(&mut self, block: &mut LinuxBlockIo) {
        let weights = self.weights(block.weight_device().as_ref());
        let read_bytes = self.throttles(block.throttle_read_bps_device().as_ref());
        let written_bytes = self.throttles(block.throttle_write_bps_device().as_ref());
        let reads = self.throttles(block.throttle_read_iops_device().as_ref());
        let writes = self.throttles(block.throttle_write_iops_device().as_ref());
        block
            .set_weight_device(weights)
            .set_throttle_read_bps_device(read_bytes)
            .set_throttle_write_bps_device(written_bytes)
            .set_throttle_read_iops_device(reads)
            .set_throttle_write_iops_device(writes);
    }

    /// Of a file's text; what begins with no number of a device (a default weight) stays.
    fn text(&mut self, text: &str) -> String {
        let lines = text.lines().filter_map(|line| match numbers(line) {
            None => Some(line.to_owned()),
            Some((major, minor, rest)) => {
                let (major, minor) = self.guest(major, minor)?;
                Some(format!("{major}:{minor}{rest}"))
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn unified(&mut self, unified: &mut HashMap<String, String>) {
        unified.retain(|key, value| {
            if key.starts_with(IO) {
                *value = self.text(value);
            }
            !key.starts_with(IO) || !value.is_empty()
        });
    }
}

/// `8:16 rest`.
fn numbers(line: &str) -> Option<(i64, i64, &str)> {
    let line = line.trim_start();
    let (device, rest) = line.split_at(line.find(char::is_whitespace).unwrap_or(line.len()));
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?, rest))
}

/// Rewrites the limits of a container with these disks. The answer is the devices, `8:16` each, whose limits are left out.
pub(crate) fn rewrite_limits(resources: &mut LinuxResources, disks: &[Plugged]) -> Vec<String> {
    let missing = BTreeSet::new();
    let mut known = Known { disks, missing };
    if let Some(block) = resources.block_io_mut() {
        known.block_io(block);
    }
    if let Some(unified) = resources.unified_mut() {
        known.unified(unified);
    }
    let missing = known.missing.into_iter();
    missing.map(|(major, minor)| format!("{major}:{minor}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// The host's 7:1 and 254:0 are the guest's 254:0 and 254:16.
    fn rewritten(resources: Value) -> (Value, Vec<String>) {
        let disks = [
            Plugged::numbered((7, 1), (254, 0)),
            Plugged::numbered((254, 0), (254, 16)),
        ];
        let mut resources = serde_json::from_value(resources).unwrap();
        let missing = rewrite_limits(&mut resources, &disks);
        (serde_json::to_value(resources).unwrap(), missing)
    }

    #[test]
    fn a_limit_is_for_the_guests_disk_and_what_the_container_has_not_is_left_out() {
        let rate = |major: i64, minor: i64| json!({ "major": major, "minor": minor, "rate": 9 });
        let block = json!({
            "weight": 100,
            "weightDevice": [{ "major": 254, "minor": 0, "weight": 7 }, { "major": 8, "minor": 0, "weight": 7 }],
            "throttleReadBpsDevice": [rate(7, 1), rate(254, 16)],
            "throttleWriteIOPSDevice": [rate(254, 0)],
        });
        let (guest, missing) = rewritten(json!({ "blockIO": block }));
        assert_eq!(
            guest["blockIO"],
            json!({
                "weight": 100,
                "weightDevice": [{ "major": 254, "minor": 16, "weight": 7 }],
                "throttleReadBpsDevice": [rate(254, 0)],
                "throttleWriteIOPSDevice": [rate(254, 16)],
            })
        );
        assert_eq!(missing, ["8:0", "254:16"]);
    }

    #[test]
    fn unified_keys_of_io_name_devices_too() {
        let keys = json!({
            "io.max": "7:1 rbps=1 wiops=max",
            "io.weight": "default 50",
            "io.latency": "8:0 target=1",
            "memory.max": "7:1",
        });
        let (guest, missing) = rewritten(json!({ "unified": keys }));
        assert_eq!(
            guest["unified"],
            json!({ "io.max": "254:0 rbps=1 wiops=max", "io.weight": "default 50", "memory.max": "7:1" })
        );
        assert_eq!(missing, ["8:0"]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_no_number_of_the_hosts_is_left(text in "[0-9: a-z\n]{0,40}") {
            let (guest, _) = rewritten(json!({ "unified": { "io.max": text } }));
            for line in guest["unified"]["io.max"].as_str().unwrap_or_default().lines() {
                let named = numbers(line).map(|(major, minor, _)| (major, minor));
                prop_assert!(named.is_none_or(|named| [(254, 0), (254, 16)].contains(&named)), "{line}");
            }
        }
    }
}
