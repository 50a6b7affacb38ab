//! containerd's event stream, by which a test waits for what happens to a task.

use std::{
    process::{Child, ChildStdout},
    time::Duration,
};

use serde_json::Value;

use crate::{Ctr, Error, Result, wait};

/// How many marks are published before the stream counts as broken, and how long each may take to arrive.
const MARKS: u32 = 100;
const MARK_ARRIVES: Duration = Duration::from_millis(200);

/// A subscription to everything that happens on one containerd.
#[derive(Debug)]
pub struct Events {
    child: Child,
    stream: ChildStdout,
    seen: String,
}

impl Events {
    /// Subscribes. `ctr events` does not say when its subscription has begun, so marks are published (an update of the
    /// namespace) until one comes back: what happens from then on is seen.
    pub(crate) fn subscribe(namespace: &str, ctr: impl Fn() -> Ctr) -> Result<Self> {
        let (child, stream) = ctr().arg("events").piped()?;
        let events = Self {
            child,
            stream,
            seen: String::new(),
        };
        for mark in 0..MARKS {
            ctr()
                .args(["namespaces", "label", namespace, &format!("mark={mark}")])
                .ok()?;
            if wait::readable(&events.stream, MARK_ARRIVES)? {
                return Ok(events);
            }
        }
        Err(Error::unexpected("`ctr events` shows no event"))
    }

    /// Waits until the init process of the container `id` has ended, gives its exit status, and forgets all events up to
    /// that one.
    pub(crate) fn await_exit(&mut self, id: &str, limit: Duration) -> Result<u64> {
        self.await_end(id, limit).map(|(status, _)| status)
    }

    /// The same, with how many OOM kills in the container were announced before it.
    pub(crate) fn await_end(&mut self, id: &str, limit: Duration) -> Result<(u64, usize)> {
        let container = format!(r#""container_id":"{id}","id":"{id}""#);
        let is_exit = |line: &str| line.contains("/tasks/exit ") && line.contains(&container);
        // A line counts only when it is complete.
        let at = |seen: &str| {
            let mut end = 0;
            seen.split_inclusive('\n').find_map(|line| {
                end += line.len();
                (line.ends_with('\n') && is_exit(line)).then_some(end)
            })
        };
        wait::text(&mut self.stream, limit, &mut self.seen, |seen| at(seen).is_some())
            .map_err(|error| Error::unexpected(format!("waiting for the exit of {id}: {error}")))?;
        let end = at(&self.seen).unwrap_or_default();
        let past: String = self.seen.drain(..end).collect();
        let oom = |line: &&str| line.contains("/tasks/oom ") && line.contains(id);
        let kills = past.lines().filter(oom).count();
        Ok((past.lines().last().map_or(Ok(0), exit_status)?, kills))
    }

    /// Waits for the end of the container's init process as [`Events::await_exit`] does, and gives the time that the event names.
    pub(crate) fn await_exit_time(&mut self, id: &str, limit: Duration) -> Result<String> {
        let container = format!(r#""container_id":"{id}","id":"{id}""#);
        let is_exit = |line: &str| line.contains("/tasks/exit ") && line.contains(&container);
        let complete = |seen: &str| {
            seen.split_inclusive('\n')
                .any(|line| line.ends_with('\n') && is_exit(line))
        };
        wait::text(&mut self.stream, limit, &mut self.seen, complete)?;
        let line = self.seen.lines().find(|line| is_exit(line)).unwrap_or_default();
        let event: Value = serde_json::from_str(line.find('{').map_or("", |at| &line[at..]))?;
        Ok(event["exited_at"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for an event on `topic` that names `id`.
    pub(crate) fn await_topic(&mut self, topic: &str, id: &str, limit: Duration) -> Result<()> {
        let wanted = |seen: &str| seen.lines().any(|line| line.contains(topic) && line.contains(id));
        wait::text(&mut self.stream, limit, &mut self.seen, wanted)
            .map_err(|error| Error::unexpected(format!("waiting for {topic} of {id}: {error}")))
    }
}

/// The status in a line `<time> <namespace> /tasks/exit {…}`. Zero is not written, as always in protobuf's JSON.
fn exit_status(line: &str) -> Result<u64> {
    let event: Value = serde_json::from_str(line.find('{').map_or("", |at| &line[at..]))?;
    Ok(event["exit_status"].as_u64().unwrap_or(0))
}

impl Drop for Events {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
