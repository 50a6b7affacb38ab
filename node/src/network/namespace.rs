//! Network namespaces of the host: opens them, creates them, and enters them in a thread that ends with its work.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rtnetlink::Handle;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::error::PodNetworkError;

/// The calling thread's namespace (network_namespaces(7)).
const OWN: &str = "/proc/thread-self/ns/net";

/// What tells one namespace from every other that exists (ioctl_ns(2)): device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// A network namespace, which lives at least as long as this.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    name: String,
    file: Arc<OwnedFd>,
    identity: Identity,
}

/// See [`Namespace::claim`].
#[derive(Debug)]
pub(super) struct Claim(#[expect(dead_code, reason = "it is held")] File);

impl Namespace {
    /// The one that a file stands for.
    ///
    /// # Errors
    /// There is no such file.
    pub(super) fn open(path: &Path) -> Result<Self, PodNetworkError> {
        Self::opened(path, path.display().to_string()).map_err(|source| PodNetworkError::Namespace {
            path: path.to_owned(),
            source,
        })
    }

    fn opened(path: &Path, name: String) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            name,
            identity: Identity {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            file: Arc::new(file.into()),
        })
    }

    /// A new one, with nothing in it but a loopback interface that is down.
    ///
    /// # Errors
    /// It cannot be made, which needs `CAP_SYS_ADMIN`.
    pub(super) fn create() -> Result<Self, PodNetworkError> {
        let failed = |source| PodNetworkError::Enter {
            operation: "make",
            namespace: String::from("of the sandbox"),
            source,
        };
        let thread = thread::Builder::new().name(String::from("new-netns")).spawn(|| {
            crate::host::sys::unshare_network_namespace()?;
            Self::opened(Path::new(OWN), String::from("of the sandbox"))
        });
        joined(thread.map_err(failed)?).and_then(|made| made).map_err(failed)
    }

    /// Keeps other sandboxes from it, until the answer is dropped or this process has ended.
    ///
    /// # Errors
    /// Another one does so.
    pub(super) fn claim(&self, path: &Path) -> Result<Claim, PodNetworkError> {
        // A file of its own: a lock is the open file's (flock(2)), and others have the descriptor too.
        let file = File::open(path).map_err(|source| PodNetworkError::Namespace {
            path: path.to_owned(),
            source,
        })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Claim(file)),
            Err(Errno::WOULDBLOCK) => Err(PodNetworkError::Claimed {
                namespace: self.name.clone(),
            }),
            Err(errno) => Err(PodNetworkError::Enter {
                operation: "lock",
                namespace: self.name.clone(),
                source: errno.into(),
            }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// For whoever runs a program in it.
    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    /// What tells it from others.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether it is the one that the caller runs in: the host's.
    ///
    /// # Errors
    /// It cannot be found out.
    pub(super) fn is_own(&self) -> Result<bool, PodNetworkError> {
        Self::open(&PathBuf::from(OWN)).map(|own| own.identity == self.identity)
    }

    /// Does something in the namespace, with a netlink connection to it. What is done is finished even if the future is
    /// dropped.
    ///
    /// # Errors
    /// What the work gives, or the namespace cannot be entered.
    pub(super) async fn run<T, F>(&self, work: impl FnOnce(Handle) -> F + Send + 'static) -> Result<T, PodNetworkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PodNetworkError>>,
    {
        let (done, result) = oneshot::channel();
        let namespace = self.clone();
        let thread = thread::Builder::new().name(String::from("netns")).spawn(move || {
            // Whoever waited may be gone.
            let _ = done.send(namespace.enter_and_run(work));
        });
        thread.map_err(|source| self.cannot_enter(source))?;
        let gone = || self.cannot_enter(io::Error::other("its thread is gone"));
        result.await.unwrap_or_else(|_| Err(gone()))
    }

    /// The same for a caller without a runtime. Blocks.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub(super) fn run_blocking<T, F>(
        &self,
        work: impl FnOnce(Handle) -> F + Send + 'static,
    ) -> Result<T, PodNetworkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PodNetworkError>>,
    {
        let namespace = self.clone();
        let thread = thread::Builder::new()
            .name(String::from("netns"))
            .spawn(move || namespace.enter_and_run(work))
            .map_err(|source| self.cannot_enter(source))?;
        joined(thread).unwrap_or_else(|source| Err(self.cannot_enter(source)))
    }

    /// On a thread of its own, which ends after it.
    pub(super) fn enter_and_run<T, F>(&self, work: impl FnOnce(Handle) -> F) -> Result<T, PodNetworkError>
    where
        F: Future<Output = Result<T, PodNetworkError>>,
    {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| self.cannot_enter(errno.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| self.cannot_enter(source))?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| self.cannot_enter(source))?;
            let connection = tokio::spawn(connection);
            let result = work(handle).await;
            connection.abort();
            result
        })
    }

    pub(super) fn cannot_enter(&self, source: io::Error) -> PodNetworkError {
        PodNetworkError::Enter {
            operation: "enter",
            namespace: self.name.clone(),
            source,
        }
    }
}

fn joined<T>(thread: JoinHandle<T>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("its thread has panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    #[tokio::test]
    async fn a_new_namespace_has_a_loopback_interface_alone_and_its_creator_stays_where_it_was() {
        let before = std::fs::read_link(OWN).unwrap();
        let namespace = Namespace::create().unwrap();
        let links = namespace
            .run(|netlink| async move { Ok(netlink.link().get().execute().try_collect::<Vec<_>>().await) })
            .await
            .unwrap();
        assert_eq!(links.unwrap().len(), 1);
        assert_eq!(std::fs::read_link(OWN).unwrap(), before);
        assert!(!namespace.is_own().unwrap());
        assert!(Namespace::open(Path::new(OWN)).unwrap().is_own().unwrap());
    }

    #[test]
    fn one_sandbox_claims_it_at_a_time() {
        // A file stands for a namespace well enough: nobody enters it.
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (
            Namespace::open(file.path()).unwrap(),
            Namespace::open(file.path()).unwrap(),
        );
        let claim = one.claim(file.path()).unwrap();
        let error = two.claim(file.path()).unwrap_err();
        assert!(error.to_string().contains("another sandbox"), "{error}");
        drop(claim);
        two.claim(file.path()).unwrap();
    }

    #[test]
    fn a_namespace_that_has_gone_is_named() {
        let error = Namespace::open(Path::new("/nowhere/net")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/net"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_namespace_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Namespace::open(file.path())
            .unwrap()
            .run_blocking(|_| async { Ok(()) })
            .unwrap_err();
        assert!(error.to_string().contains("cannot enter"), "{error}");
    }
}
