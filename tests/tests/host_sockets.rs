//! Services of the host that containers speak with by a Unix socket that is mounted into them. With runc that works by nature; with a
//! VM where the operator allows it.

use std::{
    env, fs,
    io::{IoSlice, IoSliceMut, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use framework::{Node, Result, Spec, bundle::Bundle};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept, bind, getsockopt, listen, recv, recvmsg, send, sendmsg, setsockopt, socket,
    sockopt::{PassCred, PeerCredentials},
};
use serde_json::json;

const GIGABYTE: u64 = 1 << 30;
/// So much of it is streamed for comparison.
const PARTS: u64 = 8;
/// Timeout for that many, out of an emulated guest on a busy machine.
const BULK_LIMIT: Duration = Duration::from_secs(300);

/// A service of the host: one thread for each connection.
struct Service {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    fn start(path: &Path, serve: fn(UnixStream) -> std::io::Result<()>) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread = thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // A client that goes away is its own affair.
                thread::spawn(move || serve(stream));
            }
        });
        Ok(Self {
            path: path.to_owned(),
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // It waits for a connection.
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_file(&self.path);
    }
}

fn echo(mut stream: UnixStream) -> std::io::Result<()> {
    let mut reader = stream.try_clone()?;
    std::io::copy(&mut reader, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Answers a request for so many bytes with them, their number and their sum (Fletcher's, over words of 64 bits). A request for
/// none is answered with number and sum of what follows it.
fn bulk(mut stream: UnixStream) -> std::io::Result<()> {
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted)?;
    let wanted = u64::from_le_bytes(wanted);
    let (mut bytes, mut plain, mut placed) = (0_u64, 0_u64, 0_u64);
    let mut add = |data: &[u8]| {
        for word in data.chunks_exact(8) {
            plain = plain.wrapping_add(word.try_into().map(u64::from_le_bytes).unwrap_or_default());
            placed = placed.wrapping_add(plain);
        }
    };
    let mut block = vec![0; 1 << 20];
    if wanted == 0 {
        // Whole blocks, so that no word is in two of them; the last one is shorter.
        let mut reader = stream.try_clone()?;
        loop {
            let mut got = 0;
            while got < block.len() {
                match reader.read(&mut block[got..])? {
                    0 => break,
                    count => got += count,
                }
            }
            add(&block[..got]);
            bytes += got as u64;
            if got < block.len() {
                break;
            }
        }
    }
    while bytes < wanted {
        for (word, number) in block.chunks_exact_mut(8).zip(bytes..) {
            word.copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        stream.write_all(&block)?;
        add(&block);
        bytes += block.len() as u64;
    }
    for part in [bytes, plain, placed] {
        stream.write_all(&part.to_le_bytes())?;
    }
    Ok(())
}

/// As much of HTTP as a question and an answer.
fn http(mut stream: UnixStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let line = String::from_utf8_lossy(&head)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
    stream.write_all(answer.as_bytes())
}

fn listening_for_packets(path: &Path) -> nix::Result<OwnedFd> {
    let packets = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(packets.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&packets, Backlog::new(8)?)?;
    Ok(packets)
}

/// Until a client that has said something has gone: the kind of a socket is found out by a connection that says nothing.
fn echo_packets(packets: &OwnedFd) -> nix::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut echoed = 0;
    while echoed == 0 {
        let client = accept(packets.as_raw_fd())?;
        loop {
            let length = recv(client, &mut buffer, MsgFlags::empty())?;
            if length == 0 {
                break;
            }
            send(client, &buffer[..length], MsgFlags::empty())?;
            echoed += 1;
        }
        nix::unistd::close(client)?;
    }
    Ok(())
}

/// A node that allows the sockets in the directory `sockets` of a test's own.
fn node() -> Result<Node> {
    let pattern = env::temp_dir().canonicalize()?.join("*/sockets/*");
    let allowed = format!("[runtime]\nshare_host_sockets = [\"{}\"]\n", pattern.display());
    let node = Node::start_configured(&allowed)?;
    fs::create_dir(node.dir().join("sockets"))?;
    Ok(node)
}

fn socket_path(node: &Node, name: &str) -> PathBuf {
    node.dir().join("sockets").join(name)
}

/// A container that sleeps and has sockets in `/run`.
fn with_sockets(node: &Node, name: &str, sockets: &[&str]) -> Result<Spec> {
    let mut spec = node.spec(name, &["sleep", "1000"])?;
    for socket in sockets {
        spec = spec.bind(&socket_path(node, socket), &format!("/run/{socket}"), &[])?;
    }
    Ok(spec)
}

fn probe(node: &Node, container: &str, exec: &str, words: &[&str]) -> Result<serde_json::Value> {
    let probe = node.exec(container, exec).program(["guest-probe", "unix"]);
    probe
        .program(words)
        .limit(Duration::from_secs(120))
        .output()?
        .success()?
        .json()
}

#[test]
fn a_container_speaks_with_services_of_the_host_as_with_any_of_its_own() -> Result<()> {
    let node = node()?;
    let _echo = Service::start(&socket_path(&node, "echo"), echo)?;
    let _http = Service::start(&socket_path(&node, "http"), http)?;
    fs::set_permissions(socket_path(&node, "echo"), fs::Permissions::from_mode(0o620))?;
    std::os::unix::fs::chown(socket_path(&node, "echo"), Some(1234), Some(56))?;
    let curl = Bundle::make(Path::new("/usr/bin/curl"), node.dir().join("curl"))?;
    let spec = with_sockets(&node, "c", &["echo", "http"])?.bind(&node.dir().join("curl"), "/bundle", &["ro"])?;
    node.run_spec("c", &spec)?.arg("-d").ok()?;

    let asked = node.exec("c", "curl").program(curl.inside());
    let asked = asked.program(["-s", "--unix-socket", "/run/http", "http://d/v1/version"]);
    assert_eq!(asked.ok()?, "GET /v1/version HTTP/1.1");
    let stat = node
        .exec("c", "stat")
        .program(["stat", "-c", "%a %u %g %F", "/run/echo"]);
    assert_eq!(stat.ok()?, "620 1234 56 socket\n");
    // The end of the question is said before the answer has come.
    let echoed = probe(&node, "c", "echo", &["echo", "/run/echo", "20000000"])?;
    assert_eq!(
        (&echoed["received"], &echoed["equal"]),
        (&json!(20_000_000), &json!(true))
    );
    assert_eq!(probe(&node, "c", "many", &["many", "/run/echo", "100"])?, 100);
    node.remove("c")?;
    node.nothing_left()
}

/// `verb` moves a gigabyte, whose sum has to be right, and takes at most three times as long as the container's own standard output would,
/// which has the same way between guest and host. That is measured with a part of it.
fn a_gigabyte_passes(verb: &str) -> Result<()> {
    let node = node()?;
    let _bulk = Service::start(&socket_path(&node, "bulk"), bulk)?;
    node.run_spec("c", &with_sockets(&node, "c", &["bulk"])?)?
        .arg("-d")
        .ok()?;
    let null = || fs::File::options().read(true).write(true).open("/dev/null");
    let stream = |exec: &str, bytes: u64| -> Result<Duration> {
        let begun = Instant::now();
        let stream = node.exec("c", exec).limit(BULK_LIMIT);
        let stream = stream.sh(&format!("head -c {bytes} /dev/zero"));
        stream.through(null()?, null()?)?.success()?;
        Ok(begun.elapsed())
    };
    stream("first", 1)?;
    let start = stream("start", 1)?;
    let before = stream("before", GIGABYTE / PARTS)?;

    let bytes = GIGABYTE.to_string();
    let probe = node.exec("c", verb).limit(BULK_LIMIT);
    let probe = probe.program(["guest-probe", "unix", verb, "/run/bulk", &bytes]);
    let said = probe.output()?.success()?.json()?;
    assert_eq!(
        (&said["bytes"], &said["equal"]),
        (&json!(GIGABYTE), &json!(true)),
        "{verb}"
    );
    // The slower of two: what else the machine does may begin meanwhile.
    let streamed = before.max(stream("after", GIGABYTE / PARTS)?);
    let floor = f64::from(u32::try_from(PARTS).unwrap_or(1)) * streamed.saturating_sub(start).as_secs_f64();
    let seconds = said["seconds"].as_f64().unwrap_or(f64::MAX);
    eprintln!("{verb}: {seconds:.1} s, by standard output {floor:.1} s");
    assert!(
        seconds < 3.0 * floor,
        "{verb} took {seconds:.1} s, standard output {floor:.1} s"
    );
    node.remove("c")?;
    node.nothing_left()
}

#[test]
fn a_gigabyte_from_a_container_reaches_a_service_and_its_sum_is_right() -> Result<()> {
    a_gigabyte_passes("upload")
}

#[test]
fn a_gigabyte_from_a_service_reaches_a_container_and_its_sum_is_right() -> Result<()> {
    a_gigabyte_passes("download")
}

#[test]
fn each_side_is_told_when_the_other_one_goes() -> Result<()> {
    let node = node()?;
    // It says something and goes, while the client says nothing.
    let _short = Service::start(&socket_path(&node, "short"), |mut stream| stream.write_all(b"bye"))?;
    let listener = UnixListener::bind(socket_path(&node, "long"))?;
    node.run_spec("c", &with_sockets(&node, "c", &["short", "long"])?)?
        .arg("-d")
        .ok()?;
    let told = node
        .exec("c", "ends")
        .program(["guest-probe", "unix", "ends", "/run/short"])
        .ok()?;
    let told: serde_json::Value = serde_json::from_str(told.strip_prefix("connected\n").unwrap_or(&told))?;
    assert_eq!(
        (&told["said"], &told["written"]),
        (&json!(3), &json!(32)),
        "EPIPE is 32: {told}"
    );

    let client = node
        .exec("c", "long")
        .program(["guest-probe", "unix", "ends", "/run/long"])
        .spawn()?;
    let (mut stream, _) = listener.accept()?;
    client.shows("connected")?;
    node.task("kill", "c")
        .args(["--exec-id", "long", "--signal", "9"])
        .ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    assert_eq!(stream.read(&mut [0])?, 0);
    client.wait().map(drop)?;
    node.remove("c")?;
    node.nothing_left()
}

#[test]
fn datagrams_and_packets_keep_their_boundaries() -> Result<()> {
    let node = node()?;
    let log = UnixDatagram::bind(socket_path(&node, "log"))?;
    log.set_read_timeout(Some(Duration::from_secs(60)))?;
    let packets = listening_for_packets(&socket_path(&node, "packets")).map_err(std::io::Error::from)?;
    let service = thread::spawn(move || echo_packets(&packets).map_err(std::io::Error::from));
    let spec = node.spec("c", &["sleep", "1000"])?;
    let spec = spec.bind(&socket_path(&node, "log"), "/dev/log", &[])?;
    let spec = spec.bind(&socket_path(&node, "packets"), "/run/packets", &[])?;
    node.run_spec("c", &spec)?.arg("-d").ok()?;
    let long = "l".repeat(60_000);
    let words = ["<13>one", "two", long.as_str(), "four"];
    let sending = node
        .exec("c", "log")
        .program(["guest-probe", "unix", "send", "/dev/log"]);
    sending.program(words).ok()?;
    let mut buffer = vec![0; 1 << 20];
    for word in words {
        let length = log.recv(&mut buffer)?;
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), word);
    }
    let echoed = node
        .exec("c", "packets")
        .program(["guest-probe", "unix", "packets", "/run/packets"]);
    assert_eq!(echoed.ok()?, "6 of 6\n");
    service
        .join()
        .map_err(|_| std::io::Error::other("the service failed"))??;
    node.remove("c")?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    const TYPE: &str = "io.kubernetes.cri.container-type";
    const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
    const CHOICE: &str = "io.katacontainers.config.runtime.share_host_sockets";

    fn refused(node: &Node, container: &str, exec: &str, path: &str) -> Result<String> {
        let tried = node
            .exec(container, exec)
            .program(["guest-probe", "unix", "echo", path, "1"]);
        tried.fails()
    }

    #[test]
    fn a_service_that_is_started_again_is_found_by_the_next_connection() -> Result<()> {
        let node = node()?;
        let path = socket_path(&node, "echo");
        let service = Service::start(&path, echo)?;
        let log = UnixDatagram::bind(socket_path(&node, "log"))?;
        node.run_spec("c", &with_sockets(&node, "c", &["echo", "log"])?)?
            .arg("-d")
            .ok()?;
        let works = |exec: &str| {
            Ok::<_, framework::Error>(probe(&node, "c", exec, &["echo", "/run/echo", "1000"])?["received"] == 1000)
        };
        assert!(works("before")?);
        drop(service);
        // Who connects is let in by the guest, and hung up on.
        let ended = probe(&node, "c", "away", &["echo", "/run/echo", "0"])?;
        assert_eq!(ended["received"], 0);
        node.await_log(&["a connection of the guest reaches nobody", "/sockets/echo"])?;
        let _again = Service::start(&path, echo)?;
        assert!(works("after")?);

        let say = |exec: &str, word: &str| {
            node.exec("c", exec)
                .program(["guest-probe", "unix", "send", "/run/log", word])
                .ok()
        };
        let mut buffer = [0; 16];
        say("one", "one")?;
        assert_eq!(log.recv(&mut buffer)?, 3);
        drop(log);
        fs::remove_file(socket_path(&node, "log"))?;
        let log = UnixDatagram::bind(socket_path(&node, "log"))?;
        log.set_read_timeout(Some(Duration::from_secs(60)))?;
        say("three", "three")?;
        assert_eq!(log.recv(&mut buffer)?, 5);
        node.remove("c")?;
        node.nothing_left()
    }

    #[test]
    fn what_the_operator_does_not_list_cannot_be_connected_to_and_the_log_says_which_key_it_is() -> Result<()> {
        let node = node()?;
        let outside = node.dir().join("outside");
        let _services = [
            Service::start(&outside, echo)?,
            Service::start(&socket_path(&node, "echo"), echo)?,
        ];
        // A link in the right directory is what it leads to.
        std::os::unix::fs::symlink(&outside, socket_path(&node, "link"))?;
        std::os::unix::fs::symlink(socket_path(&node, "echo"), node.dir().join("good"))?;
        let spec = node.spec("c", &["sleep", "1000"])?;
        let spec = spec.bind(&outside, "/run/outside", &[])?;
        let spec = spec.bind(&socket_path(&node, "link"), "/run/link", &[])?;
        let spec = spec.bind(&node.dir().join("good"), "/run/good", &["ro"])?;
        node.run_spec("c", &spec)?.arg("-d").ok()?;
        for (exec, path) in [("one", "/run/outside"), ("two", "/run/link")] {
            let said = refused(&node, "c", exec, path)?;
            assert!(said.contains("Connection refused"), "{said}");
        }
        assert_eq!(probe(&node, "c", "good", &["echo", "/run/good", "9"])?["received"], 9);
        node.await_log(&["nothing in the guest can connect to /run/link", "share_host_sockets"])?;
        node.remove("c")?;
        node.nothing_left()
    }

    #[test]
    fn a_pod_chooses_among_what_is_listed_and_cannot_add_to_it() -> Result<()> {
        let node = node()?;
        let _services = ["a", "b"].map(|name| Service::start(&socket_path(&node, name), echo));
        let path = |name: &str| socket_path(&node, name).canonicalize();
        let spec = with_sockets(&node, "c", &["a", "b"])?.annotation(CHOICE, &path("a")?.display().to_string())?;
        node.run_spec("c", &spec)?.arg("-d").ok()?;
        assert_eq!(probe(&node, "c", "a", &["echo", "/run/a", "9"])?["received"], 9);
        assert!(refused(&node, "c", "b", "/run/b")?.contains("Connection refused"));
        node.remove("c")?;
        let spec = node.spec("more", &["true"])?.annotation(CHOICE, "/run/docker.sock")?;
        let said = node.run_spec("more", &spec)?.fails()?;
        assert!(
            said.contains("\"/run/docker.sock\" is not allowed") && said.contains("runtime.share_host_sockets"),
            "{said}"
        );
        node.discard("more")?;
        node.nothing_left()
    }

    #[test]
    fn containers_of_a_pod_have_one_socket_until_the_last_of_them_goes() -> Result<()> {
        let node = node()?;
        let _echo = Service::start(&socket_path(&node, "echo"), echo)?;
        let member = |spec: Spec, kind: &str| spec.annotation(TYPE, kind)?.annotation(SANDBOX, &node.id("pod"));
        node.run_spec("pod", &member(node.spec("pod", &["/pause"])?, "sandbox")?)?
            .arg("-d")
            .ok()?;
        for name in ["one", "two"] {
            let spec = member(with_sockets(&node, name, &["echo"])?, "container")?;
            node.run_spec(name, &spec)?.arg("-d").ok()?;
            assert_eq!(
                probe(&node, name, "echo", &["echo", "/run/echo", "100000"])?["received"],
                100_000
            );
        }
        let inode = |name: &str| node.exec(name, "inode").program(["stat", "-c", "%i", "/run/echo"]).ok();
        assert_eq!(inode("one")?, inode("two")?);
        node.remove("one")?;
        assert_eq!(
            probe(&node, "two", "still", &["echo", "/run/echo", "5"])?["received"],
            5
        );
        node.remove("two")?;
        // Nothing of it is in the way of the next one.
        let spec = member(with_sockets(&node, "three", &["echo"])?, "container")?;
        node.run_spec("three", &spec)?.arg("-d").ok()?;
        assert_eq!(
            probe(&node, "three", "new", &["echo", "/run/echo", "5"])?["received"],
            5
        );
        node.remove("three")?;
        node.task("kill", "pod").args(["--signal", "SIGTERM"]).ok()?;
        node.await_stopped("pod")?;
        node.forget("pod")?;
        node.nothing_left()
    }

    #[test]
    fn more_connections_than_there_is_room_for_wait_for_their_turn() -> Result<()> {
        let node = node()?;
        let _services = ["a", "b"].map(|name| Service::start(&socket_path(&node, name), echo));
        node.run_spec("c", &with_sockets(&node, "c", &["a", "b"])?)?
            .arg("-d")
            .ok()?;
        // More than one socket may have, all connected before the first is done with.
        let crowd = node
            .exec("c", "crowd")
            .program(["guest-probe", "unix", "many", "/run/a", "220"])
            .spawn()?;
        assert_eq!(probe(&node, "c", "beside", &["many", "/run/b", "60"])?, 60);
        assert_eq!(crowd.wait()?.success()?.stdout(), "220\n");
        assert_eq!(probe(&node, "c", "after", &["many", "/run/a", "120"])?, 120);
        node.remove("c")?;
        node.nothing_left()
    }

    /// What a service learns of a client: who it is by the socket (SO_PEERCRED) and by the message (SCM_CREDENTIALS), and how many
    /// descriptors came with the message. It answers with a descriptor.
    fn client_of(listener: &UnixListener) -> Result<([i32; 2], u32, String, usize)> {
        let (stream, _) = listener.accept()?;
        let errno = std::io::Error::from;
        let peer = getsockopt(&stream, PeerCredentials).map_err(errno)?;
        let mut buffer = [0; 256];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([RawFd; 4], UnixCredentials);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags).map_err(errno)?;
        let (mut sender, mut descriptors) = (0, 0);
        for part in message.cmsgs().map_err(errno)? {
            match part {
                ControlMessageOwned::ScmCredentials(credentials) => sender = credentials.pid(),
                ControlMessageOwned::ScmRights(passed) => descriptors += passed.len(),
                _ => {}
            }
        }
        let word: Vec<u8> = message.iovs().flatten().copied().collect();
        let file = fs::File::open("/dev/null")?;
        let passed = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&passed)];
        let answer = [IoSlice::new(b"answer")];
        sendmsg::<()>(stream.as_raw_fd(), &answer, &rights, MsgFlags::empty(), None).map_err(errno)?;
        Ok((
            [peer.pid(), sender],
            peer.uid(),
            String::from_utf8_lossy(&word).into_owned(),
            descriptors,
        ))
    }

    #[test]
    fn a_service_sees_the_shim_and_no_descriptor_passes() -> Result<()> {
        let node = node()?;
        let listener = UnixListener::bind(socket_path(&node, "who"))?;
        // The sockets of its connections have it from this one.
        setsockopt(&listener, PassCred, &true).map_err(std::io::Error::from)?;
        let spec = with_sockets(&node, "c", &["who"])?.set("/process/user/uid", 1000)?;
        fs::set_permissions(socket_path(&node, "who"), fs::Permissions::from_mode(0o666))?;
        node.run_spec("c", &spec)?.arg("-d").ok()?;
        let service = thread::spawn(move || client_of(&listener).map_err(|error| error.to_string()));
        let said = probe(&node, "c", "pass", &["pass", "/run/who", "word"])?;
        assert_eq!(said, json!({ "answer": "answer", "descriptors": 0 }));
        let client = service
            .join()
            .map_err(|_| std::io::Error::other("the service failed"))?;
        let shim = node
            .processes("c")
            .into_iter()
            .find(|process| process.program().ends_with("containerd-shim-kata-v2"))
            .and_then(|shim| i32::try_from(shim.pid).ok())
            .unwrap_or_default();
        assert_eq!(client, Ok(([shim; 2], 0, "word".to_owned(), 0)));
        node.remove("c")?;
        node.nothing_left()
    }
}
