//! Two containers of a pod that have one file in turns: on a volume of the host, against a volume in the guest's memory.

use std::{fs, path::Path};

use rustix::mount::MountFlags;

use super::{
    bare::LIMIT,
    host::Host,
    table::{Row, Unit},
};
use crate::{Error, HostMount, Node, Result};

const TURNS: &str = "300";
const COUNT: usize = 3;

pub(super) fn measure(_: &Host) -> Result<Vec<Row>> {
    let node = Node::start()?.quiet();
    let disk = node.dir().join("disk");
    fs::create_dir(&disk)?;
    // By this name the kubelet tells a volume in memory.
    let memory = node.dir().join("kubernetes.io~empty-dir/memory");
    let mounted = HostMount::new(&memory, MountFlags::empty())?;
    start(&node, "pod", "sandbox", &[])?;
    let volumes: [(&Path, &str); 2] = [(&disk, "/disk"), (&memory, "/memory")];
    for name in ["one", "two"] {
        start(&node, name, "container", &volumes)?;
    }
    let mut best = [0.0_f64; 2];
    for round in 0..COUNT {
        let places = [format!("/disk/{round}"), format!("/memory/{round}")];
        let make = format!("mkdir {} {}", places[0], places[1]);
        node.exec("one", &format!("make{round}")).sh(&make).ok()?;
        let serve = ["guest-probe", "turns", "serve", &places[0], &places[1]];
        let serving = node
            .exec("one", &format!("serve{round}"))
            .program(serve)
            .limit(LIMIT)
            .spawn()?;
        serving.shows("serving")?;
        let call = ["guest-probe", "turns", "call", TURNS, &places[0], &places[1]];
        let call = node.exec("two", &format!("call{round}")).program(call).limit(LIMIT);
        let said = call.output()?.success()?.json()?;
        serving.wait()?.success()?;
        for (best, place) in best.iter_mut().zip(&places) {
            let rate = said[place].as_f64();
            *best = best.max(rate.ok_or_else(|| Error::unexpected(format!("no rate of {place}: {said}")))?);
        }
    }
    for name in ["two", "one", "pod"] {
        node.remove(name)?;
    }
    mounted.unmount()?;
    node.nothing_left()?;
    Ok(vec![Row {
        what: String::from("write, hand over, read"),
        floor_is: "the same on a volume in memory",
        floor: Some(best[1]),
        value: best[0],
        unit: Unit::OperationsPerSecond,
        count: COUNT,
    }])
}

fn start(node: &Node, name: &str, kind: &str, volumes: &[(&Path, &str)]) -> Result<()> {
    let mut spec = node.spec(name, &["sleep", "100000"])?.of_pod(node, kind)?;
    for (source, destination) in volumes {
        spec = spec.bind(source, destination, &["rw"])?;
    }
    node.run_spec(name, &spec)?.arg("-d").limit(LIMIT).ok().map(drop)
}
