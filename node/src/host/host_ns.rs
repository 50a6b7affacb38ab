//! Threads in the host's mount namespace.
//!
//! The server has its own mount namespace, so that its mounts end with it. Later mounts of the host propagate into it
//! only if `/` is shared, which is not guaranteed. So sources of bind mounts are opened and cloned here, and returned as
//! descriptors. Hooks are started here.
//!
//! One thread stays in the namespace and only starts other threads, one per job, which inherit the namespace (clone(2)).
//! A source on a file server that does not answer blocks its own thread, and must not block others.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};

/// Why something could not be done in the host's mount namespace.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum HostNamespaceError {
    #[error("cannot start a thread in the host's mount namespace")]
    Thread(#[source] io::Error),
    #[error("cannot open {} on the host", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The server's own mount namespace could not be made.
    #[error("cannot enter a mount namespace of our own: {operation}")]
    Unshare {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A clone of a part of the host's mounts.
#[derive(Debug)]
pub struct HostTree {
    /// The clone, attached nowhere.
    pub tree: OwnedFd,
    /// The number of the mount that it is a clone of (the first field of proc_pid_mountinfo(5)).
    pub mount: u64,
    /// Its path in the host's mount namespace, without links.
    pub path: PathBuf,
}

type Job = Box<dyn FnOnce() + Send>;

/// Moves the calling thread, and so all threads that it starts later, to a mount namespace of its own which is a slave of the one where it was.
///
/// # Errors
/// As for [`HostNamespace::spawn`].
pub fn leave() -> Result<(), HostNamespaceError> {
    crate::host::sys::unshare_mount_namespace().map_err(|source| HostNamespaceError::Unshare {
        operation: "unshare",
        source,
    })?;
    mount_change(
        OsStr::new("/"),
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|source| HostNamespaceError::Unshare {
        operation: "make / a slave",
        source: source.into(),
    })
}

fn named() -> thread::Builder {
    thread::Builder::new().name("host-mounts".to_owned())
}

/// A handle on the thread that starts the others; it ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct HostNamespace {
    jobs: mpsc::Sender<Job>,
}

impl HostNamespace {
    /// Starts the thread in the caller's mount namespace and moves the *calling thread*, and so all threads that it
    /// starts later, to a namespace of its own which is a slave of the host's. To be called before any other thread
    /// is started.
    ///
    /// # Errors
    /// The thread or the namespace cannot be made; the latter needs `CAP_SYS_ADMIN`.
    pub fn spawn() -> Result<Self, HostNamespaceError> {
        let host = Self::start_thread()?;
        leave()?;
        Ok(host)
    }

    /// Starts the thread and leaves the caller where it is: both are in the same namespace.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_thread() -> Result<Self, HostNamespaceError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        // A job whose thread cannot be started is dropped, and with it what its caller waits for.
        let start = |job: Job| drop(named().spawn(job));
        named()
            .spawn(move || queue.into_iter().for_each(start))
            .map_err(HostNamespaceError::Thread)?;
        Ok(Self { jobs })
    }

    /// Runs something on a thread of its own and waits for it. Blocks the caller.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, HostNamespaceError> {
        let failed = || HostNamespaceError::Thread(io::ErrorKind::WouldBlock.into());
        let (answer, result) = mpsc::sync_channel(1);
        self.jobs
            .send(Box::new(move || {
                // The receiver waits below; it cannot have gone away.
                let _ = answer.send(job());
            }))
            .map_err(|_| failed())?;
        result.recv().map_err(|_| failed())
    }

    /// Clones the mount that `path` is on, seen from `path` down, with symbolic links followed; with all mounts below
    /// it if `recursive`. The descriptor can be moved into any namespace by `move_mount(2)`. Blocks the caller.
    ///
    /// # Errors
    /// There is no such path, or it cannot be cloned.
    pub fn open_tree(&self, path: &Path, recursive: bool) -> Result<OwnedFd, HostNamespaceError> {
        self.find_tree(path, recursive).map(|found| found.tree)
    }

    /// The same, with the number of the mount.
    ///
    /// # Errors
    /// As for [`HostNamespace::open_tree`].
    pub fn find_tree(&self, path: &Path, recursive: bool) -> Result<HostTree, HostNamespaceError> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let source = path.to_owned();
        // The kernel knows the number without asking the file system.
        let unasked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let open = move || -> rustix::io::Result<HostTree> {
            // Once by its name, so that number and clone are of the same mount. An automount is made, as by stat(2).
            let found = open_tree(rustix::fs::CWD, &source, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
            let mount = statx(&found, "", unasked, StatxFlags::MNT_ID)?.stx_mnt_id;
            let path = rustix::fs::readlink(crate::host::openat_beneath::name_of(&found), Vec::new())?;
            let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
            let tree = open_tree(&found, "", flags)?;
            Ok(HostTree { tree, mount, path })
        };
        self.run(open)?.map_err(|source| HostNamespaceError::Open {
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blocks_holds_up_nothing_else() {
        let host = HostNamespace::start_thread().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let blocked = host.clone();
        let blocked = thread::spawn(move || {
            blocked.run(move || {
                begun.send(()).unwrap();
                released.recv().unwrap();
                "late"
            })
        });
        begins.recv().unwrap();
        assert_eq!(host.run(|| "at once").unwrap(), "at once");
        release.send(()).unwrap();
        assert_eq!(blocked.join().unwrap().unwrap(), "late");
    }

    #[test]
    fn a_job_that_panics_is_an_error_of_its_own() {
        let host = HostNamespace::start_thread().unwrap();
        assert!(host.run(|| panic!("on purpose")).is_err());
        assert_eq!(host.run(|| 1).unwrap(), 1);
    }
}
