//! States, and what may be asked in each.

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::Result;

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "lifecycle",
        cases: &[
            case(
                "state-running",
                "runtime-tools state; runc state.bats; youki lifecycle state",
            ),
            case("state-paused", "runc state.bats; runc pause.bats"),
            case("state-resumed", "runc pause.bats"),
            case("state-stopped", "runtime-tools state; runc state.bats"),
            case("pause-of-a-paused-one", "runc pause.bats"),
            case(
                "delete-of-a-running-one-is-refused",
                "runtime-tools delete; runc delete.bats; youki delete",
            ),
            case(
                "start-of-a-running-one-is-refused",
                "runtime-tools start; runc start.bats; youki lifecycle",
            ),
            case(
                "the-same-id-twice-is-refused",
                "runtime-tools create; runc create.bats; youki lifecycle create",
            ),
            case(
                "kill-by-a-signal-that-it-handles",
                "runtime-tools killsig; youki killsig; runc kill.bats",
            ),
            case("kill-by-sigkill", "runtime-tools kill; youki kill; runc kill.bats"),
            case(
                "kill-of-a-stopped-one-has-no-effect",
                "runtime-tools kill_no_effect; youki kill_no_effect",
            ),
            case("kill-of-nobody", "runc kill.bats; youki kill"),
            case("kill-all", "runc kill.bats"),
            case("delete", "runtime-tools delete; runc delete.bats; youki delete"),
            case("delete-twice", "runtime-tools delete; runc delete.bats"),
            case(
                "the-id-is-free-after-a-delete",
                "runtime-tools create; runc delete.bats",
            ),
            case("processes-are-listed", "runc ps.bats"),
            case("figures-are-told", "runc events.bats"),
        ],
        run: states,
    },
    Group {
        name: "exits",
        cases: &[
            case("exit-code", "runc start_hello.bats"),
            case("exit-by-a-signal", "ours alone"),
            case("exit-of-the-first-ends-the-others", "runc kill.bats"),
            case("a-hello", "runc start_hello.bats; youki example hello_world"),
            case("output-of-a-million-bytes", "ours alone"),
            case("input-to-its-end", "ours alone"),
        ],
        run: exits,
    },
];

fn states(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let node = bench.node();
    let name = bench.name();
    // The pipe is opened by both at once or by neither: after that the children are there.
    let pipe = "mkfifo /up 2>/dev/null";
    let script =
        format!("trap 'exit 42' TERM; {pipe}; sleep 1001 & sleep 1002 & echo > /up; while :; do sleep 1; done");
    let spec = bench.spec(&name, &["sh", "-c", &script])?;
    node.run_spec(&name, &spec)?.arg("-d").ok()?;
    bench.exec(&name, &format!("{pipe}; cat /up"))?;
    let status = || node.status(&name);
    seen.same("state-running", status()?.as_deref(), Some("RUNNING"));
    let processes = node.task("ps", &name).ok()?;
    // With a line above them. Ours lists the one number that means the container on the host.
    let least = if bench.is_runc() { 4 } else { 2 };
    seen.holds("processes-are-listed", processes.lines().count() >= least, &processes);
    seen.has("figures-are-told", &node.task("metrics", &name).ok()?, "memory");
    node.task("pause", &name).ok()?;
    seen.same("state-paused", status()?.as_deref(), Some("PAUSED"));
    let again = node.task("pause", &name).output()?;
    seen.holds(
        "pause-of-a-paused-one",
        status()?.as_deref() == Some("PAUSED"),
        again.stderr(),
    );
    node.task("resume", &name).ok()?;
    seen.same("state-resumed", status()?.as_deref(), Some("RUNNING"));
    let delete = node.task("rm", &name).output()?;
    seen.holds(
        "delete-of-a-running-one-is-refused",
        delete.code != Some(0) && status()?.is_some(),
        delete.stderr(),
    );
    let start = node.task("start", &name).arg("-d").output()?;
    seen.holds(
        "start-of-a-running-one-is-refused",
        start.code != Some(0),
        "it was started",
    );
    let twice = node.run_spec(&name, &spec)?.arg("-d").output()?;
    seen.holds("the-same-id-twice-is-refused", twice.code != Some(0), "it was made");
    node.task("kill", &name).args(["--signal", "TERM"]).ok()?;
    seen.same("kill-by-a-signal-that-it-handles", node.await_stopped(&name)?, 42);
    seen.same("state-stopped", status()?.as_deref(), Some("STOPPED"));
    let kill = node.task("kill", &name).output()?;
    seen.holds(
        "kill-of-a-stopped-one-has-no-effect",
        status()?.as_deref() == Some("STOPPED"),
        kill.stderr(),
    );
    node.forget(&name)?;
    seen.same("delete", status()?, None);
    seen.holds(
        "delete-twice",
        node.task("rm", &name).output()?.code != Some(0),
        "it was deleted again",
    );
    seen.has(
        "kill-of-nobody",
        &node.task("kill", &name).output()?.stderr(),
        "not found",
    );
    let again = bench.output(&name, &bench.spec(&name, &["echo", "again"])?)?;
    seen.same("the-id-is-free-after-a-delete", again.stdout(), "again\n");
    let name = bench.idle(Ok)?;
    node.task("kill", &name).args(["--signal", "KILL"]).ok()?;
    seen.same("kill-by-sigkill", node.await_stopped(&name)?, 137);
    node.forget(&name)?;
    let name = bench.name();
    let spec = bench.spec(&name, &["sh", "-c", "sleep 1001 & sleep 1002 & wait"])?;
    node.run_spec(&name, &spec)?.arg("-d").ok()?;
    node.task("kill", &name).args(["--all", "--signal", "KILL"]).ok()?;
    seen.same("kill-all", node.await_stopped(&name)?, 137);
    node.forget(&name)
}

fn exits(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let run = |script: &str, input: Vec<u8>| {
        let name = bench.name();
        let spec = bench.spec(&name, &["sh", "-c", script])?;
        bench.node().run_spec(&name, &spec)?.arg("--rm").output_with(input)
    };
    seen.same("exit-code", run("exit 7", Vec::new())?.code, Some(7));
    // The first process of a PID namespace is not ended by a signal that it does not handle, but for one from outside.
    seen.same(
        "exit-by-a-signal",
        run("(kill -15 $(sh -c 'echo $PPID'); true); exit $?", Vec::new())?.code,
        Some(143),
    );
    let begun = std::time::Instant::now();
    let code = run("sleep 1000 & exit 5", Vec::new())?.code;
    seen.holds(
        "exit-of-the-first-ends-the-others",
        code == Some(5) && begun.elapsed().as_secs() < 300,
        format!("{code:?}"),
    );
    seen.same("a-hello", run("echo Hello", Vec::new())?.stdout(), "Hello\n");
    let output = run("head -c 1000000 /dev/zero | tr '\\0' x", Vec::new())?;
    seen.same("output-of-a-million-bytes", output.stdout.len(), 1_000_000);
    let output = run("wc -c", vec![b'x'; 300_000])?;
    seen.same("input-to-its-end", output.stdout().trim(), "300000");
    Ok(())
}
