//! virtio-fs under load: a bind mount in a container against the same virtiofsd mounted by a bare guest.

use std::{collections::BTreeMap, fs};

use super::{
    bare::LIMIT,
    host::Host,
    machine::{Plan, Share},
    table::{Row, Unit},
};
use crate::{Error, Result};

const COUNT: usize = 2;
/// Names in the storm, and in the shorter one that settings are compared by.
const FILES: &str = "10000";
const FEWER_FILES: &str = "2000";
/// Of the file that is read and written.
const MEBIBYTES: &str = "32";

pub(super) fn measure(host: &Host) -> Result<Vec<Row>> {
    let mut best: BTreeMap<String, (Unit, [f64; 2])> = BTreeMap::new();
    for number in 0..COUNT {
        for (kind, line) in [
            in_container(host, number)?,
            in_bare_guest(host, Share::default(), FILES)?.0,
        ]
        .iter()
        .enumerate()
        {
            for (name, unit, value) in figures(line)? {
                let best = &mut best.entry(name).or_insert((unit, [0.0; 2])).1[kind];
                *best = best.max(value);
            }
        }
    }
    let row = |(what, (unit, [value, floor])): (String, (Unit, [f64; 2]))| Row {
        what,
        floor_is: "the same virtiofsd in a bare guest",
        floor: Some(floor),
        value,
        unit,
        count: COUNT,
    };
    Ok(best.into_iter().map(row).collect())
}

/// The settings among which the defaults were picked, each against the runtime's own: only where the section is named.
pub(super) fn settings(host: &Host) -> Result<Vec<Row>> {
    let with = |cache, queue_size, more: &[&str]| Share {
        cache,
        queue_size,
        more: more.iter().map(|option| (*option).to_owned()).collect(),
        ..Share::default()
    };
    let candidates = [
        ("as configured", with(None, None, &[])),
        ("queue-size=128", with(None, Some(128), &[])),
        ("cache=never", with(Some("never"), None, &[])),
        ("cache=metadata", with(Some("metadata"), None, &[])),
        ("cache=always", with(Some("always"), None, &[])),
        ("thread-pool-size=1", with(None, None, &["--thread-pool-size=1"])),
        ("thread-pool-size=4", with(None, None, &["--thread-pool-size=4"])),
        ("writeback", with(None, None, &["--writeback"])),
        ("posix-acl=never", with(None, None, &["--posix-acl=never"])),
        (
            "xattr without lists",
            with(None, None, &["--posix-acl=never", "--xattr"]),
        ),
    ];
    let mut best: BTreeMap<(String, usize), (Unit, f64)> = BTreeMap::new();
    for _ in 0..COUNT {
        for (index, (_, share)) in candidates.iter().enumerate() {
            let (line, cpu) = in_bare_guest(host, share.clone(), FEWER_FILES)?;
            for (name, unit, value) in figures(&line)? {
                let best = &mut best.entry((name, index)).or_insert((unit, 0.0)).1;
                *best = best.max(value);
            }
            // What the clock shows of a shared machine is also what others did.
            let name = String::from("CPU time of QEMU with its boot");
            let best = &mut best.entry((name, index)).or_insert((Unit::Seconds, f64::INFINITY)).1;
            *best = best.min(cpu);
        }
    }
    let floors: BTreeMap<String, f64> = best
        .iter()
        .filter(|((_, index), _)| *index == 0)
        .map(|((name, _), (_, value))| (name.clone(), *value))
        .collect();
    let row = |((name, index), (unit, value)): ((String, usize), (Unit, f64))| Row {
        floor: floors.get(&name).copied(),
        what: format!("{name}, {}", candidates[index].0),
        floor_is: "as configured",
        value,
        unit,
        count: COUNT,
    };
    Ok(best.into_iter().filter(|((_, index), _)| *index > 0).map(row).collect())
}

fn in_container(host: &Host, number: usize) -> Result<String> {
    let dir = host.dir().join("load");
    fs::create_dir_all(&dir)?;
    let output = host
        .node
        .run(&format!("load{number}"))
        .arg("--rm")
        .arg("--mount")
        .arg(format!("type=bind,src={},dst=/mnt,options=rbind:rw", dir.display()))
        .program(["guest-probe", "load", "/mnt", FILES, MEBIBYTES])
        .limit(LIMIT)
        .output()?
        .success()?
        .stdout();
    output
        .lines()
        .find_map(|line| line.strip_prefix("load: "))
        .map(str::to_owned)
        .ok_or_else(|| Error::unexpected(format!("no result of a load: {output}")))
}

/// The result, and the CPU time of QEMU in seconds.
fn in_bare_guest(host: &Host, share: Share, files: &str) -> Result<(String, f64)> {
    let dir = host.dir().join("load");
    fs::create_dir_all(&dir)?;
    let share = Share { dir, ..share };
    let tag = host.tag()?;
    let mut guest = host.boot(&Plan {
        kernel: host.kernel()?,
        initrd: host.probe_initrd()?,
        parameters: format!("-- first-program {tag} {files} {MEBIBYTES}"),
        share: Some(share),
        ..Plan::default()
    })?;
    let (line, cost) = guest.line("load: ")?;
    Ok((line, cost.cpu))
}

/// The figures that a load prints: name, unit, value.
fn figures(line: &str) -> Result<Vec<(String, Unit, f64)>> {
    let broken = || Error::unexpected(format!("not the result of a load: {line}"));
    let value: serde_json::Value = serde_json::from_str(line).map_err(|_| broken())?;
    let object = value.as_object().ok_or_else(broken)?;
    let figure = |(name, value): (&String, &serde_json::Value)| {
        let (name, unit) = match name.strip_suffix(" MiB/s") {
            Some(name) => (name, Unit::MebibytesPerSecond),
            None => (name.strip_suffix(" ops/s")?, Unit::OperationsPerSecond),
        };
        Some((name.to_owned(), unit, value.as_f64()?))
    };
    object.iter().map(figure).collect::<Option<_>>().ok_or_else(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_named_with_its_unit() {
        let line = r#"{"create ops/s": 120.5, "sequential read MiB/s": 80}"#;
        let expected = [
            (String::from("create"), Unit::OperationsPerSecond, 120.5),
            (String::from("sequential read"), Unit::MebibytesPerSecond, 80.0),
        ];
        assert_eq!(figures(line).unwrap(), expected);
        assert!(figures(r#"{"create": 1}"#).is_err());
        assert!(figures("failed: no space").is_err());
    }
}
