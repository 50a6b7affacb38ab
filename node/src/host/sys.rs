//! System calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use base::mount_attributes;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The descriptor by which a process of ours gets what it is to have from the start: the server its listening socket.
const INHERITED_FD: i32 = 3;

/// The first word of the command line of a process that stands for a container.
pub const STAND_IN: &str = "tatami-container";

/// `unshare(CLONE_NEWNS)` for the calling thread.
pub fn unshare_mount_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)
}

/// `unshare(CLONE_FS)`: from now on the calling thread has a working directory of its own.
pub fn unshare_working_directory() -> io::Result<()> {
    unshare(libc::CLONE_FS)
}

/// `unshare(CLONE_NEWNET)`: from now on the calling thread is in a network namespace of its own.
pub fn unshare_network_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

/// `unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)`: from now on the calling thread has host names and System V objects of its own, and the first process that it starts is
/// the first of a PID namespace. It can start no thread.
pub fn unshare_uts_ipc_and_pid_namespaces() -> io::Result<()> {
    unshare(libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID)
}

/// The process that the command starts is killed when the calling thread ends, and so when this process does (prctl(2), PR_SET_PDEATHSIG).
pub fn end_with_this_thread(command: &mut Command) {
    // SAFETY: the closure makes one system call, and touches no memory.
    unsafe {
        command.pre_exec(|| rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into));
    }
}

/// The process that the command starts is the root of this user namespace and in no other group. Its host names and System V objects belong to the namespace.
pub fn enter_user_namespace(command: &mut Command, users: Arc<OwnedFd>) {
    let enter = move || {
        let done = |result: libc::c_long| match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: system calls that take no memory; the descriptor is open here as in the parent.
        unsafe {
            done(libc::syscall(libc::SYS_setns, users.as_raw_fd(), libc::CLONE_NEWUSER))?;
            done(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
            done(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
            done(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
        }
        unshare(libc::CLONE_NEWUTS | libc::CLONE_NEWIPC)
    };
    // SAFETY: it makes system calls alone, and allocates nothing.
    unsafe {
        command.pre_exec(enter);
    }
}

fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: the flags that are used here change this thread's view of the file systems, of the network, of host names or of
    // System V objects, which this program does not use, or where its children are counted, and nothing about memory or descriptors.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `mount_setattr(2)` is used for here.
#[derive(Debug, Clone, Copy)]
pub enum SetAttr {
    /// The mount alone becomes read-only.
    ReadOnly,
    /// The mount alone can be written to.
    Writable,
    /// The mount and all below it become read-only.
    ReadOnlyRecursive,
    /// Device nodes and set-id programs of the mount, and of all below it, do nothing.
    InertRecursive,
    /// The same, and nothing of them can be executed.
    NotExecutedRecursive,
    /// The mount and all below it become read-only, and their symbolic links are not followed.
    WithoutLinksRecursive,
    /// The mount and all below it become slaves.
    SlaveRecursive,
    /// The mount and all below it become private.
    PrivateRecursive,
}

/// `mount_setattr(2)` on the mount that the descriptor is the root of.
pub fn mount_setattr(mount: BorrowedFd<'_>, change: SetAttr) -> io::Result<()> {
    // SAFETY: all fields of the struct are integers, for which zero means "no change".
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    let mut flags = libc::AT_RECURSIVE;
    match change {
        SetAttr::ReadOnly => {
            attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
            flags = 0;
        }
        SetAttr::Writable => {
            attributes.attr_clr = libc::MOUNT_ATTR_RDONLY;
            flags = 0;
        }
        SetAttr::ReadOnlyRecursive => attributes.attr_set = libc::MOUNT_ATTR_RDONLY,
        SetAttr::WithoutLinksRecursive => {
            attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSYMFOLLOW;
        }
        SetAttr::InertRecursive => attributes.attr_set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID,
        SetAttr::NotExecutedRecursive => {
            attributes.attr_set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        }
        SetAttr::SlaveRecursive => attributes.propagation = libc::MS_SLAVE,
        SetAttr::PrivateRecursive => attributes.propagation = libc::MS_PRIVATE,
    }
    mount_attributes::mount_setattr(mount, c"", flags, &attributes)
}

/// Takes over the first descriptor that a [`base::spawn::Program`] has been given. To be called once, before anything else opens a descriptor.
pub fn inherited() -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes no pointer; it fails if there is no such descriptor.
    if unsafe { libc::fcntl(INHERITED_FD, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody else owns it: the parent put it there for us.
    Ok(unsafe { OwnedFd::from_raw_fd(INHERITED_FD) })
}

/// Makes this the process's environment. Only std reads it while other threads run, under its own lock.
pub fn replace_environment(variables: Vec<(OsString, OsString)>) {
    let valid = |name: &OsString| !name.is_empty() && !name.as_bytes().iter().any(|byte| matches!(byte, b'=' | 0));
    for (name, _) in std::env::vars_os().filter(|(name, _)| valid(name)) {
        // SAFETY: the threads of a process that has adopted nothing yet drive a VM: none of them calls getenv(3) or changes the environment
        // other than by std, which locks it.
        unsafe { std::env::remove_var(name) };
    }
    let sound = variables
        .into_iter()
        .filter(|(name, value)| valid(name) && !value.as_bytes().contains(&0));
    for (name, value) in sound {
        // SAFETY: as above.
        unsafe { std::env::set_var(name, value) };
    }
}

/// Shows these words as the process's arguments (proc_pid_cmdline(5)), as far as those that it was started with leave room. Nobody reads the
/// old ones any more.
pub fn show_arguments(words: &[String]) -> io::Result<()> {
    let (start, room) = command_line_of_this_process()
        .filter(|(_, room)| *room > 1)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut text = words.join("\0").into_bytes();
    // The last byte stays zero: by that the kernel knows where the arguments end.
    text.resize(room, 0);
    if let Some(last) = text.last_mut() {
        *last = 0;
    }
    // SAFETY: the kernel says that these bytes are the process's arguments. They are on the stack of the main thread, below its first frame,
    // writable, and stay there; std has copied nothing but pointers to them, and no thread reads arguments from here on.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), start, room) };
    Ok(())
}

/// What a child that does nothing is given.
#[derive(Debug)]
pub struct Idle<'a> {
    /// One end of a pair of sockets. It writes a byte when it is ready, and ends when the other end is closed.
    pub until: &'a OwnedFd,
    /// The network namespace that it enters.
    pub network: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` of the cgroups that it joins, open for writing.
    pub cgroups: &'a [OwnedFd],
    /// Its name (proc_pid_comm(5)): 15 bytes count.
    pub name: &'a CStr,
    /// Its command line, words apart by NUL. What is longer than this process's own command line is cut off.
    pub command_line: &'a [u8],
}

/// Starts it: a copy of this process without its descriptors. Its root is an empty, read-only file system in a mount namespace of its own,
/// so that `/proc/PID/root` leads nowhere; its hostname and its IPC are nobody's. The caller waits for it.
///
/// # Errors
/// There can be no more processes.
pub fn spawn_idle(idle: &Idle<'_>) -> io::Result<i32> {
    let own_command_line = command_line_of_this_process();
    let prepare = || {
        // SAFETY: nothing but async-signal-safe functions (signal-safety(7)) and system calls, on memory that was made ready before the fork; the
        // descriptors are open here as in the parent. The command line is memory of the child's own, which nobody reads in it but the kernel.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, idle.name.as_ptr());
            if let Some((start, length)) = own_command_line {
                let taken = idle.command_line.len().min(length - 1);
                std::ptr::write_bytes(start, 0, length);
                std::ptr::copy_nonoverlapping(idle.command_line.as_ptr(), start, taken);
            }
            for cgroup in idle.cgroups {
                // Who reads its cgroup finds the shim's where this fails.
                libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            if let Some(network) = idle.network {
                // Only who looks for the network by this pid misses it.
                libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET);
            }
        }
        leave_file_systems()
    };
    // SAFETY: as above.
    unsafe { base::idle::spawn(idle.until, prepare) }
}

/// Where this process's command line is, and its length, which is not 0: fields 48 and 49 of /proc/PID/stat (proc_pid_stat(5)). None where it
/// cannot be read.
fn command_line_of_this_process() -> Option<(*mut u8, usize)> {
    let stat = base::process::own_stat()?;
    let start = usize::try_from(stat.arg_start?).ok()?;
    let end = usize::try_from(stat.arg_end?).ok()?;
    let length = end.checked_sub(start).filter(|length| *length > 0 && start > 0)?;
    Some((std::ptr::with_exposed_provenance_mut(start), length))
}

/// Leaves the calling process, which has one thread, with an empty file system as all that it can name.
fn leave_file_systems() -> bool {
    // SAFETY: system calls on constant strings, which change what this process sees and nothing about memory or descriptors.
    unsafe {
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        let (root, none) = (c"/".as_ptr(), std::ptr::null());
        // Any directory will do that is there: it is covered in this namespace alone.
        let place = c"/proc".as_ptr();
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let options = c"size=4k,mode=555".as_ptr().cast();
        libc::unshare(namespaces) == 0
            && libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
            && libc::mount(c"none".as_ptr(), place, c"tmpfs".as_ptr(), flags, options) == 0
            && libc::chdir(place) == 0
            // The old root on top of the new one (pivot_root(2)), from where it is taken away.
            && libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0
            && libc::umount2(c".".as_ptr(), libc::MNT_DETACH) == 0
            && libc::chdir(root) == 0
    }
}

/// Lets a task wait until the descriptor is readable.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always gives the same descriptor, and it stays open as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(Into::into)
}

/// Fills it with what nobody can guess.
pub fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom(2) gives up to 256 bytes at once; it can only be interrupted, and then it is asked again.
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        if let Ok(count) = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            filled += count;
        }
    }
}
