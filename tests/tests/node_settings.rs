//! What a container has of the node: settings that it inherits, and the host's time.

use framework::{Node, Result, Runtime};
use serde_json::json;

/// The words in a file of /proc/sys on this machine.
fn host(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn numbers(words: &str) -> Vec<u64> {
    words.split_whitespace().map_while(|word| word.parse().ok()).collect()
}

/// On runc it is the same kernel.
#[test]
fn a_container_has_not_less_than_the_node() -> Result<()> {
    const MEMORY: [(&str, u64); 5] = [
        ("net.ipv4.tcp_max_orphans", 12_000),
        ("net.ipv4.tcp_max_tw_buckets", 100_000),
        ("net.ipv4.tcp_mem", 6_000),
        ("net.ipv4.udp_mem", 6_000),
        ("net.netfilter.nf_conntrack_max", 100_000),
    ];
    let node = Node::start()?;
    let names = [
        "fs.inotify.max_user_watches",
        "fs.inotify.max_user_instances",
        "fs.fanotify.max_user_marks",
        "fs.file-max",
        "fs.nr_open",
        "kernel.pid_max",
        "kernel.threads-max",
        "vm.max_map_count",
        "fs.epoll.max_user_watches",
        "fs.pipe-max-size",
        "net.ipv4.ip_forward",
        "net.ipv4.neigh.default.gc_thresh3",
        "net.ipv4.tcp_max_orphans",
        "net.ipv4.tcp_max_syn_backlog",
        "net.ipv4.tcp_max_tw_buckets",
        "net.ipv4.tcp_mem",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net.ipv4.udp_mem",
        "net.netfilter.nf_conntrack_max",
        "user.max_user_namespaces",
        "user.max_net_namespaces",
        "user.max_pid_namespaces",
        "user.max_time_namespaces",
    ];
    let script = names
        .map(|name| format!("cat /proc/sys/{} || echo none", name.replace('.', "/")))
        .join("; ");
    let said = node
        .run("settings")
        .arg("--rm")
        .sh(&format!(
            "{{ {script}; }} 2>/dev/null; grep 'Max processes' /proc/self/limits"
        ))
        .ok()?;
    let lines: Vec<_> = said.lines().collect();
    for (name, line) in names.iter().zip(&lines) {
        let Some(least) = host(name) else { continue };
        // What all network namespaces of a kernel have together is only in the first.
        if node.runtime() == Runtime::Runc && *line == "none" {
            continue;
        }
        let (has, mut least) = (numbers(line), numbers(&least));
        // In a VM these are a part of its memory, at most: a quarter of 256 MiB without what the kernel takes.
        if let (Runtime::Kata, Some((_, most))) = (node.runtime(), MEMORY.iter().find(|(memory, _)| memory == name)) {
            least.iter_mut().for_each(|least| *least = *most.min(least));
        }
        let enough = has.iter().zip(&least).all(|(has, least)| has >= least);
        assert!(
            enough && has.len() == least.len(),
            "{name}: {has:?} instead of {least:?}"
        );
    }
    // As containerd has it, which has it from this process.
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let processes = limits.lines().find(|line| line.starts_with("Max processes"));
    assert_eq!(lines.last().copied(), processes);
    node.nothing_left()
}

#[test]
fn connections_are_congested_as_those_of_a_new_network_namespace() -> Result<()> {
    let node = Node::start()?;
    let file = "/proc/sys/net/ipv4/tcp_congestion_control";
    let said = node.run("congestion").arg("--rm").program(["cat", file]).ok()?;
    let new = std::process::Command::new("unshare")
        .args(["--net", "cat", file])
        .output()?;
    assert_eq!(said, String::from_utf8_lossy(&new.stdout));
    node.nothing_left()
}

/// Settings of the machine that a new network namespace has exactly, with one that is not the kernel's default: the interfaces that come
/// have what is in `default`.
#[test]
fn settings_of_ipv4_are_those_of_a_new_network_namespace() -> Result<()> {
    const LOGGED: &str = "/proc/sys/net/ipv4/conf/default/log_martians";
    /// Gives the machine its setting back.
    struct Restored(String);
    impl Drop for Restored {
        fn drop(&mut self) {
            let _ = std::fs::write(LOGGED, &self.0);
        }
    }
    let _restored = Restored(std::fs::read_to_string(LOGGED)?);
    std::fs::write(LOGGED, "1")?;
    let script = "cd /proc/sys/net/ipv4/conf; grep . {all,default,lo}/{accept_redirects,send_redirects,secure_redirects,accept_source_route} \
        {default,lo}/log_martians default/rp_filter lo/rp_filter";
    let new = std::process::Command::new("unshare")
        .args(["--net", "bash", "-c", script])
        .output()?;
    let wanted = String::from_utf8_lossy(&new.stdout).into_owned();
    assert!(wanted.contains("lo/log_martians:1"), "{wanted}");
    let node = Node::start()?;
    // The shell of the image knows no braces.
    let files: Vec<_> = wanted.lines().filter_map(|line| line.split(':').next()).collect();
    let script = format!("cd /proc/sys/net/ipv4/conf; grep . {}", files.join(" "));
    let said = node.run("conf").arg("--rm").sh(&script).ok()?;
    assert_eq!(said, wanted);
    node.nothing_left()
}

/// The node's name, not one of the guest's.
#[test]
fn a_container_without_a_uts_namespace_has_the_nodes_name() -> Result<()> {
    let node = Node::start()?;
    let others = ["pid", "ipc", "mount", "network"].map(|kind| json!({ "type": kind }));
    let spec = node
        .spec("name", &["cat", "/proc/sys/kernel/hostname"])?
        .set("/linux/namespaces", json!(others))?;
    let said = node.run_spec("name", &spec)?.arg("--rm").ok()?;
    assert_eq!(Some(said.trim().to_owned()), own_name());
    node.nothing_left()
}

fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

mod kata_only {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;
    use framework::Error;
    use nix::sys::signal::Signal;

    fn now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// How late the guest is, by a program in it.
    fn lateness(node: &Node, exec: &str) -> Result<i64> {
        let said = node.exec("clock", exec).program(["date", "+%s"]).ok()?;
        let guest: i64 = said.trim().parse().map_err(|_| Error::unexpected(said.clone()))?;
        Ok(i64::try_from(now().as_secs()).unwrap_or(i64::MAX) - guest)
    }

    #[test]
    fn the_guest_follows_the_hosts_clock_after_a_stop_and_after_a_container_that_set_it() -> Result<()> {
        const STOP: Duration = Duration::from_secs(12);
        let node = Node::start()?;
        let caps = json!(["CAP_SYS_TIME"]);
        let spec = node.spec("clock", &["sleep", "1000"])?.set(
            "/process/capabilities",
            json!({ "bounding": caps, "permitted": caps, "effective": caps }),
        )?;
        node.run_spec("clock", &spec)?.arg("-d").ok()?;
        node.signal_process("clock", "qemu", Signal::SIGSTOP)?;
        // The stop is what is tested: nothing happens in it that could be waited for.
        std::thread::sleep(STOP);
        node.signal_process("clock", "qemu", Signal::SIGCONT)?;
        // A guest whose clock source is the host's counter has lost nothing. Another one is late, and its clock is put forward.
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        if node.exec("clock", "source").program(["cat", source]).ok()? != "tsc\n" {
            node.await_log(&["its clock has been put forward"])?;
        }
        assert!(lateness(&node, "stopped")?.abs() <= 3);

        // Whatever a container sets, the clock follows the host's again, and what leaves the shim is the host's time.
        let set = |exec: &str| {
            let set = node.exec("clock", exec);
            set.program(["date", "-s", "2001-01-01 00:00:00"]).ok()
        };
        set("set")?;
        node.await_log(&["its clock has been put forward"])?;
        assert!(lateness(&node, "set-back")?.abs() <= 3);
        set("set-again")?;
        node.task("kill", "clock").args(["--signal", "9"]).ok()?;
        let exited = node.await_exit_time("clock")?;
        assert!(!exited.is_empty() && !exited.starts_with("2001"), "{exited}");
        node.forget("clock")?;
        node.nothing_left()
    }
}
