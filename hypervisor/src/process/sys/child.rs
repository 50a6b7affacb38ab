//! What a child does between fork and exec: it removes everything inherited that its program must not have.
//!
//! This is the only place where the processes of a VM get their rights and limits on the host.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base::spawn::Prepared;
use rustix::mount::mount_bind;
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid, chdir};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use seccompiler::BpfProgram;

use crate::process::jail::Jail;
use crate::process::rootless::User;
use crate::process::sys::root::Root;

use super::namespaces::{Failed, change_root, errno, leave_namespaces, unshare};

/// What a process may have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessLimits {
    /// Private memory in bytes: heap, stacks, translated code. The guest's memory is shared, and not counted (RLIMIT_DATA,
    /// getrlimit(2)).
    pub(crate) data: u64,
    /// Threads of its user (RLIMIT_NPROC), for a process whose user is nobody else's: of others the kernel would count strangers.
    pub(crate) threads: Option<u64>,
}

/// What a child does about its network namespace.
#[derive(Debug)]
pub(crate) enum Network {
    /// That of the parent.
    Inherited,
    /// Makes a new one, in which there is nothing.
    Empty,
    Entered(Arc<OwnedFd>),
}

/// What a child does to itself before it becomes its program.
#[derive(Debug)]
pub(crate) struct BeforeExec {
    pub(crate) network: Network,
    /// Whose rights it has; its parent's, if none.
    pub(crate) user: Option<User>,
    /// `cgroup.procs` files, open for writing, through which the child moves itself.
    pub(crate) cgroups: Vec<File>,
    /// Capabilities that it may have while it is root; its parent's, if none. Without, and without a user of its own, it keeps
    /// all.
    pub(crate) capabilities: Option<CapabilitySet>,
    /// All that it sees of the host's files; without, what its parent sees, unless it is kept in a jail.
    pub(crate) root: Option<Root>,
    /// Where it is kept, and the program that it becomes there.
    pub(crate) jail: Option<Entry>,
    /// Its private memory and threads.
    pub(crate) limits: ProcessLimits,
    /// Its score for the host's OOM killer, its open files and core dumps.
    pub(crate) accounting: Prepared,
    /// The only descriptors, but for the standard ones, that the program inherits; their numbers stay.
    pub(crate) pass: Vec<OwnedFd>,
}

impl BeforeExec {
    /// Arranges that `command` does all this, and that its process is killed when the thread that spawns it ends.
    pub(crate) fn attach(self, command: &mut Command) {
        let parent = rustix::process::getpid();
        let limits = limits(self.limits);
        // SAFETY: the closure only makes system calls on descriptors that were opened before the fork. It allocates
        // nothing and takes no lock, as signal-safety(7) demands of the child of a process with threads.
        unsafe {
            command.pre_exec(move || {
                self.apply(parent, &limits).map_err(|(step, errno)| {
                    // The errno alone reaches the parent, so the step goes where its complaints are read.
                    let _ = rustix::io::write(io::stderr(), step);
                    io::Error::from(errno)
                })
            });
        }
    }

    fn apply(&self, parent: Pid, limits: &[(Resource, Rlimit)]) -> Result<(), Failed> {
        die_with(parent)?;
        self.accounting.apply()?;
        for (resource, limit) in limits {
            rustix::process::setrlimit(*resource, *limit)
                .map_err(|errno| (&b"cannot set a resource limit"[..], errno))?;
        }
        for cgroup in &self.cgroups {
            // 0 is the writer itself, in both versions of cgroups.
            rustix::io::write(cgroup, b"0").map_err(|errno| (&b"cannot move into the cgroup"[..], errno))?;
        }
        unshare(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)?;
        match &self.network {
            Network::Inherited => {}
            Network::Empty => unshare(libc::CLONE_NEWNET)?,
            Network::Entered(netns) => {
                rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| (&b"cannot enter the network namespace"[..], errno))?;
            }
        }
        if let Some(root) = &self.root {
            root.enter()?;
        }
        if let Some(entry) = &self.jail {
            entry.enter()?;
        }
        if let Some(kept) = self.capabilities {
            bound_capabilities(kept).map_err(|errno| (&b"cannot give up capabilities"[..], errno))?;
        }
        if let Some(user) = self.user {
            become_user(user).map_err(|errno| (&b"cannot become an unprivileged user"[..], errno))?;
            // Another user's process is not to be ended by its parent any more (prctl(2), PR_SET_PDEATHSIG).
            die_with(parent)?;
        }
        rustix::thread::set_no_new_privs(true).map_err(|errno| (&b"cannot give up new privileges"[..], errno))?;
        close_on_exec_from(3).map_err(|errno| (&b"cannot mark descriptors close-on-exec"[..], errno))?;
        for fd in &self.pass {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|errno| (&b"cannot pass a descriptor"[..], errno))?;
        }
        match &self.jail {
            // Does not come back.
            Some(entry) => Err(entry.execute()),
            None => Ok(()),
        }
    }
}

/// A jail and what is started in it. All that a child needs is made before the fork.
#[derive(Debug)]
pub(crate) struct Entry {
    directory: CString,
    is_root: bool,
    filter: BpfProgram,
    program: OwnedFd,
    arguments: Vec<CString>,
}

/// Arguments of a program in a jail, its name included.
const MOST_ARGUMENTS: usize = 15;

impl Entry {
    /// For the program of this path, which has to be readable now and need not be there in the jail.
    pub(crate) fn new(jail: Jail, path: &Path, arguments: &[OsString]) -> io::Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
        let words = std::iter::once(path.as_os_str()).chain(arguments.iter().map(OsString::as_os_str));
        let arguments: Vec<CString> = words.map(text).collect::<io::Result<_>>()?;
        if arguments.len() > MOST_ARGUMENTS {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        Ok(Self {
            directory: text(jail.directory.as_os_str())?,
            is_root: jail.is_root,
            filter: jail.filter,
            program: File::open(path)?.into(),
            arguments,
        })
    }

    /// New namespaces, the directory as root.
    fn enter(&self) -> Result<(), Failed> {
        leave_namespaces(libc::CLONE_NEWNS | libc::CLONE_NEWNET)?;
        if self.is_root {
            let root = self.directory.as_c_str();
            mount_bind(root, root)
                .and_then(|()| chdir(root))
                .and_then(|()| change_root())
                .map_err(|errno| (&b"cannot change the root directory"[..], errno))?;
        } else {
            chdir(self.directory.as_c_str()).map_err(|errno| (&b"cannot change the directory"[..], errno))?;
        }
        Ok(())
    }

    /// Becomes the program. Comes back where that fails.
    fn execute(&self) -> Failed {
        if seccompiler::apply_filter(&self.filter).is_err() {
            return (b"cannot set the filter of system calls", errno());
        }
        let mut arguments = [std::ptr::null(); MOST_ARGUMENTS + 1];
        for (place, argument) in arguments.iter_mut().zip(&self.arguments) {
            *place = argument.as_ptr();
        }
        let environment = [std::ptr::null::<libc::c_char>()];
        // SAFETY: the descriptor is open; the strings live as long as `self`, and both arrays end with a null pointer, as
        // there are at most MOST_ARGUMENTS arguments.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program.as_raw_fd(),
                c"".as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        (b"cannot execute the program", errno())
    }
}

/// Removes all other capabilities from the bounding set and empties the inheritable one, as execve(2) gives root both: what is
/// executed as root has no more than these.
fn bound_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    for bit in 0..u64::BITS {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else {
            continue;
        };
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel has no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            removed => removed?,
        }
    }
    clear_ambient_capability_set()?;
    let own = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            inheritable: CapabilitySet::empty(),
            ..own
        },
    )
}

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

/// The memory and threads of a child.
fn limits(own: ProcessLimits) -> Vec<(Resource, Rlimit)> {
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    let threads = own.threads.map(|threads| (Resource::Nproc, limit(threads)));
    [(Resource::Data, limit(own.data))].into_iter().chain(threads).collect()
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
