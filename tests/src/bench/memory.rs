//! What an idle container's sandbox takes of the host's memory: the proportional set size of each process, so that
//! what they share is counted once (proc(5), `/proc/PID/smaps_rollup`).

use std::{thread, time::Duration};

use super::{
    bare::LIMIT,
    host::{Host, IDLE, running},
    machine::Plan,
    pss::{pss, translated},
    table::{Row, Unit},
};
use crate::{Result, locate};

/// How many sandboxes run at once.
const SANDBOXES: u8 = 10;

/// After the last start: a guest reports its free pages some seconds later.
const SETTLED: Duration = Duration::from_secs(10);

/// Rows by the name of the program.
const PROGRAMS: [&str; 4] = ["qemu-system", "virtiofsd", "vhost-device-vsock", "containerd-shim-kata"];

/// See the module.
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
    rows.extend(ten(host)?);
    Ok(rows)
}

/// Each of ten sandboxes with an idle container: what they share is counted once for all of them.
fn ten(host: &Host) -> Result<Vec<Row>> {
    let names: Vec<String> = (1..SANDBOXES).map(|number| format!("other{number}")).collect();
    let mut others = Vec::new();
    for name in &names {
        let other = host.node.run(name).sh("echo up; exec sleep 100000").limit(LIMIT * 10);
        let other = other.spawn()?;
        other.shows("up")?;
        others.push(other);
    }
    thread::sleep(SETTLED);
    let (mut all, mut code) = (0.0, 0.0);
    for name in names.iter().map(String::as_str).chain([IDLE]) {
        for process in host.node.processes(name) {
            let is_counted = PROGRAMS.iter().any(|program| process.program().contains(program));
            if is_counted {
                all += pss(process.pid)?;
                code += translated(process.pid)?;
            }
        }
    }
    for (name, other) in names.iter().zip(others) {
        host.node.task("kill", name).args(["--signal", "9"]).ok()?;
        other.wait()?;
        host.node.discard(name)?;
    }
    let each = |what: &str, sum: f64| Row {
        count: SANDBOXES.into(),
        ..row(what, sum / f64::from(SANDBOXES), None)
    };
    Ok(vec![
        each("each of ten sandboxes", all),
        each("the same without the code that QEMU translates", all - code),
    ])
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
