//! Looks up files and opens them without end, and never forgets one: what the host keeps for a guest has to be bounded.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Attempts, O_RDONLY, VOLUMES,
    fuse::{self, Op, ROOT, string, words},
};

/// What came of many requests: how many succeeded, and how many failed by each errno.
#[derive(Default)]
struct Answers {
    succeeded: u32,
    failed: BTreeMap<String, u32>,
}

impl Answers {
    fn count(&mut self, failure: Option<i32>) {
        match failure {
            None => self.succeeded += 1,
            Some(errno) => *self.failed.entry(errno.to_string()).or_default() += 1,
        }
    }
}

/// `guest-probe hoard FILES REQUESTS`: looks up a quarter of the files `0`, `1`, … of the first volume; then so many requests to open these, in
/// turn, and as many to look up all files, in turn. Prints what came of both, and whether the host still answers.
pub(crate) fn hoard(files: &str, requests: &str) -> crate::error::Result<()> {
    let (files, requests) = (files.parse::<u32>()?, requests.parse::<u32>()?);
    let mut attempts = Attempts::begin()?;
    let directory = attempts.walk(&[VOLUMES, "1"])?.id;
    let client = &mut attempts.client;
    let name = |number: u32| (directory, string(&(number % files).to_string()));
    let mut nodes = Vec::new();
    client.ask_many(Op::Lookup, (0..files / 4).map(name), |answer| {
        nodes.extend(answer.iter().map(|entry| fuse::node(entry)));
    })?;
    let (mut looked_up, mut opened) = (Answers::default(), Answers::default());
    let open = words(&[O_RDONLY.cast_unsigned(), 0]);
    let again = nodes.iter().cycle().take(requests as usize);
    client.ask_many(Op::Open, again.map(|node| (*node, open.clone())), |answer| {
        opened.count(answer.err());
    })?;
    client.ask_many(Op::Lookup, (0..requests).map(name), |answer| {
        looked_up.count(answer.err());
    })?;
    let answers = client.inode(ROOT)?.is_ok();
    println!(
        "{}",
        json!({
            "looked up": looked_up.succeeded, "not looked up": looked_up.failed,
            "known": nodes.len(), "opened": opened.succeeded, "not opened": opened.failed, "still answers": answers,
        })
    );
    Ok(())
}
