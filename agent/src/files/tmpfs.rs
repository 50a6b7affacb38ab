//! The size of a tmpfs of a container that names none. The kernel takes half of the memory that there is when it is mounted (tmpfs(5)), and in a VM that grows as
//! its containers need it, or is as big as their limits, that is less than they may use.

use base::meminfo;
use oci_spec::runtime::{Mount, Spec};

/// What a page has, in bytes: the kernel gives a tmpfs an inode for each page of its size.
const PAGE: u64 = 4096;

/// Sizes them: half of the memory that the VM grows to (`grows_to`, in bytes; 0: it does not grow), and not less than the container's limit.
pub(crate) fn size(spec: &mut Spec, grows_to: u64) {
    let now = meminfo::read().map_or(0, |memory| memory.mem_total);
    size_for(spec, now / 2, grows_to / 2);
}

/// `kernels`: the size that the kernel gives.
fn size_for(spec: &mut Spec, kernels: u64, grown: u64) {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let limit = resources.and_then(|resources| resources.memory().as_ref()?.limit());
    // A negative limit is none.
    let limit = limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(0);
    let size = grown.max(limit);
    if size <= kernels {
        return;
    }
    let Some(mut mounts) = spec.mounts().clone() else {
        return;
    };
    for mount in mounts.iter_mut().filter(|mount| names_no_size(mount)) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("size={size}"));
        if !has(mount, &["nr_inodes="]) {
            options.push(format!("nr_inodes={}", size / PAGE));
        }
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
}

fn names_no_size(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("tmpfs") && !has(mount, &["size=", "nr_blocks=", "bind", "rbind", "remount"])
}

/// Whether one of its options begins like this. Several may be in one, apart by commas.
fn has(mount: &Mount, beginnings: &[&str]) -> bool {
    let options = mount.options().iter().flatten().flat_map(|option| option.split(','));
    let mut found = options.filter(|option| beginnings.iter().any(|begin| option.starts_with(begin)));
    found.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(kernels: u64, grown: u64, limit: i64) -> Vec<serde_json::Value> {
        let tmpfs =
            |options: &[&str]| json!({ "destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": options });
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "mounts": [
                tmpfs(&["nosuid"]), tmpfs(&["size=1k,mode=700"]), tmpfs(&["nr_blocks=7"]), tmpfs(&["nr_inodes=9"]), tmpfs(&["bind"]),
                { "destination": "/p", "type": "proc", "source": "proc" },
            ],
            "linux": { "resources": { "memory": { "limit": limit } } },
        }))
        .unwrap();
        size_for(&mut spec, kernels, grown);
        let mounts = serde_json::to_value(spec.mounts()).unwrap();
        mounts
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["options"].clone())
            .collect()
    }

    #[test]
    fn what_names_no_size_has_that_of_the_memory_that_may_come() {
        let sized = options(100 << 20, 1 << 30, -1);
        assert_eq!(sized[0], json!(["nosuid", "size=1073741824", "nr_inodes=262144"]));
        assert_eq!(sized[1..3], [json!(["size=1k,mode=700"]), json!(["nr_blocks=7"])]);
        assert_eq!(sized[3], json!(["nr_inodes=9", "size=1073741824"]));
        assert_eq!(sized[4..], [json!(["bind"]), json!(null)]);
    }

    #[test]
    fn a_limit_counts_and_what_the_kernel_gives_is_not_made_less() {
        assert_eq!(
            options(100 << 20, 0, 512 << 20)[0],
            json!(["nosuid", "size=536870912", "nr_inodes=131072"])
        );
        assert_eq!(options(2 << 30, 1 << 30, 512 << 20)[0], json!(["nosuid"]));
    }
}
