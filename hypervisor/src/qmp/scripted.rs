//! A QEMU for tests that answers its monitor by a rule.

use base::scale::Scale;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::Qmp;

/// Talks to one. The rule is given a command's name and its arguments; what it gives back is said in that order, with the
/// command's id where it is an answer. None: QEMU ends.
pub(crate) fn qemu(rule: impl FnMut(&str, &Value) -> Option<Vec<Value>> + Send + 'static) -> Qmp {
    talkative(rule, mpsc::unbounded_channel().1)
}

/// The same, of one that says what comes from `unasked` as well.
pub(crate) fn talkative(
    mut rule: impl FnMut(&str, &Value) -> Option<Vec<Value>> + Send + 'static,
    mut unasked: mpsc::UnboundedReceiver<Value>,
) -> Qmp {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (reads, mut writes) = theirs.into_split();
        let mut lines = BufReader::new(reads).lines();
        loop {
            let says = tokio::select! {
                line = lines.next_line() => {
                    let Some(line) = line.unwrap() else { return };
                    let command: Value = serde_json::from_str(&line).unwrap();
                    let Some(mut says) = rule(command["execute"].as_str().unwrap(), &command["arguments"]) else {
                        return;
                    };
                    for message in says.iter_mut().filter(|message| message.get("event").is_none()) {
                        message["id"] = command["id"].clone();
                    }
                    says
                }
                Some(event) = unasked.recv() => vec![event],
            };
            for message in says {
                writes.write_all(format!("{message}\n").as_bytes()).await.unwrap();
            }
        }
    });
    Qmp::new(ours, Scale::default())
}
