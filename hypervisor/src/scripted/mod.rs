//! A QEMU for tests: answers the monitor by a rule, or as QEMU would ([`model`]), and as late or as badly as a test wants.
//!
//! Other crates have it by the feature `scripted`.

mod model;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use base::scale::Scale;
use config::Mebibytes;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

pub use self::model::{Guest, ScriptedQemu};
use crate::hotplug::{DeviceManager, DiskOptions, Machine, NicHotplug};
use crate::machine::accel::Accel;
use crate::machine::size::Size;
use crate::machine::spec::Backing;
use crate::qmp::Qmp;

/// What QEMU does with one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Carries it out and answers.
    None,
    /// Answers with an error and changes nothing.
    Refuses,
    /// Its main loop is blocked for so long; then it carries out this and all that has come meanwhile, in order.
    Late(Duration),
    /// Carries it out, and its answer is lost.
    Silent,
    /// Never gets it.
    Lost,
    /// Answers twice.
    Twice,
}

/// Talks to one that answers by a rule. The rule is given a command's name and its arguments; what it gives back is said in that
/// order, with the command's id where it is an answer. None: QEMU ends.
pub fn qemu(rule: impl FnMut(&str, &Value) -> Option<Vec<Value>> + Send + 'static) -> Qmp {
    talkative(rule, mpsc::unbounded_channel().1)
}

/// The same, of one that says what comes from `unasked` as well.
pub fn talkative(
    rule: impl FnMut(&str, &Value) -> Option<Vec<Value>> + Send + 'static,
    unasked: mpsc::UnboundedReceiver<Value>,
) -> Qmp {
    faulty(rule, unasked, |_| Fault::None)
}

/// The same, of one that does with each command what `fault` says of its name.
fn faulty(
    mut rule: impl FnMut(&str, &Value) -> Option<Vec<Value>> + Send + 'static,
    mut unasked: mpsc::UnboundedReceiver<Value>,
    mut fault: impl FnMut(&str) -> Fault + Send + 'static,
) -> Qmp {
    #[allow(clippy::expect_used, reason = "only tests have it")]
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    tokio::spawn(async move {
        let (reads, mut writes) = theirs.into_split();
        let mut lines = BufReader::new(reads).lines();
        loop {
            let says: VecDeque<Value> = tokio::select! {
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else { return };
                    let Ok(command) = serde_json::from_str::<Value>(&line) else { return };
                    let Some(name) = command["execute"].as_str() else { return };
                    let fault = fault(name);
                    if let Fault::Late(time) = fault {
                        tokio::time::sleep(time).await;
                    }
                    let says = match fault {
                        Fault::Lost => Some(Vec::new()),
                        Fault::Refuses => Some(vec![model::refusal("GenericError", "no")]),
                        _ => rule(name, &command["arguments"]),
                    };
                    let Some(mut says) = says else { return };
                    let is_event = |message: &Value| message.get("event").is_some();
                    for message in says.iter_mut().filter(|message| !is_event(message)) {
                        message["id"] = command["id"].clone();
                    }
                    match fault {
                        Fault::Silent => says.retain(is_event),
                        Fault::Twice => says.extend(says.clone().into_iter().filter(|message| !is_event(message))),
                        _ => {}
                    }
                    says.into()
                }
                Some(event) = unasked.recv() => [event].into(),
            };
            for message in says {
                if writes.write_all(format!("{message}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    Qmp::new(ours, Scale::default())
}

/// The largest VM that a [`ScriptedQemu`] is: it boots with one vCPU and 256 MiB.
fn machine(accel: Accel) -> Machine {
    let of = |vcpus: u32, memory| Size {
        vcpus: NonZeroU32::MIN.saturating_add(vcpus - 1),
        memory: Mebibytes(memory),
    };
    Machine {
        disks: DiskOptions::of(&config::Hypervisor::default()),
        accel,
        backing: Backing::default(),
        size: of(1, 256),
        largest: of(model::MOST_VCPUS, 2048),
    }
}

/// The devices of a VM whose monitor this is: it boots with one vCPU and 256 MiB.
#[cfg(test)]
pub(crate) fn devices(qmp: Qmp) -> DeviceManager {
    DeviceManager::new(qmp, machine(Accel::Kvm))
}

impl ScriptedQemu {
    /// Starts one, whose commands have the faults that `fault` says of their names. The answer is it and its devices.
    pub(crate) fn start(
        accel: Accel,
        guest: Guest,
        fault: impl FnMut(&str) -> Fault + Send + 'static,
    ) -> (Self, DeviceManager) {
        let (tell, unasked) = mpsc::unbounded_channel();
        let qemu = Self::new(guest, tell);
        let carries_out = qemu.clone();
        let qmp = faulty(
            move |name, arguments| Some(carries_out.carry_out(name, arguments)),
            unasked,
            fault,
        );
        (qemu, DeviceManager::new(qmp, machine(accel)))
    }

    /// Starts one without faults. The answer is it and its network devices.
    #[must_use]
    pub fn with_nics() -> (Self, NicHotplug) {
        let (qemu, devices) = Self::start(Accel::Kvm, Guest::LetsGo, |_| Fault::None);
        (qemu, NicHotplug(devices))
    }
}
