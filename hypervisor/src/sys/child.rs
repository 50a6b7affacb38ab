//! What a child does to itself between fork and exec: everything that it inherits and that its program is not to have.
//!
//! The one place where the processes of a VM get their rights and limits on the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use rustix::thread::LinkNameSpaceType;

use crate::rootless::User;

/// Files that a child may have open: the soft limit is raised to so many, if the hard one allows it. A service manager's
/// usual soft limit, 1024, is less than the vsock daemon needs for some hundred processes with streams.
const OPEN_FILES: u64 = 1 << 16;

/// RLIMIT_CORE without any core dump. A limit of 0 does not keep a dump from a program that `core_pattern` pipes it to
/// (core(5)); a limit of 1 does (`do_coredump` in the kernel's fs/coredump.c), and it is too small for a file.
const NO_CORE: u64 = 1;

/// What a child does about its network namespace.
#[derive(Debug)]
pub(crate) enum Network {
    /// Nothing.
    Inherited,
    /// Enters this one.
    Entered(Arc<OwnedFd>),
}

/// What a child does to itself before it becomes its program.
#[derive(Debug)]
pub(crate) struct BeforeExec {
    /// Its network namespace.
    pub(crate) netns: Network,
    /// Whose rights it has; its parent's, if none.
    pub(crate) user: Option<User>,
    /// `cgroup.procs` files, open for writing, through which the child moves itself.
    pub(crate) cgroups: Vec<File>,
    /// Its score for the host's OOM killer; its parent's, if none.
    pub(crate) oom_score_adj: Option<i32>,
    /// The only descriptors, but for the standard ones, that the program inherits; their numbers stay.
    pub(crate) pass: Vec<OwnedFd>,
}

impl BeforeExec {
    /// Arranges that `command` does all this, and that its process is killed when the thread that spawns it ends.
    pub(crate) fn attach(self, command: &mut Command) {
        let parent = rustix::process::getpid();
        let limits = limits();
        let score = self.oom_score_adj.map(|score| score.to_string());
        // SAFETY: the closure only makes system calls on descriptors that were opened before the fork. It allocates
        // nothing and takes no lock, as signal-safety(7) demands of the child of a process with threads.
        unsafe {
            command.pre_exec(move || {
                self.apply(parent, &limits, score.as_deref()).map_err(|(step, errno)| {
                    // The errno alone reaches the parent, so the step goes where its complaints are read.
                    let _ = rustix::io::write(io::stderr(), step);
                    io::Error::from(errno)
                })
            });
        }
    }

    fn apply(&self, parent: Pid, limits: &[(Resource, Rlimit)], score: Option<&str>) -> Result<(), Failed> {
        die_with(parent)?;
        if let Some(score) = score {
            set_oom_score_adj(score).map_err(|errno| (&b"cannot set the score for the OOM killer"[..], errno))?;
        }
        for (resource, limit) in limits {
            rustix::process::setrlimit(*resource, *limit)
                .map_err(|errno| (&b"cannot set a resource limit"[..], errno))?;
        }
        for cgroup in &self.cgroups {
            // 0 is the writer itself, in both versions of cgroups.
            rustix::io::write(cgroup, b"0").map_err(|errno| (&b"cannot move into the cgroup"[..], errno))?;
        }
        match &self.netns {
            Network::Inherited => {}
            Network::Entered(netns) => {
                rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| (&b"cannot enter the network namespace"[..], errno))?;
            }
        }
        if let Some(user) = self.user {
            become_user(user).map_err(|errno| (&b"cannot become an unprivileged user"[..], errno))?;
            // Another user's process is not to be ended by its parent any more (prctl(2), PR_SET_PDEATHSIG).
            die_with(parent)?;
        }
        close_on_exec_from(3).map_err(|errno| (&b"cannot mark descriptors close-on-exec"[..], errno))?;
        for fd in &self.pass {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|errno| (&b"cannot pass a descriptor"[..], errno))?;
        }
        Ok(())
    }
}

/// The step that failed, and why.
type Failed = (&'static [u8], rustix::io::Errno);

fn die_with(parent: Pid) -> Result<(), Failed> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| (&b"cannot ask for a parent-death signal"[..], errno))?;
    // The parent may have died before the signal was asked for: nobody would send it then.
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err((b"the parent has died", rustix::io::Errno::SRCH))
    }
}

/// What every child is limited to.
fn limits() -> [(Resource, Rlimit); 2] {
    let files = rustix::process::getrlimit(Resource::Nofile);
    let most = files.maximum.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
    let open_files = Rlimit {
        current: files.current.map(|soft| soft.max(most)),
        maximum: files.maximum,
    };
    let core = Rlimit {
        current: Some(NO_CORE),
        maximum: Some(NO_CORE),
    };
    [(Resource::Nofile, open_files), (Resource::Core, core)]
}

/// Writes this process's score. Without CAP_SYS_RESOURCE the kernel lets nobody go below what was inherited
/// (proc_pid_oom_score_adj(5)): then the inherited score is what remains.
fn set_oom_score_adj(score: &str) -> Result<(), rustix::io::Errno> {
    let file = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match rustix::io::write(&file, score.as_bytes()) {
        Ok(_) | Err(rustix::io::Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Gives up all groups and every capability, for good (capabilities(7): a change from root to another user clears them).
fn become_user(user: User) -> Result<(), rustix::io::Errno> {
    let (uid, gid) = (Uid::from_raw(user.number()), Gid::from_raw(user.number()));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)
}

/// Marks every descriptor from `first` upwards (close_range(2)).
fn close_on_exec_from(first: u32) -> Result<(), rustix::io::Errno> {
    // SAFETY: the call takes three integers, closes nothing now and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

fn errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)
}
