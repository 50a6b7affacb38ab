//! No byte of a container's standard streams is lost, and each stream ends when it should.

use std::{fs, fs::File, io::Read, thread, time::Duration};

use framework::{Error, Node, Result, image::sha256, locate, wait};
use nix::sys::signal::Signal;

const MIB: usize = 1 << 20;

#[test]
fn what_goes_in_comes_out_and_an_end_of_input_arrives() -> Result<()> {
    let node = Node::start()?;
    let mut running = node.run("open").arg("--rm").program(["cat"]).spawn()?;
    running.write(b"first ")?;
    // `ctr` forwards an end of input only if the task exists by then, hence the wait for its answer.
    running.shows("first ")?;
    running.write(b"second")?;
    running.close_stdin();
    assert_eq!(running.wait()?.success()?.stdout(), "first second");
    node.nothing_left()
}

#[test]
fn fifty_megabytes_of_random_bytes_pass_through_cat_unchanged() -> Result<()> {
    let node = Node::start()?;
    let mut sent = vec![0; 50 * MIB];
    File::open("/dev/urandom")?.read_exact(&mut sent)?;
    fs::write(node.dir().join("in"), &sent)?;
    let output = File::create(node.dir().join("out"))?;
    let limit = Duration::from_secs(180);
    node.run("big")
        .arg("--rm")
        .program(["cat"])
        .limit(limit)
        .through(File::open(node.dir().join("in"))?, output)?
        .success()?;
    let received = fs::read(node.dir().join("out"))?;
    assert_eq!(received.len(), sent.len());
    assert_eq!(sha256(&received), sha256(&sent));
    Ok(())
}

#[test]
fn ten_megabytes_of_output_and_ten_of_error_come_out_apart_and_whole() -> Result<()> {
    let node = Node::start()?;
    let script = "yes out | head -c 10485760 & yes err | head -c 10485760 >&2; wait";
    let output = node.run("both").arg("--rm").sh(script).output()?.success()?;
    assert_eq!(output.stdout.len(), 10 * MIB);
    assert_eq!(output.stderr.len(), 10 * MIB);
    assert!(output.stdout.chunks_exact(4).all(|line| line == b"out\n"));
    assert!(output.stderr.chunks_exact(4).all(|line| line == b"err\n"));
    Ok(())
}

#[test]
fn thirty_bursts_in_a_row_lose_no_tail() -> Result<()> {
    let node = Node::start()?;
    node.run("burst").arg("-d").program(["sleep", "1000"]).ok()?;
    let script = "seq 1 2000; seq 1 2000 >&2; echo the end; echo the end >&2";
    let mut wanted: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    wanted.push_str("the end\n");
    for round in 0..30 {
        let output = node
            .exec("burst", &format!("e{round}"))
            .sh(script)
            .output()?
            .success()?;
        assert_eq!(output.stdout(), wanted, "standard output of round {round}");
        assert_eq!(output.stderr(), wanted, "standard error of round {round}");
    }
    node.remove("burst")?;
    node.nothing_left()
}

#[test]
fn a_terminal_has_the_size_of_the_users_and_follows_it_and_passes_control_characters() -> Result<()> {
    let node = Node::start()?;
    let mut terminal = node.run("tty").args(["--rm", "-t"]).program(["sh"]).terminal(40, 123)?;
    // The quotes keep the echo of what is typed from being taken for the answer.
    terminal.types("test -t 0 && test -t 1 && test -t 2 && echo all-'are'-terminals\n")?;
    terminal.shows("all-are-terminals")?;
    // A size is announced after the start, so the shell waits for it as it would for any change.
    terminal.types("trap 'stty size' WINCH; echo re'ady'\n")?;
    terminal.shows("ready")?;
    terminal.resize(50, 91)?;
    terminal.types("while ! stty size | grep -q '50 91'; do :; done; echo re'sized'\n")?;
    terminal.shows("resized")?;
    // Told by the child, which has the terminal by then: before that ^C would reach the shell alone.
    terminal.types("sh -c 'echo sl''eeps; exec sleep 1000'\n")?;
    terminal.shows("sleeps")?;
    // The shell drops the rest of an interrupted line, so the code is asked for in the next.
    terminal.types("\x03")?;
    terminal.types("echo code-'is'-$?\n")?;
    terminal.shows("code-is-130")?;
    terminal.types("exit 5\n")?;
    assert_eq!(terminal.wait()?, Some(5));
    node.nothing_left()
}

/// What `seq -s ' ' COUNT` shows on a terminal, without the end of its line.
fn numbers(count: u32) -> Vec<u8> {
    let words: Vec<String> = (1..=count).map(|number| number.to_string()).collect();
    words.join(" ").into_bytes()
}

/// Fails unless they are the same, and says where they part: nobody wants to see megabytes.
fn same(shown: &[u8], wanted: &[u8], what: &str) {
    assert!(shown.ends_with(b"\n"), "{what}: the end of the line is missing");
    // The container's terminal puts a carriage return before it, and the one that `ctr` is on another.
    let shown = shown.trim_ascii_end();
    let part = shown.iter().zip(wanted).position(|(shown, wanted)| shown != wanted);
    assert!(
        shown == wanted,
        "{what}: {} bytes instead of {}, different from byte {part:?}; the end: {:?}",
        shown.len(),
        wanted.len(),
        String::from_utf8_lossy(&shown[shown.len().saturating_sub(60)..])
    );
}

#[test]
fn no_byte_of_a_terminal_is_lost_to_a_slow_reader() -> Result<()> {
    let node = Node::start()?;
    node.run("base").arg("-d").program(["sleep", "1000"]).ok()?;
    let limit = Duration::from_secs(120);
    for (count, rounds, piece) in [(150_000, 12, 3000), (1_000_000, 2, 16 << 10)] {
        let wanted = numbers(count);
        for round in 0..rounds {
            let exec = node.exec("base", &format!("e{count}-{round}")).arg("-t");
            let mut terminal = exec
                .program(["seq", "-s", " ", &count.to_string()])
                .limit(limit)
                .terminal(24, 80)?;
            // Odd rounds are read as fast as they come.
            let pause = Duration::from_millis(u64::from(round % 2 == 0));
            let shown = terminal.read_slowly(piece, pause)?;
            same(&shown, &wanted, &format!("round {round} of {count}"));
            assert_eq!(terminal.wait()?, Some(0));
        }
    }
    node.remove("base")?;
    node.nothing_left()
}

#[test]
fn output_goes_to_a_file_or_to_a_logger_where_the_user_asks_for_it() -> Result<()> {
    let node = Node::start()?;
    let limit = Duration::from_secs(60);
    let file = node.dir().join("container.log");
    let uri = format!("file://{}", file.display());
    node.run("file")
        .args(["-d", "--log-uri", &uri])
        .sh("echo out; echo err >&2")
        .ok()?;
    wait::content(node.dir(), "container.log", limit, |text| {
        text.contains("out\n") && text.contains("err\n")
    })?;

    let uri = format!(
        "binary://{}?log-to={}",
        locate::guest_probe()?.display(),
        node.dir().join("logger.log").display()
    );
    node.run("logger")
        .args(["-d", "--log-uri", &uri])
        .sh("seq 1 20000; echo err >&2; echo end")
        .ok()?;
    let mut wanted: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    wanted.push_str("end\n");
    // The logger copies as it comes: the one stream can be in the middle of a line of the other.
    wait::content(node.dir(), "logger.log", limit, |text| {
        text.contains("err\n") && text.replacen("err\n", "", 1) == wanted
    })?;
    for name in ["file", "logger"] {
        node.forget(name)?;
    }
    node.nothing_left()
}

/// So it is when containerd or dockerd is restarted. Without a terminal nothing but CloseIO ends it.
#[test]
fn stdin_outlives_a_client_that_dies() -> Result<()> {
    let node = Node::start()?;
    let mut client = node.run("open").program(["cat"]).spawn()?;
    client.write(b"first")?;
    client.shows("first")?;
    client.signal(Signal::SIGKILL)?;
    assert_eq!(client.wait()?.code, None);
    // An end of input would be there by now.
    node.exec("open", "later").program(["sleep", "2"]).ok()?;
    assert_eq!(node.status("open")?.as_deref(), Some("RUNNING"));
    node.remove("open")?;
    node.nothing_left()
}

#[test]
fn an_exec_ends_although_a_child_of_it_writes_on_and_on() -> Result<()> {
    let node = Node::start()?;
    node.run("writer").arg("-d").program(["sleep", "1000"]).ok()?;
    let output = node
        .exec("writer", "child")
        .sh("(while :; do echo child; sleep 0.05; done) & echo started")
        .limit(Duration::from_secs(60))
        .output()?
        .success()?;
    assert!(output.stdout().contains("started\n"));
    node.remove("writer")?;
    node.nothing_left()
}

#[test]
fn an_exec_ends_although_a_child_of_it_keeps_its_pipes() -> Result<()> {
    let node = Node::start()?;
    node.run("holder").arg("-d").program(["sleep", "1000"]).ok()?;
    let output = node
        .exec("holder", "child")
        .sh("sleep 999 & echo started")
        .limit(Duration::from_secs(30))
        .output()?
        .success()?;
    assert_eq!(output.stdout(), "started\n");
    node.remove("holder")?;
    node.nothing_left()
}

/// `ctr` closes its end of the FIFO before the task exists, and then never calls CloseIO; runc, which keeps a writing end
/// of its own open until that call, hangs for ever.
mod kata_only {
    use super::*;

    /// The guest says once that it has no room for more, and then when it has some.
    #[test]
    fn input_that_its_program_does_not_read_keeps_no_cpu_busy() -> Result<()> {
        const LOOK: Duration = Duration::from_secs(3);
        let node = Node::start()?;
        node.run("idle").arg("-d").program(["sleep", "1000"]).ok()?;
        // More than all buffers on the way take.
        fs::write(node.dir().join("in"), vec![b'x'; 4 * MIB])?;
        let input = File::open(node.dir().join("in"))?;
        let output = File::create(node.dir().join("out"))?;
        let exec = node
            .exec("idle", "full")
            .sh("echo up; until [ -e /tmp/go ]; do sleep 0.2; done; wc -c");
        let exec = thread::spawn(move || exec.through(input, output)?.success());
        wait::changed(node.dir(), Duration::from_secs(60), || {
            (fs::read(node.dir().join("out")).ok()? == b"up\n").then_some(())
        })?;
        thread::sleep(LOOK);
        let daemons = || -> Vec<_> {
            let processes = node.processes("idle").into_iter();
            processes
                .filter(|process| process.program().ends_with("vhost-device-vsock"))
                .collect()
        };
        for daemon in daemons() {
            let before = cpu_time(daemon.pid)?;
            thread::sleep(LOOK);
            let busy = cpu_time(daemon.pid)?.saturating_sub(before);
            assert!(busy < LOOK / 100, "the vsock daemon was busy for {busy:?} of {LOOK:?}");
        }
        node.exec("idle", "go").program(["touch", "/tmp/go"]).ok()?;
        exec.join()
            .map_err(|_| Error::unexpected("the exec's thread ended"))??;
        assert_eq!(
            fs::read_to_string(node.dir().join("out"))?,
            format!("up\n{}\n", 4 * MIB)
        );
        node.remove("idle")?;
        node.nothing_left()
    }

    /// The time of a process's threads on CPUs (`/proc/PID/task/TID/schedstat`, its first number, in ns).
    fn cpu_time(pid: u32) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let number = text.split(' ').next().and_then(|number| number.parse().ok());
            time += Duration::from_nanos(number.unwrap_or_default());
        }
        Ok(time)
    }

    #[test]
    fn an_end_of_input_that_comes_before_the_container_is_not_lost() -> Result<()> {
        let node = Node::start()?;
        let output = node
            .run("echo")
            .arg("--rm")
            .program(["cat"])
            .output_with(b"x\n".to_vec())?
            .success()?;
        assert_eq!(output.stdout(), "x\n");
        node.nothing_left()
    }

    /// With runc the exit is told at once, and `ctr` removes the container with what its reader has not taken yet.
    #[test]
    fn no_byte_of_a_containers_own_terminal_is_lost_to_a_slow_reader() -> Result<()> {
        let node = Node::start()?;
        let init = node.run("init").args(["--rm", "-t"]).limit(Duration::from_secs(120));
        let mut terminal = init.program(["seq", "-s", " ", "300000"]).terminal(24, 80)?;
        let shown = terminal.read_slowly(3000, Duration::from_millis(1))?;
        same(&shown, &numbers(300_000), "init");
        assert_eq!(terminal.wait()?, Some(0));
        node.nothing_left()
    }
}
