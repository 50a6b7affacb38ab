use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap()
}

type Ends = (JoinHandle<io::Result<()>>, JoinHandle<io::Result<()>>);

/// A program on either side, and the relays between them.
fn connected(kind: SocketType) -> (OwnedFd, OwnedFd, Ends) {
    let (client, near) = pair(kind);
    let (far, server) = pair(kind);
    let (one, other) = tokio::io::duplex(8 << 10);
    let near = Socket::new(near).unwrap();
    let far = Socket::new(far).unwrap();
    let dialled = tokio::spawn(async move { relay(&near, one, Side::Dialled, &Traffic::default()).await });
    let accepted = tokio::spawn(async move { relay(&far, other, Side::Accepted, &Traffic::default()).await });
    (client, server, (dialled, accepted))
}

fn streams() -> (UnixStream, UnixStream, Ends) {
    let (client, server, ends) = connected(SocketType::STREAM);
    let stream = |fd: OwnedFd| UnixStream::from_std(fd.into()).unwrap();
    (stream(client), stream(server), ends)
}

async fn both_end(ends: Ends) {
    let (dialled, accepted) = tokio::time::timeout(LAST_FRAME_TIMEOUT / 2, async { tokio::join!(ends.0, ends.1) })
        .await
        .unwrap();
    dialled.unwrap().unwrap();
    accepted.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_comes_after_the_question_has_ended() {
    let (mut client, mut server, ends) = streams();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    text.clear();
    client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
    drop(client);
    both_end(ends).await;
}

#[tokio::test]
async fn a_connection_for_which_there_is_nobody_is_ended_in_order() {
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        for said in [0, 1 << 10, frame::LARGEST_MESSAGE / 2] {
            let (client, near) = pair(kind);
            let (one, other) = tokio::io::duplex(8 << 10);
            let (client, near) = (Socket::new(client).unwrap(), Socket::new(near).unwrap());
            let dialled = tokio::spawn(async move { relay(&near, one, Side::Dialled, &Traffic::default()).await });
            let accepted = tokio::spawn(refuse(kind, other));
            // It may be too late for that.
            let _ = client.send(&vec![7; said]).await;
            assert_eq!(client.receive(&mut [0; 1]).await.unwrap_or(0), 0);
            both_end((dialled, accepted)).await;
        }
    }
}

#[tokio::test]
async fn megabytes_both_ways_at_once_arrive_as_they_were() {
    const SIZE: usize = 5 << 20;
    let (client, server, ends) = streams();
    let bytes = |seed: usize| (0..SIZE).map(move |at| ((at ^ seed) % 251) as u8).collect::<Vec<_>>();
    let side = |socket: UnixStream, own: usize, other: usize| async move {
        let (mut reader, mut writer) = socket.into_split();
        let write = async {
            writer.write_all(&bytes(own)).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let read = async {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            assert!(got == bytes(other));
        };
        tokio::join!(write, read)
    };
    tokio::join!(side(client, 1, 2), side(server, 2, 1));
    both_end(ends).await;
}

#[tokio::test]
async fn a_program_that_does_not_read_stops_its_peer_and_not_the_other_direction() {
    let (mut client, mut server, _ends) = streams();
    let mut taken = 0;
    while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_millis(300), client.write(&[7; 4096])).await {
        taken += count;
        assert!(taken < 4 << 20, "nothing holds it up");
    }
    server.write_all(b"other way").await.unwrap();
    let mut got = [0; 9];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"other way");
    let mut rest = vec![0; taken];
    server.read_exact(&mut rest).await.unwrap();
}

#[tokio::test]
async fn who_writes_to_a_program_that_has_gone_is_told() {
    let (mut client, server, ends) = streams();
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    let told = async { while client.write_all(&[7; 4096]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
    drop(client);
    both_end(ends).await;
}

#[tokio::test]
async fn a_program_that_goes_after_it_has_ended_its_direction_is_missed_at_once() {
    let (client, server, ends) = connected(SocketType::STREAM);
    let (client, server) = (Socket::new(client).unwrap(), Socket::new(server).unwrap());
    client.end_writing();
    assert_eq!(server.receive(&mut [0]).await.unwrap(), 0);
    let gone = server.hung_up();
    assert!(tokio::time::timeout(Duration::from_millis(100), gone).await.is_err());
    drop(client);
    // Without a write.
    tokio::time::timeout(Duration::from_secs(5), server.hung_up())
        .await
        .unwrap()
        .unwrap();
    drop(server);
    both_end(ends).await;
}

#[tokio::test]
async fn messages_keep_their_boundaries() {
    let (client, server, ends) = connected(SocketType::SEQPACKET);
    let (client, server) = (Socket::new(client).unwrap(), Socket::new(server).unwrap());
    let sizes = [1, 4096, 100_000, 3];
    for size in sizes {
        client.send(&vec![7; size]).await.unwrap();
    }
    let mut buffer = vec![0; server.largest()];
    for size in sizes {
        assert_eq!(server.receive(&mut buffer).await.unwrap(), size);
    }
    drop((client, server));
    both_end(ends).await;
}

#[tokio::test]
async fn a_stream_that_breaks_breaks_the_connection() {
    let (client, near) = pair(SocketType::STREAM);
    let near = Socket::new(near).unwrap();
    let (one, other) = tokio::io::duplex(64);
    let relayed = tokio::spawn(async move { relay(&near, one, Side::Dialled, &Traffic::default()).await });
    drop(other);
    assert_eq!(relayed.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let mut client = UnixStream::from_std(client.into()).unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_side_that_does_not_keep_to_the_protocol_is_hung_up_on() {
    for frames in [
        [Kind::End, Kind::Data].map(|kind| frame::encode(kind, b"")).concat(),
        [Kind::End, Kind::End].map(|kind| frame::encode(kind, b"")).concat(),
        vec![7; 8],
        frame::header(Kind::Data, frame::LARGEST_CHUNK + 1).to_vec(),
    ] {
        let (_client, near) = pair(SocketType::STREAM);
        let near = Socket::new(near).unwrap();
        let (one, mut other) = tokio::io::duplex(1 << 10);
        other.write_all(&frames).await.unwrap();
        let error = relay(&near, one, Side::Accepted, &Traffic::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{frames:?}");
    }
}
