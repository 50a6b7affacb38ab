//! Exec, Attach and PortForward, by containerd's streaming server.

use framework::{
    Result, Runtime,
    cri::{
        Container, PodNode,
        messages::{AttachRequest, ExecRequest},
        stream::Streams,
    },
};

fn exec(node: &PodNode, container: &Container<'_>, cmd: &[&str], tty: bool) -> Result<Streams> {
    let url = node.cri().exec(ExecRequest {
        container_id: container.id.clone(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    })?;
    Streams::connect(node.netns()?, &url)
}

#[test]
fn an_exec_has_its_streams_its_exit_code_and_a_terminal_if_asked() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("exec")?;
    let app = pod.start(&pod.container("app", &["sleep", "1000"]))?;

    let mut piped = exec(
        &node,
        &app,
        &["sh", "-c", "read line; echo got $line; echo err >&2; exit 5"],
        false,
    )?;
    piped.write(b"some words\n")?;
    let finished = piped.finish()?;
    assert_eq!(finished.stdout, "got some words\n");
    assert_eq!(finished.stderr, "err\n");
    assert_eq!(finished.exit_code(), Some(5));

    let mut terminal = exec(&node, &app, &["sh"], true)?;
    terminal.resize(91, 37)?;
    terminal.write(b"while [ \"$(stty size)\" != '37 91' ]; do sleep 0.1; done; echo size-$((6*7)); exit 0\n")?;
    terminal.shows("size-42")?;
    assert_eq!(terminal.finish()?.exit_code(), Some(0));

    let missing = node.cri().exec_sync(&app.id, &["/no/such/program"], 30);
    let error = missing.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("/no/such/program"), "{error}");
    let sync = node
        .cri()
        .exec_sync(&app.id, &["sh", "-c", "echo out; echo err >&2; exit 7"], 30)?;
    assert_eq!(
        (sync.stdout.as_slice(), sync.stderr.as_slice(), sync.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    let late = node.cri().exec_sync(&app.id, &["sleep", "777"], 1).err();
    let late = late.map(|error| error.to_string()).unwrap_or_default();
    assert!(late.contains("timeout") || late.contains("DeadlineExceeded"), "{late}");
    // The command that took too long is gone.
    assert!(
        !app.exec(&["ps", "-o", "args"])?
            .lines()
            .any(|line| line.trim() == "sleep 777")
    );
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn an_attach_shows_what_comes_and_writes_what_is_typed() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("attach")?;
    let mut config = pod.script(
        "cat",
        "while read line; do echo \"<$line>\"; echo \"!$line\" >&2; done; echo end",
    );
    config.stdin = true;
    let cat = pod.start(&config)?;
    let mut first = super::attach(&node, &cat)?;
    first.write(b"one\n")?;
    first.shows("<one>")?;
    // A second one sees what comes from now on, as the first does. It is the one that writes: only what it has written itself
    // is sure to come after it was attached.
    let mut second = super::attach(&node, &cat)?;
    second.write(b"two\n")?;
    first.shows("<two>")?;
    second.shows("<two>")?;
    cat.await_line("!two")?;

    let mut config = pod.container("shell", &["sh"]);
    config.stdin = true;
    config.tty = true;
    let shell = pod.start(&config)?;
    let url = node.cri().attach(AttachRequest {
        container_id: shell.id.clone(),
        stdin: true,
        tty: true,
        stdout: true,
        stderr: false,
    })?;
    let mut terminal = Streams::connect(node.netns()?, &url)?;
    terminal.write(b"echo shown-$((6*7)); exit 4\n")?;
    terminal.shows("shown-42")?;
    assert_eq!(shell.await_exit()?.exit_code, 4);
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn a_port_of_the_pod_is_forwarded_also_where_it_listens_on_localhost_only() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("ports")?;
    let server = pod.start(&pod.script(
        "server",
        "mkdir /tmp/www && echo local > /tmp/www/f && httpd -p 127.0.0.1:8080 -h /tmp/www && \
         mkdir /tmp/any && echo any > /tmp/any/f && httpd -p 9090 -h /tmp/any && echo up; sleep 1000",
    ))?;
    server.await_line("up")?;
    for (port, answer) in [
        (
            8080, "local
",
        ),
        (
            9090, "any
",
        ),
        (
            8080, "local
",
        ),
    ] {
        let url = node.cri().port_forward(&pod.id, port)?;
        let mut forwarded = Streams::connect_port(node.netns()?, &url, port)?;
        forwarded.write(
            b"GET /f HTTP/1.0

",
        )?;
        forwarded.reads_from_port(answer)?;
    }
    // Nobody listens there.
    let url = node.cri().port_forward(&pod.id, 7070)?;
    let error = Streams::connect_port(node.netns()?, &url, 7070)?.port_error()?;
    // In a microVM the connection is taken before anybody can know, and ended without a byte.
    assert!(node.runtime() == Runtime::Kata || error.contains("7070"), "{error:?}");
    pod.remove()?;
    node.nothing_left()
}
