//! The confinement of a helper that parses data from the guest: a user of its own, one directory as its root, no network,
//! no capability, bounded memory and threads, and the system calls that its work needs.
//!
//! This module defines what is allowed; `sys::child` applies it. Of the helper it knows only the system calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, SeekFrom};
use std::path::{Path, PathBuf};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::rootless::User;

/// A helper's private memory in bytes: its heap, its stacks, its queues. The guest's memory, which it shares, is not counted
/// (RLIMIT_DATA, getrlimit(2)).
const MEMORY: u64 = 256 << 20;

/// Threads of a helper.
const THREADS: u64 = 16;

/// Where a helper is kept.
#[derive(Debug)]
pub(crate) struct Jail {
    /// Its working directory, and its root if [`Jail::is_root`].
    pub(crate) directory: PathBuf,
    /// Whether the directory is all that it sees. A program that is not static needs its libraries, and keeps the host's
    /// file systems, with the rights of a user who owns nothing.
    pub(crate) is_root: bool,
    pub(crate) user: User,
    pub(crate) memory: u64,
    pub(crate) threads: u64,
    /// What it may ask of the kernel.
    pub(crate) filter: BpfProgram,
}

impl Jail {
    /// For `program`, which is to see `directory` and no more.
    ///
    /// # Errors
    /// The program cannot be read, or there is no random number for its user.
    pub(crate) fn of_vsock_daemon(program: &Path, directory: PathBuf, user: User) -> io::Result<Self> {
        let is_root = is_static(&mut File::open(program)?)?;
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
            memory: MEMORY,
            threads: THREADS,
            filter: filter().map_err(io::Error::other)?,
        })
    }
}

/// Whether an ELF program names no loader: it has no program header of type PT_INTERP (elf(5), 64 bits).
fn is_static(program: &mut (impl io::Read + io::Seek)) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    const LONGEST: u64 = 64 << 10;
    let mut header = [0; 64];
    program.read_exact(&mut header)?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[32..40]);
    let (size, count) = (usize::from(word(54)), usize::from(word(56)));
    if header[..5] != *b"\x7fELF\x02" || size < 4 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no 64-bit ELF program",
        ));
    }
    program.seek(SeekFrom::Start(u64::from_le_bytes(offset)))?;
    let mut table = Vec::new();
    program
        .take(LONGEST.min((size * count) as u64))
        .read_to_end(&mut table)?;
    let interpreted = table
        .chunks_exact(size)
        .any(|entry| entry[..4] == PT_INTERP.to_le_bytes());
    Ok(!interpreted)
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
    fn a_program_with_a_loader_is_told_from_one_without() {
        // The tests are linked as the machine's programs are.
        let mut own = File::open("/proc/self/exe").unwrap();
        assert!(!is_static(&mut own).unwrap());
        let mut elf = vec![0; 64 + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert!(is_static(&mut io::Cursor::new(&elf)).unwrap());
        elf[64] = 3;
        assert!(!is_static(&mut io::Cursor::new(&elf)).unwrap());
        assert!(is_static(&mut io::Cursor::new(b"#!/bin/sh\n".repeat(10))).is_err());
    }

    #[test]
    fn the_filter_is_made() {
        assert!(!filter().unwrap().is_empty());
    }
}
