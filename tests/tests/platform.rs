//! What runs a guest and what connects it: the best that the host has, or what the operator says, or an error.
//!
//! On which host the tests run shows in the host's own files; what a sandbox uses shows in the kernel's list of what QEMU
//! has open. Where `TATAMI_TEST_PLATFORM` is `kvm`, the host has to have everything (`make test-kvm`).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use framework::{Error, NetNs, Node, Result, leftovers};

/// Whether a device of the host can be opened, and why not.
fn device(path: &str) -> Result<()> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
        .map_err(Error::io(format!("opening {path}")))
}

/// What this host has.
struct Host {
    kvm: Result<()>,
    vsock: Result<()>,
    net: Result<()>,
}

impl Host {
    fn look() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let virtualizes = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        // A device without the CPU's help is a KVM for special guests.
        let cpu = if virtualizes {
            Ok(())
        } else {
            Err(Error::unexpected("the CPU has neither vmx nor svm"))
        };
        Ok(Self {
            kvm: device("/dev/kvm").and(cpu),
            vsock: device("/dev/vhost-vsock"),
            net: device("/dev/vhost-net"),
        })
    }
}

/// The programs and open files of a container's sandbox, and what its shim has written down.
struct Sandbox {
    open: Vec<PathBuf>,
    daemon: bool,
    state: serde_json::Value,
}

impl Sandbox {
    fn look(node: &Node, name: &str) -> Result<Self> {
        let processes = node.processes(name);
        let runs = |program: &str| processes.iter().find(|process| process.program().contains(program));
        let qemu = runs("qemu-system").ok_or_else(|| Error::unexpected(format!("no QEMU among {processes:?}")))?;
        let open = fs::read_dir(format!("/proc/{}/fd", qemu.pid))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect();
        let dirs = leftovers::runtime_dirs(node.namespace());
        let mut states = dirs
            .iter()
            .map(|dir| dir.join("sandbox.json"))
            .filter(|file| file.exists());
        let state = states
            .next()
            .ok_or_else(|| Error::unexpected(format!("no sandbox.json in {dirs:?}")))?;
        Ok(Self {
            open,
            daemon: runs("vhost-device-vsock").is_some(),
            state: serde_json::from_str(&fs::read_to_string(state)?)?,
        })
    }

    fn has_open(&self, file: &str) -> bool {
        self.open.iter().any(|open| open == Path::new(file))
    }
}

/// A namespace with an interface, as CNI leaves it.
fn pod(node: &Node) -> Result<(NetNs, NetNs)> {
    let (pod, outside) = (
        NetNs::new(node.namespace(), "pod")?,
        NetNs::new(node.namespace(), "out")?,
    );
    pod.veth("eth0", &outside, "veth0")?;
    pod.ip_lines(&["addr add 10.77.0.2/24 dev eth0"])?;
    outside.ip_lines(&["addr add 10.77.0.1/24 dev veth0"])?;
    Ok((pod, outside))
}

/// What only a runtime that has a VM can show.
mod kata_only {
    use super::*;

    #[test]
    fn a_sandbox_runs_on_the_best_that_the_host_has() -> Result<()> {
        let host = Host::look()?;
        let node = Node::start()?;
        let (inside, _outside) = pod(&node)?;
        node.run("c")
            .arg("-d")
            .arg(inside.flag())
            .program(["sleep", "1000"])
            .ok()?;
        node.exec("c", "ping").program(["ping", "-c", "1", "10.77.0.1"]).ok()?;
        let found = Sandbox::look(&node, "c")?;
        let (kvm, vsock, net) = (host.kvm.is_ok(), host.vsock.is_ok(), host.net.is_ok());

        assert_eq!(found.state["accelerator"], if kvm { "kvm" } else { "tcg" });
        assert_eq!(found.has_open("anon_inode:kvm-vm"), kvm, "{:?}", found.open);
        assert_eq!(found.state["vsock"], if vsock { "vhost" } else { "vhost-user" });
        assert_eq!(found.has_open("/dev/vhost-vsock"), vsock, "{:?}", found.open);
        assert_eq!(found.daemon, !vsock);
        assert_eq!(found.has_open("/dev/vhost-net"), net, "{:?}", found.open);
        println!(
            "accelerator {}, vsock {}, vhost-net {net}",
            found.state["accelerator"], found.state["vsock"]
        );

        node.remove("c")?;
        node.nothing_left()?;
        if std::env::var("TATAMI_TEST_PLATFORM").as_deref() == Ok("kvm") {
            host.kvm?;
            host.vsock?;
            host.net?;
        }
        Ok(())
    }

    #[test]
    fn the_daemon_and_qemu_do_it_where_the_operator_says_so() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\nvsock = \"vhost-user\"\ndisable_vhost_net = true\n")?;
        let (inside, _outside) = pod(&node)?;
        node.run("c")
            .arg("-d")
            .arg(inside.flag())
            .program(["sleep", "1000"])
            .ok()?;
        node.exec("c", "ping").program(["ping", "-c", "1", "10.77.0.1"]).ok()?;
        let found = Sandbox::look(&node, "c")?;
        assert_eq!(found.state["vsock"], "vhost-user");
        assert!(found.daemon);
        assert!(!found.has_open("/dev/vhost-vsock"), "{:?}", found.open);
        assert!(!found.has_open("/dev/vhost-net"), "{:?}", found.open);
        node.remove("c")?;
        node.nothing_left()
    }

    /// With `key` forced, a container runs if the host `has` it, and otherwise is refused with all of `words`.
    fn forced(key: &str, has: bool, words: &[&str]) -> Result<()> {
        let node = Node::start_configured(&format!("[hypervisor.qemu]\n{key}\n"))?;
        let output = node.run("c").arg("--rm").program(["echo", "runs"]).output()?;
        if has {
            assert_eq!(output.success()?.stdout(), "runs\n");
        } else {
            let said = output.failure()?;
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            node.discard("c")?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_kvm_that_is_forced_and_not_there_is_an_error_that_says_why() -> Result<()> {
        let words = ["accelerator is configured as kvm", "hypervisor.qemu.accelerator"];
        forced("accelerator = \"kvm\"", Host::look()?.kvm.is_ok(), &words)
    }

    #[test]
    fn a_vsock_that_is_forced_and_not_there_is_an_error_that_says_why() -> Result<()> {
        let words = ["/dev/vhost-vsock", "module vhost_vsock", "hypervisor.qemu.vsock"];
        forced("vsock = \"vhost\"", Host::look()?.vsock.is_ok(), &words)
    }
}
