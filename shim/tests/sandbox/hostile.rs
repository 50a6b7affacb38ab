//! A guest that lies.

use protocol::agent::event::What;
use protocol::agent::{HelloRequest, OutOfMemory};
use protocol::agent_ttrpc::HostClient;
use protocol::preamble::Preamble;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

use containerd_shim_protos::api::Status;

use crate::support::fake_guest::exit;
use crate::support::{Boot, Shim, soon};

/// A sandbox with one container, and proof that both are well.
async fn with_container() -> Shim {
    let shim = Shim::new(Boot::Works).await;
    shim.run("c", &["sleep"]).await;
    shim
}

async fn is_well(shim: &Shim) {
    assert_eq!(shim.status("c", "").await, Status::RUNNING);
    shim.kill("c", "", 9).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 137);
    assert_eq!(shim.containerd.exits("c"), 1);
}

async fn is_hung_up_on(mut connection: UnixStream) {
    let read = connection.read(&mut [0; 64]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn exits_and_ooms_of_what_does_not_exist_are_dropped() {
    let shim = with_container().await;
    for (container, exec) in [("nobody", ""), ("c", "nothing"), ("", ""), ("../c", ""), ("c", "../e")] {
        shim.guest.publish(exit(container, exec, 0, 0)).await.unwrap();
    }
    let oom = OutOfMemory {
        container_id: "nobody".to_owned(),
        ..Default::default()
    };
    shim.guest.publish(What::Oom(oom)).await.unwrap();
    is_well(&shim).await;
    assert_eq!(
        shim.containerd.topics(3).await,
        ["/tasks/create", "/tasks/start", "/tasks/exit"]
    );
}

/// containerd logs each.
#[tokio::test]
async fn containerd_is_told_of_thirty_oom_kills_of_a_container_in_a_minute_and_of_no_more() {
    const MOST: usize = 30;
    let shim = with_container().await;
    let oom = || {
        What::Oom(OutOfMemory {
            container_id: "c".to_owned(),
            ..Default::default()
        })
    };
    for told in 1..=MOST {
        shim.guest.publish(oom()).await.unwrap();
        // Those that wait are told as one.
        shim.containerd.topics(2 + told).await;
    }
    for _ in 0..10 {
        shim.guest.publish(oom()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    is_well(&shim).await;
    let topics = shim.containerd.topics(3 + MOST).await;
    let ooms = topics.iter().filter(|topic| *topic == "/tasks/oom").count();
    assert_eq!(ooms, MOST, "{topics:?}");
}

#[tokio::test]
async fn an_exit_that_is_told_twice_counts_once_and_its_status_fits_a_byte() {
    let shim = with_container().await;
    shim.guest.publish(exit("c", "", 0x1_0003, 0)).await.unwrap();
    shim.guest.publish(exit("c", "", 5, 0)).await.unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 3);
    shim.delete("c", "").await.unwrap();
    assert_eq!(shim.containerd.topics(4).await.len(), 4);
}

#[tokio::test]
async fn an_event_that_is_sent_again_is_acknowledged_and_one_that_skips_is_refused() {
    let shim = with_container().await;
    shim.guest.publish(exit("nobody", "", 0, 0)).await.unwrap();
    shim.guest.publish_as(1, exit("c", "", 4, 0)).await.unwrap();
    assert!(shim.guest.publish_as(9, exit("c", "", 4, 0)).await.is_err());
    is_well(&shim).await;
}

#[tokio::test]
async fn second_connections_wrong_tokens_and_strangers_are_hung_up_on() {
    let shim = with_container().await;
    for preamble in [Preamble::Host, Preamble::Agent, Preamble::Stream([7; 16])] {
        is_hung_up_on(shim.guest.dial(preamble).await.unwrap()).await;
    }
    let mut stranger = shim.guest.dial_raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // The connection may be closed already.
    let _ = stranger.write_all(b"more").await;
    is_hung_up_on(stranger).await;
    is_well(&shim).await;
}

#[tokio::test]
async fn hello_is_said_once() {
    let shim = with_container().await;
    let connection = shim.guest.dial(Preamble::Host).await.unwrap();
    let second = HostClient::new(Client::new(Socket::new(connection)));
    assert!(second.hello(soon(), &HelloRequest::new()).await.is_err());
    is_well(&shim).await;
}

#[tokio::test]
async fn a_giant_line_of_the_log_is_cut_and_the_next_one_is_read() {
    let shim = with_container().await;
    let mut log = shim.guest.dial(Preamble::Log).await.unwrap();
    log.write_all(&vec![b'x'; 1 << 17]).await.unwrap();
    log.write_all(b"\nshort\n").await.unwrap();
    let lines = shim.guest.logged(2).await;
    assert!(lines[0].len() <= 8 << 10, "{}", lines[0].len());
    assert_eq!(lines[1], b"short");
    is_well(&shim).await;
}

#[tokio::test]
async fn an_agent_that_gives_up_ends_the_sandbox() {
    let shim = with_container().await;
    shim.guest
        .publish(What::Fatal("no memory\u{7}".to_owned()))
        .await
        .unwrap();
    assert_eq!(shim.wait("c", "").await.unwrap(), 137);
}
