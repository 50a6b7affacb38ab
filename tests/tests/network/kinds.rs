//! Kinds of interfaces, and how they are joined to the VM.

use super::*;

/// What only a runtime that has a VM can show.
mod kata_only {
    use super::*;

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

    /// An ipvlan interface in the pod, which has the address of its parent; whether the kernel has it.
    fn ipvlan(pod: &NetNs, host: &NetNs, mode: &str) -> Result<bool> {
        let add = format!(
            "link add link uplink name net1 netns {} type ipvlan mode {mode}",
            pod.name()
        );
        match host.ip(&add.split(' ').collect::<Vec<_>>()) {
            Ok(_) => Ok(true),
            Err(error) => {
                assert!(error.to_string().contains("Unknown device type"), "{error}");
                Ok(false)
            }
        }
    }

    /// In place of it, a veth that has its peer's address.
    fn like_ipvlan(pod: &NetNs, lan: &NetNs) -> Result<()> {
        pod.veth("net1", lan, "lan1")?;
        let mac = lan.ip(&["-o", "link", "show", "dev", "lan1"])?;
        let mac = mac.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        pod.ip(&["link", "set", "net1", "address", mac.unwrap_or_default()])?;
        lan.ip_lines(&["addr flush dev lan0", "addr add 10.79.0.1/24 dev lan1"])
    }

    /// A container asks 10.79.0.1 by `net1`, which has the address that it has in the pod.
    fn asks_by_net1(node: &Node, pod: &NetNs, lan: &NetNs) -> Result<()> {
        let server = serve(lan, "10.79.0.1:80", |mut stream| {
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

    /// Where the kernel has no ipvlan, something like it is in its place.
    #[test]
    fn an_interface_that_shares_its_parents_address_is_carried_too() -> Result<()> {
        let node = Node::start()?;
        let (pod, host, lan) = beside_a_node(node.namespace())?;
        if !ipvlan(&pod, &host, "l2")? {
            like_ipvlan(&pod, &lan)?;
        }
        pod.ip_lines(&["link set net1 up", "addr add 10.79.0.2/24 dev net1"])?;
        asks_by_net1(&node, &pod, &lan)
    }

    /// As ipvlan in mode l3: the parent's side routes, and drops what asks for addresses (the kernel's ipvlan.rst). Where the kernel
    /// has none, both ends of a veth do not ask.
    #[test]
    fn an_interface_that_asks_nobody_for_addresses_is_carried_too() -> Result<()> {
        let node = Node::start()?;
        let (pod, host, lan) = beside_a_node(node.namespace())?;
        if ipvlan(&pod, &host, "l3")? {
            // The way back is by the node, for which the LAN has a route.
            host.ip_lines(&["addr add 10.79.0.9/24 dev uplink", "link set uplink up"])?;
            lan.ip_lines(&["route add 10.98.0.2 via 10.79.0.9"])?;
        } else {
            like_ipvlan(&pod, &lan)?;
            pod.ip_lines(&["link set net1 arp off"])?;
            lan.ip_lines(&["link set lan1 arp off", "route add 10.98.0.2 dev lan1"])?;
        }
        pod.ip_lines(&[
            "link set net1 up",
            "addr add 10.98.0.2/32 dev net1",
            "route add default dev net1",
        ])?;
        asks_by_net1(&node, &pod, &lan)
    }

    /// What stands on another interface of the namespace gets its frames from it: that one is left as it is.
    #[test]
    fn an_interface_on_another_one_of_the_pod_is_carried_in_its_place() -> Result<()> {
        let node = Node::start()?;
        let (pod, outside) = (
            NetNs::new(node.namespace(), "pod")?,
            NetNs::new(node.namespace(), "out")?,
        );
        pod.veth("lower0", &outside, "veth0")?;
        pod.ip_lines(&[
            "link add link lower0 name eth0 type macvlan mode bridge",
            "link set eth0 up",
            "addr add 10.77.0.2/24 dev eth0",
        ])?;
        outside.ip_lines(&["addr add 10.77.0.1/24 dev veth0"])?;
        reaches(&node, &pod, &outside, "one")?;
        pod.ip_lines(&["addr add 10.78.0.2/24 dev lower0"])?;
        let said = node.run("both").arg("--rm").arg(pod.flag()).program(["true"]).fails()?;
        assert!(said.contains("lower0") && said.contains("eth0 stands on it"), "{said}");
        node.discard("both")?;
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_bridge_is_carried_and_its_ports_are_not() -> Result<()> {
        let node = Node::start()?;
        let (pod, outside) = (
            NetNs::new(node.namespace(), "pod")?,
            NetNs::new(node.namespace(), "out")?,
        );
        pod.veth("port0", &outside, "veth0")?;
        pod.ip_lines(&[
            "link add eth0 type bridge",
            "link set port0 master eth0",
            "link set eth0 up",
            "addr add 10.77.0.2/24 dev eth0",
        ])?;
        outside.ip_lines(&["addr add 10.77.0.1/24 dev veth0"])?;
        reaches(&node, &pod, &outside, "c")?;
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn as_many_interfaces_as_the_vm_has_places_for_and_not_one_more() -> Result<()> {
        let node = Node::start()?;
        let Pod { pod, outside } = Pod::new(&node)?;
        let add = |numbers: std::ops::Range<u32>| {
            numbers
                .into_iter()
                .try_for_each(|number| pod.veth(&format!("net{number}"), &outside, &format!("peer{number}")))
        };
        add(1..16)?;
        let server = serve(&outside, "10.77.0.1:80", |mut stream| {
            Ok(stream.write_all(b"by the first\n")?)
        })?;
        let script = "nc 10.77.0.1 80 < /dev/null; ls /sys/class/net | wc -l";
        let output = node.run("many").arg("--rm").arg(pod.flag()).sh(script).ok()?;
        joined(server)?;
        assert_eq!(output, "by the first\n17\n");
        add(16..40)?;
        let said = node.run("more").arg("--rm").arg(pod.flag()).program(["true"]).fails()?;
        assert!(said.contains("has 40 interfaces"), "{said}");
        node.discard("more")?;
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn two_cpus_have_two_queues() -> Result<()> {
        two_cpus("", "rx-0\nrx-1\ntx-0\ntx-1\n")
    }

    #[test]
    fn a_device_has_as_many_queues_as_is_configured() -> Result<()> {
        two_cpus("network_queues = 1\n", "rx-0\ntx-0\n")?;
        // More than the guest has CPUs: the rest of them is not used.
        two_cpus("network_queues = 4\n", "rx-0\nrx-1\ntx-0\ntx-1\n")
    }

    /// A VM with two CPUs, and the queues that its device uses.
    fn two_cpus(more: &str, queues: &str) -> Result<()> {
        let node = Node::start_configured(&format!("[hypervisor.qemu]\ndefault_vcpus = 2\n{more}"))?;
        let Pod { pod, outside } = Pod::new(&node)?;
        let server = serve(
            &outside,
            "10.77.0.1:80",
            |mut stream| Ok(stream.write_all(b"by two\n")?),
        )?;
        let script = "nc 10.77.0.1 80 < /dev/null; nproc; ls /sys/class/net/eth0/queues";
        let output = node.run("c").arg("--rm").arg(pod.flag()).sh(script).ok()?;
        joined(server)?;
        assert_eq!(output, format!("by two\n2\n{queues}"));
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
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

    /// What a connection from a namespace to an address reads; empty where it is refused, or ended without a byte.
    fn dialled(namespace: &NetNs, address: &'static str) -> Result<String> {
        namespace.inside(move || {
            let Ok(mut stream) = TcpStream::connect(address) else {
                return Ok(String::new());
            };
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
            let mut said = String::new();
            // An end by force is no answer either.
            let _ = stream.read_to_string(&mut said);
            Ok(said)
        })
    }

    #[test]
    fn without_a_model_nothing_of_the_guest_can_be_dialled() -> Result<()> {
        for (model, forwards) in [("none", false), ("tcfilter", true)] {
            let node = Node::start_configured(&format!("[runtime]\ninternetworking_model = {model:?}\n"))?;
            let Pod { pod, outside } = Pod::new(&node)?;
            let member = |name: &str, args: &[&str], kind| -> Result<()> {
                let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
                let network = json!({ "type": "network", "path": pod.path() });
                let namespaces: Vec<_> = namespaces.into_iter().chain([network]).collect();
                let spec = node.spec(name, args)?.set("/linux/namespaces", namespaces)?;
                node.run_spec(name, &spec.of_pod(&node, kind)?)?
                    .arg("-d")
                    .ok()
                    .map(drop)
            };
            member("pod", &["/no/such/pause"], "sandbox")?;
            member("app", &["sleep", "1000"], "container")?;
            let serve = "mkdir /tmp/www && echo of the guest > /tmp/www/file && httpd -p 8080 -h /tmp/www && \
                         wget -q -O - http://127.0.0.1:8080/file";
            assert_eq!(node.exec("app", "httpd").sh(serve).ok()?, "of the guest\n");
            let said = dialled(&pod, "127.0.0.1:8080")?;
            assert_eq!(said.ends_with("of the guest\n"), forwards, "{model}: {said:?}");
            assert!(forwards || said.is_empty(), "{model}: {said:?}");
            // The pod's own address is the namespace's for whoever is in it, with every model.
            assert_eq!(dialled(&pod, "10.77.0.2:8080")?, "", "{model}");
            if !forwards {
                assert_eq!(dialled(&outside, "10.77.0.2:8080")?, "");
            }
            node.remove("app")?;
            node.remove("pod")?;
            node.nothing_left()?;
        }
        Ok(())
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
}
