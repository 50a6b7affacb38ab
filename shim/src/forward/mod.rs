//! Port forwarding. `kubectl port-forward` makes containerd connect to localhost in the pod's network namespace on the
//! host, but the pod's programs listen in the guest. So this module accepts every connection that is opened in that
//! namespace, for any port, and continues it inside the guest, where localhost is the pod's.
//!
//! It owns the listening socket and the BPF program that directs connections to it. Both end with the shim. Traffic from
//! the network does not pass here: it goes through the pod's interface and never reaches a socket of the namespace, and only
//! the loopback's address is listened at. Nothing is forwarded for a pod whose network the guest has not got, or which is in
//! the host's own namespace.

mod redirect;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::chain;
use guest::{accept, warn_rate_limited};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::sandbox::Sandbox;

/// Connections of one pod at a time; further ones wait.
const CONNECTIONS: usize = 256;

/// The calling thread's network namespace (network_namespaces(7)).
const OWN: &str = "/proc/thread-self/ns/net";

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} in the network namespace {}", netns.display())]
pub struct ForwardError {
    operation: &'static str,
    netns: PathBuf,
    #[source]
    source: io::Error,
}

/// The listening socket, and what keeps connections directed to it.
struct Directed {
    listener: TcpListener,
    _link: OwnedFd,
}

/// Listens in a pod's network namespace until the sandbox ends.
///
/// # Errors
/// The namespace is gone, or the kernel cannot direct connections.
pub async fn start(sandbox: Arc<Sandbox>, netns: PathBuf) -> Result<(), ForwardError> {
    let failed = |operation| {
        let netns = netns.clone();
        move |source| ForwardError {
            operation,
            netns,
            source,
        }
    };
    let path = netns.clone();
    // A thread of its own: the namespace that it enters is to be no other work's.
    let (told, made) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nobody listens any more where the server ends at this moment.
        let _ = told.send(listen(&path));
    });
    let made = made.await.map_err(|error| failed("listen")(io::Error::other(error)))?;
    let Directed { listener, _link: link } = made.map_err(failed("listen"))?;
    let mut listener = tokio::net::TcpListener::from_std(listener).map_err(failed("listen"))?;
    tokio::spawn(async move {
        tokio::select! {
            _ = sandbox.ended() => {}
            () = accept_all(&mut listener, |connection, port| forward(Arc::clone(&sandbox), connection, port)) => {}
        }
        drop(link);
    });
    Ok(())
}

fn listen(netns: &Path) -> io::Result<Directed> {
    let netns = File::open(netns)?;
    let (here, there) = (std::fs::metadata(OWN)?, netns.metadata()?);
    if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
        return Err(io::Error::other("it is the host's, of which nothing is forwarded"));
    }
    direct(&netns)
}

fn direct(netns: &File) -> io::Result<Directed> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let link = redirect::direct_all(listener.as_fd(), netns.as_fd())?;
    Ok(Directed { listener, _link: link })
}

async fn forward(sandbox: Arc<Sandbox>, connection: TcpStream, port: u16) {
    if let Err(error) = sandbox.forward(connection, port).await {
        warn_rate_limited!(port, error = chain(&error), "a connection was not forwarded");
    }
}

/// Gives each connection, and the port that was dialled, to `carry`: at most [`CONNECTIONS`] at a time.
async fn accept_all<C>(listener: &mut tokio::net::TcpListener, carry: impl Fn(TcpStream, u16) -> C)
where
    C: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let connection = accept::next("a connection to forward", listener).await;
        // The address that was dialled: the socket's own is any.
        let Ok(port) = connection.local_addr().map(|address| address.port()) else {
            continue;
        };
        // It is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let carried = carry(connection, port);
        tokio::spawn(async move {
            carried.await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// In a network namespace of its own, so that no other test's connections are taken.
    fn in_a_new_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            work()
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_connection_to_any_port_arrives_and_tells_its_port_until_the_link_is_closed() {
        in_a_new_namespace(|| {
            let directed = direct(&File::open(OWN).unwrap()).unwrap();
            directed.listener.set_nonblocking(false).unwrap();
            for port in [80, 8080, 65535] {
                let dialled = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                let (accepted, _) = directed.listener.accept().unwrap();
                assert_eq!(accepted.local_addr().unwrap().port(), port);
                assert_eq!(accepted.peer_addr().unwrap(), dialled.local_addr().unwrap());
            }
            drop(directed);
            let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn an_address_that_the_network_can_dial_is_not_listened_at() {
        in_a_new_namespace(|| {
            let added = std::process::Command::new("ip")
                .args(["addr", "add", "10.9.8.7/32", "dev", "lo"])
                .status();
            assert!(added.unwrap().success());
            let _directed = direct(&File::open(OWN).unwrap()).unwrap();
            assert!(TcpStream::connect((Ipv4Addr::new(127, 1, 2, 3), 80)).is_ok());
            let refused = TcpStream::connect((Ipv4Addr::new(10, 9, 8, 7), 80)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn the_hosts_own_namespace_is_left_alone() {
        let error = listen(Path::new("/proc/self/ns/net")).err().unwrap();
        assert!(error.to_string().contains("the host's"), "{error}");
    }

    #[test]
    fn a_namespace_that_is_gone_is_an_error() {
        assert!(listen(Path::new("/no/such/namespace")).is_err());
    }

    /// One that is beyond the bound is carried as soon as another has ended.
    #[tokio::test]
    async fn connections_beyond_the_bound_wait() {
        let mut listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        let end = Arc::new(Semaphore::new(0));
        let (count, ends) = (Arc::clone(&begun), Arc::clone(&end));
        let accepting = tokio::spawn(async move {
            accept_all(&mut listener, |connection, _| {
                count.fetch_add(1, Ordering::SeqCst);
                let ends = Arc::clone(&ends);
                async move {
                    ends.acquire().await.unwrap().forget();
                    drop(connection);
                }
            })
            .await;
        });
        // The backlog takes those that nobody carries.
        let mut dialled = Vec::new();
        for _ in 0..CONNECTIONS + 40 {
            dialled.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let reaches = async |wanted: usize| {
            for _ in 0..1000 {
                if begun.load(Ordering::SeqCst) == wanted {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            // No more come.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            assert_eq!(begun.load(Ordering::SeqCst), wanted);
        };
        reaches(CONNECTIONS).await;
        end.add_permits(3);
        reaches(CONNECTIONS + 3).await;
        accepting.abort();
    }
}
