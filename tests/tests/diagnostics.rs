//! What `kata-ctl` says of sandboxes that run, hang or were never allowed what is asked of them.

use std::time::Duration;

use framework::{Ctr, Error, Node, Result, locate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Switched on for who has to look at a guest from within.
const CONSOLE: &str = "[agent.kata]\ndebug_console_enabled = true\n";

#[test]
fn a_guest_that_spins_in_its_kernel_is_understood_from_outside() -> Result<()> {
    let node = Node::start()?;
    node.run("spins")
        .arg("-d")
        .program(["dd", "if=/dev/urandom", "of=/dev/null", "bs=1M"])
        .ok()?;
    let histogram = node
        .diagnose()?
        .args(["where", &node.id("spins"), "--seconds", "4"])
        .ok()?;
    assert!(histogram.contains("vCPU 0: running in"), "{histogram}");
    // The kernel's random numbers come from ChaCha20 (drivers/char/random.c): most of the time is spent there.
    let shares = histogram.lines().filter(|line| line.contains("chacha"));
    let shares = shares.filter_map(|line| line.split('%').next()?.trim().parse::<u32>().ok());
    assert!(shares.sum::<u32>() >= 30, "{histogram}");
    node.remove("spins")?;
    node.nothing_left()
}

#[test]
fn figures_report_and_where_tell_of_a_sandbox_and_a_shim_that_hangs_holds_nobody_up() -> Result<()> {
    let node = Node::start()?;
    node.run("idle").arg("-d").program(["sleep", "1000"]).ok()?;
    let id = node.id("idle");

    let figures = node.diagnose()?.args(["metrics", &id]).ok()?;
    for name in [
        "kata_guest_up",
        "kata_shim_cpu_seconds_total",
        "kata_hypervisor_resident_memory_bytes",
        "kata_virtiofsd_resident_memory_bytes",
        "kata_guest_memory_bytes",
        "kata_guest_pressure_seconds_total",
        "kata_guest_oom_kills_total",
        "kata_container_processes",
    ] {
        let line = figures.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.contains(&id)), "{name}:\n{figures}");
    }

    let histogram = node.diagnose()?.args(["where", &id]).ok()?;
    assert!(histogram.contains("vCPU 0: "), "{histogram}");
    let configuration = locate::configuration()?;
    let collect = || -> Result<Ctr> {
        let words = ["collect-data", "--since", "1h", "--path"];
        Ok(node.diagnose()?.args(words).arg(&configuration))
    };
    let report = collect()?.ok()?;
    for said in [
        &format!("Sandbox `{id}`"),
        "QMP status: running",
        "agent: answers",
        "virtiofsd",
        "fuse-8040",
    ] {
        assert!(report.contains(said), "{said}:\n{report}");
    }

    let refused = node.diagnose()?.args(["exec", &id, "--", "true"]).fails()?;
    assert!(refused.contains("debug_console_enabled = true"), "{refused}");

    let shim = shim_of(&node, "idle")?;
    signal(shim, Signal::SIGSTOP)?;
    let all = node.diagnose()?.arg("metrics").limit(Duration::from_secs(60)).ok()?;
    let report = collect()?.ok();
    signal(shim, Signal::SIGCONT)?;
    assert!(all.contains(&format!("kata_shim_up{{sandbox=\"{id}\"}} 0")), "{all}");
    assert!(report?.contains("it hangs"));

    node.remove("idle")?;
    node.nothing_left()
}

fn shim_of(node: &Node, name: &str) -> Result<Pid> {
    let processes = node.processes(name);
    let shim = processes
        .iter()
        .find(|process| process.program().contains("containerd-shim-kata"));
    let pid = shim.and_then(|shim| i32::try_from(shim.pid).ok());
    pid.map(Pid::from_raw)
        .ok_or_else(|| Error::unexpected(format!("no shim among {processes:?}")))
}

fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).map_err(|error| Error::unexpected(format!("{signal} to {pid}: {error}")))
}

#[test]
fn a_program_in_the_guest_has_its_streams_apart_its_exit_code_and_a_terminal_that_follows_ours() -> Result<()> {
    let node = Node::start_configured(CONSOLE)?;
    node.run("pod").arg("-d").program(["sleep", "1000"]).ok()?;
    let id = node.id("pod");
    let exec = || -> Result<Ctr> { Ok(node.diagnose()?.args(["exec", &id])) };

    let script = "echo out; echo err >&2; cat; exit 7";
    let output = exec()?
        .args(["--", "sh", "-c", script])
        .output_with(b"typed\n".to_vec())?
        .code(7)?;
    assert_eq!(output.stdout(), "out\ntyped\n");
    assert_eq!(output.stderr(), "err\n");

    // It is the guest that it sees: the agent is its first process, and the container's is one of many.
    let processes = exec()?.args(["--", "ps", "-o", "pid,args"]).ok()?;
    assert!(
        processes.contains("1 /init") && processes.contains("sleep 1000"),
        "{processes}"
    );
    let many = exec()?.args(["--", "seq", "1", "100000"]).ok()?;
    assert!(many.ends_with("\n100000\n") && many.lines().count() == 100_000);
    let lost = exec()?.args(["--", "no-such-program"]).fails()?;
    assert!(lost.contains("no-such-program"), "{lost}");

    let mut terminal = exec()?.terminal(33, 77)?;
    terminal.types("stty size; echo t'ty'-$?\n")?;
    assert!(terminal.shows("tty-0")?.contains("33 77"));
    terminal.resize(21, 67)?;
    terminal.types("while ! stty size | grep -q '21 67'; do :; done; echo re'sized'\n")?;
    terminal.shows("resized")?;
    terminal.types("exit 3\n")?;
    assert_eq!(terminal.wait()?, Some(3));

    // Whoever asked is killed, and the program goes with them.
    let abandoned = exec()?.args(["--", "sh", "-c", "echo here; sleep 4321"]).spawn()?;
    abandoned.shows("here")?;
    abandoned.signal(Signal::SIGKILL)?;
    abandoned.wait()?;
    exec()?
        .args([
            "--",
            "sh",
            "-c",
            "while ps -o args | grep -q '[s]leep 4321'; do sleep 0.2; done",
        ])
        .ok()?;

    node.remove("pod")?;
    node.nothing_left()
}

#[test]
fn without_root_the_report_is_whole_and_says_what_it_could_not_read() -> Result<()> {
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    let directory = tempfile::tempdir()?;
    // The build may be where nobody else can go.
    let program = directory.path().join("kata-ctl");
    std::fs::copy(locate::built("bin/kata-ctl", "build")?, &program)?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let node = Node::start()?;
    node.run("hidden").arg("-d").program(["sleep", "1000"]).ok()?;
    let by_nobody = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.args(arguments).current_dir("/").uid(65534).gid(65534).output()
    };
    let output = by_nobody(&["collect-data", "--since", "1m"])?;
    // A pool that cannot be read is not an empty one.
    for action in ["status", "destroy"] {
        let refused = by_nobody(&["factory", action])?;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot read /run/tatami (only root can)"), "{said}");
    }
    node.remove("hidden")?;
    assert!(output.status.success(), "{output:?}");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains("this is not run as root"), "{report}");
    assert!(report.contains("cannot read /run/tatami (only root can)"), "{report}");
    // All sections are there, and the last line.
    assert_eq!(report.matches("</details>").count(), 14, "{report}");
    assert!(report.ends_with("secrets were taken out of this report.\n"), "{report}");
    node.nothing_left()
}
