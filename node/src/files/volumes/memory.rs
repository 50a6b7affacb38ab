//! Volumes in memory: the guest has its own, one for all containers of the pod, because the host's memory file systems
//! cannot be mapped into a guest. Pure.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::Spec;
use protocol::agent::Storage;

use super::name::name;
use super::source::{FileSystem, Source};

/// Bytes of huge pages that a container may use, by the size of a page.
pub(super) type HugePageLimits = HashMap<u64, u64>;

/// Where programs look for shared memory (shm_open(3)).
pub(super) const SHM: &str = "/dev/shm";

/// "No limit" is a number that no memory has.
const NO_LIMIT: u64 = 1 << 50;

/// The limits of a specification (config-linux.md "Huge page limits").
pub(super) fn huge_page_limits(spec: &Spec) -> HugePageLimits {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let limits = resources.and_then(|resources| resources.hugepage_limits().as_deref());
    limits
        .unwrap_or_default()
        .iter()
        .filter_map(|limit| {
            let bytes = u64::try_from(limit.limit()).ok().filter(|bytes| *bytes < NO_LIMIT);
            Some((page_size(limit.page_size())?, bytes.unwrap_or_default()))
        })
        .collect()
}

/// `2MB` in bytes: the kernel's names of sizes, which are powers of two.
fn page_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// What a bind mount of a memory file system becomes; none if it is shared like any other. `path` is what makes two mounts the
/// same, and `empty_dir` whether it is an emptyDir.
pub(super) fn storage(
    path: &Path,
    destination: &Path,
    source: &Source,
    empty_dir: bool,
    limits: &HugePageLimits,
) -> Option<Storage> {
    let identity = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    let ownership = || {
        let (uid, gid) = source.owner;
        let mode = source.mode;
        vec![format!("mode={mode:o}"), format!("uid={uid}"), format!("gid={gid}")]
    };
    match source.file_system {
        FileSystem::Tmpfs { size } => {
            let shm = destination == Path::new(SHM);
            if !shm && !empty_dir {
                return None;
            }
            let mut options = ownership();
            options.extend((size > 0).then(|| format!("size={size}")));
            options.push("nodev".to_owned());
            options.push("nosuid".to_owned());
            options.extend((!empty_dir).then(|| "noexec".to_owned()));
            Some(Storage {
                name: name("memory", identity),
                fstype: "tmpfs".to_owned(),
                options,
                keep: true,
                ..Storage::default()
            })
        }
        FileSystem::HugePages { page } => {
            let mut options = ownership();
            options.push(format!("pagesize={page}"));
            Some(Storage {
                name: name("huge", identity),
                fstype: "hugetlbfs".to_owned(),
                options,
                keep: true,
                huge_page_size: page,
                huge_bytes: limits.get(&page).copied().unwrap_or_default(),
                ..Storage::default()
            })
        }
        FileSystem::Other => None,
    }
}

/// A reservation of huge pages for a container that has no volume of them.
pub(super) fn huge_pages_alone(page: u64, bytes: u64) -> Storage {
    Storage {
        name: name("huge", format!("limit {page}").as_bytes()),
        fstype: "hugetlbfs".to_owned(),
        options: vec!["mode=0700".to_owned(), format!("pagesize={page}")],
        huge_page_size: page,
        huge_bytes: bytes,
        ..Storage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(file_system: FileSystem) -> Source {
        Source {
            file_system,
            mode: 0o1777,
            owner: (0, 2000),
        }
    }

    fn decide(path: &str, destination: &str, source: Source) -> Option<Storage> {
        let limits = HugePageLimits::from([(2 << 20, 64 << 20)]);
        let empty_dir = path == POD;
        storage(Path::new(path), Path::new(destination), &source, empty_dir, &limits)
    }

    const POD: &str = "/var/lib/kubelet/pods/7/volumes/kubernetes.io~empty-dir/cache";

    #[test]
    fn shared_memory_has_the_pods_size_and_is_one_for_all_its_containers() {
        let tmpfs = source(FileSystem::Tmpfs { size: 64 << 20 });
        let shm = decide("/run/containerd/pod/shm", "/dev/shm", tmpfs).unwrap();
        assert_eq!(shm.fstype, "tmpfs");
        let wanted = [
            "mode=1777",
            "uid=0",
            "gid=2000",
            "size=67108864",
            "nodev",
            "nosuid",
            "noexec",
        ];
        assert_eq!(shm.options, wanted);
        assert!(shm.keep, "what one container leaves there the next one finds");
        assert_eq!(
            decide("/run/containerd/pod/shm", "/dev/shm", tmpfs).unwrap().name,
            shm.name
        );
        assert_ne!(
            decide("/run/containerd/other/shm", "/dev/shm", tmpfs).unwrap().name,
            shm.name
        );
    }

    #[test]
    fn an_empty_dir_is_in_memory_only_if_it_is_a_tmpfs() {
        let unbounded = FileSystem::Tmpfs { size: 0 };
        let memory = decide(POD, "/cache", source(unbounded)).unwrap();
        assert!(!memory.options.iter().any(|option| option.starts_with("size=")));
        assert_eq!(decide(POD, "/cache", source(FileSystem::Other)), None);
        assert_eq!(
            decide("/srv/tmpfs", "/data", source(unbounded)),
            None,
            "the host's files"
        );
    }

    #[test]
    fn huge_pages_are_reserved_up_to_the_containers_limit() {
        let pages = source(FileSystem::HugePages { page: 2 << 20 });
        let huge = decide(POD, "/huge", pages).unwrap();
        assert_eq!((huge.huge_page_size, huge.huge_bytes), (2 << 20, 64 << 20));
        assert!(huge.options.contains(&"pagesize=2097152".to_owned()));
        let other = source(FileSystem::HugePages { page: 1 << 30 });
        assert_eq!(decide(POD, "/huge", other).unwrap().huge_bytes, 0);
    }

    #[test]
    fn sizes_of_pages_are_those_of_the_kernel() {
        assert_eq!(page_size("2MB"), Some(2 << 20));
        assert_eq!(page_size("1GB"), Some(1 << 30));
        assert_eq!(page_size("64KB"), Some(64 << 10));
        for wrong in ["", "MB", "2", "2MiB", "99999999999999999999GB", "-1MB"] {
            assert_eq!(page_size(wrong), None, "{wrong}");
        }
    }
}
