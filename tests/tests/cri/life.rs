//! What happens to a pod and its containers from the first call to the last.

use std::{fs, thread};

use framework::{
    Error, Result,
    cri::{
        LogLine, PodNode,
        messages::{ContainerState, Mount, PodSandboxState},
        pod::resources,
    },
};

fn line(stream: &str, text: &str) -> LogLine {
    LogLine {
        stream: stream.to_owned(),
        text: text.to_owned(),
    }
}

#[test]
fn a_pod_runs_containers_whose_output_and_end_are_told_and_leaves_nothing() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("life")?;
    assert_eq!(pod.status()?.state(), PodSandboxState::Ready);

    let completed = pod.start(&pod.script("completed", "echo out; echo err >&2; printf tail"))?;
    let status = completed.await_exit()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    let log = completed.log()?;
    for wanted in [line("stdout", "out"), line("stderr", "err"), line("stdout", "tail")] {
        assert!(log.contains(&wanted), "{log:?}");
    }

    let failed = pod.start(&pod.script("failed", "exit 3"))?.await_exit()?;
    assert_eq!((failed.exit_code, failed.reason.as_str()), (3, "Error"));

    let running = pod.start(&pod.container("running", &["sleep", "1000"]))?;
    assert_eq!(running.exec(&["echo", "from", "within"])?, "from within\n");
    assert_eq!(running.status()?.state(), ContainerState::Running);

    pod.stop()?;
    assert_eq!(running.status()?.state(), ContainerState::Exited);
    assert_eq!(pod.status()?.state(), PodSandboxState::NotReady);
    // The kubelet asks again until it is done.
    pod.stop()?;
    node.cri().remove_pod(&pod.id)?;
    node.cri().remove_pod(&pod.id)?;
    assert!(node.cri().pods()?.is_empty());
    assert!(node.cri().containers()?.is_empty());
    node.nothing_left()
}

#[test]
fn init_containers_come_first_a_container_is_restarted_and_one_is_added_to_a_running_pod() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("stages")?;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    let mounts = vec![Mount {
        container_path: "/data".to_owned(),
        host_path: volume.display().to_string(),
        ..Mount::default()
    }];

    let mut init = pod.script("init", "echo prepared > /data/file");
    init.mounts = mounts.clone();
    assert_eq!(pod.start(&init)?.await_exit()?.exit_code, 0);

    let mut app = pod.script("app", "cat /data/file; echo $$; sleep 1000");
    app.mounts = mounts.clone();
    let first = pod.start(&app)?;
    first.await_line("prepared")?;
    first.stop(0)?;
    assert_eq!(first.status()?.exit_code, 137);

    // The kubelet starts the next attempt beside the first, which it removes later.
    if let Some(metadata) = &mut app.metadata {
        metadata.attempt = 1;
    }
    app.log_path = "app-1.log".to_owned();
    let second = pod.start(&app)?;
    second.await_line("prepared")?;
    first.remove()?;
    first.remove()?;

    // An ephemeral container is one that comes late.
    let mut debugger = pod.script("debugger", "cat /data/file");
    debugger.mounts = mounts;
    let debugger = pod.start(&debugger)?;
    assert_eq!(debugger.await_exit()?.exit_code, 0);
    assert_eq!(debugger.log()?, [line("stdout", "prepared")]);
    assert_eq!(second.status()?.state(), ContainerState::Running);
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn a_termination_message_is_left_on_the_host_and_a_log_is_reopened_after_its_rotation() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("logs")?;
    let message = node.dir().join("termination");
    fs::write(&message, "")?;
    let mut config = pod.script(
        "talker",
        "echo before; read go; echo after; echo why > /dev/termination-log",
    );
    config.stdin = true;
    config.mounts.push(Mount {
        container_path: "/dev/termination-log".to_owned(),
        host_path: message.display().to_string(),
        ..Mount::default()
    });
    let talker = pod.start(&config)?;
    talker.await_line("before")?;
    let rotated = format!("{}.1", talker.log_path());
    fs::rename(talker.log_path(), &rotated)?;
    node.cri().reopen_log(&talker.id)?;
    assert_eq!(talker.log()?, []);

    let mut attached = super::attach(&node, &talker)?;
    attached.write(b"go\n")?;
    talker.await_exit()?;
    assert_eq!(talker.log()?, [line("stdout", "after")]);
    assert!(fs::read_to_string(rotated)?.contains("before"));
    assert_eq!(fs::read_to_string(message)?, "why\n");
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn a_container_that_uses_too_much_memory_is_oom_killed_and_its_neighbours_live_on() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("greedy")?;
    let neighbour = pod.start(&pod.container("neighbour", &["sleep", "1000"]))?;
    let mut config = pod.container("greedy", &["guest-probe", "touch-memory", "200000000"]);
    resources(&mut config).memory_limit_in_bytes = 48 << 20;
    let status = pod.start(&config)?.await_exit()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));

    // Neither one that does not exist nor one that crashes is any business of the neighbour's.
    let missing = pod.create(&pod.container("missing", &["/no/such/program"]))?;
    let error = missing.start().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("/no/such/program"), "{error}");
    let crashed = pod
        .start(&pod.script("crashed", "sh -c 'kill -SEGV $$'; exit $?"))?
        .await_exit()?;
    assert_eq!((crashed.exit_code, crashed.reason.as_str()), (139, "Error"));

    assert_eq!(neighbour.status()?.state(), ContainerState::Running);
    assert_eq!(neighbour.exec(&["echo", "here"])?, "here\n");
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn containers_are_created_at_the_same_time() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("crowd")?;
    let names: Vec<_> = (0..6).map(|number| format!("member{number}")).collect();
    let outputs = thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .map(|name| {
                let pod = &pod;
                scope.spawn(move || {
                    let container = pod.start(&pod.script(name, &format!("echo {name}")))?;
                    container.await_exit()?;
                    container.log()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::unexpected("a thread panicked")))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    for (name, output) in names.iter().zip(outputs) {
        assert_eq!(output, [line("stdout", name)]);
    }
    pod.remove()?;
    node.nothing_left()
}
