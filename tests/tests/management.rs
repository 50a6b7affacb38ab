//! The management API of Kata's shim, asked as Kata's own tools ask: kata-monitor, `kata-runtime exec`.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use framework::{Error, Node, Result, http};
use prometheus_parse::Scrape;

/// Where the Go runtime and runtime-rs have their sandboxes. kata-monitor watches the first, `kata-ctl` of Kata asks in the
/// second.
const ROOTS: [&str; 2] = ["/run/vc/sbs", "/run/kata"];

fn socket(root: &str, id: &str) -> PathBuf {
    PathBuf::from(root).join(id).join("shim-monitor.sock")
}

/// The status and the body of an answer on the Go runtime's socket.
fn ask(id: &str, method: &str, target: &str) -> Result<(String, String)> {
    let (head, body) = http::ask(UnixStream::connect(socket(ROOTS[0], id))?, method, target, b"")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok((status.to_owned(), body))
}

#[test]
fn katas_tools_find_a_sandbox_by_its_id_and_read_its_figures() -> Result<()> {
    let node = Node::start()?;
    node.run("pod").arg("-d").program(["sleep", "1000"]).ok()?;
    let id = node.id("pod");
    for root in ROOTS {
        // kata-monitor's list of sandboxes is this directory.
        let names = fs::read_dir(root)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        assert!(names.into_iter().any(|name| name == id), "{root}");
        let socket = socket(root, &id);
        let metadata = fs::symlink_metadata(&socket)?;
        // A socket and no link: a container of kata-monitor's sees nothing but this directory.
        assert!(metadata.file_type().is_socket(), "{metadata:?}");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let (head, body) = http::get(UnixStream::connect(&socket)?, "/metrics")?;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let scrape = Scrape::parse(body.lines().map(|line| Ok(line.to_owned())))?;
        for metric in ["kata_shim_fds", "kata_hypervisor_proc_status", "kata_guest_up"] {
            assert!(
                scrape.samples.iter().any(|sample| sample.metric == metric),
                "{metric}: {body}"
            );
        }
        // kata-monitor adds it to every sample, and a label must not be there twice.
        let labelled = scrape
            .samples
            .iter()
            .find(|sample| sample.labels.get("sandbox_id").is_some());
        assert!(labelled.is_none(), "{labelled:?}");
    }
    for (method, target, status) in [
        ("POST", "/metrics", "405"),
        ("GET", "/direct-volume/resize", "405"),
        ("GET", "/direct-volume/stats", "400"),
        ("GET", "/direct-volume/stats?path=%2Fdev%2Fnone", "500"),
        ("POST", "/direct-volume/resize", "400"),
        ("POST", "/iptables", "405"),
        ("POST", "/ip6tables", "405"),
        ("GET", "/debug/pprof/", "404"),
    ] {
        let (said, body) = ask(&id, method, target)?;
        assert_eq!(said, status, "{method} {target}: {body}");
    }
    node.remove("pod")?;
    node.nothing_left()
}

/// Dials what `/agent-url` names, as `kata-runtime exec` does, and asks for the debug console's port. The answer is the first
/// line that comes back.
fn console(id: &str) -> Result<(BufReader<UnixStream>, String)> {
    let (status, url) = ask(id, "GET", "/agent-url")?;
    assert_eq!(status, "200", "{url}");
    let path = url.strip_prefix("hvsock://").and_then(|rest| rest.split(':').next());
    let path = path.ok_or_else(|| Error::unexpected(format!("no hybrid vsock: {url:?}")))?;
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(b"CONNECT 1026\n")?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    Ok((stream, line))
}

#[test]
fn a_shell_in_the_guest_is_reached_as_kata_runtime_exec_does() -> Result<()> {
    let node = Node::start_configured("[agent.kata]\ndebug_console_enabled = true\n")?;
    node.run("pod").arg("-d").program(["sleep", "1000"]).ok()?;
    let id = node.id("pod");
    let (mut shell, said) = console(&id)?;
    assert_eq!(said, "OK 1026\n");
    shell.get_mut().write_all(b"echo guest-$((40 + 2)); tty; exit\n")?;
    let mut output = String::new();
    shell.read_to_string(&mut output)?;
    assert!(output.contains("guest-42") && output.contains("/dev/"), "{output:?}");
    // One that is left alone ends with its connection: the container can be removed, and nothing stays.
    let (shell, said) = console(&id)?;
    assert_eq!(said, "OK 1026\n");
    drop(shell);
    node.remove("pod")?;
    node.nothing_left()
}

#[test]
fn without_a_debug_console_the_error_names_the_key() -> Result<()> {
    let node = Node::start()?;
    node.run("pod").arg("-d").program(["sleep", "1000"]).ok()?;
    let (_, said) = console(&node.id("pod"))?;
    assert!(said.contains("debug_console_enabled = true"), "{said:?}");
    node.remove("pod")?;
    node.nothing_left()
}
