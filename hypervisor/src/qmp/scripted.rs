//! A QEMU that answers its monitor by a rule: for tests.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::Qmp;

/// Talks to one. The rule is given a command's name and its arguments; what it gives back is said in that order, with the
/// command's id where it is an answer. None: QEMU ends.
pub(crate) fn qemu(mut rule: impl FnMut(&str, &Value) -> Option<Vec<Value>> + Send + 'static) -> Qmp {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let mut stream = BufReader::new(theirs);
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            let command: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            let Some(says) = rule(command["execute"].as_str().unwrap(), &command["arguments"]) else {
                return;
            };
            for mut message in says {
                if message.get("event").is_none() {
                    message["id"] = command["id"].clone();
                }
                let text = format!("{message}\n");
                stream.get_mut().write_all(text.as_bytes()).await.unwrap();
            }
        }
    });
    Qmp::new(ours)
}
