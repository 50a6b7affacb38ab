//! How fast TCP goes between a container and the other end of its veth, against a container of runc's on the same kind of veth.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use super::{Host, Row, Unit, bare::LIMIT, best_in_turns};
use crate::{Error, NetNs, Node, Result, Running, Runtime, netns::joined};

const COUNT: usize = 3;
const MEBIBYTES: usize = 32;
const BYTES: usize = MEBIBYTES << 20;
/// How many packets are sent to and fro.
const PINGS: &str = "50";
const CONTAINER: &str = "wired";

/// A container and what is at the other end of its only interface.
struct Wired<'a> {
    node: &'a Node,
    container: Running,
    // Its namespace lives as long as the container needs it.
    _inside: NetNs,
    outside: NetNs,
}

impl<'a> Wired<'a> {
    fn start(node: &'a Node) -> Result<Self> {
        let tag = node.namespace();
        let (inside, outside) = (NetNs::new(tag, "in")?, NetNs::new(tag, "out")?);
        inside.veth("eth0", &outside, "veth0")?;
        inside.ip_lines(&["addr add 10.77.0.2/24 dev eth0"])?;
        outside.ip_lines(&["addr add 10.77.0.1/24 dev veth0"])?;
        let container = node
            .run(CONTAINER)
            .arg(inside.flag())
            // A file, because a pipe would have it measured how fast two programs take turns.
            .sh(&format!(
                "mkfifo /tmp/open; head -c {BYTES} /dev/zero > /tmp/data; echo up; exec sleep 100000"
            ))
            .limit(LIMIT * 10)
            .spawn()?;
        container.shows("up")?;
        Ok(Self {
            node,
            container,
            _inside: inside,
            outside,
        })
    }

    /// Seconds from the connection to its end at the host, while the container runs a script.
    fn transfer(
        &self,
        exec: &str,
        script: &str,
        work: impl FnOnce(TcpStream) -> Result<usize> + Send + 'static,
    ) -> Result<f64> {
        let listener = self.outside.inside(|| Ok(TcpListener::bind("10.77.0.1:5001")?))?;
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            let begun = Instant::now();
            let bytes = work(stream)?;
            Ok((bytes, begun.elapsed().as_secs_f64()))
        });
        self.node.exec(CONTAINER, exec).sh(script).limit(LIMIT).ok()?;
        let (bytes, seconds) = joined(server)?;
        if bytes == BYTES {
            return Ok(seconds);
        }
        Err(Error::unexpected(format!("{bytes} of {BYTES} bytes have come")))
    }

    fn receive(&self, exec: &str) -> Result<f64> {
        // nc closes its half of the connection at the end of its input: one that does not end.
        let script = "nc 10.77.0.1 5001 <> /tmp/open > /dev/null";
        self.transfer(exec, script, |mut stream| {
            stream.write_all(&vec![b'x'; BYTES])?;
            stream.shutdown(Shutdown::Write)?;
            // The other end closes when it has everything.
            stream.read_to_end(&mut Vec::new())?;
            Ok(BYTES)
        })
    }

    fn send(&self, exec: &str) -> Result<f64> {
        self.transfer(exec, "nc 10.77.0.1 5001 < /tmp/data", |mut stream| {
            let mut buffer = vec![0; 1 << 20];
            let mut bytes = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(bytes),
                    more => bytes += more,
                }
            }
        })
    }

    /// Seconds of the fastest round trip.
    fn round_trip(&self, exec: &str) -> Result<f64> {
        let ping = ["ping", "-q", "-c", PINGS, "-i", "0.02", "10.77.0.1"];
        let said = self.node.exec(CONTAINER, exec).program(ping).limit(LIMIT).ok()?;
        let times = said.split(" = ").nth(1).and_then(|times| times.split('/').next());
        let milliseconds: Option<f64> = times.and_then(|least| least.trim().parse().ok());
        milliseconds
            .filter(|time| *time > 0.0)
            .map(|time| time / 1000.0)
            .ok_or_else(|| Error::unexpected(format!("ping says {said:?}")))
    }

    fn stop(self) -> Result<()> {
        self.node.task("kill", CONTAINER).args(["--signal", "9"]).ok()?;
        self.container.wait()?;
        self.node.discard(CONTAINER)
    }
}

/// See the module.
pub(super) fn measure(host: &Host) -> Result<Vec<Row>> {
    let runc = Node::start_runtime(Runtime::Runc)?.quiet();
    let ends = [Wired::start(&host.node)?, Wired::start(&runc)?];
    let mut number = 0;
    let best = best_in_turns::<6>(COUNT, |kind| {
        number += 1;
        let (end, exec) = (&ends[kind % 2], format!("net{number}"));
        match kind / 2 {
            0 => end.send(&exec),
            1 => end.receive(&exec),
            _ => end.round_trip(&exec),
        }
    })?;
    for end in ends {
        end.stop()?;
    }
    runc.nothing_left()?;
    let row = |what: &str, unit, amount: f64, kind: usize| Row {
        what: what.to_owned(),
        floor_is: "runc",
        floor: Some(amount / best[kind + 1]),
        value: amount / best[kind],
        unit,
        count: COUNT,
    };
    let size = f64::from(u32::try_from(MEBIBYTES).unwrap_or(u32::MAX));
    Ok(vec![
        row("TCP to the host", Unit::MebibytesPerSecond, size, 0),
        row("TCP from the host", Unit::MebibytesPerSecond, size, 2),
        row("round trips, one at a time", Unit::OperationsPerSecond, 1.0, 4),
    ])
}
