//! What runs a guest and what connects it: the best that the host has, or what the operator says, or an error.
//!
//! On which host the tests run shows in the host's own files; what a sandbox uses shows in the kernel's list of what QEMU
//! has open. Where `TATAMI_TEST_PLATFORM` is `kvm`, the host has to have everything (`make test-kvm`).

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use framework::{Error, NetNs, Node, Result, disk::RawImage, leftovers, locate};
use serde_json::{Value, json};

/// Whether a device of the host can be opened, and why not.
fn device(path: &str) -> Result<()> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
        .map_err(Error::io(format!("opening {path}")))
}

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
    dir: PathBuf,
    qemu: leftovers::Process,
    open: Vec<PathBuf>,
    daemon: bool,
    state: Value,
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
        let states = dirs.iter().filter_map(|dir| {
            let state = fs::read_to_string(dir.join("sandbox.json")).ok()?;
            Some((dir.clone(), serde_json::from_str::<Value>(&state).ok()?))
        });
        let id = node.id(name);
        let (dir, state) = states
            .into_iter()
            .find(|(_, state)| state["id"] == *id)
            .ok_or_else(|| Error::unexpected(format!("no sandbox.json of {id} in {dirs:?}")))?;
        Ok(Self {
            dir,
            qemu: qemu.clone(),
            open,
            daemon: runs("vhost-device-vsock").is_some(),
            state,
        })
    }

    /// What follows `word` in QEMU's arguments, the kernel's command line among them, up to a blank or a comma.
    fn argument(&self, word: &str) -> Result<String> {
        let (_, rest) = self
            .qemu
            .command
            .split_once(word)
            .ok_or_else(|| Error::unexpected(format!("no {word} in {}", self.qemu.command)))?;
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        Ok(rest[..end].to_owned())
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
        if locate::has_to_be_kvm() {
            host.kvm?;
            host.vsock?;
            host.net?;
        }
        Ok(())
    }

    /// What an agent says first on the connection on which it serves.
    const AGENT: &[u8] = b"TATAMI\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    /// A program of the host that claims to be the agent, through the kernel's vsock.
    fn stranger_on_the_host(port: &str) -> Result<Value> {
        // VMADDR_CID_LOCAL (vsock(7)).
        let mut stranger = Command::new(locate::guest_probe()?)
            .args(["dial", "1", port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = stranger.stdin.take() {
            stdin.write_all(AGENT)?;
        }
        Ok(serde_json::from_slice(&stranger.wait_with_output()?.stdout)?)
    }

    #[test]
    fn a_stranger_that_claims_to_be_the_agent_is_refused() -> Result<()> {
        let node = Node::start()?;
        for name in ["a", "b"] {
            node.run(name).arg("-d").program(["sleep", "1000"]).ok()?;
        }
        let (a, b) = (Sandbox::look(&node, "a")?, Sandbox::look(&node, "b")?);
        let port = a.argument("tatami.port=")?;
        let refused = json!({ "errno": 0, "answered": 0 });
        if a.state["vsock"] == "vhost" {
            // From another VM: its programs can dial the same port of the host.
            let dial = format!("exec guest-probe dial 2 {port}");
            let told = node.exec("b", "dial").sh(&dial).output_with(AGENT.to_vec())?;
            assert_eq!(told.success()?.json()?, refused);
            node.await_log(&["a connection from another VM is refused", &b.argument("guest-cid=")?])?;

            let told = stranger_on_the_host(&port)?;
            // Without the module vsock_loopback no program of the host can dial one of the host (ENODEV, ENETUNREACH).
            assert!(
                told == refused || !locate::has_to_be_kvm() && told["errno"] != 0,
                "{told}"
            );
        } else {
            let mut stranger = UnixStream::connect(a.dir.join(format!("vsock/vsock.sock_{port}")))?;
            // It may be closed before all is said.
            let _ = stranger.write_all(AGENT);
            let mut answer = Vec::new();
            let _ = stranger.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{answer:?}");
            node.await_log(&["a connection that is not the vsock daemon's is refused"])?;
        }
        // It has its agent, as before.
        assert_eq!(node.exec("a", "still").program(["echo", "here"]).ok()?, "here\n");
        for name in ["a", "b"] {
            node.remove(name)?;
        }
        node.nothing_left()
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

    /// A line of QEMU's /proc/PID/status (proc(5)).
    fn status<'a>(status: &'a str, key: &str) -> Vec<&'a str> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map_or_else(Vec::new, |line| line.split_whitespace().collect())
    }

    #[test]
    fn qemu_is_a_user_without_rights_and_disk_and_network_work() -> Result<()> {
        let node = Node::start()?;
        let (inside, _outside) = pod(&node)?;
        let image = RawImage::with(&node.dir().join("disk"), "from the host", 8 << 20)?;
        let host = image.loop_device()?;
        let namespaces = ["pid", "ipc", "uts", "mount"]
            .map(|kind| json!({ "type": kind }))
            .into_iter();
        let network = json!({ "type": "network", "path": inside.path() });
        let spec = host
            .given_to(node.spec("c", &["sleep", "1000"])?, "/dev/disk", "rwm")?
            .set("/linux/namespaces", namespaces.chain([network]).collect::<Vec<_>>())?;
        node.run_spec("c", &spec)?.arg("-d").ok()?;

        let found = Sandbox::look(&node, "c")?;
        let told = fs::read_to_string(format!("/proc/{}/status", found.qemu.pid))?;
        for ids in ["Uid", "Gid"].map(|key| status(&told, key)) {
            let number: u32 = ids[0]
                .parse()
                .map_err(|error| Error::unexpected(format!("{error}: {told}")))?;
            assert!(number >= 0x7000_0000 && ids.iter().all(|id| *id == ids[0]), "{told}");
        }
        assert!(status(&told, "Groups").is_empty(), "{told}");
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(status(&told, set), ["0000000000000000"], "{told}");
        }
        assert_eq!(status(&told, "NoNewPrivs"), ["1"], "{told}");
        let kvm = Host::look()?.kvm.is_ok();
        assert_eq!(found.state["accelerator"], if kvm { "kvm" } else { "tcg" });
        assert_eq!(found.has_open("anon_inode:kvm-vm"), kvm, "{:?}", found.open);

        node.exec("c", "ping").program(["ping", "-c", "1", "10.77.0.1"]).ok()?;
        let script = "head -c 13 /dev/disk; echo from the guest | dd of=/dev/disk bs=512 seek=4 conv=fsync 2>/dev/null";
        assert_eq!(node.exec("c", "disk").sh(script).ok()?, "from the host");
        node.remove("c")?;
        host.detach()?;
        assert_eq!(image.text(2048)?, "from the guest\n");
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
