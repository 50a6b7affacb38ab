//! The container's network is the one of the namespace that it is given, whatever is in it.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
    time::Duration,
};

use framework::{NetNs, Node, Result, bundle::Bundle, image::sha256, locate, netns::joined};
use serde_json::json;

mod configuration;
mod kinds;
mod later;
mod ownership;
mod traffic;

/// A namespace as CNI leaves it for a pod, and what is outside of it.
struct Pod {
    pod: NetNs,
    outside: NetNs,
}

impl Pod {
    /// `eth0` with 10.77.0.2/24 and fd77::2/64, to 10.77.0.1 and fd77::1.
    fn new(node: &Node) -> Result<Self> {
        let (pod, outside) = (
            NetNs::new(node.namespace(), "pod")?,
            NetNs::new(node.namespace(), "out")?,
        );
        pod.veth("eth0", &outside, "veth0")?;
        pod.ip_lines(&[
            "addr add 10.77.0.2/24 dev eth0",
            "-6 addr add fd77::2/64 dev eth0 nodad",
            "route add default via 10.77.0.1",
        ])?;
        outside.ip_lines(&[
            "addr add 10.77.0.1/24 dev veth0",
            "-6 addr add fd77::1/64 dev veth0 nodad",
        ])?;
        Ok(Self { pod, outside })
    }
}

/// Takes one connection on a port of a namespace.
fn serve<T: Send + 'static>(
    namespace: &NetNs,
    address: &'static str,
    work: impl FnOnce(TcpStream) -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let listener = namespace.inside(move || Ok(TcpListener::bind(address)?))?;
    Ok(std::thread::spawn(move || work(listener.accept()?.0)))
}

/// A container that has `eth0` as [`Pod`] leaves it, and reaches what is outside.
fn reaches(node: &Node, pod: &NetNs, outside: &NetNs, name: &str) -> Result<()> {
    let server = serve(
        outside,
        "10.77.0.1:80",
        |mut stream| Ok(stream.write_all(b"reached\n")?),
    )?;
    let said = node
        .run(name)
        .arg("--rm")
        .arg(pod.flag())
        .sh("nc 10.77.0.1 80 < /dev/null")
        .ok()?;
    joined(server)?;
    assert_eq!(said, "reached\n");
    Ok(())
}
