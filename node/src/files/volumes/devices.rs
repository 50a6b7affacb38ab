//! Devices of a specification (`--device`, CRI's volumeDevices): each block device becomes a disk of the guest, of a character
//! device the guest is told the name.
//!
//! A specification identifies a device by the host's number. The node in the container may have any name.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use protocol::agent::BlockDevice;

use super::disk::{DiskKey, HostDisk};
use super::{Places, VolumeError, Volumes, allows_everything};
use crate::host::host_ns::HostNamespace;

impl Volumes {
    /// Takes the block devices, and the names of the others. A privileged container may be given the list of all devices of the host: of those, what is
    /// in use on the host, empty or not there is left out.
    pub(super) fn devices(
        &mut self,
        places: &Places,
        spec: &mut Spec,
        host: &HostNamespace,
    ) -> Result<(), VolumeError> {
        let Some(linux) = spec.linux_mut().as_mut() else {
            return Ok(());
        };
        let resources = linux.resources().as_ref();
        let rules = resources
            .and_then(|resources| resources.devices().clone())
            .unwrap_or_default();
        let lenient = allows_everything(&rules);
        self.every_device = lenient;
        let Some(listed) = linux.devices_mut().as_mut() else {
            return Ok(());
        };
        let mut kept = Vec::new();
        // Held until the last is looked at: a disk and its partition, each of which is free, cannot be had together.
        let mut held = Vec::new();
        for device in std::mem::take(listed) {
            if device.typ() != LinuxDeviceType::B {
                if let Some(name) = name(&places.character, device.major(), device.minor()) {
                    let number = format!("{}:{}", device.major(), device.minor());
                    self.device_names.insert(number, name);
                }
                kept.push(device);
                continue;
            }
            let found = locate(places, &device, &rules, host);
            let found = match lenient {
                true => found.and_then(|found| {
                    held.push(found.1.open()?);
                    Ok(found)
                }),
                false => found,
            };
            match found {
                Ok((node, disk)) => {
                    let index = self.add(disk);
                    self.devices.push((node, index));
                    kept.push(device);
                }
                Err(error) if lenient => self.warnings.push(format!(
                    "device {} is left out: {}",
                    device.path().display(),
                    base::chain(&error)
                )),
                Err(error) => return Err(error),
            }
        }
        *listed = kept;
        Ok(())
    }
}

fn locate(
    places: &Places,
    device: &LinuxDevice,
    rules: &[LinuxDeviceCgroup],
    host: &HostNamespace,
) -> Result<(BlockDevice, HostDisk), VolumeError> {
    let wrong = |reason: String| VolumeError::Device {
        path: device.path().clone(),
        reason,
    };
    let path = device
        .path()
        .to_str()
        .ok_or_else(|| wrong("its path is not UTF-8".to_owned()))?;
    let numbers = (u32::try_from(device.major()), u32::try_from(device.minor()));
    let (Ok(major), Ok(minor)) = numbers else {
        return Err(wrong(format!(
            "{}:{} is no device number",
            device.major(),
            device.minor()
        )));
    };
    let node = node(places, device).ok_or_else(|| wrong(format!("the host has no block device {major}:{minor}")))?;
    let disk = HostDisk::locate(host, &node, !writable(rules, device))?;
    if disk.key != DiskKey::BlockDevice(rustix::fs::makedev(major, minor)) {
        return Err(wrong(format!(
            "{} is not the block device {major}:{minor}",
            node.display()
        )));
    }
    let node = BlockDevice {
        path: path.to_owned(),
        host_major: major,
        host_minor: minor,
        ..BlockDevice::default()
    };
    Ok((node, disk))
}

/// The node of a block device.
fn node(places: &Places, device: &LinuxDevice) -> Option<PathBuf> {
    name(&places.block, device.major(), device.minor()).map(|name| places.dev.join(name))
}

/// The name of a number, below /dev: the kernel has a directory for each device, which names it (sysfs-devices-*, `uevent`).
fn name(numbers: &Path, major: i64, minor: i64) -> Option<String> {
    let uevent = fs::read_to_string(numbers.join(format!("{major}:{minor}/uevent"))).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    // `mapper/x` is one; what leads elsewhere is not.
    let plain = Path::new(name)
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    plain.then(|| name.to_owned())
}

/// Whether any rule lets the container write to a device.
fn writable(rules: &[LinuxDeviceCgroup], device: &LinuxDevice) -> bool {
    let number = |rule: Option<i64>, own: i64| rule.is_none_or(|rule| rule == -1 || rule == own);
    let allowed = rules
        .iter()
        .filter(|rule| rule.allow())
        .filter(|rule| match rule.typ() {
            None | Some(LinuxDeviceType::A) => true,
            Some(typ) => {
                typ == LinuxDeviceType::B
                    && number(rule.major(), device.major())
                    && number(rule.minor(), device.minor())
            }
        });
    let mut access = allowed.map(|rule| rule.access().as_deref().unwrap_or("rwm"));
    access.any(|access| access.contains('w'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(rules: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(rules).unwrap()
    }

    #[test]
    fn a_disk_is_written_to_only_if_a_rule_lets_the_container() {
        let device = json!({ "path": "/dev/xvda", "type": "b", "major": 7, "minor": 3 });
        let device: LinuxDevice = serde_json::from_value(device).unwrap();
        let allow = |access: &str| json!({ "allow": true, "type": "b", "major": 7, "minor": 3, "access": access });
        assert!(writable(&rules(json!([allow("rwm")])), &device));
        assert!(!writable(
            &rules(json!([{ "allow": false, "access": "rwm" }, allow("r")])),
            &device
        ));
        assert!(!writable(&[], &device));
        assert!(writable(&rules(json!([{ "allow": true, "access": "rwm" }])), &device));
        assert!(!writable(
            &rules(json!([{ "allow": true, "type": "b", "major": 7, "minor": 4, "access": "rw" }])),
            &device
        ));
    }

    #[test]
    fn a_number_leads_to_a_name_below_dev() {
        let directory = tempfile::tempdir().unwrap();
        for (number, name) in [("253:1", "mapper/x"), ("8:0", "../etc/passwd"), ("8:1", "")] {
            let place = directory.path().join(number);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("uevent"), format!("MAJOR=1\nDEVNAME={name}\nDEVTYPE=disk\n")).unwrap();
        }
        let name = |major, minor| name(directory.path(), major, minor);
        assert_eq!(name(253, 1).as_deref(), Some("mapper/x"));
        assert_eq!(name(8, 0), None);
        assert_eq!(name(9, 9), None);
    }
}
