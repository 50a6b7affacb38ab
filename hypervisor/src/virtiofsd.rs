//! virtiofsd: serves the shared directory to one guest.
//!
//! We listen, and connect for QEMU, before the daemon starts: the connection waits in the socket's backlog, so nobody
//! waits for anybody, and the socket's path is gone again before a stranger could use it.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use config::Hypervisor;

use crate::boot::{Accounting, BootError, NetworkNamespace};
use crate::children::{Child, ChildName, Program, spawn};
use crate::files::SocketFile;
use crate::sys::number;

/// A daemon that runs, and the socket that QEMU is to have.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) child: Child,
    pub(crate) socket: OwnedFd,
}

/// Starts the daemon.
pub(crate) async fn start(
    program: PathBuf,
    config: &Hypervisor,
    shared_dir: &Path,
    socket_path: PathBuf,
    accounting: Accounting,
) -> Result<Share, BootError> {
    let file = SocketFile::new(socket_path)?;
    let socket_error = |source| BootError::Socket {
        path: file.path().to_owned(),
        source,
    };
    let listener: OwnedFd = UnixListener::bind(file.path()).map_err(socket_error)?.into();
    let socket = UnixStream::connect(file.path()).map_err(socket_error)?.into();
    drop(file);
    let program = Program {
        child: ChildName::Virtiofsd,
        path: program,
        args: args(config, shared_dir, number(listener.as_fd())),
        netns: NetworkNamespace::Inherited,
        user: None,
        // It gives up by itself what it does not need, once it has made its sandbox.
        capabilities: None,
        jail: None,
        accounting,
        pass: vec![listener],
    };
    Ok(Share {
        child: spawn(program).await?,
        socket,
    })
}

/// The daemon's arguments. `--announce-submounts` is its default and is what lets a guest see a mount below the shared
/// directory as a file system of its own. In its sandbox `namespace` its mounts are slaves of the host's, so it sees
/// what is mounted below the directory later, if the directory is on a shared mount (mount_namespaces(7)).
fn args(config: &Hypervisor, shared_dir: &Path, listener: i32) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
    option("--fd", listener.to_string().into());
    option("--shared-dir", shared_dir.into());
    option("--cache", config.virtio_fs_cache.as_str().into());
    option("--sandbox", "namespace".into());
    option("--log-level", if config.enable_debug { "debug" } else { "warn" }.into());
    // With file handles it needs a directory or a file of each mount to open them by, so that a socket, which is a mount of
    // its own here, is EIO for the guest. Without them it also gives up CAP_DAC_READ_SEARCH.
    if !names(&config.virtio_fs_extra_args, "--inode-file-handles") {
        args.push("--inode-file-handles=never".into());
    }
    if let Some(attributes) = extended_attributes(&config.virtio_fs_extra_args) {
        args.push(attributes.into());
    }
    args.extend(config.virtio_fs_extra_args.iter().map(OsString::from));
    args
}

/// Programs find extended attributes and POSIX access lists on any other file system: file capabilities of an image's programs
/// are among them. `auto`: a guest's kernel that has no access lists gets attributes alone. virtiofsd refuses lists where it
/// translates users, as the ids in them would stay what they are. The operator's word for either is the last.
fn extended_attributes(operators: &[String]) -> Option<&'static str> {
    let said = |option| names(operators, option);
    if said("--xattr") || said("--posix-acl") {
        None
    } else if said("--translate-uid") || said("--translate-gid") {
        Some("--xattr")
    } else {
        Some("--posix-acl=auto")
    }
}

/// Whether the operator gives an option: virtiofsd takes each once.
fn names(args: &[String], option: &str) -> bool {
    args.iter().any(|arg| {
        arg.strip_prefix(option)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_arguments_come_last() {
        let config = Hypervisor {
            virtio_fs_extra_args: vec![String::from("--thread-pool-size=1")],
            ..Hypervisor::default()
        };
        let args = args(&config, Path::new("/run/x/shared"), 9);
        let expected = "--fd 9 --shared-dir /run/x/shared --cache auto --sandbox namespace --log-level warn \
                        --inode-file-handles=never --posix-acl=auto --thread-pool-size=1";
        assert_eq!(args.join(std::ffi::OsStr::new(" ")), expected);
    }

    #[test]
    fn extended_attributes_are_as_the_operator_says_and_on_where_nothing_is_said() {
        let given = |arg: &str| extended_attributes(&[arg.to_owned()]);
        assert_eq!(extended_attributes(&[]), Some("--posix-acl=auto"));
        assert_eq!(given("--writeback"), Some("--posix-acl=auto"));
        assert_eq!(given("--translate-uid=map:0:100000:65536"), Some("--xattr"));
        assert_eq!(given("--xattr"), None);
        assert_eq!(given("--posix-acl=never"), None);
    }

    #[test]
    fn what_the_operator_says_is_said_once() {
        let config = Hypervisor {
            virtio_fs_extra_args: vec![String::from("--inode-file-handles=prefer")],
            ..Hypervisor::default()
        };
        let args = args(&config, Path::new("/run/x/shared"), 9);
        let told = args
            .iter()
            .filter(|arg| arg.to_string_lossy().starts_with("--inode-file-handles"));
        assert_eq!(told.count(), 1);
    }
}
