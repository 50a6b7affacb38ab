//! Requests whose lengths are not true. The host must not believe them: it answers with an error, or ends the one daemon that
//! serves this guest alone.

use serde_json::Value;

use super::{
    Attempts, VOLUMES, errno,
    fuse::{Op, ROOT, string, words},
};

const LONGEST: u32 = u32::MAX;
/// A number that is no request.
const UNKNOWN: u32 = 4095;

/// Prints an object from what was claimed to the errno that came of it. For the volumes of [`super::run`]; `data` is written to
/// the file `written` of its directory that may be written to.
pub(crate) fn lengths() -> crate::error::Result<()> {
    let mut attempts = Attempts::begin()?;
    let file = attempts.walk(&[VOLUMES, "2", "file"])?.id;
    let directory = attempts.walk(&[VOLUMES, "1"])?.id;
    let name = string("user.x");
    let requests = [
        ("a request of 4 GiB", LONGEST, Op::Getattr as u32, vec![0; 16]),
        ("no request", 40, UNKNOWN, Vec::new()),
        ("4 G nodes to forget", 48, Op::BatchForget as u32, words(&[LONGEST, 0])),
        (
            "an attribute of 4 GiB",
            48 + name.len() as u32,
            Op::Getxattr as u32,
            [words(&[LONGEST, 0]), name].concat(),
        ),
        ("names of 4 GiB", 48, Op::Listxattr as u32, words(&[LONGEST, 0])),
    ];
    for (what, length, op, body) in requests {
        let answer = attempts.client.claim(length, op, file, &body)?;
        attempts.say(what, answer.map_or(Value::Null, |answer| errno(&answer)));
    }
    // A file's content for 4 GiB, with room for less than a page.
    let handle = attempts.client.open(file, super::O_RDONLY)?.unwrap_or_default();
    let read = [
        handle.to_le_bytes().to_vec(),
        vec![0; 8],
        words(&[LONGEST, 0, 0, 0, 0, 0]),
    ]
    .concat();
    let read = attempts.client.ask(Op::Read, file, &read)?;
    attempts.say(
        "the file that was read for 4 GiB",
        read.map_or(Value::Null, |content| text(&content)),
    );
    // 4 GiB to write, of which four bytes are there.
    let create = [words(&[0o102, 0o644, 0, 0]), string("written")].concat();
    let created = attempts.client.ask(Op::Create, directory, &create)?.unwrap_or_default();
    let number = |at: usize| -> [u8; 8] {
        created
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or_default()
    };
    // struct fuse_entry_out of 128 bytes, then fuse_open_out with the handle.
    let (node, handle) = (u64::from_le_bytes(number(0)), number(128));
    let write = [
        handle.to_vec(),
        vec![0; 8],
        words(&[LONGEST, 0, 0, 0, 0, 0]),
        b"data".to_vec(),
    ]
    .concat();
    let wrote = attempts.client.claim(LONGEST >> 12, Op::Write as u32, node, &write)?;
    attempts.say("writing more than there is", wrote.is_some());
    let alive = attempts.client.inode(ROOT)?.is_ok();
    attempts.say("and it still answers", alive);
    println!("{}", Value::Object(attempts.said));
    Ok(())
}

/// A name without its end, which virtiofsd takes for the end of the conversation.
pub(crate) fn fatal() -> crate::error::Result<()> {
    let mut attempts = Attempts::begin()?;
    let answer = attempts.client.claim(43, Op::Getxattr as u32, ROOT, b"abc")?;
    println!("{answer:?}");
    Ok(())
}

fn text(bytes: &[u8]) -> Value {
    Value::from(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}
