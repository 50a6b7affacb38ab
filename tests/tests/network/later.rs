//! A network that comes, and changes, after the container was created.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A bridge and addresses by Debian's plugins, as `ctr run --cni` finds them in the directories that it has built in: a mount
/// namespace of its own has them there, and the network namespace in which it runs has the bridge.
fn with_cni(node: &Node, outside: &NetNs) -> Result<std::path::PathBuf> {
    let dir = node.dir().join("cni");
    let (etc, opt, var) = (dir.join("etc"), dir.join("opt"), dir.join("var"));
    for dir in [&etc.join("cni/net.d"), &opt.join("cni"), &var] {
        std::fs::create_dir_all(dir)?;
    }
    std::os::unix::fs::symlink("/usr/lib/cni", opt.join("cni/bin"))?;
    let plugins = r#"{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.97.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;
    std::fs::write(etc.join("cni/net.d/10-test.conflist"), plugins)?;
    let script = format!(
        "#!/bin/sh\nexec {} --net={} unshare --mount --propagation private sh -c \
         'mount --bind {} /etc && mount --bind {} /opt && mount --bind {} /var/lib && exec \"$@\"' sh \"$@\"\n",
        locate::program("nsenter")?.display(),
        outside.path().display(),
        etc.display(),
        opt.display(),
        var.display(),
    );
    let file = dir.join("with-cni");
    std::fs::write(&file, script)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    Ok(file)
}

/// `ctr` calls the plugins between Create and Start.
#[test]
fn the_network_of_ctrs_cni_is_there_when_the_program_starts() -> Result<()> {
    let node = Node::start()?;
    let outside = NetNs::new(node.namespace(), "out")?;
    let script = "ip addr show dev eth0 | grep -o 'inet [0-9./]*'; ip route | grep -o 'default via [0-9.]*'; \
                  ping -c 1 10.97.0.1 > /dev/null && echo reached";
    let output = node
        .run("c")
        .run_by(with_cni(&node, &outside)?)
        .args(["--rm", "--cni"])
        .sh(script)
        .ok()?;
    assert_eq!(output, "inet 10.97.0.2/24\ndefault via 10.97.0.1\nreached\n");
    node.nothing_left()
}

#[test]
fn an_interface_that_somebody_puts_there_while_the_container_runs_is_carried_too() -> Result<()> {
    let node = Node::start()?;
    let outside = NetNs::new(node.namespace(), "out")?;
    node.run("c")
        .args(["-d", "--null-io"])
        .program(["sleep", "1000"])
        .ok()?;
    assert_eq!(node.exec("c", "before").program(["ls", "/sys/class/net"]).ok()?, "lo\n");
    let pid = node.pid("c")?.to_string();
    let inside = |args: &[&str]| -> Result<()> {
        let mut command = std::process::Command::new(locate::program("nsenter")?);
        let status = command.args(["-t", &pid, "-n", "ip"]).args(args).status()?;
        assert!(status.success(), "{args:?}");
        Ok(())
    };
    for round in ["first", "second"] {
        let line = format!("link add veth0 type veth peer name eth0 netns {pid}");
        outside.ip_lines(&[
            &line,
            "addr add 10.77.0.1/24 dev veth0",
            "-6 addr add fd77::1/64 dev veth0 nodad",
            "link set veth0 up",
        ])?;
        inside(&["addr", "add", "10.77.0.2/24", "dev", "eth0"])?;
        inside(&["-6", "addr", "add", "fd77::2/64", "dev", "eth0", "nodad"])?;
        inside(&["link", "set", "eth0", "up"])?;
        let wait = "for to in 10.77.0.1 fd77::1; do until ping -c 1 $to >/dev/null 2>&1; do sleep 0.1; done; done; \
                    ip addr show dev eth0 | grep -o 'inet6* [fd70-9.:]*2/[0-9]*'; ip route; ip -6 route | grep -c ^fd77::/64";
        assert_eq!(
            node.exec("c", round).sh(wait).ok()?,
            "inet 10.77.0.2/24\ninet6 fd77::2/64\n10.77.0.0/24 dev eth0 scope link  src 10.77.0.2 \n1\n"
        );
        outside.ip_lines(&["link del veth0"])?;
        let gone = "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ls /sys/class/net";
        assert_eq!(node.exec("c", &format!("{round}-gone")).sh(gone).ok()?, "lo\n");
    }
    node.remove("c")?;
    node.nothing_left()
}
