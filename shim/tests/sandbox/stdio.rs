//! Standard streams through FIFOs.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::fake_guest::flood;
use crate::support::{Boot, Shim, Stdio};

/// More than every buffer on the way together.
const MUCH: usize = 50 << 20;

/// Reads a FIFO to its end, as containerd does.
fn reader(path: &str) -> tokio::task::JoinHandle<Vec<u8>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Writes to a FIFO and closes it.
fn writer(path: &str, bytes: Vec<u8>) -> tokio::task::JoinHandle<()> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut fifo = std::fs::File::options().write(true).open(path).unwrap();
        fifo.write_all(&bytes).unwrap();
    })
}

#[tokio::test]
async fn fifty_megabytes_of_output_arrive_whole_before_the_exit() {
    let shim = Shim::new(Boot::Works).await;
    let (stdout, stderr) = (shim.fifo("stdout"), shim.fifo("stderr"));
    let (read, complaint) = (reader(&stdout), reader(&stderr));
    let stdio = Stdio {
        stdout,
        stderr,
        ..Stdio::default()
    };
    let program = ["flood", &MUCH.to_string()];
    shim.create_with("c", &program, stdio).await.unwrap();
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    let bytes = read.await.unwrap();
    assert_eq!(complaint.await.unwrap(), b"done\n");
    assert_eq!(bytes.len(), MUCH);
    assert!(bytes == flood(MUCH), "the bytes differ");
}

#[tokio::test]
async fn an_exec_gets_fifty_megabytes_in_sees_the_end_and_gives_them_back() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    let (stdin, stdout) = (shim.fifo("stdin"), shim.fifo("stdout"));
    let read = reader(&stdout);
    let stdio = Stdio {
        stdin: stdin.clone(),
        stdout,
        ..Stdio::default()
    };
    shim.exec_with("c", "e", &["cat"], stdio).await.unwrap();
    shim.start("c", "e").await.unwrap();
    writer(&stdin, flood(MUCH)).await.unwrap();
    shim.close_stdin("c", "e").await;
    assert_eq!(shim.wait("c", "e").await.unwrap(), 0);
    assert!(read.await.unwrap() == flood(MUCH), "the bytes differ");
}

#[tokio::test]
async fn an_empty_stdin_ends_at_once() {
    let shim = Shim::new(Boot::Works).await;
    let (stdin, stdout) = (shim.fifo("stdin"), shim.fifo("stdout"));
    let read = reader(&stdout);
    let stdio = Stdio {
        stdin: stdin.clone(),
        stdout,
        ..Stdio::default()
    };
    shim.create_with("c", &["cat"], stdio).await.unwrap();
    shim.start("c", "").await.unwrap();
    writer(&stdin, Vec::new()).await.unwrap();
    shim.close_stdin("c", "").await;
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    assert!(read.await.unwrap().is_empty());
}

/// Streams with a stdin for a program that gives it back.
fn there_and_back(shim: &Shim) -> Stdio {
    Stdio {
        stdin: shim.fifo("stdin"),
        stdout: shim.fifo("stdout"),
        ..Stdio::default()
    }
}

#[tokio::test]
async fn stdin_outlives_a_client_that_goes_away_without_a_word() {
    let shim = Shim::new(Boot::Works).await;
    let stdio = there_and_back(&shim);
    let read = reader(&stdio.stdout);
    shim.create_with("c", &["cat"], stdio.clone()).await.unwrap();
    shim.start("c", "").await.unwrap();
    // containerd or dockerd is restarted; what comes back opens the FIFO again.
    writer(&stdio.stdin, b"one ".to_vec()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(300), shim.wait("c", "")).await;
    assert!(ended.is_err(), "{ended:?}");
    writer(&stdio.stdin, b"two".to_vec()).await.unwrap();
    shim.close_stdin("c", "").await;
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    assert_eq!(read.await.unwrap(), b"one two");
}

#[tokio::test]
async fn an_end_of_stdin_before_the_start_needs_no_word() {
    let shim = Shim::new(Boot::Works).await;
    let stdio = there_and_back(&shim);
    let read = reader(&stdio.stdout);
    shim.create_with("c", &["cat"], stdio.clone()).await.unwrap();
    writer(&stdio.stdin, flood(50 << 10)).await.unwrap();
    shim.start("c", "").await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    assert!(read.await.unwrap() == flood(50 << 10), "the bytes differ");
}

#[tokio::test]
async fn an_end_of_stdin_that_is_told_before_the_start_is_remembered() {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    let stdio = there_and_back(&shim);
    let read = reader(&stdio.stdout);
    shim.exec_with("c", "e", &["cat"], stdio.clone()).await.unwrap();
    shim.close_stdin("c", "e").await;
    shim.start("c", "e").await.unwrap();
    writer(&stdio.stdin, b"x".to_vec()).await.unwrap();
    assert_eq!(shim.wait("c", "e").await.unwrap(), 0);
    assert_eq!(read.await.unwrap(), b"x");
}

/// A logging program with this script; it is ready when it closes descriptor 5.
fn logger(script: &str) -> String {
    let encoded: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("binary:///bin/sh?-c={encoded}")
}

#[tokio::test]
async fn a_logger_may_go_on_after_the_exit_and_ends_before_the_deletion() {
    let shim = Shim::new(Boot::Works).await;
    let log = shim.image("log");
    for (id, ends) in [
        ("waits", "while test ! -e \"$0.told\"; do sleep 0.05; done"),
        ("stays", "while :; do sleep 0.05; done"),
    ] {
        let log = log.display();
        let script = format!(
            "exec 5>&-; trap 'echo end >> {log}.{id}; exit' TERM; cat <&3 > {log}.{id}; {ends}; echo told >> {log}.{id}"
        )
        .replace("$0", &format!("{log}.{id}"));
        let stdio = Stdio {
            stdout: logger(&script),
            ..Stdio::default()
        };
        shim.create_with(id, &["liar"], stdio).await.unwrap();
        shim.start(id, "").await.unwrap();
        // nerdctl's waits for this.
        assert_eq!(shim.wait(id, "").await.unwrap(), 0);
        if id == "waits" {
            std::fs::write(format!("{log}.{id}.told"), "").unwrap();
        }
        shim.delete(id, "").await.unwrap();
        let last = if id == "waits" { "hellotold\n" } else { "helloend\n" };
        assert_eq!(std::fs::read_to_string(format!("{log}.{id}")).unwrap(), last);
    }
}

#[tokio::test]
async fn a_fifo_that_is_not_there_fails_the_create_with_its_path() {
    let shim = Shim::new(Boot::Works).await;
    let stdio = Stdio {
        stdout: "/nowhere/fifo".to_owned(),
        ..Stdio::default()
    };
    let (_, message) = crate::support::refusal(shim.create_with("c", &["sleep"], stdio).await);
    assert!(message.contains("/nowhere/fifo"), "{message}");
    assert!(shim.host.attached().is_empty());
}

#[tokio::test]
async fn a_guest_that_announces_more_output_than_it_sends_costs_a_bounded_time() {
    let shim = Shim::new(Boot::Works).await;
    let stdout = shim.fifo("stdout");
    let read = reader(&stdout);
    let stdio = Stdio {
        stdout,
        ..Stdio::default()
    };
    shim.create_with("c", &["liar"], stdio).await.unwrap();
    shim.start("c", "").await.unwrap();
    let status = tokio::time::timeout(Duration::from_secs(5), shim.wait("c", "")).await;
    assert_eq!(status.unwrap().unwrap(), 0);
    assert_eq!(read.await.unwrap(), b"hello");
}
