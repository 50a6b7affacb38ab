//! Tests of the client with a scripted QEMU at the other end of a socket pair.

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::*;

struct Qemu(BufReader<UnixStream>);

impl Qemu {
    fn pair() -> (Qmp, Qemu) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Qmp::new(ours, Scale::default()), Qemu(BufReader::new(theirs)))
    }

    async fn say(&mut self, message: &Value) {
        self.0
            .get_mut()
            .write_all(format!("{message}\r\n").as_bytes())
            .await
            .unwrap();
    }

    /// The id of the next command, which must be `name`.
    async fn hear(&mut self, name: &str) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(command["execute"], name);
        command["id"].clone()
    }
}

#[tokio::test]
async fn negotiation_follows_the_greeting() {
    let (qmp, mut qemu) = Qemu::pair();
    let script = async {
        qemu.say(&json!({ "QMP": {} })).await;
        let id = qemu.hear("qmp_capabilities").await;
        qemu.say(&json!({ "return": {}, "id": id })).await;
    };
    let (result, ()) = tokio::join!(qmp.negotiate(), script);
    result.unwrap();
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order() {
    let (qmp, mut qemu) = Qemu::pair();
    let script = async {
        let first = qemu.hear("stop").await;
        let second = qemu.hear("cont").await;
        qemu.say(&json!({ "return": "second", "id": second })).await;
        qemu.say(&json!({ "error": { "class": "GenericError", "desc": "not now" }, "id": first }))
            .await;
    };
    let (first, second, ()) = tokio::join!(
        qmp.execute("stop", Value::Null),
        qmp.execute("cont", Value::Null),
        script
    );
    assert_eq!(second.unwrap(), "second");
    assert_eq!(
        first.unwrap_err().to_string(),
        "QEMU refuses stop: not now (GenericError)"
    );
}

#[tokio::test]
async fn a_qemu_that_ends_fails_the_waiting_and_the_later_commands() {
    let (qmp, mut qemu) = Qemu::pair();
    let script = async {
        qemu.hear("stop").await;
        drop(qemu);
    };
    let (result, ()) = tokio::join!(qmp.execute("stop", Value::Null), script);
    assert!(matches!(result, Err(QmpError::Closed)));
    assert!(matches!(qmp.execute("stop", Value::Null).await, Err(QmpError::Closed)));
    assert_eq!(qmp.closed().await, None);
}

#[tokio::test]
async fn the_reason_of_a_shutdown_is_kept() {
    let (qmp, mut qemu) = Qemu::pair();
    let mut events = qmp.events();
    qemu.say(&json!({ "event": "SHUTDOWN", "data": { "guest": true, "reason": "guest-shutdown" } }))
        .await;
    assert_eq!(events.recv().await.unwrap().name, "SHUTDOWN");
    drop(qemu);
    assert_eq!(qmp.closed().await.as_deref(), Some("guest-shutdown"));
}

#[tokio::test]
async fn a_command_that_was_given_up_leaves_nothing() {
    let (qmp, mut qemu) = Qemu::pair();
    let given_up = tokio::time::timeout(Duration::from_millis(10), qmp.execute("stop", Value::Null)).await;
    assert!(given_up.is_err());
    assert!(lock(&qmp.pending).is_empty());
    let id = qemu.hear("stop").await;
    qemu.say(&json!({ "return": {}, "id": id })).await;
    let script = async {
        let id = qemu.hear("cont").await;
        qemu.say(&json!({ "return": 1, "id": id })).await;
    };
    let (result, ()) = tokio::join!(qmp.execute("cont", Value::Null), script);
    assert_eq!(result.unwrap(), 1);
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    use std::io::{IoSliceMut, Read as _, Seek as _, Write as _};
    use std::mem::MaybeUninit;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    let (ours, theirs) = UnixStream::pair().unwrap();
    let qmp = Qmp::new(ours, Scale::default());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"the disk").unwrap();
    let script = async {
        theirs.readable().await.unwrap();
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &theirs,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        let command: Value = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
        let files: Vec<_> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(files) => Some(files),
                _ => None,
            })
            .flatten()
            .collect();
        let mut theirs = theirs;
        let answer = json!({ "return": { "fdset-id": 1 }, "id": command["id"] });
        theirs.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        (command, files)
    };
    let ask = qmp.execute_with("add-fd", json!({ "fdset-id": 1 }), file.into());
    let (answer, (command, mut files)) = tokio::join!(ask, script);
    assert_eq!(answer.unwrap()["fdset-id"], 1);
    assert_eq!(command["arguments"]["fdset-id"], 1);
    assert_eq!(files.len(), 1);
    let mut received = std::fs::File::from(files.remove(0));
    received.rewind().unwrap();
    let mut text = String::new();
    received.read_to_string(&mut text).unwrap();
    assert_eq!(text, "the disk");
}
