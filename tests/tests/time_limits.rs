//! One factor of the configuration makes a sandbox patient: no time limit in the sources is beside it without a reason.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use framework::{Error, Result, locate};

/// The crates of a sandbox.
const CRATES: [&str; 12] = [
    "agent",
    "base",
    "config",
    "guest",
    "hypervisor",
    "lifecycle",
    "node",
    "relay",
    "scrape",
    "shim",
    "trace",
    "agent/protocol",
];

/// Where all of a file's limits are multiplied.
const TABLE: &str = "lifecycle/src/timeouts.rs";

/// Longer ones than a second that no factor multiplies: the file, the name, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    (
        "agent/src/guest/clock.rs",
        "ANSWER",
        "an answer that takes longer says nothing about the time",
    ),
    ("agent/src/guest/clock.rs", "INTERVAL", "an interval"),
    ("agent/src/guest/growth/plan.rs", "LOOK", "an interval"),
    (
        "agent/src/guest/growth/plan.rs",
        "REFUSED",
        "a pause between two questions",
    ),
    (
        "agent/src/guest/growth/plan.rs",
        "SOON",
        "a measure of the containers' use of memory",
    ),
    (
        "agent/src/guest/growth/plan.rs",
        "THRASHING",
        "a measure of the containers' use of memory",
    ),
    ("agent/src/server/rehearsal.rs", "LIMIT", "nobody waits"),
    (
        "agent/src/server/sandbox.rs",
        "SLICE",
        "a caller is told how the deletion goes, and asks again",
    ),
    (
        "guest/src/agent_client.rs",
        "SAMPLE_TIMEOUT",
        "who asks for figures has a limit of its own",
    ),
    ("guest/src/host_sockets/find.rs", "ACCEPTS", "a service of the host"),
    (
        "guest/src/names/mod.rs",
        "ANSWERS",
        "a name server of the host; resolvers ask again after 5 s",
    ),
    ("guest/src/rate_limited.rs", "WINDOW", "an interval"),
    (
        "guest/src/streams/logger.rs",
        "END",
        "containerd's interface: 14 s in all",
    ),
    ("guest/src/streams/logger.rs", "READY", "containerd's interface"),
    ("guest/src/streams/logger.rs", "TERMINATION", "containerd's interface"),
    ("hypervisor/src/observe/dump.rs", "ASKED", "an interval"),
    (
        "hypervisor/src/process/qemu_root.rs",
        "LIST_TIMEOUT",
        "generous: only a dead file server uses it up",
    ),
    (
        "node/src/boot_queue.rs",
        "PATIENCE",
        "a place in the queue, which is the node's and no sandbox's",
    ),
    (
        "node/src/boot_queue.rs",
        "STOPPED",
        "a place in the queue, which is the node's and no sandbox's",
    ),
    ("node/src/network/mod.rs", "RETRY", "a pause between two attempts"),
    (
        "node/src/limits/host_cgroup/mod.rs",
        "REMOVE_LIMIT",
        "containerd gives `delete` 5 s",
    ),
    (
        "node/src/host/host_mount.rs",
        "HELPER_TIMEOUT",
        "a program of the host; containerd waits for the creation as long",
    ),
    (
        "node/src/files/volumes/empty_disk.rs",
        "PROGRAM_TIMEOUT",
        "a program of the host; containerd waits for the creation as long",
    ),
    (
        "relay/src/connection.rs",
        "LAST_FRAME_TIMEOUT",
        "runs in the guest and on the host, and bounds only how long an ended connection is kept",
    ),
    ("scrape/src/lib.rs", "PATIENCE", "a client of the node"),
    ("shim/src/cleanup.rs", "KILL_LIMIT", "containerd gives `delete` 5 s"),
    (
        "shim/src/command/delete.rs",
        "DEATH_LIMIT",
        "containerd gives `delete` 5 s",
    ),
    (
        "shim/src/command/delete.rs",
        "END_LIMIT",
        "containerd gives `delete` 5 s",
    ),
    (
        "shim/src/events.rs",
        "FORWARD_TIMEOUT",
        "containerd; the event is sent again",
    ),
    ("shim/src/management/console.rs", "PATIENCE", "a client of the node"),
    ("shim/src/pool/fill.rs", "AGAIN", "a pause between two attempts"),
    (
        "shim/src/pool/fill.rs",
        "END_LIMIT",
        "an operator waits, and can ask again",
    ),
    ("shim/src/pool/fill.rs", "FILL_TIMEOUT", "nobody waits"),
    ("shim/src/pool/member.rs", "LOOK", "an interval"),
    (
        "shim/src/pool/member.rs",
        "REQUEST",
        "a `start` that has connected sends it at once; another member is taken otherwise",
    ),
    ("shim/src/pool/report.rs", "STALE", "the age of a file"),
    (
        "shim/src/sandbox/host/changes.rs",
        "LAST_RETRY",
        "a pause between two attempts",
    ),
    (
        "shim/src/sandbox/vm/health.rs",
        "ANSWER",
        "who asks for diagnostics has a limit of its own",
    ),
    ("shim/src/sandbox/host/network.rs", "READ", "a file of the host"),
    ("shim/src/sandbox/size/mod.rs", "SLOW", "a line in the log"),
    (
        "shim/src/management/iptables.rs",
        "PATIENCE",
        "Kata's tools, which have a limit of their own",
    ),
    ("shim/src/server.rs", "FLUSH", "containerd"),
    (
        "shim/src/server.rs",
        "UNCLAIMED",
        "a quarter of an hour in which nobody asks for the sandbox",
    ),
    (
        "shim/src/spans/export.rs",
        "REQUEST",
        "a collector of the node: nobody waits for it",
    ),
    (
        "shim/src/service/sandbox_api.rs",
        "LINGER",
        "containerd reads an answer",
    ),
];

/// The sources below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(Error::io(format!("reading {}", directory.display())))?;
    for entry in entries {
        let path = entry.map_err(Error::io("reading a directory"))?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// A file's text without its unit tests.
fn program(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    Ok(text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// The constants of more than a second in a text.
fn limits(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (before, value) = line.split_once(": Duration = Duration::from_secs(")?;
        let name = before.rsplit_once("const ")?.1;
        (value != "1);").then_some(name)
    })
}

#[test]
fn every_time_limit_is_multiplied_by_the_nodes_factor_or_says_why_not() -> Result<()> {
    let workspace = locate::workspace();
    let mut beside = BTreeSet::new();
    for name in CRATES {
        let mut files = Vec::new();
        sources(&workspace.join(name).join("src"), &mut files)?;
        let texts = files.iter().map(|file| program(file)).collect::<Result<Vec<_>>>()?;
        let multiplied = |limit: &str| {
            let uses = ["of", "scaled"].map(|function| format!("{function}({limit})"));
            texts.iter().any(|text| uses.iter().any(|one| text.contains(one)))
        };
        for (file, text) in files.iter().zip(&texts) {
            let file = file.strip_prefix(&workspace).unwrap_or(file).display().to_string();
            if file != TABLE {
                let unscaled = limits(text).filter(|limit| !multiplied(limit));
                beside.extend(unscaled.map(|limit| (file.clone(), limit.to_owned())));
            }
        }
    }
    let listed = ALLOWED
        .iter()
        .map(|(file, name, _)| ((*file).to_owned(), (*name).to_owned()));
    let allowed: BTreeSet<_> = listed.collect();
    assert_eq!(beside, allowed, "left: found in the sources; right: allowed here");
    assert!(ALLOWED.iter().all(|(.., why)| !why.is_empty()));
    Ok(())
}

#[test]
fn a_limit_is_found_by_its_name() {
    let text = "/// For it.\npub(super) const LONG: Duration = Duration::from_secs(30);\nconst SHORT: Duration = Duration::from_secs(1);\n";
    assert_eq!(limits(text).collect::<Vec<_>>(), ["LONG"]);
}
