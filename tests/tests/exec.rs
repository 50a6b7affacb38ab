//! More processes in a running container.

use std::time::{Duration, Instant};

use framework::{Node, Result};

#[test]
fn an_exec_is_a_process_of_its_own_with_its_own_streams_code_user_and_directory() -> Result<()> {
    let node = Node::start()?;
    node.run("base")
        .args(["-d", "--env", "OF=container"])
        .program(["sleep", "1000"])
        .ok()?;

    let output = node
        .exec("base", "plain")
        .sh("echo out; echo err >&2; echo $OF; exit 9")
        .output()?
        .code(9)?;
    assert_eq!(output.stdout(), "out\ncontainer\n");
    assert_eq!(output.stderr(), "err\n");

    let mut input = node.exec("base", "input").program(["cat"]).spawn()?;
    input.write(b"typed")?;
    input.shows("typed")?;
    input.close_stdin();
    input.wait()?.success()?;

    let user = node
        .exec("base", "user")
        .args(["--user", "1000:1000", "--cwd", "/tmp"])
        .sh("id -u; id -g; pwd")
        .ok()?;
    assert_eq!(user, "1000\n1000\n/tmp\n");

    let killed = node.exec("base", "killed").sh("kill -9 $$").output()?;
    assert_eq!(killed.code, Some(137), "{}", killed.stderr());

    // The same exec id can be used again once its process has ended.
    assert_eq!(node.exec("base", "plain").program(["echo", "again"]).ok()?, "again\n");

    let sees = node.exec("base", "sees").program(["ps", "-o", "pid,args"]).ok()?;
    assert!(
        sees.contains("sleep 1000"),
        "an exec is in the container's pid namespace:\n{sees}"
    );

    node.remove("base")?;
    node.nothing_left()
}

#[test]
fn an_exec_on_a_terminal_has_one_of_its_own() -> Result<()> {
    let node = Node::start()?;
    node.run("base").arg("-d").program(["sleep", "1000"]).ok()?;
    let mut terminal = node.exec("base", "tty").arg("-t").program(["sh"]).terminal(33, 77)?;
    terminal.types("tty; echo t'ty'-$?\n")?;
    let shown = terminal.shows("tty-0")?;
    assert!(
        shown.contains("/dev/pts/") || shown.contains("/dev/console"),
        "{shown:?}"
    );
    terminal.resize(21, 67)?;
    terminal.types("while ! stty size | grep -q '21 67'; do :; done; echo re'sized'\n")?;
    terminal.shows("resized")?;
    terminal.types("exit 3\n")?;
    assert_eq!(terminal.wait()?, Some(3));
    node.remove("base")?;
    node.nothing_left()
}

#[test]
fn ten_execs_at_once_all_give_their_own_output() -> Result<()> {
    let node = Node::start()?;
    node.run("base").arg("-d").program(["sleep", "1000"]).ok()?;
    let running: Vec<_> = (0..10)
        .map(|number| {
            node.exec("base", &format!("e{number}"))
                .sh(&format!("seq 1 500; echo mine {number}; exit {number}"))
                .spawn()
        })
        .collect::<Result<_>>()?;
    for (number, exec) in running.into_iter().enumerate() {
        let output = exec.wait()?;
        assert_eq!(output.code, i32::try_from(number).ok(), "{}", output.stderr());
        let wanted: String = (1..=500)
            .map(|line| format!("{line}\n"))
            .chain([format!("mine {number}\n")])
            .collect();
        assert_eq!(output.stdout(), wanted);
    }
    node.remove("base")?;
    node.nothing_left()
}

#[test]
fn an_exec_of_a_program_that_does_not_exist_fails_at_once_and_names_it() -> Result<()> {
    let node = Node::start()?;
    node.run("base").arg("-d").program(["sleep", "1000"]).ok()?;
    let output = node
        .exec("base", "lost")
        .program(["no-such-program"])
        .limit(Duration::from_secs(20))
        .output()?;
    let said = output.failure()?;
    assert!(said.contains("no-such-program"), "{said}");
    // The container is none the worse for it, and the id is free.
    assert_eq!(node.exec("base", "lost").program(["echo", "well"]).ok()?, "well\n");
    node.remove("base")?;
    node.nothing_left()
}

#[test]
fn an_exec_in_a_stopped_container_is_refused() -> Result<()> {
    let node = Node::start()?;
    node.run("short").arg("-d").program(["true"]).ok()?;
    node.await_stopped("short")?;
    let said = node
        .exec("short", "late")
        .program(["true"])
        .limit(Duration::from_secs(20))
        .fails()?;
    assert!(!said.trim().is_empty());
    node.forget("short")?;
    node.nothing_left()
}

/// Runs so many execs at once and gives what the failed ones said.
fn at_once(node: &Node, container: &str, count: usize) -> Result<Vec<String>> {
    let running: Vec<_> = (0..count)
        .map(|number| {
            node.exec(container, &format!("e{number}"))
                .program(["true"])
                .limit(Duration::from_secs(180))
                .spawn()
        })
        .collect::<Result<_>>()?;
    let mut failures = Vec::new();
    for exec in running {
        let output = exec.wait()?;
        if output.code != Some(0) {
            failures.push(output.stderr());
        }
    }
    Ok(failures)
}

#[test]
fn two_hundred_execs_at_once_all_succeed() -> Result<()> {
    let node = Node::start()?;
    node.run("base").arg("-d").program(["sleep", "1000"]).ok()?;
    let most = std::env::var("TATAMI_EXECS").ok().and_then(|text| text.parse().ok());
    let most: usize = most.unwrap_or(200);
    for count in [most / 2, most] {
        let began = Instant::now();
        let failures = at_once(&node, "base", count)?;
        eprintln!("{count} execs at once after {} s", began.elapsed().as_secs());
        assert!(
            failures.is_empty(),
            "{} of {count} failed, such as:\n{}",
            failures.len(),
            failures[0]
        );
    }
    node.remove("base")?;
    node.nothing_left()
}

/// Silent connections to the port that the agent dials.
mod kata_only {
    use super::*;

    #[test]
    fn an_unprivileged_program_that_opens_silent_connections_does_not_stop_exec() -> Result<()> {
        let node = Node::start()?;
        node.run("base").arg("-d").program(["sleep", "1000"]).ok()?;
        let port = "$(sed 's/.*tatami.port=\\([0-9]*\\).*/\\1/' /proc/cmdline)";
        let silence = node
            .exec("base", "silence")
            .args(["--user", "1000:1000"])
            .sh(&format!("exec guest-probe silence 2 {port} 400"))
            .limit(Duration::from_secs(180))
            .spawn()?;
        silence.shows("silent")?;
        let failures = at_once(&node, "base", 10)?;
        assert!(failures.is_empty(), "{failures:?}");
        // It still does what it did: none of the execs succeeded because it had ended.
        node.exec("base", "still").sh("pidof guest-probe").ok()?;
        node.remove("base")?;
        drop(silence);
        node.nothing_left()
    }
}
