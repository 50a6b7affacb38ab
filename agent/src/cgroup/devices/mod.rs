//! The devices that a container may use (config-linux.md "Allowed Device list"). cgroup v2 has no file for them, but
//! calls a BPF program at every access. [`program`] generates it, and this module attaches it to the container's cgroup.

mod program;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::error::{Error, failed};
use base::bpf::{self, Attachment};
use program::{Access, Kind, Rule, Scope};

/// Most rules of a specification: more make a program that the kernel takes too long to check.
const MAX_RULES: usize = 1000;

/// What every container may use, whatever its specification says: as with runc.
const ALWAYS: [Rule; 10] = [
    Rule::allow(Kind::Block, None, None, Access::MKNOD),
    Rule::allow(Kind::Char, None, None, Access::MKNOD),
    // null, zero, full, random, urandom
    Rule::allow(Kind::Char, Some(1), Some(3), Access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(5), Access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(7), Access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(8), Access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(9), Access::ALL),
    // tty, ptmx, and the terminals below /dev/pts
    Rule::allow(Kind::Char, Some(5), Some(0), Access::ALL),
    Rule::allow(Kind::Char, Some(5), Some(2), Access::ALL),
    Rule::allow(Kind::Char, Some(136), None, Access::ALL),
];

/// Binds the processes of a cgroup to the rules. Nothing is allowed that no rule allows.
pub(super) fn restrict(cgroup: &Path, listed: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    if listed.len() > MAX_RULES {
        return Err(Error::Invalid(format!("more than {MAX_RULES} rules for devices")));
    }
    let mut rules: Vec<Rule> = listed.iter().map(rule).collect::<Result<_, _>>()?;
    rules.extend(ALWAYS);
    let directory = OwnedFd::from(File::open(cgroup).map_err(failed("open", cgroup))?);
    let program = bpf::load(Attachment::Device, "", &program::generate(&rules))
        .map_err(failed("load the device rules of", cgroup))?;
    let attached = bpf::attach(Attachment::Device, directory.as_fd(), program.as_fd());
    attached.map_err(failed("attach the device rules to", cgroup))
}

fn rule(listed: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let invalid = |what: &str| Error::Invalid(format!("device rule {listed}: {what}"));
    let number = |value: Option<i64>| match value {
        // -1 is the wildcard of older specifications.
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid("not a number of a device")),
    };
    let scope = match listed.typ() {
        // As in cgroup v1, "a" means everything, whatever else the rule says.
        None | Some(LinuxDeviceType::A) => Scope::Everything,
        Some(typ) => Scope::Devices {
            kind: match typ {
                LinuxDeviceType::B => Kind::Block,
                LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
                LinuxDeviceType::A | LinuxDeviceType::P => return Err(invalid("not a type of device")),
            },
            major: number(listed.major())?,
            minor: number(listed.minor())?,
            access: Access::parse(listed.access().as_deref().unwrap_or("rwm")).ok_or_else(|| invalid("access"))?,
        },
    };
    Ok(Rule {
        allow: listed.allow(),
        scope,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(json: &str) -> Result<Rule, Error> {
        rule(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn what_containerd_and_docker_write_is_understood() {
        let deny_all = listed(r#"{"allow":false,"access":"rwm"}"#).unwrap();
        assert_eq!(
            deny_all,
            Rule {
                allow: false,
                scope: Scope::Everything
            }
        );
        let fuse = listed(r#"{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"}"#).unwrap();
        assert_eq!(fuse, Rule::allow(Kind::Char, Some(10), Some(229), Access::ALL));
        let all_blocks = listed(r#"{"allow":true,"type":"b","major":-1,"minor":-1,"access":"r"}"#).unwrap();
        assert_eq!(all_blocks, Rule::allow(Kind::Block, None, None, Access::READ));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_text() {
        for json in [
            r#"{"allow":true,"type":"p","access":"rwm"}"#,
            r#"{"allow":true,"type":"c","major":-7,"access":"rwm"}"#,
            r#"{"allow":true,"type":"c","major":1,"access":"rwx"}"#,
        ] {
            assert!(matches!(listed(json), Err(Error::Invalid(_))), "{json}");
        }
    }
}
