//! The files installed beside the running program: the guest and its daemons.
//!
//! A Kata configuration names another runtime's guest, and programs at the paths of Kata's packages. This module decides
//! what is used instead, and reports it once. It looks at files and starts nothing.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::model::Hypervisor;

/// Where the packages and `make install` put the guest: below the prefix of the program, or, in a build directory, beside it.
const BESIDE: [&str; 2] = ["share/tatami", "share"];
/// As [`BESIDE`], for the daemons.
const DAEMONS: [&str; 2] = ["libexec/tatami", "bin"];
/// Prefixes that are looked at where the program itself has no guest beside it.
const PREFIXES: [&str; 3] = ["/usr/local", "/usr", "/opt/tatami"];

/// The start of an archive's first header, and the name of its first entry (guest-kernel/initrd).
const NEWC: &[u8] = b"070701";
const NAME_AT: usize = 110;
const MARK: &[u8] = b".tatami\0";

/// How archives and what is compressed begin, as far as kernels unpack them (lib/decompress.c).
const INITRDS: [&[u8]; 7] = [
    NEWC,
    b"\x1f\x8b",
    b"BZh",
    b"\x5d\x00\x00",
    b"\xfd7zXZ",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
];

/// Directories that only Kata's packages have, below whatever prefix.
const KATAS_DIRECTORIES: [&str; 3] = ["kata", "kata-containers", "kata-qemu"];
/// What Kata's files name where they are built for the prefix /usr.
const KATAS_PROGRAMS: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/libexec/virtiofsd"];

/// QEMU, where what is named is not there: looked up in PATH.
const QEMU: &str = "qemu-system-x86_64";
/// Where distributions put virtiofsd, which is not in PATH.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// A guest, and the daemons that it was installed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initrd.
    pub initrd: PathBuf,
    /// virtiofsd, if it was installed too.
    pub virtiofsd: Option<PathBuf>,
    /// vhost-device-vsock, if it was installed too.
    pub vsock_daemon: Option<PathBuf>,
}

impl Installation {
    /// What belongs to the running program; else the first of the usual prefixes that has a guest.
    #[must_use]
    pub fn find() -> Option<Self> {
        let program = std::env::current_exe().ok();
        let own = program.as_deref().and_then(Path::parent).and_then(Path::parent);
        own.into_iter()
            .chain(PREFIXES.map(Path::new))
            .find_map(Installation::below)
    }

    /// What is installed below a prefix; none without a kernel and an initrd.
    #[must_use]
    pub fn below(prefix: &Path) -> Option<Self> {
        let guest = BESIDE
            .map(|directory| prefix.join(directory))
            .into_iter()
            .find(|directory| directory.join("vmlinuz").is_file() && directory.join("initrd.img").is_file())?;
        let daemon = |name: &str| {
            let mut places = DAEMONS.map(|directory| prefix.join(directory).join(name)).into_iter();
            places.find(|path| path.is_file())
        };
        Some(Self {
            kernel: guest.join("vmlinuz"),
            initrd: guest.join("initrd.img"),
            virtiofsd: daemon("virtiofsd"),
            vsock_daemon: daemon("vhost-device-vsock"),
        })
    }
}

/// A setting in whose place another value is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The key, in `[hypervisor.qemu]`.
    pub key: &'static str,
    /// What the file says.
    pub written: PathBuf,
    /// The file that is used instead.
    pub used: PathBuf,
    /// The reason of the replacement.
    pub why: &'static str,
}

const NOT_THERE: &str = "which is not there";
const FOREIGN: &str = "another runtime's guest";

/// Puts what is installed in the place of what is not set, not there, or another runtime's guest. Says so of what was set.
pub(crate) fn complete(
    hypervisor: &mut Hypervisor,
    image: Option<PathBuf>,
    installed: Option<&Installation>,
) -> Vec<Replacement> {
    let mut replaced = Vec::new();
    if let Some(installed) = installed {
        guest(hypervisor, image, installed, &mut replaced);
        // A name without a slash is the default: what was installed with the guest is meant.
        default(&mut hypervisor.virtio_fs_daemon, installed.virtiofsd.as_deref());
        default(&mut hypervisor.vsock_daemon, installed.vsock_daemon.as_deref());
    }
    let virtiofsd = installed.and_then(|installed| installed.virtiofsd.clone());
    let virtiofsd = virtiofsd.or_else(|| VIRTIOFSD.map(PathBuf::from).into_iter().find(|path| path.is_file()));
    for (key, path, other) in [
        ("path", &mut hypervisor.path, Some(PathBuf::from(QEMU))),
        ("virtio_fs_daemon", &mut hypervisor.virtio_fs_daemon, virtiofsd),
    ] {
        if let Some(used) = other.filter(|_| is_katas_and_missing(path)) {
            replaced.push(replace(key, path, used, NOT_THERE));
        }
    }
    replaced
}

fn guest(
    hypervisor: &mut Hypervisor,
    image: Option<PathBuf>,
    installed: &Installation,
    replaced: &mut Vec<Replacement>,
) {
    if hypervisor.kernel.as_os_str().is_empty() {
        hypervisor.kernel.clone_from(&installed.kernel);
    } else if is_katas_and_missing(&hypervisor.kernel) {
        replaced.push(replace(
            "kernel",
            &mut hypervisor.kernel,
            installed.kernel.clone(),
            NOT_THERE,
        ));
    }
    if let Some(written) = image {
        replaced.push(Replacement {
            key: "image",
            written,
            used: installed.initrd.clone(),
            why: FOREIGN,
        });
    }
    let why = match &hypervisor.initrd {
        path if path.as_os_str().is_empty() => None,
        path if is_katas_and_missing(path) => Some(NOT_THERE),
        path if is_foreign(path, installed) => Some(FOREIGN),
        _ => return,
    };
    match why {
        None => hypervisor.initrd.clone_from(&installed.initrd),
        Some(why) => replaced.push(replace("initrd", &mut hypervisor.initrd, installed.initrd.clone(), why)),
    }
}

fn replace(key: &'static str, path: &mut PathBuf, used: PathBuf, why: &'static str) -> Replacement {
    Replacement {
        key,
        written: std::mem::replace(path, used.clone()),
        used,
        why,
    }
}

fn default(path: &mut PathBuf, installed: Option<&Path>) {
    if let Some(installed) = installed.filter(|installed| installed.file_name() == Some(path.as_os_str())) {
        *path = installed.to_owned();
    }
}

/// Whether it is a path of Kata's packages, and certain that nothing is there. A path of the operator's own stays an error.
fn is_katas_and_missing(path: &Path) -> bool {
    let katas = path
        .iter()
        .any(|name| KATAS_DIRECTORIES.iter().any(|kata| name == *kata))
        || KATAS_PROGRAMS.iter().any(|program| path == Path::new(program));
    katas && matches!(path.try_exists(), Ok(false))
}

/// Whether an initrd is none that this project's builder made. What is no initrd, or cannot be read, is left to whoever boots
/// it: that is a mistake, and not another's guest.
fn is_foreign(path: &Path, installed: &Installation) -> bool {
    if *path == installed.initrd || !path.is_file() {
        return false;
    }
    let mut head = Vec::new();
    let most = NAME_AT + MARK.len();
    let read = File::open(path).and_then(|file| file.take(most as u64).read_to_end(&mut head));
    let ours = head.len() == most && head.starts_with(NEWC) && head.ends_with(MARK);
    read.is_ok() && !ours && INITRDS.iter().any(|magic| head.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A prefix with a guest and daemons.
    fn installed() -> (TempDir, Installation) {
        let prefix = tempfile::tempdir().unwrap();
        for file in [
            "share/tatami/vmlinuz",
            "share/tatami/initrd.img",
            "libexec/tatami/virtiofsd",
            "libexec/tatami/vhost-device-vsock",
        ] {
            let path = prefix.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        let installation = Installation::below(prefix.path()).unwrap();
        (prefix, installation)
    }

    fn file(directory: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_prefix_without_a_guest_is_no_installation() {
        let prefix = tempfile::tempdir().unwrap();
        assert_eq!(Installation::below(prefix.path()), None);
        std::fs::create_dir(prefix.path().join("share")).unwrap();
        file(&prefix, "share/vmlinuz", b"");
        assert_eq!(Installation::below(prefix.path()), None);
        file(&prefix, "share/initrd.img", b"");
        let found = Installation::below(prefix.path()).unwrap();
        assert_eq!(found.kernel, prefix.path().join("share/vmlinuz"));
        assert_eq!(found.virtiofsd, None);
    }

    #[test]
    fn what_is_not_set_is_what_is_installed_and_nothing_is_said() {
        let (_prefix, installation) = installed();
        let mut hypervisor = Hypervisor::default();
        assert_eq!(complete(&mut hypervisor, None, Some(&installation)), []);
        assert_eq!(hypervisor.kernel, installation.kernel);
        assert_eq!(hypervisor.initrd, installation.initrd);
        assert_eq!(Some(hypervisor.virtio_fs_daemon), installation.virtiofsd);
        assert_eq!(Some(hypervisor.vsock_daemon), installation.vsock_daemon);
        assert_eq!(hypervisor.path, Path::new(QEMU));
    }

    #[test]
    fn what_kata_has_not_installed_is_replaced_and_the_operators_own_mistakes_are_not() {
        let (prefix, installation) = installed();
        let there = file(&prefix, "kernel", b"");
        let mut hypervisor = Hypervisor {
            path: "/nonexistent/kata/bin/qemu-system-x86_64".into(),
            kernel: there.clone(),
            initrd: "/nonexistent/kata-containers/kata-containers-initrd.img".into(),
            virtio_fs_daemon: "/nonexistent/kata/libexec/virtiofsd".into(),
            vsock_daemon: "/nonexistent/vsock".into(),
            ..Hypervisor::default()
        };
        let replaced = complete(&mut hypervisor, Some("/kata.img".into()), Some(&installation));
        let keys: Vec<_> = replaced.iter().map(|one| one.key).collect();
        assert_eq!(keys, ["image", "initrd", "path", "virtio_fs_daemon"]);
        assert_eq!(hypervisor.kernel, there);
        assert_eq!(hypervisor.initrd, installation.initrd);
        assert_eq!(hypervisor.path, Path::new(QEMU));
        assert_eq!(hypervisor.vsock_daemon, Path::new("/nonexistent/vsock"));

        let own = Hypervisor {
            path: "/nonexistent/qemu".into(),
            kernel: "/nonexistent/kernel".into(),
            initrd: "/nonexistent/initrd".into(),
            virtio_fs_daemon: "/nonexistent/virtiofsd".into(),
            vsock_daemon: "/nonexistent/vsock".into(),
            ..Hypervisor::default()
        };
        let mut completed = own.clone();
        assert_eq!(complete(&mut completed, None, Some(&installation)), []);
        assert_eq!(completed, own);
    }

    #[test]
    fn a_foreign_initrd_is_replaced_and_one_that_we_made_is_kept() {
        let (prefix, installation) = installed();
        let mut ours = b"070701".to_vec();
        ours.resize(NAME_AT, b'0');
        ours.extend(MARK);
        for (bytes, kept) in [
            (&ours[..], true),
            (b"\x1f\x8bcompressed", false),
            (b"070701", false),
            // A kernel in the place of the initrd is a mistake.
            (b"\x7fELF", true),
            (b"", true),
        ] {
            let path = file(&prefix, "other.img", bytes);
            let mut hypervisor = Hypervisor {
                kernel: installation.kernel.clone(),
                initrd: path.clone(),
                ..Hypervisor::default()
            };
            let replaced = complete(&mut hypervisor, None, Some(&installation));
            assert_eq!(replaced.is_empty(), kept, "{bytes:?}");
            assert_eq!(hypervisor.initrd == path, kept, "{bytes:?}");
        }
    }

    #[test]
    fn without_an_installation_a_guest_stays_as_it_is_written() {
        let mut hypervisor = Hypervisor {
            kernel: "/nonexistent/kernel".into(),
            ..Hypervisor::default()
        };
        assert_eq!(complete(&mut hypervisor, Some("/kata.img".into()), None), []);
        assert_eq!(hypervisor.kernel, Path::new("/nonexistent/kernel"));
    }
}
