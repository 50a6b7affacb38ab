//! `kata-ctl where`: what a guest is doing, without its cooperation: the vCPUs' instruction pointers, sampled through
//! QEMU's monitor.

mod system_map;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use protocol::diagnostics::VcpusResponse;

use crate::report::Report;
use crate::sandboxes::{self, FindError, Shim, ShimError};
use system_map::SystemMap;

/// Pause between two samples: often enough to see what a busy guest does, seldom enough not to change it.
const INTERVAL: Duration = Duration::from_millis(20);

/// Places that are shown of each vCPU.
const SHOWN: usize = 12;

/// Why the guest cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WhereError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// There is no vCPU to look at.
    #[error("QEMU shows no vCPU of sandbox {0}")]
    NoVcpu(String),
}

/// The samples of one vCPU.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    samples: u32,
    halted: u32,
    places: BTreeMap<String, u32>,
}

/// Samples for some time and reports.
pub(crate) async fn report(wanted: &str, time: Duration, json: bool) -> Result<Report, WhereError> {
    let found = sandboxes::named(Path::new(sandboxes::ROOT), wanted)?;
    let shim = Shim::connect(&found).await?;
    let mut names = Names::default();
    let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
    let end = Instant::now() + time;
    loop {
        let sample = shim.vcpus().await?;
        names.learn(&sample);
        count(&mut seen, &sample, &names);
        if Instant::now() + INTERVAL > end {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    if seen.is_empty() {
        return Err(WhereError::NoVcpu(found.id().to_owned()));
    }
    if let Some(why) = &names.missing {
        crate::report::print_message(why);
    }
    let text = if json {
        as_json(found.id(), &seen)
    } else {
        as_text(found.id(), &seen)
    };
    Ok(Report { text, good: true })
}

/// A line for each vCPU and a few samples: what a report has room for.
pub(crate) async fn sample(shim: &Shim) -> Result<String, ShimError> {
    let mut names = Names::default();
    let mut seen = BTreeMap::new();
    for _ in 0..10 {
        let sample = shim.vcpus().await?;
        names.learn(&sample);
        count(&mut seen, &sample, &names);
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(histogram(&seen))
}

/// The names of addresses, as soon as the guest has a kernel.
#[derive(Default)]
struct Names {
    map: Option<SystemMap>,
    offset: Option<u64>,
    /// Why there are none.
    missing: Option<String>,
}

impl Names {
    fn learn(&mut self, sample: &VcpusResponse) {
        if self.offset.is_some() || self.missing.is_some() || sample.first_handler == 0 {
            return;
        }
        let named = SystemMap::beside(Path::new(&sample.kernel)).and_then(|map| {
            let offset = map.offset(sample.first_handler)?;
            Ok((map, offset))
        });
        match named {
            Ok((map, offset)) => {
                self.map = Some(map);
                self.offset = Some(offset);
            }
            Err(error) => self.missing = Some(format!("functions have no names: {}", base::chain(&error))),
        }
    }

    fn place(&self, address: u64, level: u32) -> String {
        if level != 0 {
            return "[program]".to_owned();
        }
        if address >> 63 == 0 {
            return "[firmware or early boot]".to_owned();
        }
        let named = self.map.as_ref().zip(self.offset);
        match named.and_then(|(map, offset)| map.function(address, offset)) {
            Some(name) => name.to_owned(),
            None => format!("{address:#x}"),
        }
    }
}

fn count(seen: &mut BTreeMap<u32, Seen>, sample: &VcpusResponse, names: &Names) {
    for vcpu in &sample.vcpus {
        let seen = seen.entry(vcpu.index).or_default();
        seen.samples += 1;
        if vcpu.halted {
            seen.halted += 1;
        } else {
            *seen
                .places
                .entry(names.place(vcpu.instruction, vcpu.level))
                .or_default() += 1;
        }
    }
}

impl Seen {
    /// The most frequent first.
    fn ranking(&self) -> Vec<(&str, u32)> {
        let mut places: Vec<_> = self
            .places
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        places
    }

    fn verdict(&self) -> String {
        let running = self.samples - self.halted;
        if running == 0 {
            return format!("halted in all of {} samples: it waits for an interrupt", self.samples);
        }
        format!(
            "running in {} of {} samples",
            percent(running, self.samples),
            self.samples
        )
    }
}

fn percent(part: u32, whole: u32) -> String {
    let whole = f64::from(whole.max(1));
    format!("{:.0} %", 100.0 * f64::from(part) / whole)
}

fn as_text(sandbox: &str, seen: &BTreeMap<u32, Seen>) -> String {
    format!("sandbox {sandbox}\n{}", histogram(seen))
}

fn histogram(seen: &BTreeMap<u32, Seen>) -> String {
    let mut text = String::new();
    for (index, vcpu) in seen {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "vCPU {index}: {}", vcpu.verdict());
        let ranking = vcpu.ranking();
        for (name, count) in ranking.iter().take(SHOWN) {
            let bar = "#".repeat((count * 40 / vcpu.samples.max(1)) as usize);
            let _ = writeln!(text, "  {:>5}  {name}  {bar}", percent(*count, vcpu.samples));
        }
        if ranking.len() > SHOWN {
            let _ = writeln!(text, "         and {} others", ranking.len() - SHOWN);
        }
    }
    text
}

fn as_json(sandbox: &str, seen: &BTreeMap<u32, Seen>) -> String {
    let vcpus: Vec<_> = seen
        .iter()
        .map(|(index, vcpu)| {
            let places: Vec<_> = vcpu
                .ranking()
                .into_iter()
                .map(|(name, count)| serde_json::json!({ "function": name, "samples": count }))
                .collect();
            serde_json::json!({
                "index": index, "samples": vcpu.samples, "halted": vcpu.halted, "places": places,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::json!({ "sandbox": sandbox, "vcpus": vcpus }))
}

#[cfg(test)]
mod tests {
    use protocol::diagnostics::Vcpu;

    use super::*;

    fn sample(vcpus: &[(u64, bool, u32)]) -> VcpusResponse {
        let vcpus = (0..).zip(vcpus).map(|(index, (instruction, halted, level))| Vcpu {
            index,
            instruction: *instruction,
            halted: *halted,
            level: *level,
            ..Default::default()
        });
        VcpusResponse {
            vcpus: vcpus.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_histogram_says_who_runs_where_and_who_waits() {
        let mut seen = BTreeMap::new();
        let names = Names::default();
        for round in 0..4 {
            let address = if round == 0 { 0x1234 } else { 0xffff_ffff_8100_0000 };
            count(
                &mut seen,
                &sample(&[(address, false, 0), (0, true, 0), (0x7f00, false, 3)]),
                &names,
            );
        }
        let text = as_text("pod", &seen);
        assert_eq!(
            text,
            "sandbox pod\n\
             vCPU 0: running in 100 % of 4 samples\n   75 %  0xffffffff81000000  ##############################\n   25 %  [firmware or early boot]  ##########\n\
             vCPU 1: halted in all of 4 samples: it waits for an interrupt\n\
             vCPU 2: running in 100 % of 4 samples\n  100 %  [program]  ########################################\n"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json("pod", &seen)).unwrap();
        assert_eq!(json["vcpus"][1]["halted"], 4);
        assert_eq!(json["vcpus"][0]["places"][0]["samples"], 3);
    }

    #[test]
    fn without_a_map_the_reason_is_said_once_and_addresses_stand_for_functions() {
        let mut names = Names::default();
        let mut with_kernel = sample(&[]);
        with_kernel.first_handler = 1;
        with_kernel.kernel = "/nonexistent/vmlinuz".to_owned();
        names.learn(&with_kernel);
        assert!(names.missing.as_ref().unwrap().contains("/nonexistent/System.map"));
        assert_eq!(names.place(0xffff_ffff_8100_0000, 0), "0xffffffff81000000");
    }
}
