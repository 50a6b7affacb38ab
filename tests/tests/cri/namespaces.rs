//! What the containers of a pod share, and what each has for itself.

use framework::{
    Report, Result,
    cri::{
        PodNode,
        messages::{DnsConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig},
        pod::security,
    },
    leftovers,
};

const PROBE: [&str; 2] = ["guest-probe", "report"];

/// A pod whose namespaces are as given.
fn with_namespaces(mut config: PodSandboxConfig, options: NamespaceOption) -> PodSandboxConfig {
    config.linux.get_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..LinuxSandboxSecurityContext::default()
    });
    config
}

#[test]
fn network_ipc_and_hostname_are_the_pods_and_mounts_and_pids_are_the_containers() -> Result<()> {
    let node = PodNode::start()?;
    let mut config = node.pod("shared");
    config.hostname = "the-pods-name".to_owned();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.88.0.53".to_owned()],
        searches: vec!["pods.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    config.linux.get_or_insert_default().sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let pod = node.run(&config)?;
    let sysctls = [
        "guest-probe",
        "report",
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_unprivileged_port_start",
    ];
    let idle = ["sleep", "1000"];
    let (one, two) = (
        pod.start(&pod.container("one", &idle))?,
        pod.start(&pod.container("two", &idle))?,
    );
    // containerd makes these files: from the pod's settings, and from the node's.
    let resolver = "search pods.example\nnameserver 10.88.0.53\noptions ndots:5\n";
    assert_eq!(one.sh("cat /etc/resolv.conf")?, resolver);
    assert_eq!(
        two.sh("cat /etc/resolv.conf /etc/hostname")?,
        format!("{resolver}the-pods-name\n")
    );
    assert_eq!(two.sh("cat /etc/hosts")?, std::fs::read_to_string("/etc/hosts")?);
    let (one, two) = (one.exec(&sysctls)?, two.exec(&PROBE)?);
    let (one, two) = (Report::parse_text(&one)?, Report::parse_text(&two)?);
    for kind in ["ipc", "uts", "net"] {
        let pointer = format!("/namespaces/{kind}");
        assert_eq!(one.text(&pointer)?, two.text(&pointer)?);
    }
    for kind in ["mnt", "pid"] {
        let pointer = format!("/namespaces/{kind}");
        assert_ne!(one.text(&pointer)?, two.text(&pointer)?);
    }
    assert_eq!(one.text("/hostname")?, "the-pods-name");
    assert_eq!(one.text("/sysctls/kernel.shm_rmid_forced")?, "1");
    assert_eq!(one.text("/sysctls/net.ipv4.ip_unprivileged_port_start")?, "80");
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn a_pod_that_shares_its_pids_sees_all_of_its_processes() -> Result<()> {
    let node = PodNode::start()?;
    let options = NamespaceOption {
        pid: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    };
    let pod = node.run(&with_namespaces(node.pod("pids"), options))?;
    let one = pod.start(&pod.container("one", &["sleep", "1234"]))?;
    let two = pod.start(&pod.container("two", &["sleep", "2345"]))?;
    let seen = two.exec(&["ps", "-o", "args"])?;
    assert!(seen.contains("sleep 1234") && seen.contains("sleep 2345"), "{seen}");
    // The sandbox is the first process; it outlives the containers.
    assert_ne!(one.sh("echo $PPID $$")?.split_whitespace().last(), Some("1"));
    one.stop(0)?;
    assert!(!two.exec(&["ps", "-o", "args"])?.contains("sleep 1234"));
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn a_debugging_container_sees_the_processes_of_its_target_alone() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("target")?;
    let target = pod.start(&pod.container("target", &["sleep", "1234"]))?;
    pod.start(&pod.container("bystander", &["sleep", "2345"]))?;
    let mut config = pod.container("debugger", &["ps", "-o", "args"]);
    security(&mut config).namespace_options = Some(NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: target.id.clone(),
        ..NamespaceOption::default()
    });
    let debugger = pod.start(&config)?;
    debugger.await_exit()?;
    let seen: Vec<_> = debugger.log()?.into_iter().map(|line| line.text).collect();
    let sees = |program: &str| seen.iter().any(|line| line.contains(program));
    assert!(sees("sleep 1234") && !sees("sleep 2345"), "{seen:?}");
    pod.remove()?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    #[test]
    fn who_sees_the_pods_own_process_cannot_change_its_program() -> Result<()> {
        let node = PodNode::start()?;
        let options = NamespaceOption {
            pid: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        };
        let pod = node.run(&with_namespaces(node.pod("pause"), options))?;
        let one = pod.start(&pod.container("one", &["sleep", "1000"]))?;
        // The agent's program under another name.
        for change in ["chmod 0", "chown 1", "truncate -s 0", "rm -f"] {
            let said = one.sh(&format!("{change} /proc/1/root/pause 2>&1; true"))?;
            assert!(said.contains("Read-only file system"), "{change}: {said}");
        }
        pod.remove()?;
        node.nothing_left()
    }

    #[test]
    fn a_pod_of_the_hosts_namespaces_gets_its_machines_own_and_a_warning() -> Result<()> {
        let node = PodNode::start()?;
        let options = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Node.into(),
            ipc: NamespaceMode::Node.into(),
            target_id: String::new(),
            userns_options: None,
        };
        let mut config = with_namespaces(node.pod("node"), options);
        // With the host's network it has the host's name (api.proto).
        config.hostname = String::new();
        let pod = node.run(&config)?;
        let first = pod.report(&pod.container("one", &PROBE))?;
        let second = pod.report(&pod.container("two", &PROBE))?;
        for kind in ["ipc", "uts", "net", "pid"] {
            let pointer = format!("/namespaces/{kind}");
            assert_eq!(first.text(&pointer)?, second.text(&pointer)?);
        }
        // The guest's own first process is not the container's.
        assert_ne!(first.fact("/pid"), 1);
        assert!(node.log().contains("the host's network is not available"));
        pod.remove()?;
        node.nothing_left()
    }

    #[test]
    fn the_sandbox_has_no_image_and_reaps_what_the_containers_leave() -> Result<()> {
        let node = PodNode::start()?;
        let options = NamespaceOption {
            pid: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        };
        let pod = node.run(&with_namespaces(node.pod("reaper"), options))?;
        let app = pod.start(&pod.container("app", &["sleep", "1000"]))?;
        // Its parent ends at once: the sandbox becomes the parent, and must reap it.
        app.sh("(true & exec true) & wait; exit 0")?;
        // It takes the sandbox a moment to be told.
        app.sh("while grep -q ') Z ' /proc/[0-9]*/stat 2>/dev/null; do sleep 0.1; done")?;
        // Nothing of the pause image was shared with the guest.
        let served = leftovers::processes(&pod.id)
            .into_iter()
            .find(|process| process.program().ends_with("virtiofsd"));
        let served = served.map_or(0, |process| process.pid);
        let mounts = std::fs::read_to_string(format!("/proc/{served}/mountinfo"))?;
        assert!(!mounts.contains(&format!("{}/rootfs", pod.id)), "{mounts}");
        assert!(app.exec(&["ps", "-o", "pid,args"])?.contains("1 /pause"));
        pod.remove()?;
        node.nothing_left()
    }
}
