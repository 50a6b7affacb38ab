//! How fast iperf3 finds the way between a container and the other end of its veth, against a container of runc's on the same
//! kind of veth.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use serde_json::Value;

use super::{
    bare::{Helper, LIMIT},
    host::Host,
    table::{Row, Unit},
    turns::best_in_turns,
};
use crate::{Error, NetNs, Node, Result, Running, Runtime, bundle::Bundle};

const COUNT: usize = 3;
const SECONDS: &str = "2";
/// How many packets are sent to and fro.
const PINGS: &str = "50";
const CONTAINER: &str = "wired";
const MEBIBYTE: f64 = 1_048_576.0;

/// What is measured by iperf3: its name in the table, and what iperf3 is told (iperf3(1)). Datagrams are sent as fast as they can
/// be, and those count that arrive.
const TRANSFERS: [(&str, &[&str]); 5] = [
    ("TCP to the host", &[]),
    ("TCP from the host", &["-R"]),
    ("TCP to the host, 4 streams", &["-P", "4"]),
    ("TCP from the host, 4 streams", &["-P", "4", "-R"]),
    ("UDP to the host, what arrives", &["-u", "-b", "0"]),
];

/// A container and what is at the other end of its only interface.
struct Wired<'a> {
    node: &'a Node,
    container: Running,
    // Its namespace lives as long as the container needs it.
    _inside: NetNs,
    outside: NetNs,
    iperf3: &'a Bundle,
}

impl<'a> Wired<'a> {
    fn start(node: &'a Node, iperf3: &'a Bundle) -> Result<Self> {
        let tag = node.namespace();
        let (inside, outside) = (NetNs::new(tag, "in")?, NetNs::new(tag, "out")?);
        inside.veth("eth0", &outside, "veth0")?;
        inside.ip_lines(&["addr add 10.77.0.2/24 dev eth0"])?;
        outside.ip_lines(&["addr add 10.77.0.1/24 dev veth0"])?;
        let container = node
            .run(CONTAINER)
            .arg(inside.flag())
            .arg(iperf3.mount())
            .sh("echo up; exec sleep 100000")
            .limit(LIMIT * 10)
            .spawn()?;
        container.shows("up")?;
        Ok(Self {
            node,
            container,
            _inside: inside,
            outside,
            iperf3,
        })
    }

    /// Seconds for each MiB that has arrived.
    fn transfer(&self, exec: &str, options: &[&str]) -> Result<f64> {
        let [loader, iperf3 @ ..] = self.iperf3.outside();
        let mut server = self.outside.command(loader)?;
        let (_server, said) = Helper::piped(server.args(iperf3).args(["-s", "-1", "--forceflush"]))?;
        // Held: its later words need a reader.
        let mut said = BufReader::new(said);
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            if said.read_line(&mut line)? == 0 {
                return Err(Error::unexpected("the server of iperf3 has ended before it listened"));
            }
        }
        let report = self
            .node
            .exec(CONTAINER, exec)
            .program(self.iperf3.inside())
            .program(["-c", "10.77.0.1", "-t", SECONDS, "-J"])
            .program(options)
            .limit(LIMIT)
            .ok()?;
        seconds_per_mebibyte(&report)
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

/// The program that `make bench` provides.
fn iperf3(host: &Host) -> Result<Bundle> {
    let program = env::var_os("TATAMI_BENCH_IPERF3").map(PathBuf::from);
    let program = program.filter(|path| path.exists()).ok_or_else(|| {
        Error::unexpected(
            "no iperf3 in TATAMI_BENCH_IPERF3: `make bench BENCH=network` fetches it and measures with it",
        )
    })?;
    Bundle::make(&program, host.dir().join("iperf3"))
}

/// From iperf3's report, whose errors leave its exit status 0.
fn seconds_per_mebibyte(report: &str) -> Result<f64> {
    let parsed: Value = serde_json::from_str(report)?;
    let received = &parsed["end"]["sum_received"];
    match (received["bytes"].as_f64(), received["seconds"].as_f64()) {
        (Some(bytes), Some(seconds)) if bytes > 0.0 && seconds > 0.0 => Ok(seconds * MEBIBYTE / bytes),
        _ => Err(Error::unexpected(format!("iperf3 says {report}"))),
    }
}

pub(super) fn measure(host: &Host) -> Result<Vec<Row>> {
    const KINDS: usize = 2 * (TRANSFERS.len() + 1);
    let runc = Node::start_runtime(Runtime::Runc)?.quiet();
    let iperf3 = iperf3(host)?;
    let ends = [Wired::start(&host.node, &iperf3)?, Wired::start(&runc, &iperf3)?];
    let mut number = 0;
    let best = best_in_turns::<KINDS>(COUNT, |kind| {
        number += 1;
        let (end, exec) = (&ends[kind % 2], format!("net{number}"));
        match TRANSFERS.get(kind / 2) {
            Some((_, options)) => end.transfer(&exec, options),
            None => end.round_trip(&exec),
        }
    })?;
    for end in ends {
        end.stop()?;
    }
    runc.nothing_left()?;
    let names = TRANSFERS.iter().map(|(what, _)| (*what, Unit::MebibytesPerSecond));
    let names = names.chain([("round trips, one at a time", Unit::OperationsPerSecond)]);
    let rows = names.zip(best.chunks(2)).map(|((what, unit), best)| Row {
        what: what.to_owned(),
        floor_is: "runc",
        floor: Some(1.0 / best[1]),
        value: 1.0 / best[0],
        unit,
        count: COUNT,
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_arrived_counts_and_an_error_is_shown() {
        let report =
            r#"{"end":{"sum_sent":{"bytes":4194304,"seconds":2.0},"sum_received":{"bytes":2097152,"seconds":1.0}}}"#;
        assert!((seconds_per_mebibyte(report).unwrap() - 0.5).abs() < 1e-9);
        let refused = r#"{"end":{},"error":"unable to connect to server"}"#;
        let said = seconds_per_mebibyte(refused).unwrap_err().to_string();
        assert!(said.contains("unable to connect"), "{said}");
        assert!(seconds_per_mebibyte("").is_err());
    }
}
