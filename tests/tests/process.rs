//! A process in a container is what its spec says: the probe reports, the test compares.

use framework::{Node, Report, Result};
use serde_json::{Value, json};

/// The capability numbers of include/uapi/linux/capability.h.
const CHOWN: u64 = 1 << 0;
const KILL: u64 = 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_RAW: u64 = 1 << 13;

#[test]
fn a_user_with_its_groups_umask_limits_directory_and_environment() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("user", &["guest-probe", "report"])?
        .set(
            "/process/user",
            json!({ "uid": 1000, "gid": 1000, "additionalGids": [1000, 2000, 2001], "umask": 0o27 }),
        )?
        .set("/process/cwd", "/tmp")?
        .set("/process/env", json!(["PATH=/bin", "WORD=a=b c", "EMPTY="]))?
        .set("/process/oomScoreAdj", 512)?
        .set("/hostname", "tatami-host")?
        .set(
            "/process/rlimits",
            json!([
                { "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 },
                { "type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 1_048_576 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
                { "type": "RLIMIT_NPROC", "soft": 100, "hard": 200 },
            ]),
        )?;
    let report = node.report("user", &spec)?;
    assert_eq!(report.fact("/uid"), 1000);
    assert_eq!(report.fact("/gid"), 1000);
    assert_eq!(report.fact("/groups"), &json!([1000, 2000, 2001]));
    assert_eq!(report.status("Umask")?, "0027");
    assert_eq!(report.fact("/cwd"), "/tmp");
    assert_eq!(report.text("/env/WORD")?, "a=b c");
    assert_eq!(report.text("/env/EMPTY")?, "");
    assert_eq!(report.text("/oom_score_adj")?, "512");
    assert_eq!(report.text("/hostname")?, "tatami-host");
    assert_eq!(report.fact("/rlimits/NOFILE"), &json!([1024, 4096]));
    assert_eq!(report.fact("/rlimits/MEMLOCK"), &json!([65536, 1_048_576]));
    assert_eq!(report.fact("/rlimits/CORE"), &json!([0, 0]));
    assert_eq!(report.fact("/rlimits/NPROC"), &json!([100, 200]));
    assert_eq!(report.fact("/pid"), 1);
    // A user that is not root keeps no capability but the bounding set.
    assert_eq!(report.capabilities("CapEff")?, 0);
    assert_eq!(report.capabilities("CapPrm")?, 0);
    // Nothing of the runtime's is left open: the three streams and no more.
    let fds = report
        .fact("/fds")
        .as_object()
        .map(|fds| fds.keys().cloned().collect::<Vec<_>>())
        .unwrap_or_default();
    assert_eq!(fds, ["0", "1", "2"], "{}", report.fact("/fds"));
    node.nothing_left()
}

#[test]
fn the_five_capability_sets_are_those_of_the_spec() -> Result<()> {
    let node = Node::start()?;
    let spec = node.spec("caps", &["guest-probe", "report"])?.set(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        }),
    )?;
    // A user that is not root keeps over execve(2) what is ambient; the inheritable set stays as it is.
    let user = spec.clone().set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?;
    let report = node.report("caps", &user)?;
    assert_eq!(
        report.capabilities("CapBnd")?,
        CHOWN | KILL | NET_BIND_SERVICE | NET_RAW
    );
    assert_eq!(report.capabilities("CapPrm")?, NET_BIND_SERVICE);
    assert_eq!(report.capabilities("CapEff")?, NET_BIND_SERVICE);
    assert_eq!(report.capabilities("CapInh")?, KILL | NET_BIND_SERVICE);
    assert_eq!(report.capabilities("CapAmb")?, NET_BIND_SERVICE);

    // execve(2) would give root the whole bounding set, but no_new_privs keeps it to what was permitted before.
    let report = node.report("root", &spec)?;
    let permitted = CHOWN | KILL | NET_BIND_SERVICE;
    assert_eq!(report.capabilities("CapEff")?, permitted);
    node.nothing_left()
}

/// A filter that answers mkdir and mkdirat with an error that nothing else gives.
fn filter() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 118 }],
    })
}

#[test]
fn a_seccomp_filter_and_no_new_privileges_hold_for_init_and_for_an_exec() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("init", &["guest-probe", "try", "mkdir", "/tmp/x"])?
        .set("/linux/seccomp", filter())?;
    let tried = node.run_spec("init", &spec)?.arg("--rm").output()?.success()?.json()?;
    assert_eq!(tried, json!({ "/tmp/x": 118 }));

    let spec = node.spec("base", &["sleep", "1000"])?.set("/linux/seccomp", filter())?;
    node.run_spec("base", &spec)?.arg("-d").ok()?;
    let report = Report::parse(
        &node
            .exec("base", "report")
            .program(["guest-probe", "report"])
            .output()?
            .success()?,
    )?;
    assert_eq!(
        report.status("Seccomp")?,
        "2",
        "a filter is in force (proc_pid_status(5))"
    );
    assert_eq!(report.status("NoNewPrivs")?, "1");
    let tried = node
        .exec("base", "try")
        .program(["guest-probe", "try", "mkdir", "/tmp/y"])
        .output()?
        .success()?;
    assert_eq!(tried.json()?, json!({ "/tmp/y": 118 }));
    node.remove("base")?;

    let spec = node
        .spec("free", &["guest-probe", "report"])?
        .set("/process/noNewPrivileges", false)?;
    let report = node.report("free", &spec)?;
    assert_eq!((report.status("Seccomp")?, report.status("NoNewPrivs")?), ("0", "0"));
    node.nothing_left()
}

#[test]
fn paths_are_masked_or_read_only_and_sysctls_and_namespaces_are_the_containers_own() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("paths", &["sleep", "1000"])?
        .set(
            "/linux/maskedPaths",
            json!(["/proc/kcore", "/proc/timer_list", "/sys/firmware", "/no/such/path"]),
        )?
        .set("/linux/readonlyPaths", json!(["/proc/sys", "/no/such/path"]))?
        .set(
            "/linux/sysctl",
            json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" }),
        )?;
    node.run_spec("paths", &spec)?.arg("-d").ok()?;

    let read = node
        .exec("paths", "read")
        .sh("wc -c < /proc/timer_list; ls /sys/firmware | wc -l")
        .ok()?;
    assert_eq!(read, "0\n0\n", "a masked file is empty, and so is a masked directory");
    let write = node
        .exec("paths", "write")
        .program([
            "guest-probe",
            "try",
            "write",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/kernel/hostname",
        ])
        .output()?
        .success()?
        .json()?;
    // EROFS is 30.
    assert_eq!(
        write,
        json!({ "/proc/sys/net/ipv4/ip_forward": 30, "/proc/sys/kernel/hostname": 30 })
    );

    let program = ["guest-probe", "report", "net.ipv4.ip_forward", "kernel.shm_rmid_forced"];
    let report = Report::parse(&node.exec("paths", "report").program(program).output()?.success()?)?;
    assert_eq!(
        report.fact("/sysctls"),
        &json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" })
    );

    // Another container shares nothing with it, and an exec everything.
    let inside = report.fact("/namespaces").clone();
    let again = Report::parse(
        &node
            .exec("paths", "again")
            .program(["guest-probe", "report"])
            .output()?
            .success()?,
    )?;
    assert_eq!(again.fact("/namespaces"), &inside);
    node.remove("paths")?;
    node.nothing_left()
}

#[test]
fn devices_are_the_default_ones_and_those_asked_for_and_others_are_denied() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("dev", &["guest-probe", "report"])?
        .push(
            "/linux/devices",
            json!({ "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000 }),
        )?
        .push(
            "/linux/resources/devices",
            json!({ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" }),
        )?;
    let report = node.report("dev", &spec)?;
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let device = report.fact("/dev")[name].clone();
        assert_eq!(
            (&device["major"], &device["minor"]),
            (&json!(major), &json!(minor)),
            "/dev/{name}: {device}"
        );
        assert_eq!(device["mode"], 0o20666, "/dev/{name}");
    }
    assert_eq!(
        report.fact("/dev/mine"),
        &json!({ "mode": 0o20640, "major": 1, "minor": 5, "uid": 1000 })
    );
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("ptmx", "pts/ptmx"),
    ] {
        assert_eq!(report.fact("/dev")[name], json!({ "link": target }), "/dev/{name}");
    }

    // CAP_MKNOD is there, and the device cgroup allows the node to be made; to open it is another matter (1:1 is mem).
    let script = "mknod /tmp/mem c 1 1 2>/dev/null; mknod /dev/k c 1 2 2>/dev/null; guest-probe try read /tmp/mem /dev/k /dev/null";
    let spec = node.spec("deny", &["sh", "-c", script])?;
    let tried = node.run_spec("deny", &spec)?.arg("--rm").output()?.success()?.json()?;
    assert_eq!(tried["/dev/null"], 0);
    assert_ne!(tried["/tmp/mem"], 0, "{tried}");
    assert_ne!(tried["/dev/k"], 0, "{tried}");
    node.nothing_left()
}

#[test]
fn an_exec_is_as_confined_as_init_is() -> Result<()> {
    let node = Node::start()?;
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 }]);
    let spec = node
        .spec("same", &["sh", "-c", "guest-probe report; exec sleep 1000"])?
        .set("/process/rlimits", limits)?;
    let running = node.run_spec("same", &spec)?.spawn()?;
    running.shows("}\n")?;
    let exec = Report::parse(
        &node
            .exec("same", "exec")
            .program(["guest-probe", "report"])
            .output()?
            .success()?,
    )?;
    node.task("kill", "same").args(["--signal", "9"]).ok()?;
    let output = running.wait()?.code(137)?;
    let init = Report::parse(&output)?;
    for set in [
        "CapBnd",
        "CapEff",
        "CapPrm",
        "CapInh",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    ] {
        assert_eq!(exec.status(set)?, init.status(set)?, "{set}");
    }
    for fact in [
        "/rlimits",
        "/namespaces",
        "/oom_score_adj",
        "/cgroup",
        "/groups",
        "/dev",
        "/hostname",
    ] {
        assert_eq!(exec.fact(fact), init.fact(fact), "{fact}");
    }
    node.ctr().args(["container", "rm"]).arg(node.id("same")).ok()?;
    node.nothing_left()
}

/// What the host of the tests may not be allowed to give, and the guest always is.
mod kata_only {
    use super::*;

    #[test]
    fn a_container_in_a_user_namespace_has_its_ids_and_the_guests_sysfs() -> Result<()> {
        let node = Node::start()?;
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let script = "id -u; awk '{ print $1, $2, $3 }' /proc/self/uid_map; test -e /sys/class/net/lo && echo network; \
                      echo 1 2>/dev/null > /sys/kernel/profiling || echo closed";
        let spec = node
            .spec("mapped", &["sh", "-c", script])?
            .push("/linux/namespaces", json!({ "type": "user" }))?
            .set("/linux/uidMappings", mapping.clone())?
            .set("/linux/gidMappings", mapping)?;
        let said = node.run_spec("mapped", &spec)?.arg("--rm").ok()?;
        assert_eq!(said, "0\n0 100000 65536\nnetwork\nclosed\n");
        node.nothing_left()
    }

    /// `PTRACE_TRACEME`, by which some programs look for debuggers. containerd's shim for runc takes the stop for the end.
    #[test]
    fn a_program_that_asks_its_parent_to_trace_it_runs_on() -> Result<()> {
        let node = Node::start()?;
        let traced = ["guest-probe", "traced", "sh", "-c", "exit 7"];
        let spec = node.spec("traced", &traced)?;
        node.run_spec("traced", &spec)?.arg("--rm").output()?.code(7)?;
        let spec = node.spec("other", &["sleep", "1000"])?;
        node.run_spec("other", &spec)?.arg("-d").ok()?;
        node.exec("other", "traced").program(traced).output()?.code(7)?;
        node.remove("other")?;
        node.nothing_left()
    }

    #[test]
    fn limits_may_be_higher_and_scores_lower_than_the_hosts() -> Result<()> {
        let node = Node::start()?;
        let spec = node
            .spec("high", &["guest-probe", "report"])?
            .set("/process/oomScoreAdj", -500)?
            .set(
                "/process/rlimits",
                json!([
                    { "type": "RLIMIT_NOFILE", "soft": 1_000_000, "hard": 1_048_576 },
                    { "type": "RLIMIT_MEMLOCK", "soft": 5_u64 << 30, "hard": 5_u64 << 30 },
                ]),
            )?;
        let report = node.report("high", &spec)?;
        assert_eq!(report.text("/oom_score_adj")?, "-500");
        assert_eq!(report.fact("/rlimits/NOFILE"), &json!([1_000_000, 1_048_576]));
        assert_eq!(report.fact("/rlimits/MEMLOCK"), &json!([5_u64 << 30, 5_u64 << 30]));
        node.nothing_left()
    }
}
