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
use crate::{Node, Result, locate};

/// How many sandboxes run at once.
const SANDBOXES: u8 = 10;

/// After the last start: a guest reports its free pages some seconds later.
const SETTLED: Duration = Duration::from_secs(10);

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
    let each = of_each(&host.node, SANDBOXES)?;
    let values = [
        ("each of ten sandboxes", each.all),
        (
            "the same without the code that QEMU translates",
            each.all - each.translated,
        ),
    ];
    rows.extend(values.map(|(what, value)| Row {
        count: SANDBOXES.into(),
        ..row(what, value, None)
    }));
    Ok(rows)
}

/// What a sandbox takes of the host's memory, in MiB. What several share is counted once for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Of all its processes.
    pub all: f64,
    /// What of it is code that QEMU has translated, which there is only without KVM.
    pub translated: f64,
}

/// What each of so many sandboxes with an idle container takes when all of them run.
///
/// # Errors
/// One does not start or does not end.
pub fn of_each(node: &Node, sandboxes: u8) -> Result<Footprint> {
    let names: Vec<String> = (0..sandboxes).map(|number| format!("other{number}")).collect();
    let mut running = Vec::new();
    for name in &names {
        let container = node.run(name).sh("echo up; exec sleep 100000").limit(LIMIT * 10);
        let container = container.spawn()?;
        container.shows("up")?;
        running.push(container);
    }
    thread::sleep(SETTLED);
    let (mut all, mut code) = (0.0, 0.0);
    for name in &names {
        for process in node.processes(name) {
            if PROGRAMS.iter().any(|program| process.program().contains(program)) {
                all += pss(process.pid)?;
                code += translated(process.pid)?;
            }
        }
    }
    for (name, container) in names.iter().zip(running) {
        node.task("kill", name).args(["--signal", "9"]).ok()?;
        container.wait()?;
        node.discard(name)?;
    }
    Ok(Footprint {
        all: all / f64::from(sandboxes),
        translated: code / f64::from(sandboxes),
    })
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
