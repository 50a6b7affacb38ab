//! Whose a namespace is: one sandbox's, another's, the host's, nobody's.

use framework::cri::node::eventually;

use super::*;

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

    /// The one that is too late takes nothing away from the other at its end.
    #[test]
    fn of_two_sandboxes_that_start_at_once_in_a_namespace_one_has_it() -> Result<()> {
        let node = Node::start()?;
        let Pod { pod, outside } = Pod::new(&node)?;
        let script = "echo up; read go; nc 10.77.0.1 80 < /dev/null";
        let start = |name| node.run(name).arg("--rm").arg(pod.flag()).sh(script).spawn();
        let (one, two) = (start("one")?, start("two")?);
        let (mut winner, (late, refused)) = match (one.shows("up\n"), two.shows("up\n")) {
            (Ok(()), Err(_)) => (one, ("two", two)),
            (Err(_), Ok(())) => (two, ("one", one)),
            both => panic!("{both:?}"),
        };
        let said = refused.wait()?.failure()?;
        assert!(said.contains("another sandbox"), "{said}");
        node.discard(late)?;
        let server = serve(&outside, "10.77.0.1:80", |mut stream| {
            Ok(stream.write_all(b"still here\n")?)
        })?;
        winner.write(b"go\n")?;
        joined(server)?;
        assert!(winner.wait()?.success()?.stdout().ends_with("still here\n"));
        node.nothing_left()?;
        assert_eq!(pod.leftovers()?, Vec::<String>::new());
        Ok(())
    }

    /// As soon as it has changed the namespace, while QEMU boots.
    #[test]
    fn a_shim_that_is_killed_half_way_leaves_the_namespace_to_the_next() -> Result<()> {
        let node = Node::start()?;
        let Pod { pod, outside } = Pod::new(&node)?;
        let running = node.run("killed").arg(pod.flag()).program(["sleep", "1000"]).spawn()?;
        eventually("the namespace is changed", || {
            Ok((!pod.leftovers()?.is_empty()).then_some(()))
        })?;
        node.kill_process("killed", "containerd-shim")?;
        running.wait()?.failure()?;
        node.discard("killed")?;
        eventually("it is as it was", || Ok(pod.leftovers()?.is_empty().then_some(())))?;
        reaches(&node, &pod, &outside, "next")?;
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

    /// Nor where its namespace is named by its file.
    #[test]
    fn the_hosts_interfaces_are_never_touched() -> Result<()> {
        let node = Node::start()?;
        // What is ours in any namespace; other tests change the host's as little.
        let ours = || -> Result<String> {
            let links = std::fs::read_to_string("/proc/net/dev")?;
            let links: String = links.lines().filter(|line| line.contains("_kata")).collect();
            let tc = std::process::Command::new(locate::program("tc")?)
                .args(["qdisc", "show"])
                .output()?;
            let qdiscs = String::from_utf8_lossy(&tc.stdout).into_owned();
            let qdiscs: String = qdiscs.lines().filter(|line| line.contains("ingress")).collect();
            Ok(links + &qdiscs)
        };
        let before = ours()?;
        let file = format!("--with-ns=network:/proc/{}/ns/net", std::process::id());
        for (name, flag) in [("flag", "--net-host"), ("file", file.as_str())] {
            let mut container = node
                .run(name)
                .arg("--rm")
                .arg(flag)
                .sh("ls /sys/class/net; read end; true")
                .spawn()?;
            container.shows("lo\n")?;
            assert_eq!(ours()?, before);
            container.close_stdin();
            assert_eq!(container.wait()?.success()?.stdout(), "lo\n");
        }
        assert_eq!(ours()?, before);
        node.nothing_left()
    }
}
