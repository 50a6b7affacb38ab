//! The user namespace of createContainer hooks: that of their container, whose root they are, as on runc. The guest's has the same mappings.

use std::io;
use std::os::fd::OwnedFd;

use base::mount_attributes;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use crate::host::owners;

/// The mappings of a container's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Users {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
    root: Owner,
}

/// A user and a group of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Users {
    /// Those of a specification; none if it asks for no user namespace.
    ///
    /// # Errors
    /// The namespace's root is nobody on the host, or it is not known who.
    pub(super) fn of(linux: &Linux) -> Result<Option<Self>, &'static str> {
        let mut namespaces = linux.namespaces().iter().flatten();
        if !namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
            return Ok(None);
        }
        let uids = linux.uid_mappings().clone().unwrap_or_default();
        let gids = linux.gid_mappings().clone().unwrap_or_default();
        if uids.is_empty() || gids.is_empty() {
            return Err("they run in the container's user namespace, whose uidMappings and gidMappings are not given");
        }
        let (Some(uid), Some(gid)) = (root(&uids), root(&gids)) else {
            return Err("they run as root of the container's user namespace, which has none: no mapping has the id 0");
        };
        let root = Owner { uid, gid };
        Ok(Some(Self { uids, gids, root }))
    }

    /// Who its root is on the host.
    pub(super) fn root(&self) -> Owner {
        self.root
    }

    /// Makes a namespace that has them. Blocks.
    pub(super) fn namespace(&self) -> io::Result<OwnedFd> {
        mount_attributes::user_namespace(&owners::lines(&self.uids), &owners::lines(&self.gids))
    }
}

/// Whom a list maps to 0.
fn root(mappings: &[LinuxIdMapping]) -> Option<u32> {
    let zero = mappings.iter().find(|map| map.container_id() == 0 && map.size() > 0);
    zero.map(LinuxIdMapping::host_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn linux(linux: serde_json::Value) -> Linux {
        serde_json::from_value(linux).unwrap()
    }

    #[test]
    fn the_root_is_whom_the_mappings_name() {
        let of = |uids: &[[u32; 3]], gids: &[[u32; 3]]| {
            let list = |maps: &[[u32; 3]]| -> serde_json::Value {
                let one = |[inside, outside, size]: &[u32; 3]| json!({ "containerID": inside, "hostID": outside, "size": size });
                maps.iter().map(one).collect()
            };
            let user = json!([{ "type": "user", "path": "/proc/7/ns/user" }]);
            Users::of(&linux(
                json!({ "namespaces": user, "uidMappings": list(uids), "gidMappings": list(gids) }),
            ))
        };
        let found = of(&[[1, 1000, 5], [0, 100_000, 1]], &[[0, 200_000, 10]])
            .unwrap()
            .unwrap();
        let root = Owner {
            uid: 100_000,
            gid: 200_000,
        };
        assert_eq!(found.root(), root);
        assert!(
            of(&[[1, 1000, 5]], &[[0, 200_000, 10]])
                .unwrap_err()
                .contains("no mapping")
        );
        assert!(of(&[], &[]).unwrap_err().contains("not given"));
        assert_eq!(
            Users::of(&linux(json!({ "namespaces": [{ "type": "mount" }] }))),
            Ok(None)
        );
    }
}
