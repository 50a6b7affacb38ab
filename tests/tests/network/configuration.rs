//! What a container finds: names, addresses, routes, rules, neighbours.

use super::*;

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

/// What `ip` says of a namespace: this machine's, because busybox's knows half of it. Not what differs by nature: indexes, peers of
/// veths, queueing disciplines, states of links, the numbers of next hops, names of protocols, and that the guest does not look for duplicates.
fn shown(ip: &str) -> String {
    let commands = [
        "-o link show | sed 's/^[0-9]*: //; s/@[^:]*:/:/; s/<[^>]*NOARP[^>]*>/noarp/; s/<[^>]*>//; s/qdisc.*link.ether/ether/; s/ link-netns.*//'",
        "-o addr show scope global | sed 's/^[0-9]*: //; s/ nodad//' | sort",
        "-o -4 route show table all | grep -v 'table local' | sed 's/nhid [0-9]* //' | sort",
        "-o -6 route show table all | grep -v 'table local\\|^unreachable default' | sort",
        "-4 rule | sed 's/ipproto-6/tcp/'",
        "-6 rule",
        "neigh show nud permanent",
    ];
    let commands: Vec<_> = commands.iter().map(|command| format!("{ip} {command}")).collect();
    format!(
        "{}; cd /proc/sys/net/ipv6/conf; cat eth0/accept_ra eth1/accept_ra",
        commands.join("; ")
    )
}

/// All that a plugin may come up with, and that fewer do than addresses and routes: interfaces that have each other's usual names, one
/// that is down, one with odd characters in a name as long as can be, one with the longest frames.
#[test]
fn whatever_ip_can_set_up_is_the_same_in_the_container() -> Result<()> {
    let node = Node::start()?;
    let ip = Bundle::make(&locate::program("ip")?, node.dir().join("ip"))?;
    let (pod, outside) = (
        NetNs::new(node.namespace(), "pod")?,
        NetNs::new(node.namespace(), "out")?,
    );
    for (name, peer) in [
        ("eth1", "v1"),
        ("eth0", "v0"),
        ("a.b-c_d~e+f#g12", "v2"),
        ("big0", "v3"),
    ] {
        pod.veth(name, &outside, peer)?;
    }
    pod.ip_lines(&[
        "addr add 10.77.0.2/24 dev eth1",
        "addr add 10.77.0.3/24 dev eth1",
        "addr add 10.79.0.2/24 dev eth0",
        "addr add 10.88.0.1 peer 10.88.0.2/32 dev eth1",
        "addr add 10.89.0.2/24 dev eth1 noprefixroute",
        "-6 addr add fd77::2/64 dev eth1 nodad",
        "-6 addr add fd79::2/64 dev eth1 nodad preferred_lft 0",
        "-6 addr add fd7a::2/64 dev eth1 nodad noprefixroute",
        "-6 addr add fd7b::2/64 dev eth0 nodad",
        "link set big0 mtu 65535",
        "link set eth0 arp off",
        "addr add 10.93.0.2/24 dev a.b-c_d~e+f#g12",
        "link set a.b-c_d~e+f#g12 down",
        "route add 10.83.0.0/16 nexthop via 10.77.0.1 weight 2 nexthop via 10.79.0.1 weight 5",
        "route add 10.84.0.0/16 via inet6 fd77::1 dev eth1",
        "route add unreachable 10.85.0.0/16",
        "route add prohibit 10.86.0.0/16 table 77",
        "route add throw 10.87.0.0/16 table 77",
        "route add 10.90.0.0/16 via 10.77.0.1 mtu lock 1200 advmss 1000 initcwnd 20 table 1000",
        "route add 10.91.0.0/16 via 10.77.0.1 src 10.77.0.3 tos 0x10 metric 9",
        "nexthop add id 7 via 10.77.0.1 dev eth1",
        "route add 10.92.0.0/16 nhid 7",
        "-6 route add fd80::/32 nexthop via fd77::1 weight 1 nexthop via fd7b::1 dev eth0",
        "-6 route add blackhole fd81::/32",
        "-6 route add fd82::/32 via fd77::1 dev eth1 metric 5 mtu 1400",
        "-6 route add fd83::/32 via fd99::1 dev eth1 onlink",
        "rule add from 10.77.0.3 to 10.5.0.0/16 fwmark 0x5/0xff dev eth1 lookup 77 priority 50",
        "rule add ipproto 6 dport 80-90 lookup 1000 priority 60",
        "rule add uidrange 100-200 lookup 77 priority 70",
        "rule add from 10.9.9.9 prohibit priority 80",
        "rule add lookup main suppress_prefixlength 0 priority 90",
        "-6 rule add from fd77::2 lookup 77 priority 100",
        "-6 neigh add fd77::9 lladdr 02:00:00:00:00:09 dev eth1",
    ])?;
    pod.exec(&["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth1/accept_ra"])?;
    let wanted = pod.exec(&["sh", "-c", &shown("ip")])?;
    let script = shown(&ip.inside().join(" "));
    let found = node
        .run("c")
        .arg("--rm")
        .arg(pod.flag())
        .arg(ip.mount())
        .sh(&script)
        .ok()?;
    assert_eq!(found, wanted);
    drop(outside);
    node.nothing_left()?;
    assert_eq!(pod.leftovers()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_thousand_routes_are_all_there() -> Result<()> {
    let node = Node::start()?;
    let Pod { pod, outside } = Pod::new(&node)?;
    let add = "for net in $(seq 0 999); do echo route add 10.$((100 + net / 250)).$((net % 250)).0/24 via 10.77.0.1; done | ip -batch -";
    pod.exec(&["sh", "-c", add])?;
    let script = "ip route | grep -c 'via 10.77.0.1 dev eth0'";
    // And the default route.
    assert_eq!(node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?, "1001\n");
    drop(outside);
    node.nothing_left()
}
