//! How fast a container's standard output and input go through, against runc's FIFOs.

use std::time::Instant;

use super::{
    bare::LIMIT,
    host::{Host, IDLE},
    table::{Row, Unit},
    turns::best_in_turns,
};
use crate::{Error, Node, Result, Runtime};

const COUNT: usize = 3;
const MEBIBYTES: usize = 32;

/// See the module.
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
    // Kinds: for each runtime an exec that streams nothing, one that writes, one that reads.
    let best = best_in_turns::<6>(COUNT, |kind| {
        let node = nodes[kind % 2];
        match kind / 2 {
            0 => exec(node, "true", 0, 0),
            1 => exec(node, &format!("head -c {bytes} /dev/zero"), 0, bytes),
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
    Ok(vec![exec, row("stdout", 2), row("stdin", 4)])
}
