//! Converts the host's device numbers in a container's specification to the guest's. Pure, except for one query.
//!
//! In the guest a number of the host means nothing, or another container's disk. A block device that the host plugged in
//! gets its number of the guest, in the list of devices and in the rules. A rule for any other block device is left out.
//! A character device is the guest's own of the same name, if it exists: the numbers of some drivers are given out as they come, and
//! mean another device in the guest.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
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

/// Rewrites devices and rules. `names` is what the host calls its character devices, by their numbers (`MAJOR:MINOR`).
///
/// # Errors
/// The specification lists a character device that the guest does not have. Where everything is allowed (a privileged
/// container, which is given the list of all devices of the host) it is left out instead.
pub(crate) fn rewrite(
    spec: &mut Spec,
    plugged: &[Plugged],
    names: &HashMap<String, String>,
) -> Result<(), StorageError> {
    rewrite_with(spec, plugged, names, &Sysfs)
}

/// Major and minor number.
type Number = (i64, i64);

/// What is asked of the guest's kernel about its character devices.
trait CharacterDevices {
    /// The name of the one with this number, below /dev; empty if it has none there.
    fn name(&self, number: Number) -> Option<String>;
    /// The number of the one with this name.
    fn number(&self, name: &str) -> Option<Number>;
}

struct Sysfs;

impl CharacterDevices for Sysfs {
    fn name(&self, (major, minor): Number) -> Option<String> {
        let uevent = std::fs::read_to_string(format!("/sys/dev/char/{major}:{minor}/uevent")).ok()?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        Some(name.unwrap_or_default().to_owned())
    }

    fn number(&self, name: &str) -> Option<Number> {
        let stat = rustix::fs::stat(Path::new("/dev").join(name)).ok()?;
        let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        is_device.then_some((major.into(), minor.into()))
    }
}

/// The guest's number of a character device of the host; none if it does not have that device.
fn in_guest(host: Number, names: &HashMap<String, String>, guest: &impl CharacterDevices) -> Option<Number> {
    let own = guest.name(host);
    match names.get(&format!("{}:{}", host.0, host.1)) {
        Some(name) if own.as_ref() != Some(name) => guest.number(name),
        // One that the host does not have either means what its number means.
        _ => own.map(|_| host),
    }
}

fn rewrite_with(
    spec: &mut Spec,
    plugged: &[Plugged],
    names: &HashMap<String, String>,
    guest: &impl CharacterDevices,
) -> Result<(), StorageError> {
    let Some(linux) = spec.linux_mut().as_mut() else {
        return Ok(());
    };
    let mut everything = false;
    let listed = linux.devices().iter().flatten();
    let characters: Vec<_> = listed
        .filter(|device| matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U))
        .map(|device| (device.major(), device.minor()))
        .filter_map(|host| Some((host, in_guest(host, names, guest)?)))
        .collect();
    if let Some(rules) = linux
        .resources_mut()
        .as_mut()
        .and_then(|resources| resources.devices_mut().as_mut())
    {
        everything = rules.iter().any(|rule| rule.allow() && is_everything(rule));
        let mapped = std::mem::take(rules);
        let mapped = mapped.into_iter().filter_map(|rule| map_rule(rule, plugged));
        *rules = mapped.map(|rule| map_character_rule(rule, &characters)).collect();
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
            LinuxDeviceType::C | LinuxDeviceType::U => {
                let host = (device.major(), device.minor());
                let own = characters.iter().find(|(listed, _)| *listed == host);
                match own {
                    Some((_, (major, minor))) => {
                        device.set_major(*major).set_minor(*minor);
                        kept.push(device);
                    }
                    None if everything => {
                        tracing::debug!(device = %device.path().display(), "left out: the guest does not have it");
                    }
                    None => {
                        let name = names.get(&format!("{}:{}", host.0, host.1));
                        let name = name.map(|name| format!(" ({name} of the host)")).unwrap_or_default();
                        return Err(StorageError::Invalid(format!(
                            "device {}: the guest has no character device {}:{}{name}, and those of the host cannot be passed in",
                            device.path().display(),
                            host.0,
                            host.1
                        )));
                    }
                }
            }
            LinuxDeviceType::P | LinuxDeviceType::A => kept.push(device),
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

/// A rule for one character device that is listed, in the guest's numbers.
fn map_character_rule(mut rule: LinuxDeviceCgroup, characters: &[(Number, Number)]) -> LinuxDeviceCgroup {
    if rule.typ() == Some(LinuxDeviceType::C)
        && let (Some(major), Some(minor)) = (rule.major(), rule.minor())
        && let Some((_, own)) = characters.iter().find(|(host, _)| *host == (major, minor))
    {
        rule.set_major(Some(own.0)).set_minor(Some(own.1));
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDevice;
    use serde_json::json;

    /// A guest with these character devices.
    struct Has(&'static [(Number, &'static str)]);

    impl CharacterDevices for Has {
        fn name(&self, number: Number) -> Option<String> {
            let found = self.0.iter().find(|(own, _)| *own == number);
            found.map(|(_, name)| (*name).to_owned())
        }

        fn number(&self, name: &str) -> Option<Number> {
            self.0.iter().find(|(_, own)| *own == name).map(|(number, _)| *number)
        }
    }

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
        rewrite_with(&mut spec, &disks, &HashMap::new(), &Has(&[])).unwrap();
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
        rewrite_with(&mut spec, &[], &HashMap::new(), &Has(&[])).unwrap();
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
        let error = rewrite_with(&mut few, &[], &HashMap::new(), &Has(&[])).unwrap_err();
        assert!(error.to_string().contains("/dev/nvidia0"), "{error}");
        let mut all = spec(listed.clone(), json!([{ "allow": true, "access": "rwm" }]));
        rewrite_with(&mut all, &[], &HashMap::new(), &Has(&[])).unwrap();
        assert!(all.linux().clone().unwrap().devices().as_ref().unwrap().is_empty());
        let mut own = spec(listed, json!([]));
        rewrite_with(&mut own, &[], &HashMap::new(), &Has(&[((195, 0), "nvidia0")])).unwrap();
        assert_eq!(own.linux().clone().unwrap().devices().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn a_character_device_is_the_guests_of_the_same_name_and_not_of_the_same_number() {
        let guest = Has(&[((248, 0), "hmm0"), ((249, 0), "rtc0"), ((10, 229), "fuse")]);
        let names = [("248:0", "rtc0"), ("10:223", "uinput"), ("10:229", "fuse")];
        let names = names.map(|(number, name)| (number.to_owned(), name.to_owned())).into();
        let device =
            |path: &str, major: i64, minor: i64| json!({ "path": path, "type": "c", "major": major, "minor": minor });
        let allow = |major: i64, minor: i64| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rw" });
        let listed = json!([
            device("/dev/clock", 248, 0),
            device("/dev/fuse", 10, 229),
            device("/dev/x", 249, 0)
        ]);
        let mut found = spec(
            listed,
            json!([{ "allow": false, "access": "rwm" }, allow(248, 0), allow(10, 229)]),
        );
        rewrite_with(&mut found, &[], &names, &guest).unwrap();
        let linux = found.linux().clone().unwrap();
        let numbers = linux
            .devices()
            .as_ref()
            .unwrap()
            .iter()
            .map(|device| (device.major(), device.minor()));
        assert_eq!(numbers.collect::<Vec<_>>(), [(249, 0), (10, 229), (249, 0)]);
        let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
        let allowed: Vec<_> = rules[1..].iter().map(|rule| (rule.major(), rule.minor())).collect();
        assert_eq!(allowed, [(Some(249), Some(0)), (Some(10), Some(229))]);

        // Its number is another device's in the guest.
        let other = Has(&[((10, 223), "hmm1")]);
        let mut refused = spec(json!([device("/dev/uinput", 10, 223)]), json!([]));
        let error = rewrite_with(&mut refused, &[], &names, &other).unwrap_err().to_string();
        assert!(
            error.contains("/dev/uinput") && error.contains("uinput of the host"),
            "{error}"
        );
    }

    #[test]
    fn a_block_device_without_a_disk_is_an_error() {
        let mut spec = spec(json!([block("/dev/x", 8, 0)]), json!([]));
        assert!(rewrite_with(&mut spec, &[], &HashMap::new(), &Has(&[])).is_err());
    }
}
