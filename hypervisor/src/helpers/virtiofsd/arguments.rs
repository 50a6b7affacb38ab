//! virtiofsd's command line, and what the guest has to know of it.

use std::ffi::OsString;
use std::path::Path;

use config::Hypervisor;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// The daemon's arguments. `--announce-submounts` is its default and is what lets a guest see a mount below the shared
/// directory as a file system of its own. In its sandbox `namespace` its mounts are slaves of the host's, so it sees
/// what is mounted below the directory later, if the directory is on a shared mount (mount_namespaces(7)).
pub(super) fn args(config: &Hypervisor, shared_dir: &Path, listener: i32) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
    option("--fd", listener.to_string().into());
    option("--shared-dir", shared_dir.into());
    option("--cache", config.virtio_fs_cache.as_str().into());
    option("--sandbox", "namespace".into());
    if !names(&config.virtio_fs_extra_args, "--log-level") {
        option("--log-level", if config.enable_debug { "debug" } else { "warn" }.into());
    }
    // With file handles it needs a directory or a file of each mount to open them by, so that a socket, which is a mount of
    // its own here, is EIO for the guest. Without them it also gives up CAP_DAC_READ_SEARCH.
    if !names(&config.virtio_fs_extra_args, "--inode-file-handles") {
        args.push("--inode-file-handles=never".into());
    }
    args.extend(extended_attributes(&config.virtio_fs_extra_args).map(OsString::from));
    args.extend(config.virtio_fs_extra_args.iter().map(OsString::from));
    args
}

/// Descriptors that the daemon takes if it can (its DEFAULT_NOFILE).
const DESCRIPTORS: u64 = 1_000_000;
/// How many files the guest's kernel remembers at most unless it is told otherwise (`max_inodes` in our kernel's fs/fuse/bound.c).
const REMEMBERED: u64 = 262_144;

/// How many files the guest may remember so that the daemon, which has a descriptor open for each, has a quarter left for
/// files that are open. None if that is more than the guest remembers anyway.
pub(crate) fn files_to_remember(config: &Hypervisor) -> Option<u64> {
    let operators = option_value(&config.virtio_fs_extra_args, "--rlimit-nofile").filter(|limit| *limit > 0);
    let limit = operators.unwrap_or_else(|| {
        // Root in the host's user namespace raises the hard limit, too.
        let raises = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(DESCRIPTORS);
        if raises { DESCRIPTORS.max(hard) } else { hard }
    });
    let remembered = limit / 4 * 3;
    (remembered < REMEMBERED).then_some(remembered)
}

/// Threads of the daemon's pool for each of its queues; it has none unless it is told.
pub(crate) fn thread_pool(config: &Hypervisor) -> u64 {
    option_value(&config.virtio_fs_extra_args, "--thread-pool-size").unwrap_or(0)
}

/// The number that the operator gives for an option, in either of its forms.
fn option_value(args: &[String], option: &str) -> Option<u64> {
    let at = args.iter().position(|arg| names(std::slice::from_ref(arg), option))?;
    let value = match args.get(at)?.split_once('=') {
        Some((_, value)) => value,
        None => args.get(at + 1)?,
    };
    value.parse().ok()
}

/// How the guest's `trusted.*` attributes are kept: virtiofsd has no CAP_SYS_ADMIN, without which the host's kernel neither
/// shows nor takes them, so they are `user.virtiofs.trusted.*` on the host. They are what an overlay in a container needs of its
/// upper layer. Those of the host stay hidden, and the other names are the guest's by no other way. The first rule that fits
/// counts (virtiofsd's doc/xattr-mapping.md).
const TRUSTED: &str =
    "--xattrmap=:prefix:all:trusted.:user.virtiofs.::bad:server::trusted.::bad:client:user.virtiofs.:::ok:all:::";

/// Programs find extended attributes and POSIX access lists on any other file system: file capabilities of an image's programs
/// are among them. `auto`: a guest's kernel that has no access lists gets attributes alone. virtiofsd refuses lists where it
/// translates users, as the ids in them would stay what they are. The operator's word for any of them is the last.
fn extended_attributes(operators: &[String]) -> impl Iterator<Item = &'static str> {
    let said = |option| names(operators, option);
    let none = operators.iter().any(|option| option == "--posix-acl=never") && !said("--xattr");
    let lists = if said("--xattr") || said("--posix-acl") {
        None
    } else if said("--translate-uid") || said("--translate-gid") {
        Some("--xattr")
    } else {
        Some("--posix-acl=auto")
    };
    // A mapping turns attributes on.
    let trusted = (!none && !said("--xattrmap")).then_some(TRUSTED);
    lists.into_iter().chain(trusted)
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
        let expected = format!(
            "--fd 9 --shared-dir /run/x/shared --cache auto --sandbox namespace --log-level warn \
             --inode-file-handles=never --posix-acl=auto {TRUSTED} --thread-pool-size=1"
        );
        assert_eq!(args.join(std::ffi::OsStr::new(" ")), expected.as_str());
    }

    #[test]
    fn extended_attributes_are_as_the_operator_says_and_on_where_nothing_is_said() {
        let given = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            extended_attributes(&args).collect::<Vec<_>>()
        };
        assert_eq!(given(&[]), ["--posix-acl=auto", TRUSTED]);
        assert_eq!(given(&["--writeback"]), ["--posix-acl=auto", TRUSTED]);
        assert_eq!(given(&["--translate-uid=map:0:100000:65536"]), ["--xattr", TRUSTED]);
        assert_eq!(given(&["--xattr"]), [TRUSTED]);
        assert!(given(&["--posix-acl=never"]).is_empty());
        assert_eq!(given(&["--posix-acl=never", "--xattr"]), [TRUSTED]);
        assert_eq!(given(&["--xattrmap=:ok:all:::"]), ["--posix-acl=auto"]);
    }

    #[test]
    fn the_guest_remembers_fewer_files_than_the_operators_limit() {
        let remembered = |args: &[&str]| {
            files_to_remember(&Hypervisor {
                virtio_fs_extra_args: args.iter().map(ToString::to_string).collect(),
                ..Hypervisor::default()
            })
        };
        assert_eq!(remembered(&["--writeback", "--rlimit-nofile=2000"]), Some(1500));
        assert_eq!(remembered(&["--rlimit-nofile", "20000"]), Some(15000));
        assert_eq!(remembered(&["--rlimit-nofile=1000000"]), None);
    }

    #[test]
    fn what_the_operator_says_is_said_once() {
        for (option, value) in [("--inode-file-handles", "prefer"), ("--log-level", "debug")] {
            let config = Hypervisor {
                virtio_fs_extra_args: vec![format!("{option}={value}")],
                ..Hypervisor::default()
            };
            let args = args(&config, Path::new("/run/x/shared"), 9);
            let told = args.iter().filter(|arg| arg.to_string_lossy().starts_with(option));
            assert_eq!(told.count(), 1, "{option}");
        }
    }
}
