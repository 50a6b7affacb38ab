//! Loads: much at once, and the same thing many times over. `make test` runs them small, `make stress` in full (docs/testing.md).

use std::time::{Duration, Instant};
use std::{env, thread};

use framework::{Node, Result, Terminal};

/// Whether this is `make stress`.
fn is_full() -> bool {
    env::var_os("TATAMI_STRESS").is_some()
}

/// What the variable says; else `full` for `make stress`, and what another run can bear.
fn size(variable: &str, small: usize, full: usize) -> usize {
    let said = env::var(variable).ok().and_then(|text| text.parse().ok());
    said.unwrap_or(if is_full() { full } else { small })
}

/// How long what a load waits for may take in all.
fn limit() -> Duration {
    Duration::from_secs(60 * if is_full() { 20 } else { 3 })
}

/// Numbers apart by blanks, cut off at so many bytes: a piece that is missing, doubled or moved shows.
fn numbers(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 16);
    for number in 1_u64.. {
        if text.len() >= bytes {
            break;
        }
        text.extend(number.to_string().into_bytes());
        text.push(b' ');
    }
    text.truncate(bytes);
    text
}

/// Says how far a load is: `make stress` shows it.
fn progress(what: &str, done: usize, all: usize, began: Instant) {
    eprintln!("{what}: {done} of {all} after {} s", began.elapsed().as_secs());
}

/// Everything that a terminal shows, and the exit code.
fn read(mut terminal: Terminal) -> Result<(Vec<u8>, Option<i32>)> {
    let shown = terminal.read_slowly(64 << 10, Duration::ZERO)?;
    Ok((shown, terminal.wait()?))
}

#[test]
fn no_byte_of_many_execs_on_terminals_is_missing() -> Result<()> {
    const AT_ONCE: usize = 10;
    let execs = size("TATAMI_TERMINALS", 10, 200);
    let bytes = size("TATAMI_TERMINAL_BYTES", 1_000_000, 50_000_000);
    let node = Node::start()?;
    node.run("base").arg("-d").program(["sleep", "100000"]).ok()?;
    let write = format!("seq -s ' ' 1 {} | head -c {bytes} > /dev/shm/text", bytes / 4);
    node.exec("base", "write").sh(&write).limit(limit()).ok()?;
    let wanted = numbers(bytes);
    let began = Instant::now();
    let names: Vec<String> = (0..execs).map(|number| format!("e{number}")).collect();
    for (chunk, names) in names.chunks(AT_ONCE).enumerate() {
        let reading: Vec<_> = names
            .iter()
            .map(|name| {
                let exec = node.exec("base", name).arg("-t").limit(limit());
                let terminal = exec.program(["cat", "/dev/shm/text"]).terminal(24, 80)?;
                Ok(thread::spawn(move || read(terminal)))
            })
            .collect::<Result<_>>()?;
        for (name, reading) in names.iter().zip(reading) {
            let (shown, code) = reading.join().expect("the reader has panicked")?;
            let part = shown.iter().zip(&wanted).position(|(shown, wanted)| shown != wanted);
            assert!(
                shown == wanted && code == Some(0),
                "{name}: {} bytes of {bytes}, different from byte {part:?}, code {code:?}",
                shown.len()
            );
        }
        progress("execs on terminals", chunk * AT_ONCE + names.len(), execs, began);
    }
    node.remove("base")?;
    node.nothing_left()
}

#[test]
fn of_many_sandboxes_that_are_started_at_once_each_is_up_or_refused_with_a_reason() -> Result<()> {
    let node = Node::start()?;
    let names: Vec<String> = (0..size("TATAMI_SANDBOXES", 6, 60))
        .map(|number| format!("s{number}"))
        .collect();
    let starting: Vec<_> = names
        .iter()
        .map(|name| {
            node.run(name)
                .arg("-d")
                .program(["sleep", "100000"])
                .limit(limit())
                .spawn()
        })
        .collect::<Result<_>>()?;
    let mut up = Vec::new();
    let began = Instant::now();
    for (number, (name, starting)) in names.iter().zip(starting).enumerate() {
        let output = starting.wait()?;
        progress("sandboxes up or refused", number + 1, names.len(), began);
        if output.code == Some(0) {
            up.push(name);
        } else {
            let said = output.stderr();
            assert!(
                said.contains("failed to") && said.trim().len() > 40,
                "{name} is refused without a reason: {said:?}"
            );
            eprintln!("{name} is refused: {said}");
            node.discard(name)?;
        }
    }
    eprintln!("{} of {} are up", up.len(), names.len());
    assert!(!up.is_empty());
    for name in &up {
        assert_eq!(node.exec(name, "up").program(["echo", name]).ok()?, format!("{name}\n"));
    }
    for name in up {
        node.remove(name)?;
    }
    node.nothing_left()
}

mod kata_only {
    use std::fs;

    use framework::Tasks;
    use serde_json::{Value, json};

    use super::*;

    /// What may grow: the guest's mounts, its processes (without the kernel's own, which come and go), and descriptors of its first process; the shim's descriptors, its mounts, and
    /// the sandbox's processes on the host.
    fn usage(node: &Node, exec: &str) -> Result<Vec<usize>> {
        let count = "wc -l < /proc/1/mountinfo; grep -L 'PPid:.2$' /proc/[0-9]*/status 2>/dev/null | wc -l; ls /proc/1/fd | wc -l";
        let said = node.exec("viewer", exec).sh(count).ok()?;
        let mut counts: Vec<usize> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let processes = node.processes("pod");
        let shim = processes
            .iter()
            .find(|process| process.program().contains("containerd-shim"));
        let shim = shim.map(|shim| shim.pid).unwrap_or_default();
        counts.push(fs::read_dir(format!("/proc/{shim}/fd"))?.count());
        counts.push(fs::read_to_string(format!("/proc/{shim}/mountinfo"))?.lines().count());
        counts.push(processes.len());
        Ok(counts)
    }

    fn cycle(tasks: &Tasks, id: &str, process: &Value) -> Result<()> {
        tasks.create(id)?;
        tasks.start(id, "")?;
        tasks.exec(id, "e", process)?;
        tasks.start(id, "e")?;
        tasks.kill(id, "", 9)?;
        assert_eq!(tasks.wait(id, "")?, 137);
        // It ends with its container.
        assert_eq!(tasks.wait(id, "e")?, 137);
        tasks.delete_exec(id, "e")?;
        tasks.delete(id)
    }

    #[test]
    fn many_cycles_of_create_exec_kill_and_delete_leave_nothing_in_the_sandbox() -> Result<()> {
        let cycles = size("TATAMI_CYCLES", 20, 1000);
        let node = Node::start()?;
        let pod = node.spec("pod", &["sleep", "100000"])?.of_pod(&node, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        node.start_guest_viewer("viewer")?;
        let spec = node.spec("c", &["sleep", "100000"])?.of_pod(&node, "container")?;
        node.create_spec("c", &spec)?;
        let mut process = spec.get("/process").clone();
        process["args"] = json!(["sleep", "100000"]);
        let (tasks, id) = (node.tasks()?, node.id("c"));
        // What is made once is there after a few.
        let warm = 5;
        for _ in 0..warm {
            cycle(&tasks, &id, &process)?;
        }
        let before = usage(&node, "before")?;
        let began = Instant::now();
        for number in warm..cycles {
            cycle(&tasks, &id, &process)?;
            if number % 50 == 0 {
                progress("cycles", number, cycles, began);
            }
        }
        // What the last ones leave is let go of a moment later; what each one leaves is more than this.
        const LATE: usize = 6;
        let after = usage(&node, "after")?;
        let grown = after.iter().zip(&before).any(|(after, before)| *after > before + LATE);
        assert!(!grown, "{before:?} became {after:?} after {cycles} cycles");
        node.ctr().args(["container", "rm"]).arg(&id).ok()?;
        node.remove("viewer")?;
        node.remove("pod")?;
        node.nothing_left()
    }
}
