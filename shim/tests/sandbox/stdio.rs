//! Standard streams through FIFOs.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::guest::flood;
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
    let written = writer(&stdin, flood(MUCH));
    assert_eq!(shim.wait("c", "e").await.unwrap(), 0);
    written.await.unwrap();
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
    assert_eq!(shim.wait("c", "").await.unwrap(), 0);
    assert!(read.await.unwrap().is_empty());
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
