//! Mounts of the host's cgroups: they become the container's own cgroup, so that the path in /proc/self/cgroup, the mount
//! and mountinfo agree, and no container sees or changes the cgroups of others.

use oci_spec::runtime::Mount;

use super::GuestSpec;

/// Where the host has its cgroups mounted.
const HOST: &str = "/sys/fs/cgroup";

impl GuestSpec {
    /// Turns each bind of the host's cgroups, of all or of a part (a hierarchy of v1, a slice), into a mount of the container's own.
    /// The guest's tree has none of the host's names, and what it has are the cgroups of others.
    pub(super) fn own_cgroup(&mut self) {
        let Some(mut mounts) = self.spec.mounts().clone() else {
            return;
        };
        for mount in mounts.iter_mut().filter(|mount| binds_cgroups(mount)) {
            let options = mount.options().clone().unwrap_or_default();
            let options = options.into_iter().filter(|option| !is_bind(option)).collect();
            let source = mount.source().clone().unwrap_or_default();
            mount
                .set_typ(Some("cgroup".to_owned()))
                .set_source(Some("cgroup".into()))
                .set_options(Some(options));
            self.warnings.push(format!(
                "{} on {} is the container's own cgroup in the guest",
                source.components().as_path().display(),
                mount.destination().display()
            ));
        }
        self.spec.set_mounts(Some(mounts));
    }
}

fn binds_cgroups(mount: &Mount) -> bool {
    let bind = mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(|option| is_bind(option));
    // Compared by components: a slash at the end makes no difference.
    bind && mount.source().as_ref().is_some_and(|source| source.starts_with(HOST))
}

fn is_bind(option: &str) -> bool {
    matches!(option, "bind" | "rbind")
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use serde_json::json;

    #[test]
    fn a_bind_of_the_hosts_cgroups_is_the_containers_own() {
        let bind = |source: &str| json!({ "destination": "/sys/fs/cgroup", "type": "bind", "source": source, "options": ["rbind", "rw", "rslave"] });
        let guest = translate(json!({ "mounts": [bind("/sys/fs/cgroup/")] }), "me").unwrap();
        let mount = guest.spec.mounts().clone().unwrap().remove(0);
        assert_eq!(mount.typ().as_deref(), Some("cgroup"));
        assert_eq!(mount.options().as_ref().unwrap(), &["rw", "rslave"]);
        assert!(guest.binds.is_empty() && guest.warnings.iter().any(|warning| warning.contains("own cgroup")));

        for part in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/system.slice/x.service"] {
            let guest = translate(json!({ "mounts": [bind(part)] }), "me").unwrap();
            assert_eq!(
                guest.spec.mounts().as_ref().unwrap()[0].typ().as_deref(),
                Some("cgroup"),
                "{part}"
            );
            let told = format!("{part} on /sys/fs/cgroup is the container's own cgroup in the guest");
            assert!(guest.warnings.contains(&told), "{:?}", guest.warnings);
        }
        let guest = translate(json!({ "mounts": [bind("/sys/fs/cgroups")] }), "me").unwrap();
        assert_eq!(guest.spec.mounts().as_ref().unwrap()[0].typ().as_deref(), Some("bind"));
    }
}
