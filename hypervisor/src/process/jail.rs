//! The confinement of a helper that parses data from the guest: a user of its own, one directory as its root, no network,
//! no capability, and the system calls that its work needs.
//!
//! This module defines what is allowed; `sys::child` applies it. Of the helper it knows only the system calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::process::elf;
use crate::process::rootless::User;

/// Where a helper is kept.
#[derive(Debug)]
pub(crate) struct Jail {
    /// Its working directory, and its root if [`Jail::is_root`].
    pub(crate) directory: PathBuf,
    /// Whether the directory is all that it sees. A program that is not static needs its libraries, and keeps the host's
    /// file systems, with the rights of a user who owns nothing.
    pub(crate) is_root: bool,
    pub(crate) user: User,
    /// What it may ask of the kernel.
    pub(crate) filter: BpfProgram,
}

impl Jail {
    /// For `program`, which is to see `directory` and no more.
    ///
    /// # Errors
    /// The program cannot be read, or there is no random number for its user.
    pub(crate) fn of_vsock_daemon(program: &Path, directory: PathBuf, user: User) -> io::Result<Self> {
        let is_root = elf::interpreter(&mut File::open(program)?)?.is_none();
        if !is_root {
            tracing::warn!(
                program = %program.display(),
                "the vsock daemon is not linked statically: it sees the host's files that everybody may read"
            );
        }
        Ok(Self {
            directory,
            is_root,
            user,
            filter: filter().map_err(io::Error::other)?,
        })
    }
}

/// What vhost-device-vsock 0.3 asks of the kernel, from its start (strace(1) over the tests of streams, of execs at once and of
/// port-forward), and what its allocator and its threads may ask for besides. All else is EPERM.
fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let unix = u64::try_from(libc::AF_UNIX).unwrap_or_default();
    rules.insert(libc::SYS_socket, vec![first_argument(unix)?]);
    let architecture = std::env::consts::ARCH.try_into().map_err(|error: BackendError| error)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

fn first_argument(value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    SeccompRule::new(vec![condition])
}

const ALLOWED: &[i64] = &[
    // Streams and sockets.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory: the guest's and its own.
    libc::SYS_brk,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, time and the end.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Its own start, and its loader's if it has one: there is nothing else to be opened or executed in an empty root.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_faccessat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_made() {
        assert!(!filter().unwrap().is_empty());
    }
}
