//! How much memory a container's processes may lock: limits, CAP_IPC_LOCK, perf buffers, and what kata-ctl says of them.

use framework::{Node, Output, Report, Result, Spec};
use serde_json::{Value, json};

const MEMLOCK: &str = "io.katacontainers.container.resource.memlock";
const CAP_IPC_LOCK: &str = "io.katacontainers.container.cap_ipc_lock";
/// The capability's number (include/uapi/linux/capability.h), as a mask.
const IPC_LOCK: u64 = 1 << 14;
const MIB: u64 = 1 << 20;
const UNLIMITED: u64 = u64::MAX;

/// A container that sleeps, as this user.
fn sleeping(node: &Node, name: &str, uid: u32) -> Result<Spec> {
    node.spec(name, &["sleep", "1000"])?
        .set("/process/user", json!({ "uid": uid, "gid": uid }))
}

/// The probe's report from an exec.
fn exec(node: &Node, name: &str, exec: &str) -> Result<Report> {
    let program = ["guest-probe", "report", "kernel.perf_event_mlock_kb"];
    Report::parse(&node.exec(name, exec).program(program).output()?.success()?)
}

fn limits(report: &Report) -> &Value {
    report.fact("/rlimits/MEMLOCK")
}

/// Runs `kata-ctl memlock` for a container of the node.
fn kata_ctl(node: &Node, name: &str, flags: &[&str]) -> Result<Output> {
    let id = node.id(name);
    let mut words = vec!["memlock", id.as_str()];
    words.extend(flags);
    node.kata_ctl(&words)
}

/// What only this runtime has.
mod kata_only {
    use super::*;

    #[test]
    fn init_and_exec_have_the_same_limits_and_never_the_agents() -> Result<()> {
        let node = Node::start()?;
        // What CRI sends: no limits at all.
        let script = "guest-probe report; exec sleep 1000";
        let spec = node
            .spec("none", &["sh", "-c", script])?
            .set("/process/rlimits", Value::Null)?
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?;
        let running = node.run_spec("none", &spec)?.spawn()?;
        running.shows("}\n")?;
        let exec = exec(&node, "none", "e")?;
        node.task("kill", "none").args(["--signal", "9"]).ok()?;
        let init = Report::parse(&running.wait()?.code(137)?)?;
        for report in [&init, &exec] {
            assert_eq!(limits(report), &json!([8 * MIB, 8 * MIB]));
            // As containerd's and Docker's services have it from systemd.
            assert_eq!(report.fact("/rlimits/NOFILE"), &json!([1024, 524_288]));
            assert_eq!(report.capabilities("CapBnd")? & IPC_LOCK, 0);
        }
        assert_eq!(init.fact("/rlimits"), exec.fact("/rlimits"));
        // The agent has looked before the programs ran.
        node.await_log(&[
            "\"memlock_soft\":8388608",
            "has the limits and capabilities that were asked for",
        ])?;
        node.ctr().args(["container", "rm"]).arg(node.id("none")).ok()?;
        node.nothing_left()
    }

    #[test]
    fn annotations_give_a_limit_and_a_capability_to_root_and_to_a_user() -> Result<()> {
        let node = Node::start()?;
        for (name, uid) in [("root", 0), ("user", 1000)] {
            let spec = sleeping(&node, name, uid)?
                .annotation(MEMLOCK, "16MiB:unlimited")?
                .annotation(CAP_IPC_LOCK, "ambient")?
                .set(
                    "/process/args",
                    json!(["sh", "-c", "guest-probe report; exec sleep 1000"]),
                )?;
            let running = node.run_spec(name, &spec)?.spawn()?;
            running.shows("}\n")?;
            let exec = exec(&node, name, "e")?;
            node.task("kill", name).args(["--signal", "9"]).ok()?;
            let init = Report::parse(&running.wait()?.code(137)?)?;
            for report in [&init, &exec] {
                assert_eq!(limits(report), &json!([16 * MIB, UNLIMITED]), "{name}");
                for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
                    assert_eq!(report.capabilities(set)? & IPC_LOCK, IPC_LOCK, "{name} {set}");
                }
            }
            node.ctr().args(["container", "rm"]).arg(node.id(name)).ok()?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_pods_annotations_hold_for_its_containers_and_the_configuration_for_all() -> Result<()> {
        let node = Node::start_configured(
            "[runtime.memlock]\nmax = \"64MiB\"\non_excess = \"clamp\"\nperf_event_mlock_kb = 1000\n\
             [runtime.cap_ipc_lock]\npolicy = \"drop\"\n",
        )?;
        let member = |name: &str, kind: &str| -> Result<Spec> {
            sleeping(&node, name, 0)?
                .of_pod(&node, kind)?
                .set("/process/capabilities/bounding", json!(["CAP_CHOWN", "CAP_IPC_LOCK"]))?
                .set("/process/capabilities/permitted", json!(["CAP_CHOWN", "CAP_IPC_LOCK"]))?
                .set("/process/capabilities/effective", json!(["CAP_CHOWN", "CAP_IPC_LOCK"]))
        };
        let pod = member("pod", "sandbox")?
            .annotation(MEMLOCK, "1MiB:unlimited")?
            .annotation(CAP_IPC_LOCK, "grant")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        node.run_spec("app", &member("app", "container")?)?.arg("-d").ok()?;
        let own = member("own", "container")?.annotation(MEMLOCK, "2MiB")?;
        node.run_spec("own", &own)?.arg("-d").ok()?;

        // The sandbox itself has no image, and so nothing to execute.
        for (name, expected) in [("app", [MIB, 64 * MIB]), ("own", [2 * MIB; 2])] {
            let report = exec(&node, name, "e")?;
            assert_eq!(limits(&report), &json!(expected), "{name}");
            // The configuration's drop wins over everybody's grant.
            assert_eq!(report.capabilities("CapBnd")?, 1, "{name}");
            assert_eq!(
                report.fact("/sysctls"),
                &json!({ "kernel.perf_event_mlock_kb": "1000" })
            );
        }
        node.remove("own")?;
        node.remove("app")?;
        node.remove("pod")?;
        node.nothing_left()
    }

    #[test]
    fn a_container_that_has_dropped_all_capabilities_gets_one_back_only_if_the_operator_allows_it() -> Result<()> {
        let dropped = |node: &Node| -> Result<Spec> {
            let spec = sleeping(node, "dropped", 0)?.annotation(CAP_IPC_LOCK, "grant")?;
            ["bounding", "permitted", "effective"]
                .iter()
                .try_fold(spec, |spec, set| {
                    spec.set(&format!("/process/capabilities/{set}"), json!([]))
                })
        };
        let node = Node::start()?;
        let said = node.run_spec("dropped", &dropped(&node)?)?.arg("--rm").fails()?;
        let reason = "is not allowed: runtime.cap_ipc_lock.grant_to_dropped is false";
        assert!(said.contains(reason) && said.contains("invalid argument"), "{said}");
        node.discard("dropped")?;
        node.nothing_left()?;

        let node = Node::start_configured("[runtime.cap_ipc_lock]\ngrant_to_dropped = true\n")?;
        node.run_spec("dropped", &dropped(&node)?)?.arg("-d").ok()?;
        let report = exec(&node, "dropped", "e")?;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(report.capabilities(set)?, IPC_LOCK, "{set}");
        }
        node.remove("dropped")?;
        node.nothing_left()
    }

    /// A container with this annotation is refused as an invalid argument, with its key, its value and the reason.
    fn refused(node: &Node, name: &str, (key, value): (&str, &str), says: &str) -> Result<()> {
        let spec = sleeping(node, name, 0)?.annotation(key, value)?;
        let said = node.run_spec(name, &spec)?.arg("--rm").fails()?;
        for part in [key, value, says, "invalid argument"] {
            assert!(said.contains(part), "{name}: {part} is not in {said}");
        }
        node.discard(name)
    }

    #[test]
    fn what_means_nothing_or_is_too_much_is_refused_with_key_value_and_what_is_allowed() -> Result<()> {
        let node = Node::start_configured("[runtime.memlock]\nmax = \"64MiB\"\n")?;
        for (name, key, value, says) in [
            ("unit", MEMLOCK, "8MB", "must be SIZE or SOFT:HARD"),
            (
                "order",
                MEMLOCK,
                "2MiB:1MiB",
                "the soft limit must be at most the hard one",
            ),
            (
                "much",
                MEMLOCK,
                "65MiB",
                "must be at most 64MiB, which is runtime.memlock.max",
            ),
            (
                "wish",
                CAP_IPC_LOCK,
                "yes",
                "must be \"spec\", \"grant\", \"drop\" or \"ambient\"",
            ),
        ] {
            refused(&node, name, (key, value), says)?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_key_that_means_nothing_and_an_annotation_that_is_not_allowed_are_invalid_arguments() -> Result<()> {
        let number = "must be \"unlimited\", or a whole number of bytes, or one of KiB, MiB, GiB or TiB";
        for (table, key, value, says) in [
            ("memlock", "default", "\"8MB\"", number),
            ("memlock", "max", "-1", number),
            ("memlock", "on_excess", "\"maybe\"", "must be \"deny\" or \"clamp\""),
            ("memlock", "perf_event_mlock_kb", "2147483648", "2147483647"),
            (
                "cap_ipc_lock",
                "policy",
                "\"ambient\"",
                "must be \"spec\" or \"grant\" or \"drop\"",
            ),
        ] {
            let node = Node::start_configured(&format!("[runtime.{table}]\n{key} = {value}\n"))?;
            let said = node.run("wrong").arg("--rm").program(["true"]).fails()?;
            let names = [format!("runtime.{table}.{key}"), value.trim_matches('"').to_owned()];
            for part in names.iter().map(String::as_str).chain([says, "invalid argument"]) {
                assert!(said.contains(part), "{table} {key}: {part} is not in {said}");
            }
            node.discard("wrong")?;
            node.nothing_left()?;
        }
        let node = Node::start_configured(
            "[runtime.memlock]\nallow_annotation = false\n[runtime.cap_ipc_lock]\nallow_annotation = false\n",
        )?;
        for (name, key, value, says) in [
            (
                "limit",
                MEMLOCK,
                "1MiB",
                "is not allowed: runtime.memlock.allow_annotation is false",
            ),
            (
                "cap",
                CAP_IPC_LOCK,
                "drop",
                "is not allowed: runtime.cap_ipc_lock.allow_annotation is false",
            ),
        ] {
            refused(&node, name, (key, value), says)?;
        }
        node.nothing_left()
    }

    #[test]
    fn an_exec_as_another_user_and_one_on_a_terminal_have_what_the_container_has() -> Result<()> {
        let node = Node::start()?;
        let spec = sleeping(&node, "app", 0)?
            .annotation(MEMLOCK, "3MiB:5MiB")?
            .annotation(CAP_IPC_LOCK, "ambient")?;
        node.run_spec("app", &spec)?.arg("-d").ok()?;
        let script = "id -u; grep locked /proc/self/limits; grep -E 'Cap(Eff|Amb)' /proc/self/status; echo over'all'";
        let check = |told: &str, uid: &str| {
            let words: Vec<_> = told.split_whitespace().skip_while(|word| *word != uid).collect();
            assert_eq!(
                words.get(..6),
                Some(&[uid, "Max", "locked", "memory", "3145728", "5242880"][..]),
                "{told}"
            );
            for set in ["CapEff:", "CapAmb:"] {
                let mask = words.iter().skip_while(|word| **word != set).nth(1);
                let mask = mask.and_then(|hex| u64::from_str_radix(hex, 16).ok());
                assert!(mask.is_some_and(|mask| mask & IPC_LOCK != 0), "{set}: {told}");
            }
        };
        let user = node.exec("app", "user").args(["--user", "1000:1000"]).sh(script).ok()?;
        check(&user, "1000");
        let mut terminal = node
            .exec("app", "tty")
            .args(["-t", "--user", "2000:2000"])
            .sh(script)
            .terminal(24, 200)?;
        check(&terminal.shows("overall")?, "2000");
        assert_eq!(terminal.wait()?, Some(0));
        node.remove("app")?;
        node.nothing_left()
    }

    #[test]
    fn processes_of_a_pod_that_share_their_pids_have_each_their_own_containers_limits() -> Result<()> {
        let node = Node::start()?;
        let member = |name: &str, kind: &str| -> Result<Spec> {
            let spec = sleeping(&node, name, 0)?.of_pod(&node, kind)?;
            Ok(spec)
        };
        let pod = member("pod", "sandbox")?.annotation(MEMLOCK, "1MiB")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let pids = format!("/proc/{}/ns/pid", node.pid("pod")?);
        for (name, limit) in [("app", "2MiB"), ("side", "3MiB")] {
            let spec = member(name, "container")?.annotation(MEMLOCK, limit)?;
            let namespaces = spec.get("/linux/namespaces").clone();
            let namespaces = namespaces
                .as_array()
                .cloned()
                .unwrap_or_default()
                .into_iter()
                .map(|namespace| {
                    if namespace["type"] == "pid" {
                        json!({ "type": "pid", "path": pids })
                    } else {
                        namespace
                    }
                });
            let spec = spec.set("/linux/namespaces", namespaces.collect::<Vec<_>>())?;
            node.run_spec(name, &spec)?.arg("-d").ok()?;
        }
        // Everybody sees everybody: the first processes of both, and the exec that looks.
        let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; grep locked $p/limits; done";
        let told = node.exec("side", "look").sh(script).ok()?;
        let mut limits: Vec<u64> = told
            .lines()
            .filter(|line| line.contains("sleep 1000") || line.contains("for p in"))
            .filter_map(|line| {
                line.split_once("locked memory")?
                    .1
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        limits.sort_unstable();
        assert_eq!(limits, [2 * MIB, 3 * MIB, 3 * MIB], "{told}");
        node.remove("side")?;
        node.remove("app")?;
        node.remove("pod")?;
        node.nothing_left()
    }

    /// What the kernel grants to a user that has mapped nothing: 516 KiB on the one CPU, in pages.
    const ALLOWANCE: u64 = 129;

    /// Runs the program that the kernel's accounting used to fail: a small buffer for each of thousands of events.
    fn fill(node: &Node, name: &str, limit: u64) -> Result<Value> {
        let spec = node
            .spec(name, &["guest-probe", "fill-perf"])?
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?
            .set(
                "/process/rlimits",
                json!([
                    { "type": "RLIMIT_NOFILE", "soft": 65536, "hard": 65536 },
                    { "type": "RLIMIT_MEMLOCK", "soft": limit, "hard": limit },
                ]),
            )?;
        let limit = std::time::Duration::from_secs(240);
        node.run_spec(name, &spec)?
            .arg("--rm")
            .limit(limit)
            .output()?
            .success()?
            .json()
    }

    /// Asserts that allowance and limit were used up to the page, and that the next one was refused.
    fn assert_exact(filled: &Value, limit: u64) {
        let pages = ALLOWANCE + limit / 4096;
        let pinned = format!("{} kB", limit / 1024);
        let expected = json!({ "buffers": pages / 3, "pages": pages, "pinned": pinned });
        assert_eq!(filled, &expected);
    }

    #[test]
    fn perf_buffers_are_granted_until_allowance_and_limit_are_used_up_to_the_page() -> Result<()> {
        let node = Node::start()?;
        assert_exact(&fill(&node, "small", 4 * MIB)?, 4 * MIB);
        // An odd number of bytes is no page more.
        let odd = fill(&node, "odd", 4 * MIB + 4095)?;
        assert_eq!(odd["pages"], ALLOWANCE + 1024);
        node.nothing_left()
    }

    #[test]
    fn half_a_gigabyte_is_granted_in_tens_of_thousands_of_small_buffers() -> Result<()> {
        // The buffers are memory that the guest has to have, and so are their events.
        let node = Node::start_configured("[hypervisor.qemu]\ndefault_memory = 1024\n")?;
        assert_exact(&fill(&node, "blog", 512 * MIB)?, 512 * MIB);
        node.nothing_left()
    }

    #[test]
    fn kata_ctl_says_why_buffers_are_refused_and_what_it_names_helps() -> Result<()> {
        let node = Node::start()?;
        let spec = sleeping(&node, "poor", 1000)?.annotation(MEMLOCK, "64KiB")?;
        node.run_spec("poor", &spec)?.arg("-d").ok()?;

        let granted = kata_ctl(&node, "poor", &["--pages", "64"])?.code(0)?.stdout();
        assert!(
            granted.contains("64 pages and a header on each of 1 CPUs, 260 KiB in all: granted"),
            "{granted}"
        );

        let refused = kata_ctl(&node, "poor", &["--pages", "256", "--json"])?
            .code(1)?
            .json()?;
        assert_eq!(refused["rlimit_memlock"], json!({ "soft": 65536, "hard": 65536 }));
        assert_eq!(
            (&refused["uid"], &refused["perf_event_mlock_kb"]),
            (&json!(1000), &json!(516))
        );
        let probe = &refused["probe"];
        assert_eq!(
            (&probe["granted"], &probe["errno"], &probe["user_may_open"]),
            (&json!(false), &json!(1), &json!(true))
        );
        assert_eq!(
            (&probe["needed_pages"], &probe["allowance_left_pages"]),
            (&json!(257), &json!(ALLOWANCE))
        );
        for remedy in probe["remedies"].as_array().into_iter().flatten() {
            assert_eq!(remedy["helps"], true, "{remedy}");
        }
        let text = kata_ctl(&node, "poor", &["--pages", "256"])?.code(1)?.stdout();
        for line in [
            "limit: would help (RLIMIT_MEMLOCK of 524288 bytes)",
            "set annotation io.katacontainers.container.resource.memlock = \"1MiB\"",
            "set annotation io.katacontainers.container.cap_ipc_lock = \"ambient\"",
            "set [runtime.memlock] perf_event_mlock_kb = 964",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        // The probe has left nothing: the sysctl is what it was, and the user has its allowance.
        let report = exec(&node, "poor", "after")?;
        assert_eq!(report.fact("/sysctls"), &json!({ "kernel.perf_event_mlock_kb": "516" }));
        let again = kata_ctl(&node, "poor", &["--pages", "128", "--json"])?
            .code(0)?
            .json()?;
        assert_eq!(again["probe"]["allowance_left_pages"], ALLOWANCE);
        // What the guest cannot have is no refusal of the kernel's.
        let wrong = kata_ctl(&node, "poor", &["--pages", "1048576"])?.code(1)?.stderr();
        assert!(wrong.contains("half of the guest's free memory"), "{wrong}");
        let wrong = kata_ctl(&node, "poor", &["--pid", "999"])?.code(1)?.stderr();
        assert!(wrong.contains("process 999 is none of the container"), "{wrong}");
        node.remove("poor")?;

        // Each of the two annotations that it named, by itself.
        for (name, key, value) in [("rich", MEMLOCK, "1MiB"), ("able", CAP_IPC_LOCK, "ambient")] {
            let spec = sleeping(&node, name, 1000)?.annotation(key, value)?;
            node.run_spec(name, &spec)?.arg("-d").ok()?;
            let told = kata_ctl(&node, name, &["--pages", "256"])?.code(0)?.stdout();
            assert!(told.contains(": granted"), "{told}");
            node.remove(name)?;
        }
        let unknown = kata_ctl(&node, "rich", &[])?.code(1)?.stderr();
        assert!(unknown.contains("no container"), "{unknown}");
        node.nothing_left()
    }
}
