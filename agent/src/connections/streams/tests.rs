use super::output::GRACE;
use super::*;
use crate::common::blocking;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(30);

/// A process's end of stdout, the host's end of its connection, and the streams between them.
fn stdout(window: usize) -> (OwnedFd, DuplexStream, Streams) {
    let (near, far) = duplex(window);
    let (prepared, stdio) = Prepared::with_pipes(None, Some(Box::new(near)), None).unwrap();
    let launch::Stdio::Pipes { stdout: Some(pipe), .. } = stdio else {
        panic!("no pipe");
    };
    (pipe, far, prepared.start(None).unwrap())
}

fn stdin(window: usize) -> (OwnedFd, DuplexStream, Streams) {
    let (near, far) = duplex(window);
    let (prepared, stdio) = Prepared::with_pipes(Some(Box::new(near)), None, None).unwrap();
    let launch::Stdio::Pipes { stdin: Some(pipe), .. } = stdio else {
        panic!("no pipe");
    };
    (pipe, far, prepared.start(None).unwrap())
}

#[tokio::test]
async fn the_pipe_of_stdout_takes_what_the_copy_moves_at_a_time() {
    let (pipe, _host, _streams) = stdout(1);
    assert_eq!(rustix::pipe::fcntl_getpipe_size(&pipe).unwrap(), BUFFER);
}

#[tokio::test]
async fn fifty_megabytes_reach_a_slow_host_and_are_counted() {
    const SIZE: usize = 50 << 20;
    let (pipe, mut host, mut streams) = stdout(4096);
    let writer = tokio::spawn(blocking::run(move || {
        use std::io::Write;
        std::fs::File::from(pipe).write_all(&vec![7; SIZE]).unwrap();
    }));
    let mut first = vec![0; 1000];
    host.read_exact(&mut first).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut count = 1000;
        let mut buffer = vec![0; 1 << 20];
        while count < SIZE {
            count += host.read(&mut buffer).await.unwrap();
        }
        (count, host)
    });
    writer.await.unwrap().unwrap();
    let lengths = timeout(LONG, streams.process_ended().lengths()).await.unwrap();
    assert_eq!(lengths, (SIZE as u64, 0));
    let (count, _host) = reader.await.unwrap();
    assert_eq!(count, SIZE);
}

#[tokio::test]
async fn a_child_that_holds_the_pipe_does_not_hold_the_exit_and_gets_no_sigpipe() {
    let (pipe, mut host, mut streams) = stdout(4096);
    rustix::io::write(&pipe, b"before").unwrap();
    let lengths = timeout(LONG, streams.process_ended().lengths()).await.unwrap();
    assert_eq!(lengths, (6, 0));
    let mut bytes = [0; 6];
    host.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"before");

    let written = blocking::run(move || {
        use std::io::Write;
        std::fs::File::from(pipe).write_all(&vec![0; 1 << 20])
    });
    timeout(LONG, written).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_child_that_writes_on_and_on_does_not_hold_the_exit() {
    for pause in [GRACE / 4, Duration::ZERO] {
        let (pipe, mut host, mut streams) = stdout(4096);
        let own = vec![b'o'; 60 << 10];
        rustix::io::write(&pipe, &own).unwrap();
        let child = std::thread::spawn(move || {
            // Until the streams are gone.
            while rustix::io::write(&pipe, b"c").is_ok() {
                std::thread::sleep(pause);
            }
        });
        let ended = streams.process_ended();
        // The host is slow, and loses nothing of what the process itself wrote.
        let mut first = vec![0; own.len()];
        for part in first.chunks_mut(4096) {
            tokio::time::sleep(GRACE / 2).await;
            host.read_exact(part).await.unwrap();
        }
        assert!(first == own, "the bytes differ");
        let drain = tokio::spawn(async move { tokio::io::copy(&mut host, &mut tokio::io::sink()).await });
        timeout(LONG, ended.lengths()).await.unwrap();
        drop(streams);
        drain.abort();
        // The tasks, and with them the pipe's end, go while this one waits.
        let joined = blocking::run(move || child.join());
        timeout(LONG, joined).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_host_that_reads_nothing_stops_the_process_and_not_the_other_stream() {
    let (blocked, _deaf, _streams) = stdout(1);
    rustix::io::write(&blocked, &[0; 4096]).unwrap();
    let (pipe, mut host, mut streams) = stdout(4096);
    rustix::io::write(&pipe, b"x").unwrap();
    drop(pipe);
    assert_eq!(host.read_u8().await.unwrap(), b'x');
    assert_eq!(streams.process_ended().lengths().await, (1, 0));
}

#[tokio::test]
async fn a_host_that_has_gone_away_holds_no_exit() {
    let (pipe, host, mut streams) = stdout(1);
    rustix::io::write(&pipe, &[0; 4096]).unwrap();
    drop((pipe, host));
    let lengths = timeout(LONG, streams.process_ended().lengths()).await.unwrap();
    assert_eq!(lengths, (4096, 0));
}

#[tokio::test]
async fn a_delete_ends_the_wait_for_a_host_that_reads_nothing() {
    let (pipe, _deaf, mut streams) = stdout(1);
    rustix::io::write(&pipe, &[0; 4096]).unwrap();
    let lengths = tokio::spawn(streams.process_ended().lengths());
    drop((pipe, streams));
    assert_eq!(timeout(LONG, lengths).await.unwrap().unwrap(), (0, 0));
}

#[tokio::test]
async fn a_host_that_has_stopped_reading_does_not_hold_the_exit_of_a_dead_process() {
    let (pipe, _host, mut streams) = stdout(16);
    rustix::io::write(&pipe, &[7; 4096]).unwrap();
    drop(pipe);
    let lengths = timeout(LONG, streams.process_ended().lengths()).await.unwrap();
    assert_eq!(lengths, (0, 0), "what was not taken is not announced");
}

#[tokio::test]
async fn the_connection_stays_open_until_the_host_closes_it() {
    let (pipe, mut host, mut streams) = stdout(4096);
    drop(pipe);
    assert_eq!(streams.process_ended().lengths().await, (0, 0));
    let silence = timeout(Duration::from_millis(50), host.read_u8()).await;
    assert!(silence.is_err(), "the agent closed first");
    drop(host);
    timeout(LONG, async { while streams.tasks.join_next().await.is_some() {} })
        .await
        .unwrap();
}

#[tokio::test]
async fn stdin_ends_after_the_announced_bytes_wherever_the_announcement_falls() {
    for announce_first in [true, false] {
        let (pipe, mut host, streams) = stdin(4096);
        if announce_first {
            streams.close_stdin(5);
        }
        host.write_all(b"hello").await.unwrap();
        if !announce_first {
            tokio::task::yield_now().await;
            streams.close_stdin(5);
        }
        let text = blocking::run(move || io::read_to_string(std::fs::File::from(pipe)));
        assert_eq!(timeout(LONG, text).await.unwrap().unwrap().unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_process_that_closes_its_stdin_closes_the_connection() {
    let (pipe, mut host, _streams) = stdin(4096);
    drop(pipe);
    assert_eq!(timeout(LONG, host.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_terminal_carries_both_directions_and_its_size() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(
        &name,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();

    let (near, mut host) = duplex(4096);
    let prepared = Prepared {
        stdin: None,
        stdout: None,
        stderr: None,
        terminal: Some(Box::new(near)),
    };
    let mut streams = prepared.start(Some(master)).unwrap();
    streams.resize(132, 43).unwrap();
    assert_eq!(rustix::termios::tcgetwinsize(&slave).unwrap().ws_col, 132);

    rustix::io::write(&slave, b"out").unwrap();
    let mut bytes = [0; 3];
    host.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"out");

    host.write_all(b"in\n").await.unwrap();
    let mut echo = [0; 4];
    host.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"in\r\n");
    drop(slave);
    assert_eq!(timeout(LONG, streams.process_ended().lengths()).await.unwrap(), (7, 0));
}

#[test]
fn a_token_of_the_wrong_length_is_refused() {
    assert!(token("stdin", &[]).unwrap().is_none());
    assert!(token("stdin", &[1; 16]).unwrap().is_some());
    assert!(matches!(
        token("stdin", &[1; 15]),
        Err(StdioError::Token { length: 15, .. })
    ));
}
