//! How long until a container runs: of a bare boot, of the agent's first packet, of `ctr run`.

use std::{env, path::PathBuf, time::Instant};

use super::{
    bare::LIMIT,
    host::Host,
    machine::Plan,
    table::{Row, Unit},
    turns::best_in_turns,
};
use crate::{Error, Node, Pool, Result, Runtime, locate};

const COUNT: usize = 5;
const FLOOR: &str = "the smallest kernel in the same QEMU, to /init";

pub(super) fn measure(host: &Host) -> Result<Vec<Row>> {
    let mut rows = boots(host)?;
    if host.is_emulated() {
        rows.push(counted(host)?);
    }
    rows.extend(containers(host)?);
    Ok(rows)
}

/// A guest whose first program says that it runs.
fn probe(host: &Host, kernel: PathBuf) -> Result<Plan> {
    Ok(Plan {
        kernel,
        initrd: host.probe_initrd()?,
        parameters: String::from("-- first-program"),
        ..Plan::default()
    })
}

/// The time to the first program by a clock that advances by a nanosecond with each instruction of the guest, and while it
/// sleeps jumps to when it wakes. It does not depend on what else the machine does: one measurement is enough.
fn counted(host: &Host) -> Result<Row> {
    Ok(Row {
        what: String::from("QEMU to /init, 1 ns an instruction"),
        floor_is: FLOOR,
        floor: Some(count(host, locate::built("tests/vmlinuz-floor", "bench")?)?),
        value: count(host, host.kernel()?)?,
        unit: Unit::Seconds,
        count: 1,
    })
}

/// Other kernels against the built one, by the clock of instructions: only where the section is named. Their images are in
/// `TATAMI_BENCH_KERNELS`, separated by colons.
pub(super) fn kernels(host: &Host) -> Result<Vec<Row>> {
    let given = env::var_os("TATAMI_BENCH_KERNELS").unwrap_or_default();
    let others: Vec<PathBuf> = env::split_paths(&given)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if others.is_empty() || !host.is_emulated() {
        return Err(Error::unexpected(
            "the section kernels compares what KERNELS=PATH:… names, by the clock of instructions that only an emulated CPU has",
        ));
    }
    let built = count(host, host.kernel()?)?;
    let row = |kernel: PathBuf| {
        Ok(Row {
            what: format!("QEMU to /init, 1 ns an instruction: {}", kernel.display()),
            floor_is: "the built kernel",
            floor: Some(built),
            value: count(host, kernel)?,
            unit: Unit::Seconds,
            count: 1,
        })
    };
    others.into_iter().map(row).collect()
}

fn count(host: &Host, kernel: PathBuf) -> Result<f64> {
    let (line, _) = host.boot_counted(&probe(host, kernel)?)?.line("cycles until then: ")?;
    let cycles: f64 = line
        .parse()
        .map_err(|error| Error::unexpected(format!("{line:?} cycles: {error}")))?;
    Ok(cycles / 1e9)
}

fn boots(host: &Host) -> Result<Vec<Row>> {
    let floor = probe(host, locate::built("tests/vmlinuz-floor", "bench")?)?;
    let shipped = probe(host, host.kernel()?)?;
    let agent = Plan {
        kernel: host.kernel()?,
        initrd: locate::built("share/initrd.img", "build")?,
        vsock: true,
        ..Plan::default()
    };
    let mut cpu = [f64::INFINITY; 3];
    let wall = best_in_turns::<3>(COUNT, |kind| {
        let cost = match kind {
            0 => host.boot(&floor)?.shows("first program runs")?,
            1 => host.boot(&shipped)?.shows("first program runs")?,
            _ => host.boot(&agent)?.calls()?,
        };
        cpu[kind] = cpu[kind].min(cost.cpu);
        Ok(cost.wall)
    })?;
    let row = |what: &str, value, floor| Row {
        what: what.to_owned(),
        floor_is: FLOOR,
        floor: Some(floor),
        value,
        unit: Unit::Seconds,
        count: COUNT,
    };
    Ok(vec![
        row("QEMU to /init", wall[1], wall[0]),
        row("QEMU to /init, CPU", cpu[1], cpu[0]),
        row("QEMU to the agent's first packet", wall[2], wall[0]),
        row("QEMU to the agent's first packet, CPU", cpu[2], cpu[0]),
    ])
}

/// `ctr run` to the first output, cold, with a VM from the pool and with a copy of a template, against runc. The pool is full again before each start.
pub(super) fn containers(host: &Host) -> Result<Vec<Row>> {
    let runc = Node::start_runtime(Runtime::Runc)?.quiet();
    let warm = Node::start_configured("[factory]\nvm_cache_number = 1\n")?.quiet();
    let pool = Pool::fill(&warm.configuration())?;
    let template = Node::start_configured("[factory]\nenable_template = true\nvm_cache_number = 0\n")?.quiet();
    let copied = Pool::fill(&template.configuration())?;
    let mut number = 0;
    let [cold, floor, value, copy] = best_in_turns::<4>(COUNT, |kind| {
        if kind == 2 {
            pool.again()?;
        }
        number += 1;
        first_output([&host.node, &runc, &warm, &template][kind], &format!("start{number}"))
    })?;
    pool.empty()?;
    copied.empty()?;
    runc.nothing_left()?;
    warm.nothing_left()?;
    template.nothing_left()?;
    let row = |what: &str, value| Row {
        what: what.to_owned(),
        floor_is: "runc",
        floor: Some(floor),
        value,
        unit: Unit::Seconds,
        count: COUNT,
    };
    Ok(vec![
        row("ctr run to the first output", cold),
        row("ctr run to the first output, from the pool", value),
        row("ctr run to the first output, from a template", copy),
    ])
}

fn first_output(node: &Node, name: &str) -> Result<f64> {
    let begun = Instant::now();
    let running = node
        .run(name)
        .arg("--rm")
        .sh("echo first output")
        .limit(LIMIT)
        .spawn()?;
    running.shows("first output")?;
    let seconds = begun.elapsed().as_secs_f64();
    running.wait()?.success()?;
    Ok(seconds)
}
