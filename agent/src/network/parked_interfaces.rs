//! A network namespace without processes for devices that have no interface on the host at the moment. So no container
//! sees them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use rtnetlink::Handle;
use tokio::task::JoinHandle;

/// The namespace of the agent and of every container.
const ROOT: &str = "/proc/1/ns/net";

/// A network namespace of its own.
#[derive(Debug)]
pub(super) struct ParkedInterfaces {
    root: OwnedFd,
    namespace: OwnedFd,
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for ParkedInterfaces {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl ParkedInterfaces {
    /// Makes it. Needs a tokio runtime.
    ///
    /// # Errors
    /// There is no namespace or no socket to be had.
    pub(super) fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        // A thread's namespace is where its sockets are (network_namespaces(7)).
        let made = thread::spawn(move || {
            crate::common::sys::unshare_network_namespace()?;
            let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
            let _runtime = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            Ok::<_, io::Error>((namespace, handle, tokio::spawn(connection)))
        });
        let made = made.join().map_err(|_| io::Error::other("its thread has panicked"))?;
        let (namespace, handle, connection) = made?;
        Ok(Self {
            root: File::open(ROOT)?.into(),
            namespace,
            handle,
            connection,
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// For a device that is to come here.
    pub(super) fn descriptor(&self) -> i32 {
        self.namespace.as_raw_fd()
    }

    /// For a device that is to leave.
    pub(super) fn root(&self) -> i32 {
        self.root.as_raw_fd()
    }
}
