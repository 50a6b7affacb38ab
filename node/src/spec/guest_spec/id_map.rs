//! Id-mapped mounts: the owners of a source's files in the container (`uidMappings` and `gidMappings` of a mount, `idmap`, `ridmap`).
//!
//! The host maps the owners of its files before they are shared, so the guest sees the mapped owners and does not need to know about
//! the mapping. The guest maps its own file systems: volumes in its memory and on disks.

use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};

use super::error::GuestSpecError;
use crate::host::owners::{self, IdMap};

struct Mapping {
    users: Vec<LinuxIdMapping>,
    groups: Vec<LinuxIdMapping>,
    recursive: bool,
}

/// The mapping of a mount; the container's own where the mount asks for one and names none.
fn of(mount: &Mount, linux: Option<&Linux>) -> Result<Option<Mapping>, GuestSpecError> {
    let asks = |word: &str| mount.options().iter().flatten().any(|option| option == word);
    let (asked, recursive) = (asks("idmap") || asks("ridmap"), asks("ridmap"));
    let own = [mount.uid_mappings().clone(), mount.gid_mappings().clone()];
    let [users, groups] = match own
        .each_ref()
        .map(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
    {
        [true, true] => own,
        [false, false] if !asked => return Ok(None),
        [false, false] => linux.map_or([None, None], |linux| {
            [linux.uid_mappings().clone(), linux.gid_mappings().clone()]
        }),
        [_, _] => {
            let reason = "uidMappings and gidMappings: one of them is there without the other";
            return Err(GuestSpecError::mount(mount, reason));
        }
    };
    let (users, groups) = (users.unwrap_or_default(), groups.unwrap_or_default());
    if users.is_empty() || groups.is_empty() {
        let reason = "idmap: neither the mount nor the container (linux.uidMappings) has mappings";
        return Err(GuestSpecError::mount(mount, reason));
    }
    Ok(Some(Mapping {
        users,
        groups,
        recursive,
    }))
}

/// Takes the mapping out of a mount of the host's files.
pub(super) fn take(mount: &mut Mount, linux: Option<&Linux>) -> Result<Option<IdMap>, GuestSpecError> {
    let Some(mapping) = of(mount, linux)? else {
        return Ok(None);
    };
    mount.set_uid_mappings(None).set_gid_mappings(None);
    let kept = mount
        .options()
        .iter()
        .flatten()
        .filter(|option| !matches!(option.as_str(), "idmap" | "ridmap"));
    let kept = kept.cloned().collect();
    mount.set_options(Some(kept));
    Ok(Some(IdMap {
        users: owners::lines(&mapping.users),
        groups: owners::lines(&mapping.groups),
        recursive: mapping.recursive,
    }))
}

/// Leaves it to the guest, whose own the mount's files are.
pub(super) fn leave(mount: &mut Mount, linux: Option<&Linux>) -> Result<(), GuestSpecError> {
    if let Some(mapping) = of(mount, linux)? {
        mount
            .set_uid_mappings(Some(mapping.users))
            .set_gid_mappings(Some(mapping.groups));
    }
    Ok(())
}

/// Refuses a mapping where there can be none.
pub(super) fn refuse(mount: &Mount, reason: &str) -> Result<(), GuestSpecError> {
    let mapped = |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = mount
        .options()
        .iter()
        .flatten()
        .any(|option| matches!(option.as_str(), "idmap" | "ridmap"));
    if asked || mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
        return Err(GuestSpecError::mount(
            mount,
            format!("uidMappings and gidMappings: {reason}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use super::*;
    use serde_json::{Value, json};

    fn mounted(mount: &Value, linux: &Value) -> Result<super::super::GuestSpec, String> {
        translate(json!({ "mounts": [mount], "linux": linux }), "me").map_err(|error| error.to_string())
    }

    fn map(host: u32) -> Value {
        json!([{ "containerID": 0, "hostID": host, "size": 10 }])
    }

    #[test]
    fn a_mapping_is_the_hosts_and_is_not_passed_on() {
        let mount = json!({ "destination": "/d", "type": "bind", "source": "/srv", "options": ["rbind", "ridmap"],
            "uidMappings": map(1000), "gidMappings": map(2000) });
        let guest = mounted(&mount, &json!({ "namespaces": [] })).unwrap();
        let taken = guest.binds[0].id_map.clone().unwrap();
        assert_eq!(
            (taken.users.as_str(), taken.groups.as_str()),
            ("0 1000 10\n", "0 2000 10\n")
        );
        assert!(taken.recursive);
        let left = guest.spec.mounts().clone().unwrap().remove(0);
        assert!(left.uid_mappings().is_none() && left.gid_mappings().is_none());
        assert_eq!(left.options().clone().unwrap(), ["rbind"]);
    }

    #[test]
    fn a_mapping_that_is_asked_for_and_not_given_is_the_containers() {
        let mount = json!({ "destination": "/d", "type": "bind", "source": "/srv", "options": ["bind", "idmap"] });
        let linux = json!({ "namespaces": [{"type": "user"}], "uidMappings": map(7), "gidMappings": map(8) });
        let guest = mounted(&mount, &linux).unwrap();
        assert_eq!(guest.binds[0].id_map.clone().unwrap().users, "0 7 10\n");
        let said = mounted(&mount, &json!({ "namespaces": [] })).unwrap_err();
        assert!(said.contains("/d") && said.contains("idmap"), "{said}");
    }

    #[test]
    fn what_is_the_guests_own_is_left_to_it_with_the_containers_mapping() {
        let source = format!("{}/disk-1", protocol::STORAGE_DIRECTORY);
        let mount = json!({ "destination": "/d", "type": "bind", "source": source, "options": ["bind", "ridmap"] });
        let linux = json!({ "namespaces": [{"type": "user"}], "uidMappings": map(7), "gidMappings": map(8) });
        let guest = mounted(&mount, &linux).unwrap();
        assert!(guest.binds.is_empty());
        let left = guest.spec.mounts().clone().unwrap().remove(0);
        let first = |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().unwrap()[0].host_id();
        assert_eq!((first(left.uid_mappings()), first(left.gid_mappings())), (7, 8));
        assert_eq!(left.options().clone().unwrap(), ["bind", "ridmap"]);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        for (mount, word) in [
            (
                json!({ "destination": "/d", "type": "tmpfs", "uidMappings": map(1), "gidMappings": map(1) }),
                "only a bind mount",
            ),
            (
                json!({ "destination": "/d", "type": "bind", "source": "/s", "uidMappings": map(1) }),
                "without the other",
            ),
            (
                json!({ "destination": "/d", "type": "bind", "source": "/sys/fs", "uidMappings": map(1), "gidMappings": map(1) }),
                "the guest's own",
            ),
        ] {
            let said = mounted(&mount, &json!({ "namespaces": [] })).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
    }
}
