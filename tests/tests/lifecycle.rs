//! A container's life as containerd's user sees it, from create to delete, once and many times.

use std::time::Duration;

use framework::{Node, Result};

#[test]
fn a_detached_container_is_listed_measured_paused_resumed_killed_and_removed() -> Result<()> {
    let node = Node::start()?;
    // The pipe is opened by both at once or by neither: after that the children are there.
    let pipe = "mkfifo /up 2>/dev/null";
    let script = format!("{pipe}; sleep 1001 & sleep 1002 & echo >/up; wait");
    node.run("life").arg("-d").sh(&script).ok()?;
    assert_eq!(node.status("life")?.as_deref(), Some("RUNNING"));
    node.exec("life", "up").sh(&format!("{pipe}; cat /up")).ok()?;

    let processes = node.task("ps", "life").ok()?;
    assert!(
        processes.lines().count() >= 2,
        "a heading, and the process that stands for the container on the host:\n{processes}"
    );

    let metrics = node.task("metrics", "life").ok()?;
    assert!(metrics.contains("memory"), "{metrics}");

    node.task("pause", "life").ok()?;
    assert_eq!(node.status("life")?.as_deref(), Some("PAUSED"));
    node.task("resume", "life").ok()?;
    assert_eq!(node.status("life")?.as_deref(), Some("RUNNING"));
    assert_eq!(node.exec("life", "after").program(["echo", "alive"]).ok()?, "alive\n");

    let said = node.task("rm", "life").fails()?;
    assert!(!said.trim().is_empty(), "a running task is not to be deleted");
    assert_eq!(node.status("life")?.as_deref(), Some("RUNNING"));

    node.task("kill", "life").args(["--signal", "9"]).ok()?;
    assert_eq!(node.await_stopped("life")?, 137);
    assert_eq!(node.status("life")?.as_deref(), Some("STOPPED"));
    node.forget("life")?;
    node.nothing_left()
}

#[test]
fn a_signal_reaches_the_program_which_may_handle_it() -> Result<()> {
    let node = Node::start()?;
    let script = "trap 'echo got it; exit 42' TERM; echo ready; while :; do sleep 1; done";
    let mut terminal = node.run("term").args(["--rm", "-t"]).sh(script).terminal(24, 80)?;
    terminal.shows("ready")?;
    node.task("kill", "term").args(["--signal", "TERM"]).ok()?;
    terminal.shows("got it")?;
    assert_eq!(terminal.wait()?, Some(42));
    node.nothing_left()
}

/// As `ctr kill` after `ctr container create` and a task that was not started: the program has not run yet, and never will.
#[test]
fn sigterm_ends_a_container_that_was_created_and_not_started() -> Result<()> {
    let node = Node::start()?;
    let spec = node.spec("created", &["sleep", "1000"])?;
    node.create_spec("created", &spec)?;
    let (tasks, id) = (node.tasks()?, node.id("created"));
    tasks.create(&id)?;
    assert_eq!(node.status("created")?.as_deref(), Some("CREATED"));
    tasks.kill(&id, "", 15)?;
    assert_ne!(tasks.wait(&id, "")?, 0);
    node.forget("created")?;
    node.nothing_left()
}

#[test]
fn a_signal_to_all_ends_every_process_of_the_container() -> Result<()> {
    let node = Node::start()?;
    node.run("all").arg("-d").sh("sleep 1001 & sleep 1002 & wait").ok()?;
    node.task("kill", "all").args(["--all", "--signal", "KILL"]).ok()?;
    assert_eq!(node.await_stopped("all")?, 137);
    node.forget("all")?;
    node.nothing_left()
}

#[test]
fn an_init_that_ends_at_once_is_not_missed_and_its_id_can_be_used_again() -> Result<()> {
    let node = Node::start()?;
    for code in [0, 3, 0] {
        let output = node.run("quick").arg("--rm").sh(&format!("exit {code}")).output()?;
        assert_eq!(output.code, Some(code), "{}", output.stderr());
    }
    node.nothing_left()
}

#[test]
fn what_is_asked_of_a_container_that_is_not_there_or_not_running_is_refused() -> Result<()> {
    let node = Node::start()?;
    assert!(node.task("kill", "nobody").fails()?.contains("not found"));
    node.run("done").arg("-d").program(["true"]).ok()?;
    node.await_stopped("done")?;
    let said = node.task("kill", "done").fails()?;
    assert!(said.contains("finished") || said.contains("not found"), "{said}");
    node.task("pause", "done").fails()?;
    node.forget("done")?;
    node.nothing_left()
}

#[test]
fn twenty_in_a_row_leave_nothing_behind() -> Result<()> {
    let node = Node::start()?;
    for number in 0..20 {
        let name = format!("row{number}");
        assert_eq!(
            node.run(&name).arg("--rm").program(["echo", &name]).ok()?,
            format!("{name}\n")
        );
    }
    node.nothing_left()
}

#[test]
fn five_at_once_leave_nothing_behind() -> Result<()> {
    let node = Node::start()?;
    let running: Vec<_> = (0..5)
        .map(|number| {
            let name = format!("once{number}");
            node.run(&name)
                .arg("--rm")
                .program(["echo", &name])
                .limit(Duration::from_secs(180))
                .spawn()
        })
        .collect::<Result<_>>()?;
    for (number, container) in running.into_iter().enumerate() {
        assert_eq!(container.wait()?.success()?.stdout(), format!("once{number}\n"));
    }
    node.nothing_left()
}

mod kata_only {
    use std::{fs, thread};

    use framework::Error;
    use nix::sys::signal::Signal;
    use serde_json::json;

    use super::*;

    /// The file server is stopped, so the start waits until it goes on.
    #[test]
    fn sigkill_to_an_exec_that_is_being_started_does_not_wait_for_the_start() -> Result<()> {
        let node = Node::start()?;
        let shared = node.dir().join("shared");
        fs::create_dir(&shared)?;
        let spec = node
            .spec("base", &["sleep", "1000"])?
            .bind(&shared, "/shared", &["rw"])?;
        node.run_spec("base", &spec)?.arg("-d").ok()?;
        let (tasks, id) = (node.tasks()?, node.id("base"));
        let process = json!({
            "args": ["sh", "-c", "echo ran > /shared/ran"], "cwd": "/shared/new", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
        });
        tasks.exec(&id, "slow", &process)?;
        // The guest has never looked it up.
        fs::create_dir(shared.join("new"))?;
        node.signal_process("base", "virtiofsd", Signal::SIGSTOP)?;
        let (killed, started) = thread::scope(|scope| {
            let start = scope.spawn(|| tasks.start(&id, "slow"));
            let killed = loop {
                match tasks.kill(&id, "slow", 9) {
                    // It is not being started yet.
                    Err(Error::Rpc { message, .. }) if message.contains("created") && !start.is_finished() => {}
                    killed => break killed,
                }
            };
            let started = start.join();
            // Whatever has come of it: the machine is to be as it was.
            node.signal_process("base", "virtiofsd", Signal::SIGCONT)
                .map(|()| (killed, started))
        })?;
        killed?;
        let started = started.map_err(|_| Error::unexpected("the start has panicked"))?;
        assert!(started.is_err(), "it was started");
        assert_eq!(tasks.wait(&id, "slow")?, 137);
        tasks.delete_exec(&id, "slow")?;
        // The id is free, and what was killed has not run.
        assert_eq!(node.exec("base", "slow").sh("ls /shared").ok()?, "new\n");
        node.remove("base")?;
        node.nothing_left()
    }
}
