//! How fast a container's standard output and input go through, against runc's FIFOs, and its output against what the guest's kernel
//! and the vsock device can do.

use std::time::Instant;

use super::{
    bare::LIMIT,
    host::{Host, IDLE},
    machine::Plan,
    table::{Row, Unit},
    turns::best_in_turns,
};
use crate::{Error, Node, Result, Runtime};

const COUNT: usize = 3;
const MEBIBYTES: usize = 32;
/// The kind that is a bare guest.
const BARE: usize = 6;

pub(super) fn measure(host: &Host) -> Result<Vec<Row>> {
    let runc = Node::start_runtime(Runtime::Runc)?.quiet();
    let idle = runc
        .run(IDLE)
        .sh("echo up; exec sleep 100000")
        .limit(LIMIT * 10)
        .spawn()?;
    idle.shows("up")?;
    let nodes = [&host.node, &runc];
    let mut number = 0;
    let mut exec = |node: &Node, script: &str, input: usize, output: usize| -> Result<f64> {
        number += 1;
        let begun = Instant::now();
        let got = node
            .exec(IDLE, &format!("stream{number}"))
            .sh(script)
            .limit(LIMIT)
            .output_with(vec![b'x'; input])?
            .success()?;
        if got.stdout.len() != output {
            return Err(Error::unexpected(format!(
                "{} of {output} bytes of output",
                got.stdout.len()
            )));
        }
        Ok(begun.elapsed().as_secs_f64())
    };
    let bytes = MEBIBYTES << 20;
    let plan = Plan {
        kernel: host.kernel()?,
        initrd: host.probe_initrd()?,
        parameters: format!("-- first-program pour {} {MEBIBYTES}", host.port()),
        vsock: true,
        ..Plan::default()
    };
    // Kinds: for each runtime an exec that streams nothing, one that writes, one that reads; and a bare guest that writes.
    let best = best_in_turns::<7>(COUNT, |kind| {
        if kind == BARE {
            return host.boot(&plan)?.pours(bytes);
        }
        let node = nodes[kind % 2];
        match kind / 2 {
            0 => exec(node, "true", 0, 0),
            // Large writes of one block, so that the writer is not what is measured.
            1 => exec(node, &format!("guest-probe pour {MEBIBYTES}"), 0, bytes),
            _ => exec(node, "cat > /dev/null", bytes, 0),
        }
    })?;
    runc.task("kill", IDLE).args(["--signal", "9"]).ok()?;
    idle.wait()?;
    runc.discard(IDLE)?;
    runc.nothing_left()?;
    let rate =
        |kind: usize| f64::from(u32::try_from(MEBIBYTES).unwrap_or(u32::MAX)) / (best[kind] - best[kind % 2]).max(1e-3);
    let row = |what: &str, kind| Row {
        what: what.to_owned(),
        floor_is: "runc",
        floor: Some(rate(kind + 1)),
        value: rate(kind),
        unit: Unit::MebibytesPerSecond,
        count: COUNT,
    };
    let exec = Row {
        what: String::from("exec of true"),
        floor_is: "runc",
        floor: Some(best[1]),
        value: best[0],
        unit: Unit::Seconds,
        count: COUNT,
    };
    let rate_of_bare = f64::from(u32::try_from(MEBIBYTES).unwrap_or(u32::MAX)) / best[BARE].max(1e-3);
    let bare = Row {
        floor_is: "a bare guest's writes to the same vsock daemon",
        floor: Some(rate_of_bare),
        ..row("stdout", 2)
    };
    Ok(vec![exec, row("stdout", 2), bare, row("stdin", 4)])
}
