//! What an idle container's sandbox takes of the host's memory: the proportional set size of each process, so that
//! what they share is counted once (proc(5), `/proc/PID/smaps_rollup`).

use super::{
    host::{Host, IDLE, running},
    machine::Plan,
    pss::pss,
    table::{Row, Unit},
};
use crate::{Result, locate};

/// Rows by the name of the program.
const PROGRAMS: [&str; 4] = ["qemu-system", "virtiofsd", "vhost-device-vsock", "containerd-shim-kata"];

pub(super) fn measure(host: &Host) -> Result<Vec<Row>> {
    let mut bare = host.boot(&Plan {
        kernel: locate::built("tests/vmlinuz-floor", "bench")?,
        initrd: host.probe_initrd()?,
        parameters: String::from("-- first-program"),
        ..Plan::default()
    })?;
    bare.shows("first program runs")?;
    let floor = bare.memory()?;
    // Fails where there is no sandbox to measure.
    running(&host.node, PROGRAMS[0])?;
    let mut rows = Vec::new();
    let mut sum = 0.0;
    for program in PROGRAMS {
        let processes = host.node.processes(IDLE);
        let pids = processes.iter().filter(|process| process.program().contains(program));
        let mut value = 0.0;
        for process in pids {
            value += pss(process.pid)?;
        }
        sum += value;
        rows.push(row(program, value, (program == PROGRAMS[0]).then_some(floor)));
    }
    rows.push(row("sandbox with one idle container", sum, Some(floor)));
    Ok(rows)
}

fn row(what: &str, value: f64, floor: Option<f64>) -> Row {
    Row {
        what: what.to_owned(),
        floor_is: if floor.is_some() {
            "QEMU with the smallest kernel"
        } else {
            ""
        },
        floor,
        value,
        unit: Unit::Mebibytes,
        count: 1,
    }
}
