//! Converts the host's device numbers in a container's specification to the guest's. Pure, except for one query.
//!
//! In the guest a number of the host means nothing, or another container's disk. A block device that the host plugged in
//! gets its number of the guest, in the list of devices and in the rules. A rule for any other block device is left out.
//! A character device is the guest's own with the same number, if it exists.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use protocol::agent::{BlockDevice, Storage};

use super::disk::DiskNode;
use super::error::StorageError;

/// A device of the host that is a disk of the guest, for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plugged {
    /// As a device of the container; empty for a disk with a file system that the guest mounts.
    path: String,
    pub(super) host: (i64, i64),
    pub(super) guest: (i64, i64),
}

impl Plugged {
    pub(super) fn new(device: &BlockDevice, disk: &DiskNode) -> Self {
        Self {
            path: device.path.clone(),
            host: (device.host_major.into(), device.host_minor.into()),
            guest: (disk.major.into(), disk.minor.into()),
        }
    }

    /// None: the disk is no device of the host, but a file.
    pub(super) fn of_storage(storage: &Storage, disk: &DiskNode) -> Option<Self> {
        let host = (storage.host_major.into(), storage.host_minor.into());
        (host != (0, 0)).then(|| Self {
            path: String::new(),
            host,
            guest: (disk.major.into(), disk.minor.into()),
        })
    }

    #[cfg(test)]
    pub(super) fn numbered(host: (i64, i64), guest: (i64, i64)) -> Self {
        let path = String::new();
        Self { path, host, guest }
    }
}

/// Rewrites devices and rules.
///
/// # Errors
/// The specification lists a character device that the guest does not have. Where everything is allowed (a privileged
/// container, which is given the list of all devices of the host) it is left out instead.
pub(crate) fn rewrite(spec: &mut Spec, plugged: &[Plugged]) -> Result<(), StorageError> {
    let in_guest =
        |device: &LinuxDevice| Path::new(&format!("/sys/dev/char/{}:{}", device.major(), device.minor())).exists();
    rewrite_with(spec, plugged, in_guest)
}

fn rewrite_with(
    spec: &mut Spec,
    plugged: &[Plugged],
    in_guest: impl Fn(&LinuxDevice) -> bool,
) -> Result<(), StorageError> {
    let Some(linux) = spec.linux_mut().as_mut() else {
        return Ok(());
    };
    let mut everything = false;
    if let Some(rules) = linux
        .resources_mut()
        .as_mut()
        .and_then(|resources| resources.devices_mut().as_mut())
    {
        everything = rules.iter().any(|rule| rule.allow() && is_everything(rule));
        let mapped = std::mem::take(rules);
        *rules = mapped.into_iter().filter_map(|rule| map_rule(rule, plugged)).collect();
    }
    let Some(devices) = linux.devices_mut().as_mut() else {
        return Ok(());
    };
    let mut kept = Vec::new();
    for mut device in std::mem::take(devices) {
        match device.typ() {
            LinuxDeviceType::B => {
                let Some(disk) = plugged.iter().find(|disk| Path::new(&disk.path) == device.path()) else {
                    return Err(StorageError::Invalid(format!(
                        "device {}: the host has plugged in no disk for it",
                        device.path().display()
                    )));
                };
                device.set_major(disk.guest.0).set_minor(disk.guest.1);
                kept.push(device);
            }
            LinuxDeviceType::C | LinuxDeviceType::U if !in_guest(&device) => {
                if !everything {
                    return Err(StorageError::Invalid(format!(
                        "device {}: the guest has no character device {}:{}, and those of the host cannot be passed in",
                        device.path().display(),
                        device.major(),
                        device.minor()
                    )));
                }
                tracing::debug!(device = %device.path().display(), "left out: the guest does not have it");
            }
            LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::P | LinuxDeviceType::A => kept.push(device),
        }
    }
    *devices = kept;
    Ok(())
}

fn is_everything(rule: &LinuxDeviceCgroup) -> bool {
    matches!(rule.typ(), None | Some(LinuxDeviceType::A))
}

/// A rule in the guest's numbers; none if it means a block device that is not there.
fn map_rule(mut rule: LinuxDeviceCgroup, plugged: &[Plugged]) -> Option<LinuxDeviceCgroup> {
    if rule.typ() != Some(LinuxDeviceType::B) {
        return Some(rule);
    }
    let number = |number: Option<i64>| number.filter(|number| *number != -1);
    match (number(rule.major()), number(rule.minor())) {
        (None, None) => Some(rule),
        (Some(major), Some(minor)) => {
            let disk = plugged.iter().find(|disk| disk.host == (major, minor))?;
            rule.set_major(Some(disk.guest.0)).set_minor(Some(disk.guest.1));
            Some(rule)
        }
        // All devices of a driver of the host's: what it would allow in the guest is not what was meant; what it denies
        // is denied by the rule that denies everything.
        (Some(_), None) | (None, Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plugged(path: &str, host: (i64, i64), guest: (i64, i64)) -> Plugged {
        Plugged {
            path: path.to_owned(),
            host,
            guest,
        }
    }

    fn spec(devices: impl Into<serde_json::Value>, rules: impl Into<serde_json::Value>) -> Spec {
        let (devices, rules) = (devices.into(), rules.into());
        let linux = json!({ "devices": devices, "resources": { "devices": rules } });
        serde_json::from_value(json!({ "ociVersion": "1.0.2", "linux": linux })).unwrap()
    }

    fn block(path: &str, major: i64, minor: i64) -> serde_json::Value {
        json!({ "path": path, "type": "b", "major": major, "minor": minor })
    }

    #[test]
    fn numbers_that_cross_are_not_mixed_up() {
        let allow = |minor: i64| json!({ "allow": true, "type": "b", "major": 254, "minor": minor, "access": "rwm" });
        let mut spec = spec(
            json!([block("/dev/a", 254, 0), block("/dev/b", 254, 16)]),
            json!([{ "allow": false, "access": "rwm" }, allow(0), allow(16)]),
        );
        let disks = [
            plugged("/dev/a", (254, 0), (254, 16)),
            plugged("/dev/b", (254, 16), (254, 0)),
        ];
        rewrite_with(&mut spec, &disks, |_| true).unwrap();
        let linux = spec.linux().clone().unwrap();
        let minors: Vec<i64> = linux
            .devices()
            .as_ref()
            .unwrap()
            .iter()
            .map(LinuxDevice::minor)
            .collect();
        assert_eq!(minors, [16, 0]);
        let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
        assert_eq!(rules[1].minor(), Some(16));
        assert_eq!(rules[2].minor(), Some(0));
    }

    #[test]
    fn a_rule_for_a_disk_of_the_host_that_is_not_plugged_in_is_left_out() {
        let mut spec = spec(
            json!([]),
            json!([
                { "allow": true, "type": "b", "major": 254, "minor": 0, "access": "rwm" },
                { "allow": true, "type": "b", "major": 254, "access": "r" },
                { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" },
                { "allow": true, "type": "b", "access": "m" },
            ]),
        );
        rewrite_with(&mut spec, &[], |_| true).unwrap();
        let rules = spec
            .linux()
            .clone()
            .unwrap()
            .resources()
            .clone()
            .unwrap()
            .devices()
            .clone()
            .unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].typ(), Some(LinuxDeviceType::C));
        assert_eq!(rules[1].access().as_deref(), Some("m"));
    }

    #[test]
    fn a_character_device_that_the_guest_lacks_is_refused_or_left_out_where_all_are_listed() {
        let listed = json!([{ "path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0 }]);
        let mut few = spec(listed.clone(), json!([{ "allow": false, "access": "rwm" }]));
        let error = rewrite_with(&mut few, &[], |_| false).unwrap_err();
        assert!(error.to_string().contains("/dev/nvidia0"), "{error}");
        let mut all = spec(listed.clone(), json!([{ "allow": true, "access": "rwm" }]));
        rewrite_with(&mut all, &[], |_| false).unwrap();
        assert!(all.linux().clone().unwrap().devices().as_ref().unwrap().is_empty());
        let mut own = spec(listed, json!([]));
        rewrite_with(&mut own, &[], |_| true).unwrap();
        assert_eq!(own.linux().clone().unwrap().devices().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn a_block_device_without_a_disk_is_an_error() {
        let mut spec = spec(json!([block("/dev/x", 8, 0)]), json!([]));
        assert!(rewrite_with(&mut spec, &[], |_| true).is_err());
    }
}
