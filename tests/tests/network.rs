//! The container's network is the one of the namespace that it is given, whatever is in it.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread::JoinHandle,
};

use framework::{NetNs, Node, Result, image::sha256, netns::joined};

/// What is sent in one direction: more than every buffer on the way.
const TEN_MEGABYTES: usize = 10 << 20;

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
    work: impl FnOnce(std::net::TcpStream) -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let listener = namespace.inside(move || Ok(TcpListener::bind(address)?))?;
    Ok(std::thread::spawn(move || work(listener.accept()?.0)))
}

/// The same bytes from everyone who is asked for them.
fn noise() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        // Numerical Recipes' generator: good enough to show a byte that is lost or out of place.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..TEN_MEGABYTES).map(|_| next()).collect()
}

#[test]
fn a_container_has_its_namespaces_addresses_routes_and_neighbours() -> Result<()> {
    let node = Node::start()?;
    let Pod { pod, outside } = Pod::new(&node)?;
    pod.ip_lines(&[
        // Going down loses IPv6 addresses and all routes.
        "link set eth0 down",
        "link set eth0 address 02:11:22:33:44:55",
        "link set eth0 mtu 1400 up",
        "-6 addr add fd77::2/64 dev eth0 nodad",
        "addr add 10.78.0.2/32 dev eth0",
        // The kernel's route of the prefix is gone, as with some CNI plugins; another leads there.
        "route del 10.77.0.0/24 dev eth0",
        "route add 10.77.0.1/32 dev eth0 scope link",
        "route add default via 10.77.0.1 dev eth0 src 10.78.0.2 metric 7",
        "route add 10.80.0.0/16 via 10.99.0.1 dev eth0 onlink mtu 1300",
        "route add blackhole 10.81.0.0/16",
        "route add 10.82.0.0/16 dev eth0 table 100",
        "rule add from 10.78.0.2 table 100 priority 1000",
        "-6 route add fd78::/64 via fd77::1 dev eth0 metric 20",
        "-6 route add default via fd77::1 dev eth0",
        "neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0",
    ])?;
    // The same program on both sides. What differs by nature: indexes, the queueing discipline, the peer of a veth.
    let shown = [
        "ip addr show dev eth0 | grep inet | sed 's/ noprefixroute//; s/ tentative//; s/ flags 02//'",
        "ip route show table all | grep -v 'table local\\|^unreachable' | sort",
        "ip rule",
        "ip neigh show nud permanent",
        "cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address",
        "ls /sys/class/net",
    ];
    // /sys shows the namespace that it was mounted in, so `ip netns exec` has one of its own.
    let busybox = |script: &str| pod.exec(&["busybox", "sh", "-c", &script.replace("ip ", "busybox ip ")]);
    let wanted = shown.iter().map(|script| busybox(script)).collect::<Result<Vec<_>>>()?;
    let script = shown.join("; echo ===; ");
    let output = node.run("c").arg("--rm").arg(pod.flag()).sh(&script).ok()?;
    for ((script, wanted), found) in shown.iter().zip(&wanted).zip(output.split("===\n")) {
        assert_eq!(found, wanted, "{script}");
    }
    assert_eq!(output.split("===\n").count(), wanted.len());
    node.nothing_left()?;
    assert_eq!(pod.leftovers()?, Vec::<String>::new());
    drop(outside);
    Ok(())
}

#[test]
fn ten_megabytes_go_both_ways_by_ipv4_and_ipv6() -> Result<()> {
    let node = Node::start()?;
    let Pod { pod, outside } = Pod::new(&node)?;
    let sent = noise();
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

#[test]
fn a_namespace_that_has_gone_is_a_clear_error() -> Result<()> {
    let node = Node::start()?;
    let gone = NetNs::new(node.namespace(), "gone")?;
    let flag = gone.flag();
    gone.remove()?;
    let said = node.run("c").arg("--rm").arg(flag).program(["true"]).fails()?;
    assert!(
        said.contains(gone.name()) && said.to_lowercase().contains("no such file"),
        "{said}"
    );
    node.discard("c")?;
    node.nothing_left()
}

/// What only a runtime that has a VM can show.
mod kata_only {
    use super::*;
    use framework::Spec;

    /// A container of the sandbox `pod`; CRI sends these two annotations with each.
    fn member(spec: Spec, node: &Node, kind: &str) -> Result<Spec> {
        spec.annotation("io.kubernetes.cri.container-type", kind)?
            .annotation("io.kubernetes.cri.sandbox-id", &node.id("pod"))
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

    #[test]
    fn a_macvtap_does_it_too_and_goes_with_the_sandbox() -> Result<()> {
        let node = Node::start_configured("[runtime]\ninternetworking_model = \"macvtap\"\n")?;
        let Pod { pod, outside } = Pod::new(&node)?;
        let server = serve(&outside, "10.77.0.1:80", |mut stream| {
            Ok(stream.write_all(b"by macvtap\n")?)
        })?;
        let output = node
            .run("c")
            .arg("--rm")
            .arg(pod.flag())
            .sh("nc 10.77.0.1 80 < /dev/null; cat /sys/class/net/eth0/address")
            .ok()?;
        joined(server)?;
        let address = pod.exec(&["cat", "/sys/class/net/eth0/address"])?;
        assert_eq!(output, format!("by macvtap\n{address}"));
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    /// A pod, a node and its network, as CNI's macvlan and ipvlan plugins find them: the parent of a pod's interface stays on
    /// the node.
    fn beside_a_node(tag: &str) -> Result<(NetNs, NetNs, NetNs)> {
        let (pod, host, lan) = (
            NetNs::new(tag, "pod")?,
            NetNs::new(tag, "host")?,
            NetNs::new(tag, "lan")?,
        );
        host.veth("uplink", &lan, "lan0")?;
        lan.ip_lines(&["addr add 10.79.0.1/24 dev lan0"])?;
        Ok((pod, host, lan))
    }

    #[test]
    fn macvlan_and_tap_interfaces_are_carried_too() -> Result<()> {
        let node = Node::start()?;
        let (pod, host, lan) = beside_a_node(node.namespace())?;
        let add = "link add link uplink name net1 netns POD type macvlan mode bridge".replace("POD", pod.name());
        host.ip_lines(&[&add])?;
        pod.ip_lines(&[
            "link set net1 up",
            "addr add 10.79.0.2/24 dev net1",
            "tuntap add dev tap5 mode tap",
            "addr add 10.80.0.2/24 dev tap5",
            "link set tap5 up",
        ])?;
        let server = serve(
            &lan,
            "10.79.0.1:80",
            |mut stream| Ok(stream.write_all(b"by macvlan\n")?),
        )?;
        let script = "nc 10.79.0.1 80 < /dev/null; ip -o -4 addr show | grep -o '[a-z0-9]* *inet 10[0-9./]*' | tr -s ' '; \
                      cat /sys/class/net/net1/address /sys/class/net/tap5/address; ls /sys/class/net";
        let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
        joined(server)?;
        let macs = pod.exec(&["cat", "/sys/class/net/net1/address", "/sys/class/net/tap5/address"])?;
        assert_eq!(
            output,
            format!("by macvlan\nnet1 inet 10.79.0.2/24\ntap5 inet 10.80.0.2/24\n{macs}lo\nnet1\ntap5\n")
        );
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    /// An ipvlan interface has the address of its parent. Where the kernel has none, a veth with its peer's is in its place.
    #[test]
    fn an_interface_that_shares_its_parents_address_is_carried_too() -> Result<()> {
        let node = Node::start()?;
        let (pod, host, lan) = beside_a_node(node.namespace())?;
        let add = format!(
            "link add link uplink name net1 netns {} type ipvlan mode l2",
            pod.name()
        );
        match host.ip(&add.split(' ').collect::<Vec<_>>()) {
            Ok(_) => {}
            Err(error) => {
                assert!(error.to_string().contains("Unknown device type"), "{error}");
                pod.veth("net1", &lan, "lan1")?;
                let mac = lan.ip(&["-o", "link", "show", "dev", "lan1"])?;
                let mac = mac.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
                pod.ip(&["link", "set", "net1", "address", mac.unwrap_or_default()])?;
                lan.ip_lines(&["addr flush dev lan0", "addr add 10.79.0.1/24 dev lan1"])?;
            }
        }
        pod.ip_lines(&["link set net1 up", "addr add 10.79.0.2/24 dev net1"])?;
        let server = serve(&lan, "10.79.0.1:80", |mut stream| {
            Ok(stream.write_all(b"by one address\n")?)
        })?;
        let script = "nc 10.79.0.1 80 < /dev/null; cat /sys/class/net/net1/address; ls /sys/class/net";
        let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
        joined(server)?;
        let mac = pod.exec(&["cat", "/sys/class/net/net1/address"])?;
        assert_eq!(output, format!("by one address\n{mac}lo\nnet1\n"));
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn two_cpus_have_two_queues() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\ndefault_vcpus = 2\n")?;
        let Pod { pod, outside } = Pod::new(&node)?;
        let server = serve(
            &outside,
            "10.77.0.1:80",
            |mut stream| Ok(stream.write_all(b"by two\n")?),
        )?;
        let script = "nc 10.77.0.1 80 < /dev/null; nproc; ls /sys/class/net/eth0/queues";
        let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
        joined(server)?;
        assert_eq!(output, "by two\n2\nrx-0\nrx-1\ntx-0\ntx-1\n");
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_file_that_is_no_namespace_is_a_clear_error() -> Result<()> {
        let node = Node::start()?;
        let file = node.dir().join("not-a-namespace");
        std::fs::write(&file, "")?;
        let flag = format!("--with-ns=network:{}", file.display());
        let said = node.run("c").arg("--rm").arg(flag).program(["true"]).fails()?;
        let wanted = format!("cannot enter network namespace {}: Invalid argument", file.display());
        assert!(said.contains(&wanted), "{said}");
        node.discard("c")?;
        node.nothing_left()
    }

    #[test]
    fn without_a_model_there_is_no_network_and_the_namespace_is_not_touched() -> Result<()> {
        let node = Node::start_configured("[runtime]\ninternetworking_model = \"none\"\n")?;
        let Pod { pod, outside } = Pod::new(&node)?;
        node.run("c")
            .arg("-d")
            .arg(pod.flag())
            .program(["sleep", "1000"])
            .ok()?;
        assert_eq!(node.exec("c", "ls").program(["ls", "/sys/class/net"]).ok()?, "lo\n");
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        node.remove("c")?;
        drop(outside);
        node.nothing_left()
    }

    #[test]
    fn an_interface_without_ethernet_is_refused_by_name_and_kind_and_unused_it_is_left_out() -> Result<()> {
        let node = Node::start()?;
        let Pod { pod, outside } = Pod::new(&node)?;
        pod.ip_lines(&[
            "tuntap add dev tun7 mode tun",
            "addr add 10.91.0.1/24 dev tun7",
            "link set tun7 up",
        ])?;
        let said = node.run("c").arg("--rm").arg(pod.flag()).program(["true"]).fails()?;
        assert!(said.contains("tun7") && said.contains("a VM cannot have"), "{said}");
        node.discard("c")?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        pod.ip_lines(&["addr flush dev tun7"])?;
        let names = node
            .run("d")
            .arg("--rm")
            .arg(pod.flag())
            .program(["ls", "/sys/class/net"])
            .ok()?;
        assert_eq!(names, "eth0\nlo\n");
        drop(outside);
        node.nothing_left()
    }

    #[test]
    fn the_second_sandbox_of_a_namespace_is_refused_and_the_first_goes_on_until_its_shim_is_killed() -> Result<()> {
        let node = Node::start()?;
        let Pod { pod, outside } = Pod::new(&node)?;
        node.run("first")
            .args(["-d", "--null-io"])
            .arg(pod.flag())
            .program(["sleep", "1000"])
            .ok()?;
        let said = node
            .run("second")
            .arg("--rm")
            .arg(pod.flag())
            .program(["true"])
            .fails()?;
        assert!(said.contains("another sandbox uses it"), "{said}");
        node.discard("second")?;
        let server = serve(&outside, "10.77.0.1:80", |mut stream| {
            Ok(stream.write_all(b"still here\n")?)
        })?;
        let answer = node.exec("first", "ask").sh("nc 10.77.0.1 80 < /dev/null").ok()?;
        assert_eq!(answer, "still here\n");
        joined(server)?;
        node.kill_process("first", "containerd-shim")?;
        assert_eq!(node.await_stopped("first")?, 137);
        node.ctr().args(["container", "rm"]).arg(node.id("first")).ok()?;
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn the_hosts_network_is_refused_or_left_out_as_configured() -> Result<()> {
        let node = Node::start()?;
        let names = node
            .run("none")
            .args(["--rm", "--net-host"])
            .program(["ls", "/sys/class/net"])
            .ok()?;
        assert_eq!(names, "lo\n");
        node.nothing_left()?;
        drop(node);
        let node = Node::start_configured("[runtime]\nhost_network = \"deny\"\n")?;
        let said = node
            .run("deny")
            .args(["--rm", "--net-host"])
            .program(["true"])
            .fails()?;
        assert!(said.contains("host_network"), "{said}");
        node.discard("deny")?;
        node.nothing_left()
    }
}
