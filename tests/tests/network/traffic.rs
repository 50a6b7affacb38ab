//! What goes through.

use std::time::Instant;

use super::*;

/// What is sent in one direction: more than every buffer on the way.
const TEN_MEGABYTES: usize = 10 << 20;

/// The same bytes from everyone who is asked for them.
fn random_bytes() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        // Numerical Recipes' generator: good enough to show a byte that is lost or out of place.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..TEN_MEGABYTES).map(|_| next()).collect()
}

#[test]
fn ten_megabytes_go_both_ways_by_ipv4_and_ipv6() -> Result<()> {
    let node = Node::start()?;
    let Pod { pod, outside } = Pod::new(&node)?;
    let sent = random_bytes();
    let sum = sha256(&sent);
    let for_container = sent.clone();
    let sender = serve(&outside, "10.77.0.1:5001", move |mut stream| {
        Ok(stream.write_all(&for_container)?)
    })?;
    let receiver = serve(&outside, "[fd77::1]:5002", |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    })?;
    let script = "nc 10.77.0.1 5001 > /tmp/data < /dev/null; sha256sum < /tmp/data; nc fd77::1 5002 < /tmp/data";
    let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
    joined(sender)?;
    assert_eq!(output.split_whitespace().next(), Some(sum.as_str()), "{output}");
    assert_eq!(sha256(&joined(receiver)?), sum);
    node.nothing_left()
}

/// Two megabytes at ten megabits a second, without what may pass at once, take more than a second; they would take a few tens of
/// milliseconds. A slow machine makes it longer, never shorter.
#[test]
fn what_a_pod_receives_and_sends_is_limited_and_the_namespace_is_left_as_it_was() -> Result<()> {
    const TWO_MEGABYTES: usize = 2 << 20;
    let limits = "[hypervisor.qemu]\nrx_rate_limiter_max_rate = 10000000\ntx_rate_limiter_max_rate = 10000000\n";
    let node = Node::start_configured(limits)?;
    let Pod { pod, outside } = Pod::new(&node)?;
    let before = pod.tc("qdisc show dev eth0")?;
    node.run("c")
        .arg("-d")
        .arg(pod.flag())
        .program(["sleep", "1000"])
        .ok()?;
    let limited = pod.tc("qdisc show")?;
    for device in ["eth0", "tap0_kata"] {
        let line = limited
            .lines()
            .find(|line| line.contains("tbf") && line.contains(&format!("dev {device} ")));
        assert!(
            line.is_some_and(|line| line.contains("rate 10Mbit")),
            "{device}: {limited}"
        );
    }
    let sender = serve(&outside, "10.77.0.1:5001", |mut stream| {
        let began = Instant::now();
        stream.write_all(&vec![7; TWO_MEGABYTES])?;
        // close(2) then returns when all has been acknowledged (socket(7), SO_LINGER).
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60)))
            .map_err(std::io::Error::from)?;
        drop(stream);
        Ok(began.elapsed())
    })?;
    let receiver = serve(&outside, "10.77.0.1:5002", |mut stream| {
        let began = Instant::now();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok((bytes.len(), began.elapsed()))
    })?;
    let script = "nc 10.77.0.1 5001 < /dev/null | wc -c; head -c 2097152 /dev/zero | nc 10.77.0.1 5002";
    let output = node.exec("c", "both").sh(script).ok()?;
    assert_eq!(output.trim(), TWO_MEGABYTES.to_string());
    let received = joined(sender)?;
    let (length, sent) = joined(receiver)?;
    assert_eq!(length, TWO_MEGABYTES);
    for took in [received, sent] {
        assert!(took.as_millis() > 1000, "received in {received:?}, sent in {sent:?}");
    }
    node.remove("c")?;
    assert_eq!(pod.tc("qdisc show dev eth0")?, before);
    node.nothing_left()
}

/// Answers each question to a name server by "there is no such name" (RFC 1035, 4.1.1), until the test ends.
fn no_such_name(namespace: &NetNs, address: &'static str) -> Result<()> {
    let socket = namespace.inside(move || Ok(std::net::UdpSocket::bind(address)?))?;
    std::thread::spawn(move || -> std::io::Result<()> {
        let mut message = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut message)?;
            message[2] |= 0x80;
            message[3] = (message[3] & 0xf0) | 3;
            socket.send_to(&message[..length], from)?;
        }
    });
    Ok(())
}

/// The sums in them are those that devices are to make: they must be there for whoever looks.
#[test]
fn datagrams_and_their_answers_arrive() -> Result<()> {
    let node = Node::start()?;
    let Pod { pod, outside } = Pod::new(&node)?;
    no_such_name(&outside, "10.77.0.1:53")?;
    no_such_name(&outside, "[fd77::1]:53")?;
    let script = "for server in 10.77.0.1 fd77::1; do nslookup a.example $server | grep NXDOMAIN | sort -u; done";
    let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
    assert_eq!(output, "** server can't find a.example: NXDOMAIN\n".repeat(2));
    node.nothing_left()
}

/// In one frame, and in several.
#[test]
fn packets_of_any_size_come_back() -> Result<()> {
    let node = Node::start()?;
    let Pod { pod, outside } = Pod::new(&node)?;
    let script = "for to in 10.77.0.1 fd77::1; do for size in 0 1 1472 1473 60000; do \
                  ping -c 1 -s $size $to | grep -o '^[0-9]* bytes from [0-9a-f.:]*'; done; done";
    let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
    let wanted = ["10.77.0.1:", "fd77::1:"].map(|from| {
        let sizes = [8, 9, 1480, 1481, 60008];
        sizes.map(|size| format!("{size} bytes from {from}\n")).concat()
    });
    assert_eq!(output, wanted.concat());
    drop(outside);
    node.nothing_left()
}

/// What only a runtime that has a VM can show.
mod kata_only {
    use super::*;
    use framework::Spec;

    /// A container of the sandbox `pod`; CRI sends these two annotations with each.
    fn member(spec: Spec, node: &Node, kind: &str) -> Result<Spec> {
        spec.of_pod(node, kind)
    }

    fn in_namespace(spec: Spec, pod: &NetNs) -> Result<Spec> {
        // The last of the namespaces is the network's.
        spec.set("/linux/namespaces/4/path", pod.path().display().to_string())
    }

    #[test]
    fn all_containers_of_a_pod_share_its_two_interfaces() -> Result<()> {
        let node = Node::start()?;
        let Pod { pod, outside } = Pod::new(&node)?;
        pod.veth("net1", &outside, "veth1")?;
        pod.ip_lines(&["addr add 10.79.0.2/24 dev net1"])?;
        outside.ip_lines(&["addr add 10.79.0.1/24 dev veth1"])?;
        let pause = in_namespace(node.spec("pod", &["sleep", "1000"])?, &pod)?;
        node.run_spec("pod", &member(pause, &node, "sandbox")?)?
            .arg("-d")
            .ok()?;
        let server = serve(&outside, "10.79.0.1:80", |mut stream| {
            Ok(stream.write_all(b"by net1\n")?)
        })?;
        // An input that does not end: without one nc closes the connection at once, and the client may go before it has
        // written.
        let script =
            "ls /sys/class/net; nc 10.79.0.1 80 < /dev/null; mkfifo /tmp/f; exec 3<> /tmp/f; nc -l -p 8080 <&3";
        let app = in_namespace(node.spec("app", &["sh", "-c", script])?, &pod)?;
        let app = node.run_spec("app", &member(app, &node, "container")?)?.spawn()?;
        app.shows("eth0\nlo\nnet1\nby net1\n")?;
        joined(server)?;
        // What one of them listens on, the other finds on its loopback interface.
        let sent = "until echo neighbour | nc 127.0.0.1 8080; do :; done";
        let other = in_namespace(node.spec("other", &["sh", "-c", sent])?, &pod)?;
        node.run_spec("other", &member(other, &node, "container")?)?.ok()?;
        assert!(app.wait()?.success()?.stdout().ends_with("neighbour\n"));
        node.forget("app")?;
        node.forget("other")?;
        node.remove("pod")?;
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn two_sandboxes_on_one_bridge_talk_to_each_other() -> Result<()> {
        let node = Node::start()?;
        let tag = node.namespace();
        let (bridge, one, two) = (NetNs::new(tag, "br")?, NetNs::new(tag, "one")?, NetNs::new(tag, "two")?);
        bridge.ip_lines(&["link add br0 type bridge", "link set br0 up"])?;
        for (pod, port, address) in [(&one, "p1", "10.90.0.1/24"), (&two, "p2", "10.90.0.2/24")] {
            pod.veth("eth0", &bridge, port)?;
            pod.ip(&["addr", "add", address, "dev", "eth0"])?;
            bridge.ip(&["link", "set", port, "master", "br0"])?;
        }
        let mut listener = node
            .run("one")
            .arg("--rm")
            .arg(one.flag())
            .sh("echo ready; nc -l -p 7000")
            .spawn()?;
        listener.shows("ready\n")?;
        // The ping first: once it has the line, the other sandbox may be gone at any time.
        let sender = "ping -c 1 10.90.0.1 && until echo hello | nc 10.90.0.1 7000; do :; done";
        node.run("two").arg("--rm").arg(two.flag()).sh(sender).ok()?;
        listener.shows("hello\n")?;
        listener.close_stdin();
        listener.wait()?.success()?;
        node.nothing_left()
    }
}
