//! Containers in networks that are made by `docker network create` find each other by their names, as with runc.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use framework::{Docker, Result, cri::node::eventually};
use serde_json::{Value, json};

/// Where the first network's bridge is.
const GATEWAY: &str = "10.96.0.1";

/// A name server of the host's network: `outside.example` has an address, `big.example` more than UDP carries, and nothing else is
/// known.
struct NameServer {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl NameServer {
    fn start(docker: &Docker) -> Result<Self> {
        let bind = || Ok((UdpSocket::bind((GATEWAY, 53))?, TcpListener::bind((GATEWAY, 53))?));
        let (udp, tcp) = docker.namespace().inside(bind)?;
        let stopped = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(200)))?;
        tcp.set_nonblocking(true)?;
        let (by_udp, by_tcp) = (Arc::clone(&stopped), Arc::clone(&stopped));
        let threads = vec![
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while !by_udp.load(Ordering::Acquire) {
                    if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                        udp.send_to(&answer(&buffer[..length], false), from)?;
                    }
                }
                Ok(())
            }),
            thread::spawn(move || {
                while !by_tcp.load(Ordering::Acquire) {
                    match tcp.accept() {
                        Ok((stream, _)) => serve(stream)?,
                        Err(_) => thread::sleep(Duration::from_millis(50)),
                    }
                }
                Ok(())
            }),
        ];
        Ok(Self { stopped, threads })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    let answer = answer(&question, true);
    stream.write_all(&(answer.len() as u16).to_be_bytes())?;
    stream.write_all(&answer)
}

/// RFC 1035, 4.1.
fn answer(question: &[u8], tcp: bool) -> Vec<u8> {
    let asks = |name: &[u8]| question.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name));
    let is_a = question.len() > 4 && !question.windows(4).any(|part| part == [0, 28, 0, 1]);
    let (code, count, cut) = match () {
        () if !is_a && (asks(b"\x07outside") || asks(b"\x03big")) => (0, 0, 0),
        () if asks(b"\x07outside\x07example") => (0, 1, 0),
        () if asks(b"\x03big\x07example") && tcp => (0, 60, 0),
        () if asks(b"\x03big\x07example") => (0, 0, 2),
        () => (3, 0, 0),
    };
    // The question without what may follow it (EDNS).
    let end = question
        .iter()
        .skip(12)
        .position(|byte| *byte == 0)
        .map_or(question.len(), |at| 12 + at + 5);
    let mut answer = question[..end.min(question.len())].to_vec();
    answer[2] = 0x85 | cut;
    answer[3] = 0x80 | code;
    answer[4..12].copy_from_slice(&[0, 1, 0, count, 0, 0, 0, 0]);
    for number in 0..count {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, number + 1]);
    }
    answer
}

fn ask(docker: &Docker, container: &str, words: &[&str]) -> Result<Value> {
    let asked = docker.docker(&["exec", container, "guest-probe", "names"]).args(words);
    asked.limit(Duration::from_secs(120)).output()?.success()?.json()
}

fn by_name(docker: &Docker, container: &str, name: &str) -> Result<Value> {
    ask(docker, container, &["udp", "127.0.0.11", name, "1"])
}

#[test]
fn containers_of_a_network_find_each_other_by_name_and_the_outside_by_dockers_server() -> Result<()> {
    let docker = Docker::start()?;
    docker.docker(&["network", "create", "net"]).ok()?;
    let _server = NameServer::start(&docker)?;
    let run = |name: &str, more: &[&str]| {
        let network = ["-d", "--network", "net", "--dns", GATEWAY];
        docker
            .run(name)
            .args(network)
            .args(more)
            .program(["sleep", "1000"])
            .ok()
    };
    let ids = [run("one", &["--network-alias", "first"])?, run("two", &[])?];
    // By the C library, too, in both directions.
    for (from, to) in [("two", "one"), ("one", "two"), ("two", "first")] {
        let pinged = docker.docker(&["exec", from, "ping", "-c", "1", to]).ok()?;
        assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    }
    let found = ask(&docker, "two", &["udp", "127.0.0.11", "one", "100"])?;
    assert_eq!(
        (&found["answers"], &found["addresses"]),
        (&json!(100), &json!(["10.96.0.2"]))
    );
    let found = ask(&docker, "two", &["tcp", "127.0.0.11", "one", "5"])?;
    assert_eq!(
        (&found["answers"], &found["addresses"]),
        (&json!(5), &json!(["10.96.0.2"]))
    );

    let outside = by_name(&docker, "two", "outside.example")?;
    assert_eq!(outside["addresses"], json!(["192.0.2.1"]), "{outside}");
    let cut = by_name(&docker, "two", "big.example")?;
    assert_eq!((&cut["cut"], &cut["addresses"]), (&json!(true), &json!([])), "{cut}");
    let whole = ask(&docker, "two", &["tcp", "127.0.0.11", "big.example", "1"])?;
    assert!(whole["longest"].as_u64() > Some(900), "{whole}");

    docker.docker(&["stop", "-t", "0", "one"]).ok()?;
    let gone = by_name(&docker, "two", "one")?;
    assert_eq!(
        (&gone["codes"], &gone["addresses"]),
        (&json!([3]), &json!([])),
        "NXDOMAIN is 3: {gone}"
    );
    for (name, id) in ["one", "two"].iter().zip(ids) {
        docker.docker(&["rm", "-f", name]).ok()?;
        docker.nothing_left(id.trim())?;
    }
    Ok(())
}

#[test]
fn a_network_that_is_connected_later_brings_its_names_and_a_container_may_serve_names_itself() -> Result<()> {
    let docker = Docker::start()?;
    docker.docker(&["network", "create", "net"]).ok()?;
    let start = |name: &str, network: &str| {
        let run = docker.run(name).args(["-d", "--network", network]);
        run.program(["sleep", "1000"]).ok()
    };
    let ids = [start("one", "net")?, start("two", "bridge")?];
    // Nobody is there as long as nothing names the server.
    let refused = ask(&docker, "two", &["tcp", "127.0.0.11", "one", "1"])?;
    assert_eq!(refused["answers"], 0);
    docker.docker(&["network", "connect", "net", "two"]).ok()?;
    eventually("the name is known", || {
        let found = docker.docker(&["exec", "two", "nslookup", "one"]).output()?;
        Ok(found.success().is_ok().then_some(()))
    })?;
    assert_eq!(by_name(&docker, "two", "one")?["addresses"], json!(["10.96.0.2"]));
    // Port 53 is the container's own, as with runc.
    let own = "nc -l -p 53 -e echo mine & until nc 127.0.0.1 53 < /dev/null 2>/dev/null; do sleep 0.1; done";
    assert_eq!(docker.docker(&["exec", "two", "sh", "-c", own]).ok()?, "mine\n");
    for (name, id) in ["one", "two"].iter().zip(ids) {
        docker.docker(&["rm", "-f", name]).ok()?;
        docker.nothing_left(id.trim())?;
    }
    Ok(())
}

mod kata_only {
    use super::*;

    #[test]
    fn without_a_model_a_container_cannot_ask_dockers_server() -> Result<()> {
        let docker = Docker::start_configured("[runtime]\ninternetworking_model = \"none\"\n")?;
        docker.docker(&["network", "create", "net"]).ok()?;
        let run = docker.run("one").args(["-d", "--network", "net"]);
        let id = run.program(["sleep", "1000"]).ok()?;
        // Docker names its server all the same.
        let named = docker.docker(&["exec", "one", "grep", "-c", "nameserver 127.0.0.11", "/etc/resolv.conf"]);
        assert_eq!(named.ok()?, "1\n");
        for by in ["tcp", "udp"] {
            let refused = ask(&docker, "one", &[by, "127.0.0.11", "one", "1"])?;
            assert_eq!(refused["answers"], 0, "{by}: {refused}");
        }
        docker.docker(&["rm", "-f", "one"]).ok()?;
        docker.nothing_left(id.trim())
    }
}
