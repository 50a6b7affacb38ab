//! A container without a limit of memory gets what it needs, whatever its VM began with.

use std::time::Duration;

use framework::{
    Node, Result,
    programs::{self, PYTHON},
};
use serde_json::json;

/// Under emulation, beside other tests.
const LONG: Duration = Duration::from_secs(300);

const PYTHON3: &str = "/usr/bin/python3";
const ALLOCATE: &str = "print(len(bytearray(300 << 20)))";
/// Threads with small stacks that all live at a time.
const THREADS: &str = "import threading as t\n\
    t.stack_size(65536); go = t.Event()\n\
    all = [t.Thread(target=go.wait) for _ in range(2500)]\n\
    [one.start() for one in all]; print(t.active_count()); go.set(); [one.join() for one in all]";
const FILES: &str = "import os; print(len([os.open('/dev/null', os.O_RDONLY) for _ in range(30000)]))";

#[test]
fn an_allocation_a_burst_a_tmpfs_threads_and_open_files_get_what_they_need() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("needs", &["sleep", "1000"])?
        .set(
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 40_000, "hard": 40_000 }]),
        )?
        .push(
            "/mounts",
            json!({ "destination": "/ram", "type": "tmpfs", "source": "tmpfs" }),
        )?;
    programs::add(&spec.root(), &[PYTHON])?;
    node.run_spec("needs", &spec)?.arg("-d").ok()?;
    let exec = |name: &str, program: &[&str]| node.exec("needs", name).limit(LONG).program(program).ok();
    assert_eq!(exec("allocate", &[PYTHON3, "-Sc", ALLOCATE])?, "314572800\n");
    assert_eq!(
        exec("burst", &["guest-probe", "touch-memory", "1610612736"])?,
        "touched 1610612736\n"
    );
    // It names no size: half of the memory that may come.
    let fill = "dd if=/dev/zero of=/ram/file bs=1M count=900 2>/dev/null; stat -c %s /ram/file; rm /ram/file";
    assert_eq!(exec("tmpfs", &["sh", "-c", fill])?, "943718400\n");
    assert_eq!(exec("threads", &[PYTHON3, "-Sc", THREADS])?, "2501\n");
    assert_eq!(exec("files", &[PYTHON3, "-Sc", FILES])?, "30000\n");
    // Nothing was killed on the way.
    node.task("kill", "needs").args(["--signal", "9"]).ok()?;
    assert_eq!(node.await_end("needs")?, (137, 0));
    node.forget("needs")?;
    node.nothing_left()
}

/// What programs take for the machine's memory, in MiB: by sysinfo(2), and by /proc/meminfo.
const TOLD: &str = "import os\n\
    by_call = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20\n\
    fields = dict(line.split()[:2] for line in open('/proc/meminfo'))\n\
    of = lambda name: int(fields[name + ':']) >> 10\n\
    assert of('MemFree') <= of('MemAvailable') + 64 <= of('MemTotal') + 64, fields\n\
    print(by_call, of('MemTotal'))";

mod kata_only {
    use std::{fs::File, thread::sleep, time::Instant};

    use framework::wait;

    use super::*;

    /// Prints the guest's memory in MiB, of all its zones. (What /proc/meminfo says has what may still come.)
    const TOTAL: &str = "awk '/^ *managed/ { pages += $2 } END { print int(pages / 256) }' /proc/zoneinfo";

    fn total(node: &Node, container: &str, exec: &str) -> Result<u64> {
        let said = node.exec(container, exec).sh(TOTAL).ok()?;
        Ok(said.trim().parse().unwrap_or_default())
    }

    /// How many pages all connections of TCP may have, which is a part of the guest's memory.
    fn tcp_pages(node: &Node, container: &str, exec: &str) -> Result<u64> {
        let said = node
            .exec(container, exec)
            .sh("cut -f 3 /proc/sys/net/ipv4/tcp_mem")
            .ok()?;
        Ok(said.trim().parse().unwrap_or_default())
    }

    #[test]
    fn a_file_that_is_read_once_does_not_grow_the_vm_and_memory_that_is_free_again_goes_back() -> Result<()> {
        let node = Node::start()?;
        let volume = node.dir().join("volume");
        std::fs::create_dir(&volume)?;
        File::create(volume.join("big"))?.set_len(384 << 20)?;
        let spec = node.spec("back", &["sleep", "1000"])?.bind(&volume, "/work", &["ro"])?;
        node.run_spec("back", &spec)?.arg("-d").ok()?;
        let small = total(&node, "back", "before")?;
        assert!((192..=256).contains(&small), "{small} MiB");
        let read = "dd if=/work/big of=/dev/null bs=1M 2>/dev/null && echo read";
        assert_eq!(node.exec("back", "read").limit(LONG).sh(read).ok()?, "read\n");
        assert_eq!(total(&node, "back", "after")?, small);
        let tcp_of_small = tcp_pages(&node, "back", "tcp")?;

        node.exec("back", "burst")
            .limit(LONG)
            .program(["guest-probe", "touch-memory", "700000000"])
            .ok()?;
        let grown = total(&node, "back", "grown")?;
        assert!(grown >= small + 512, "{small} MiB became {grown} MiB");
        let deadline = Instant::now() + wait::patience(LONG);
        for look in 0.. {
            let tcp = tcp_pages(&node, "back", &format!("tcp{look}"))?;
            if tcp > 2 * tcp_of_small {
                break;
            }
            assert!(Instant::now() < deadline, "{tcp_of_small} pages for TCP became {tcp}");
        }
        // Nobody tells of a VM that has given memory back.
        let deadline = Instant::now() + wait::patience(LONG);
        for look in 0.. {
            // A page of the kernel's may hold a piece of 2 MiB.
            if total(&node, "back", &format!("look{look}"))? <= small + 16 {
                break;
            }
            assert!(Instant::now() < deadline, "the VM keeps its memory");
            sleep(Duration::from_secs(2));
        }
        let deadline = Instant::now() + wait::patience(LONG);
        for look in 0.. {
            let tcp = tcp_pages(&node, "back", &format!("less{look}"))?;
            // As the VM, it may have a little more than before.
            if tcp <= tcp_of_small + (16 << 20 >> 12) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{tcp} pages stay, {tcp_of_small} are the VM's part"
            );
        }
        node.remove("back")?;
        node.nothing_left()
    }

    /// How long each demand for memory took, as docs/sizing.md has it: `cargo test -- --nocapture` shows it.
    #[test]
    fn each_demand_for_memory_is_served_in_time() -> Result<()> {
        let node = Node::start()?;
        node.run("demands").arg("-d").program(["sleep", "1000"]).ok()?;
        for (exec, bytes) in [("first", "240000000"), ("second", "500000000")] {
            let burst = ["guest-probe", "touch-memory", bytes];
            node.exec("demands", exec).limit(LONG).program(burst).ok()?;
        }
        let log = node.log();
        let demand = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_demand = line["msg"] == "the host has been asked for memory (MiB)";
            // The log has a number of 128 bits as a text.
            let ms = line["ms"].as_str()?.parse().ok()?;
            is_demand.then_some([line["before"].as_u64()?, line["extra"].as_u64()?, ms])
        };
        let demands: Vec<_> = log.lines().filter_map(demand).collect();
        for [before, extra, ms] in &demands {
            eprintln!("{before} to {extra} MiB beyond the boot's: {ms} ms");
        }
        let grown: Vec<_> = demands.iter().filter(|[before, extra, _]| extra > before).collect();
        assert!(grown.len() >= 2, "{demands:?}");
        // QEMU sends one change of size a second.
        let longest = wait::patience(Duration::from_secs(20)).as_millis();
        assert!(grown.iter().all(|[.., ms]| u128::from(*ms) < longest), "{demands:?}");
        node.remove("demands")?;
        node.nothing_left()
    }

    #[test]
    fn what_is_more_than_the_limit_is_killed_and_told_and_without_growth_it_is_so_at_once() -> Result<()> {
        for (limit, at_most) in [(512, 512), (0, 256)] {
            let node = Node::start_configured(&format!("[hypervisor.qemu]\ndefault_memory_limit = {limit}\n"))?;
            let script = format!("guest-probe touch-memory 1073741824; echo code $?; {TOTAL}");
            let said = node.run("much").args(["--rm"]).limit(LONG).sh(&script).ok()?;
            let mut lines = said.lines();
            // Without growth the kernel may refuse what is more than it has: the program aborts.
            let code = lines.next().unwrap_or_default();
            assert!(code == "code 137" || limit == 0 && code == "code 134", "{said}");
            let total: u64 = lines.next().unwrap_or_default().parse().unwrap_or_default();
            assert!(total <= at_most && (limit == 0 || total > 300), "{said}");
            if limit > 0 {
                node.await_oom("much")?;
            }
            node.nothing_left()?;
        }
        Ok(())
    }

    #[test]
    fn programs_are_told_the_memory_that_may_come_where_it_may_come_to_them() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\ndefault_memory_limit = 1024\n")?;
        let member = |name: &str, kind: &str| {
            let spec = node.spec(name, &["sleep", "1000"])?.of_pod(&node, kind)?;
            programs::add(&spec.root(), &[PYTHON])?;
            Ok::<_, framework::Error>(spec)
        };
        let limited = |spec: framework::Spec| spec.set("/linux/resources/memory/limit", 128 << 20);
        let told = |name: &str, exec: &str| node.exec(name, exec).limit(LONG).program([PYTHON3, "-Sc", TOLD]).ok();
        node.run_spec("pod", &member("pod", "sandbox")?)?.arg("-d").ok()?;
        // The sandbox's own container is nobody's. What has a limit reads it from its cgroup, and the machine is what it is.
        node.run_spec("limited", &limited(member("limited", "container")?)?)?
            .arg("-d")
            .limit(LONG)
            .ok()?;
        let figures = told("limited", "told")?;
        let (by_call, total) = figures.trim().split_once(' ').unwrap_or_default();
        assert_eq!(by_call, total);
        let now: u64 = total.parse().unwrap_or_default();
        assert!((300..=384).contains(&now), "{figures}");
        node.run_spec("free", &member("free", "container")?)?
            .arg("-d")
            .limit(LONG)
            .ok()?;
        // The limit of the one with its page records, 256 + 128 + 2, and the growth of the other, 768, less what the kernel took at boot.
        let figures = told("free", "told")?;
        let (by_call, total) = figures.trim().split_once(' ').unwrap_or_default();
        assert_eq!(by_call, total);
        let grown: u64 = total.parse().unwrap_or_default();
        assert!((1154 - 64..1154).contains(&grown), "{figures}");
        assert_eq!(told("limited", "again")?, figures);
        // What there is by now is no part of what is told, and when all has come it is so much.
        let burst = ["guest-probe", "touch-memory", "750000000"];
        node.exec("free", "burst").limit(LONG).program(burst).ok()?;
        assert_eq!(told("free", "grown")?, figures);
        // Who could have it grow is gone.
        node.remove("free")?;
        let deadline = Instant::now() + wait::patience(LONG);
        for look in 0.. {
            let said = told("limited", &format!("alone{look}"))?;
            let now = said.split_whitespace().next().and_then(|now| now.parse::<u64>().ok());
            if now.is_some_and(|now| now < 900) {
                break;
            }
            assert!(Instant::now() < deadline, "{said}");
        }
        for name in ["limited", "pod"] {
            node.remove(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_pod_grows_while_another_container_starts_and_beside_another_sandbox_that_grows() -> Result<()> {
        let node = Node::start()?;
        let member = |name: &str, kind: &str| node.spec(name, &["sleep", "1000"])?.of_pod(&node, kind);
        node.run_spec("pod", &member("pod", "sandbox")?)?.arg("-d").ok()?;
        node.run_spec("free", &member("free", "container")?)?.arg("-d").ok()?;
        node.run("other").arg("-d").program(["sleep", "1000"]).ok()?;
        let burst = |container: &str| {
            let burst = node.exec(container, "burst").limit(LONG);
            burst.program(["guest-probe", "touch-memory", "900000000"]).spawn()
        };
        let bursts = [burst("free")?, burst("other")?];
        let limited = member("limited", "container")?.set("/linux/resources/memory/limit", 128 << 20)?;
        node.run_spec("limited", &limited)?.arg("-d").limit(LONG).ok()?;
        assert_eq!(node.exec("limited", "runs").limit(LONG).sh("echo runs").ok()?, "runs\n");
        for burst in bursts {
            assert_eq!(burst.wait()?.success()?.stdout(), "touched 900000000\n");
        }
        // What has a limit is killed at it, and does not grow the VM.
        let killed = node.exec("limited", "much").limit(LONG);
        let killed = killed.sh("guest-probe touch-memory 200000000; echo $?").ok()?;
        assert_eq!(killed, "137\n");
        for name in ["other", "limited", "free", "pod"] {
            node.remove(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_shim_that_is_killed_while_its_vm_grows_leaves_nothing() -> Result<()> {
        let node = Node::start()?;
        node.run("grows")
            .args(["-d", "--null-io"])
            .program(["sh", "-c", "exec guest-probe touch-memory 1500000000"])
            .ok()?;
        node.kill_process("grows", "containerd-shim")?;
        assert_eq!(node.await_stopped("grows")?, 137);
        node.ctr().args(["container", "rm"]).arg(node.id("grows")).ok()?;
        node.nothing_left()
    }
}
