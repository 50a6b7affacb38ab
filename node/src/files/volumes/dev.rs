//! Sources below the host's `/dev`. Device nodes, and the file systems that a kernel creates there, are the guest's own.
//! All other files are shared like any others: syslog's socket, the links of `/dev/disk`.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{FileType, fstat, fstatfs};

use crate::host::host_ns::{HostNamespace, HostNamespaceError};
use crate::host::openat_beneath;

/// Magic numbers of devpts, mqueue, hugetlbfs and proc (linux/magic.h, ipc/mqueue.c).
const OF_A_KERNEL: [u64; 4] = [0x1cd1, 0x1980_0202, 0x958_458f6, 0x9fa0];

/// Whether a source below `/dev` is the host's. Blocks.
pub(super) fn is_hosts(host: &HostNamespace, path: &Path) -> Result<bool, HostNamespaceError> {
    let opened = host.open_tree(path, false)?;
    let looked = host.run(move || -> io::Result<bool> {
        let kernels =
            OF_A_KERNEL.contains(&(u64::try_from(fstatfs(&opened)?.f_type).unwrap_or_default() & 0xffff_ffff));
        Ok(match FileType::from_raw_mode(fstat(&opened)?.st_mode) {
            FileType::BlockDevice | FileType::CharacterDevice => false,
            FileType::Directory => !kernels && !has_devices(&openat_beneath::name_of(&opened))?,
            _ => !kernels,
        })
    })?;
    looked.map_err(|source| HostNamespaceError::Open {
        path: path.to_owned(),
        source,
    })
}

/// A directory of device nodes, `/dev` itself for one: the guest has its own, or not.
fn has_devices(directory: &str) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let kind = entry?.file_type()?;
        if kind.is_block_device() || kind.is_char_device() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, makedev, mknodat};

    use super::*;

    #[test]
    fn files_sockets_and_directories_without_devices_are_the_hosts_and_devices_the_guests() {
        let host = HostNamespace::start_thread().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("disk/by-id")).unwrap();
        std::os::unix::fs::symlink("../../vda", path("disk/by-id/x")).unwrap();
        fs::write(path("file"), "").unwrap();
        let _socket = UnixListener::bind(path("log")).unwrap();
        for name in ["disk", "file", "log"] {
            assert!(is_hosts(&host, &path(name)).unwrap(), "{name}");
        }
        fs::create_dir(path("net")).unwrap();
        mknodat(
            CWD,
            path("net/tun"),
            FileType::CharacterDevice,
            Mode::RUSR,
            makedev(1, 3),
        )
        .unwrap();
        for name in ["net", "net/tun"] {
            assert!(!is_hosts(&host, &path(name)).unwrap(), "{name}");
        }
        assert!(!is_hosts(&host, Path::new("/dev")).unwrap() && !is_hosts(&host, Path::new("/dev/pts")).unwrap());
        is_hosts(&host, &path("missing")).unwrap_err();
    }
}
