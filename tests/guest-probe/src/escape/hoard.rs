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

/// `guest-probe hoard FILES REQUESTS`: so many requests to look up the files `0`, `1`, … of the first volume, in turn, and as many to open
/// what was found. Prints what came of both, and whether the host still answers.
pub(crate) fn hoard(files: &str, requests: &str) -> crate::error::Result<()> {
    let (files, requests) = (files.parse::<u32>()?, requests.parse::<u32>()?);
    let mut attempts = Attempts::begin()?;
    let directory = attempts.walk(&[VOLUMES, "1"])?.id;
    let client = &mut attempts.client;
    let (mut looked_up, mut nodes) = (Answers::default(), Vec::new());
    let names = (0..requests).map(|number| (directory, string(&(number % files).to_string())));
    client.ask_many(Op::Lookup, names, |answer| {
        looked_up.count(answer.as_ref().err().copied());
        if let Ok(entry) = answer
            && nodes.len() < files as usize
        {
            nodes.push(fuse::node(&entry));
        }
    })?;
    let mut opened = Answers::default();
    let open = words(&[O_RDONLY.cast_unsigned(), 0]);
    let again = nodes.iter().cycle().take(requests as usize);
    client.ask_many(Op::Open, again.map(|node| (*node, open.clone())), |answer| {
        opened.count(answer.err());
    })?;
    let answers = client.inode(ROOT)?.is_ok();
    println!(
        "{}",
        json!({
            "looked up": looked_up.succeeded, "not looked up": looked_up.failed,
            "opened": opened.succeeded, "not opened": opened.failed, "still answers": answers,
        })
    );
    Ok(())
}
