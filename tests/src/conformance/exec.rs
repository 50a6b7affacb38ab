//! More processes in a container, terminals, and streams.

use serde_json::json;

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Report, Result};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "exec",
        cases: &[
            case("exec-exit-code", "runc exec.bats; youki exec"),
            case("exec-ended-by-a-signal", "runc exec.bats"),
            case("exec-streams", "runc exec.bats"),
            case("exec-input", "runc exec.bats"),
            case("exec-cwd", "runc exec.bats"),
            case("exec-relative-cwd-is-refused", "runc cwd.bats; runc exec.bats"),
            case("exec-user", "runc exec.bats"),
            case(
                "exec-has-the-containers-environment",
                "youki exec_env_inheritance; youki exec_env",
            ),
            case("exec-sees-the-containers-processes", "runc exec.bats; runc ps.bats"),
            case("exec-sees-the-containers-mounts", "youki exec mount"),
            case(
                "exec-has-the-containers-capabilities",
                "youki exec cap; runc capabilities.bats",
            ),
            case("exec-no-new-privileges", "runc exec.bats"),
            case("exec-rlimits", "runc rlimits.bats"),
            case("exec-no-descriptor-leaks", "youki exec preserve_fds"),
            case("exec-of-a-program-that-is-not-there", "runc exec.bats"),
            case(
                "exec-in-a-paused-container",
                "youki exec ignore_paused; runc pause.bats",
            ),
            case("exec-in-a-stopped-container", "runc exec.bats"),
            case("exec-oom-score-adj", "runc exec.bats"),
            case("exec-umask", "runc umask.bats"),
            case(
                "exec-has-the-containers-capabilities-where-it-has-none",
                "runc capabilities.bats",
            ),
            case("exec-has-the-containers-oom-score-adj", "runc exec.bats"),
        ],
        run: execs,
    },
    Group {
        name: "terminal",
        cases: &[
            case("terminal-is-one", "runc tty.bats"),
            case("terminal-is-the-users", "runc tty.bats"),
            case("terminal-console-device", "runc tty.bats"),
            case("terminal-is-controlling", "runc tty.bats"),
            case("terminal-of-an-exec", "runc tty.bats"),
        ],
        run: terminals,
    },
];

fn execs(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let node = bench.node();
    let out = node.dir().join("execs");
    std::fs::create_dir_all(&out)?;
    let name = bench.idle(|spec| {
        spec.set("/process/env", json!(["PATH=/bin", "OF=container"]))?
            .set(
                "/process/rlimits",
                json!([{ "type": "RLIMIT_NOFILE", "soft": 321, "hard": 654 }]),
            )?
            .set("/process/oomScoreAdj", 333)?
            .set("/process/user", json!({ "uid": 0, "gid": 0, "umask": 0o27 }))?
            .push(
                "/mounts",
                json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"] }),
            )?
            .push(
                "/mounts",
                json!({ "destination": "/out", "type": "bind", "source": out, "options": ["rbind", "rw"] }),
            )
    })?;
    let exec = || node.exec(&name, &bench.name());
    let printed = |args: &[&str], field: &str, value: serde_json::Value| {
        bench.exec_output(&name, |process| {
            process["args"] = json!(args);
            process[field] = value;
        })
    };
    let output = exec().sh("echo out; echo err >&2; exit 9").output()?;
    seen.same("exec-exit-code", output.code, Some(9));
    seen.same(
        "exec-streams",
        (output.stdout(), output.stderr()),
        ("out\n".to_owned(), "err\n".to_owned()),
    );
    seen.same(
        "exec-ended-by-a-signal",
        printed(&["sh", "-c", "kill -9 $$"], "cwd", json!("/"))?.code,
        Some(137),
    );
    let output = exec().program(["cat"]).output_with(b"typed".to_vec())?;
    seen.same("exec-input", output.stdout(), "typed");
    seen.same(
        "exec-cwd",
        printed(&["pwd"], "cwd", json!("/usr/bin"))?.stdout(),
        "/usr/bin\n",
    );
    let relative = exec().args(["--cwd", "tmp"]).sh("echo it was run").output()?;
    seen.holds(
        "exec-relative-cwd-is-refused",
        relative.code != Some(0) && relative.stderr().to_lowercase().contains("cwd"),
        relative.stderr(),
    );
    let said = printed(
        &["sh", "-c", "id -u; id -g"],
        "user",
        json!({ "uid": 1000, "gid": 1000 }),
    )?;
    seen.same("exec-user", said.stdout(), "1000\n1000\n");
    let report = Report::parse(&printed(&["guest-probe", "report"], "cwd", json!("/"))?.success()?)?;
    seen.same(
        "exec-has-the-containers-environment",
        report.fact("/env/OF"),
        "container",
    );
    seen.has(
        "exec-sees-the-containers-processes",
        &bench.exec(&name, "ps -o pid,args")?,
        "sleep 10000",
    );
    seen.same(
        "exec-sees-the-containers-mounts",
        report.fact("/sizes/~1mnt"),
        &json!(64 << 10),
    );
    // What `Spec::new` gives: CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, NET_RAW, MKNOD.
    let given = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 27;
    seen.same(
        "exec-has-the-containers-capabilities",
        report.capabilities("CapEff")?,
        given,
    );
    seen.same("exec-no-new-privileges", report.status("NoNewPrivs")?, "1");
    seen.same("exec-rlimits", report.fact("/rlimits/NOFILE"), &json!([321, 654]));
    seen.same("exec-oom-score-adj", report.fact("/oom_score_adj"), "333");
    seen.same("exec-umask", report.status("Umask")?, "0027");
    // What `ctr` gives an exec it copies from the container: one that has nothing but its program is asked for by itself.
    let (tasks, id, exec_id) = (node.tasks()?, node.id(&name), bench.name());
    let bare = json!({ "args": ["sh", "-c", "cat /proc/self/oom_score_adj /proc/self/status > /out/facts"], "cwd": "/", "env": ["PATH=/bin"],
        "user": { "uid": 0, "gid": 0 }, "oomScoreAdj": 5 });
    tasks.exec(&id, &exec_id, &bare)?;
    tasks.start(&id, &exec_id)?;
    tasks.wait(&id, &exec_id)?;
    tasks.delete_exec(&id, &exec_id)?;
    let bare = std::fs::read_to_string(out.join("facts"))?;
    seen.has(
        "exec-has-the-containers-capabilities-where-it-has-none",
        &bare,
        &format!("CapEff:\t{given:016x}\n"),
    );
    seen.holds(
        "exec-has-the-containers-oom-score-adj",
        bare.starts_with("333\n"),
        &bare,
    );
    let fds: Vec<_> = report
        .fact("/fds")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(fd, _)| fd.clone())
        .collect();
    seen.same("exec-no-descriptor-leaks", fds, vec!["0", "1", "2"]);
    let output = exec().program(["no-such-program"]).output()?;
    seen.has(
        "exec-of-a-program-that-is-not-there",
        &output.stderr(),
        "no-such-program",
    );
    node.task("pause", &name).ok()?;
    let paused = exec().program(["true"]).output()?;
    seen.holds("exec-in-a-paused-container", paused.code != Some(0), "it was run");
    node.task("resume", &name).ok()?;
    node.task("kill", &name).args(["--signal", "9"]).ok()?;
    node.await_stopped(&name)?;
    let stopped = exec().program(["true"]).output()?;
    seen.holds("exec-in-a-stopped-container", stopped.code != Some(0), "it was run");
    node.forget(&name)
}

fn terminals(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let node = bench.node();
    let name = bench.name();
    let script = "test -t 0 && test -t 1 && echo is-'one'; stat -c 'owner %u' $(tty | sed 's,console,console,'); ls /dev/console; \
        echo > /dev/tty && echo cont'rolling'; echo t'he-end'";
    let spec = bench
        .spec(&name, &["sh", "-c", script])?
        .set("/process/terminal", true)?
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?;
    let mut terminal = node.run_spec(&name, &spec)?.args(["--rm", "-t"]).terminal(24, 80)?;
    let said = terminal.shows("the-end")?;
    terminal.wait()?;
    seen.has("terminal-is-one", &said, "is-one");
    seen.has("terminal-is-the-users", &said, "owner 1000");
    seen.has("terminal-console-device", &said, "/dev/console");
    seen.has("terminal-is-controlling", &said, "controlling");
    let name = bench.idle(Ok)?;
    let mut terminal = node
        .exec(&name, "tty")
        .arg("-t")
        .sh("test -t 0 && echo is-'one'")
        .terminal(24, 80)?;
    seen.holds("terminal-of-an-exec", terminal.shows("is-one").is_ok(), "none");
    terminal.wait()?;
    node.remove(&name)
}
