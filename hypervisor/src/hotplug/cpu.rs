//! vCPUs that are plugged and unplugged. QEMU has the list of them. Only those that the guest was asked to let go of are remembered.
//!
//! vCPUs are added in one transaction: if one cannot be added, those before it are taken back, as far as the guest lets go of them.
//! Under TCG none can be taken back, and those before it stay. Those that are too many go one after the other, and those that
//! went do not come back if a later one stays.
//!
//! ```text
//!            asked to let go                    DEVICE_DELETED
//!  present ───────────────────► leaving ─────────────────────────► (absent)
//!     ▲                            │ asked again by each change
//!     └──── the guest says no ─────┘
//! ```
//! A vCPU that is leaving does not count, and it may go at any moment. If the VM lacks a place because of it, it is waited for
//! until it has had its time once. After that no change waits for it. What the guest answers later is followed
//! ([`follow`]), and the vCPUs that are missing are added then.
//!
//! The vCPUs of the boot stay, because QEMU has no id for them. The guest's kernel releases a vCPU by itself (ACPI); a
//! new vCPU must be brought online by a program in the guest. Under TCG no vCPU is unplugged.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::release::{Answer, ReleaseError, answer_of, release};
use super::transaction::{self, Command, Left, Name, NotAdded, Part, Undo};
use crate::machine::accel::Accel;
use crate::qmp::{Event, Qmp, QmpError};

/// How long the guest may take to let go of one. Its kernel moves tasks and timers away, and nothing else.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Where QEMU has the devices that were given an id.
const PERIPHERAL: &str = "/machine/peripheral/";

/// Why the VM has not the number of vCPUs that it was to have.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum CpuError {
    /// QEMU refuses a step, or has ended.
    #[error("cannot {step}")]
    Step {
        /// The failed operation, as the message names it.
        step: &'static str,
        #[source]
        source: QmpError,
    },
    /// More than what the VM was started for.
    #[error("the VM can have {most} vCPUs, and not {wanted}")]
    TooMany { wanted: NonZeroU32, most: usize },
    /// The task that did the work is gone: the process is ending.
    #[error("interrupted")]
    Interrupted,
    /// The guest does not let go of one.
    #[error("the guest has not let go of vCPU {id}: {reason}")]
    Held { id: String, reason: String },
}

fn failed(step: &'static str) -> impl FnOnce(QmpError) -> CpuError {
    move |source| CpuError::Step { step, source }
}

/// QEMU's name of the vCPU in the place of this number.
fn id(number: usize) -> String {
    format!("cpu-{number}")
}

/// A place for a vCPU.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    driver: String,
    /// Where it is in the machine's topology.
    properties: Map<String, Value>,
    /// QEMU's path of the vCPU in it; none if it is free.
    occupant: Option<String>,
}

impl Place {
    /// From an entry of `query-hotpluggable-cpus` (QEMU's QAPI, HotpluggableCPU).
    fn parse(entry: &Value) -> Option<Self> {
        Some(Self {
            driver: entry["type"].as_str()?.to_owned(),
            properties: entry["props"].as_object()?.clone(),
            occupant: entry["qom-path"].as_str().map(str::to_owned),
        })
    }

    /// The order in which places are filled.
    fn order(&self) -> [u64; 6] {
        ["node-id", "socket-id", "die-id", "module-id", "core-id", "thread-id"]
            .map(|name| self.properties.get(name).and_then(Value::as_u64).unwrap_or(0))
    }

    /// QEMU's name of the vCPU in it, if it was plugged.
    fn plugged(&self) -> Option<&str> {
        self.occupant.as_deref()?.strip_prefix(PERIPHERAL)
    }

    fn device_add(&self, number: usize) -> Value {
        let mut device = self.properties.clone();
        device.insert("driver".to_owned(), json!(self.driver));
        device.insert("id".to_owned(), json!(id(number)));
        Value::Object(device)
    }

    /// The vCPU that is plugged into it.
    fn part(&self, number: usize) -> Part {
        let plug = Command::new("plug in a vCPU", "device_add", self.device_add(number));
        Part::new(Name::Device(id(number)), plug)
    }
}

/// All places, in order.
fn places(answer: &Value) -> Vec<Place> {
    let entries = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut places: Vec<_> = entries.iter().filter_map(Place::parse).collect();
    places.sort_by_key(Place::order);
    places
}

/// What is remembered of the vCPUs between two changes. Whoever changes their number has it.
#[derive(Debug, Default)]
pub(crate) struct Vcpus {
    /// Those that the guest was asked to let go of and has not answered for, and when it was asked first. They may still go.
    leaving: BTreeMap<String, Instant>,
    /// How many the VM was to have, if it has fewer because one that is leaving is in the last place.
    lacking: Option<NonZeroU32>,
    /// Whether [`follow`] runs.
    followed: bool,
    /// Notified when [`follow`] has added some.
    late: Arc<Notify>,
}

impl Vcpus {
    /// Of a VM; `late` is notified when some have been added that nobody waited for.
    pub(crate) fn new(late: Arc<Notify>) -> Self {
        Self {
            late,
            ..Self::default()
        }
    }

    /// The one of those that are leaving that the guest was asked for first.
    fn first_asked(&self) -> Option<(String, Instant)> {
        let first = self.leaving.iter().min_by_key(|(_, asked)| **asked);
        first.map(|(id, asked)| (id.clone(), *asked))
    }
}

fn silent(id: String, asked: Instant) -> CpuError {
    let reason = format!("it has not answered for {} s", asked.elapsed().as_secs());
    CpuError::Held { id, reason }
}

/// Gives the VM so many vCPUs, in a task of its own: a caller that gives up does not stop it between two steps.
///
/// `vcpus` is held as long as that takes.
pub(crate) async fn set_whole(
    qmp: Qmp,
    accel: Accel,
    wanted: NonZeroU32,
    vcpus: Arc<Mutex<Vcpus>>,
) -> Result<(), CpuError> {
    let work = tokio::spawn(async move {
        // Before the first request: an answer may come while another is waited for.
        let events = qmp.events();
        let mut held = vcpus.lock().await;
        let done = set(&qmp, accel, wanted, &mut held).await;
        if !held.leaving.is_empty() && !std::mem::replace(&mut held.followed, true) {
            tokio::spawn(follow(qmp, accel, Arc::clone(&vcpus), events));
        }
        done
    });
    work.await.unwrap_or(Err(CpuError::Interrupted))
}

/// Waits for what the guest says of the vCPUs that are leaving, and adds those that were missing because of them. Ends when none is
/// leaving, and with QEMU.
async fn follow(qmp: Qmp, accel: Accel, vcpus: Arc<Mutex<Vcpus>>, mut events: Receiver<Event>) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = qmp.closed() => return,
        };
        let answer = match &event {
            Ok(event) => match answer_of(event) {
                Some(answer) => Some(answer),
                None => continue,
            },
            // Some were lost: QEMU is asked what it has.
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        let mut held = vcpus.lock().await;
        if let Some((id, Answer::Stays)) = answer {
            held.leaving.remove(id);
        }
        if let Err(error) = look(&qmp, &mut held).await {
            tracing::debug!(%error, "QEMU does not say which vCPUs have gone");
        }
        if let Some(wanted) = held.lacking {
            match set(&qmp, accel, wanted, &mut held).await {
                Ok(()) => {
                    tracing::info!(vcpus = wanted, "the VM has the vCPUs that it lacked");
                    held.late.notify_one();
                }
                Err(error) => tracing::debug!(error = base::chain(&error), "the VM still lacks vCPUs"),
            }
        }
        if held.leaving.is_empty() {
            held.followed = false;
            return;
        }
    }
}

/// All places. Those that are leaving and have gone are forgotten.
async fn look(qmp: &Qmp, vcpus: &mut Vcpus) -> Result<Vec<Place>, CpuError> {
    let answer = qmp.execute("query-hotpluggable-cpus", Value::Null).await;
    let places = places(&answer.map_err(failed("list the vCPUs"))?);
    vcpus
        .leaving
        .retain(|id, _| places.iter().any(|place| place.plugged() == Some(id)));
    Ok(places)
}

/// Gives the VM so many vCPUs. The caller sees to it that nobody else does the same at the time.
async fn set(qmp: &Qmp, accel: Accel, wanted: NonZeroU32, vcpus: &mut Vcpus) -> Result<(), CpuError> {
    vcpus.lacking = None;
    let before: Vec<String> = vcpus.leaving.keys().cloned().collect();
    let done = reach(qmp, accel, wanted, vcpus).await;
    if vcpus.lacking.is_none() {
        for id in before {
            ask(qmp, &id, vcpus).await;
        }
    }
    done
}

async fn reach(qmp: &Qmp, accel: Accel, wanted: NonZeroU32, vcpus: &mut Vcpus) -> Result<(), CpuError> {
    let patience = qmp.scale().of(RELEASE_TIMEOUT);
    let count = usize::try_from(wanted.get()).unwrap_or(usize::MAX);
    let mut asked_again = false;
    loop {
        let places = look(qmp, vcpus).await?;
        if count > places.len() {
            let most = places.len();
            return Err(CpuError::TooMany { wanted, most });
        }
        let taken = places.iter().filter(|place| place.occupant.is_some()).count();
        let present = taken - vcpus.leaving.len();
        if count <= present {
            return shrink(qmp, accel, &places, present - count, vcpus).await;
        }
        let free = places.iter().enumerate().filter(|(_, place)| place.occupant.is_none());
        let missing: Vec<Part> = free
            .take(count - present)
            .map(|(number, place)| place.part(number))
            .collect();
        let waits = missing.len() < count - present;
        add(qmp, accel, missing, vcpus).await?;
        if !waits {
            return Ok(());
        }
        let Some((id, asked)) = vcpus.first_asked() else {
            continue;
        };
        vcpus.lacking = Some(wanted);
        let left = patience.saturating_sub(asked.elapsed());
        if left.is_zero() {
            if std::mem::replace(&mut asked_again, true) {
                return Err(silent(id, asked));
            }
            // It may be well again, or QEMU may not have got the first request.
            for id in vcpus.leaving.keys().cloned().collect::<Vec<_>>() {
                ask(qmp, &id, vcpus).await;
            }
            continue;
        }
        take(qmp, &id, left, vcpus).await?;
        vcpus.lacking = None;
    }
}

/// Asks the guest to let go of a vCPU that is leaving, and does not wait for it. QEMU takes such a request again
/// (`acpi_cpu_unplug_request_cb` in its hw/acpi/cpu.c).
async fn ask(qmp: &Qmp, id: &str, vcpus: &mut Vcpus) {
    if !vcpus.leaving.contains_key(id) {
        return;
    }
    match qmp.execute("device_del", json!({ "id": id })).await {
        Err(error) if error.is_not_found() => drop(vcpus.leaving.remove(id)),
        Err(error) => tracing::debug!(%error, id, "the guest is not asked for a vCPU"),
        Ok(_) => {}
    }
}

async fn add(qmp: &Qmp, accel: Accel, missing: Vec<Part>, vcpus: &mut Vcpus) -> Result<(), CpuError> {
    // QEMU's translator has a context for each vCPU that there can be, never takes one back, and aborts at the first vCPU too
    // many (`tcg_register_thread`, 10.0.2): a vCPU that was unplugged could not come again. An idle one costs nothing.
    let undo = if accel == Accel::Tcg { Undo::Kept } else { Undo::Removed };
    let patience = qmp.scale().of(RELEASE_TIMEOUT);
    let added = transaction::add(qmp, missing, undo, patience).await;
    added.map(drop).map_err(|not_added| {
        let NotAdded {
            step,
            source,
            left,
            leaving: later,
        } = not_added;
        if let Left::Perhaps(names) = left {
            tracing::warn!(
                ?names,
                "QEMU may have vCPUs that it was not to have: the next change begins with what it has"
            );
        }
        // The others stay: the guest was not asked for them, or has said no.
        if let Some(Name::Device(id)) = later {
            vcpus.leaving.entry(id).or_insert_with(Instant::now);
        }
        failed(step)(source)
    })
}

async fn shrink(qmp: &Qmp, accel: Accel, places: &[Place], surplus: usize, vcpus: &mut Vcpus) -> Result<(), CpuError> {
    if accel == Accel::Tcg {
        return Ok(());
    }
    let patience = qmp.scale().of(RELEASE_TIMEOUT);
    let plugged = places.iter().rev().filter_map(Place::plugged);
    let stay: Vec<&str> = plugged.filter(|id| !vcpus.leaving.contains_key(*id)).collect();
    let surplus = stay.into_iter().take(surplus);
    if let Some((silent_about, asked)) = vcpus.first_asked().filter(|(_, asked)| asked.elapsed() >= patience) {
        // It answers nothing: it is asked, and not waited for once more.
        let mut asks = surplus.peekable();
        if asks.peek().is_none() {
            return Ok(());
        }
        for id in asks {
            vcpus.leaving.insert(id.to_owned(), Instant::now());
            ask(qmp, id, vcpus).await;
        }
        return Err(silent(silent_about, asked));
    }
    for id in surplus {
        take(qmp, id, patience, vcpus).await?;
    }
    Ok(())
}

/// Takes a vCPU from the guest. One that the guest says it cannot let go of stays, and counts as present.
async fn take(qmp: &Qmp, id: &str, patience: Duration, vcpus: &mut Vcpus) -> Result<(), CpuError> {
    vcpus.leaving.entry(id.to_owned()).or_insert_with(Instant::now);
    match release(qmp, id, patience).await {
        Ok(()) => {
            vcpus.leaving.remove(id);
            Ok(())
        }
        Err(ReleaseError::Held { reason, undecided }) => {
            if !undecided {
                vcpus.leaving.remove(id);
            }
            let id = id.to_owned();
            Err(CpuError::Held { id, reason })
        }
        Err(ReleaseError::Qmp(source)) => {
            if matches!(source, QmpError::Refused { .. }) {
                vcpus.leaving.remove(id);
            }
            Err(failed("unplug a vCPU")(source))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::scripted;

    /// A QEMU that has the places of [`answer`], lets every vCPU go at once, and keeps what it is asked.
    fn qemu() -> (Qmp, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let qmp = scripted::qemu(move |name, arguments| {
            if name == "query-hotpluggable-cpus" {
                return Some(vec![json!({ "return": answer() })]);
            }
            let id = &arguments["id"];
            kept.lock().unwrap().push(format!("{name} {}", id.as_str().unwrap()));
            let gone = json!({ "event": "DEVICE_DELETED", "data": { "device": id } });
            let mut says = if name == "device_del" { vec![gone] } else { Vec::new() };
            says.push(json!({ "return": {} }));
            Some(says)
        });
        (qmp, asked)
    }

    #[tokio::test]
    async fn vcpus_are_plugged_in_order_and_unplugged_in_the_other_but_not_under_tcg() {
        let (qmp, asked) = qemu();
        let asked = || std::mem::take(&mut *asked.lock().unwrap());
        let count = |count| NonZeroU32::new(count).unwrap();
        set(&qmp, Accel::Kvm, count(3), &mut Vcpus::default()).await.unwrap();
        assert_eq!(asked(), ["device_add cpu-2"]);
        set(&qmp, Accel::Kvm, count(2), &mut Vcpus::default()).await.unwrap();
        set(&qmp, Accel::Tcg, count(1), &mut Vcpus::default()).await.unwrap();
        assert!(asked().is_empty());
        set(&qmp, Accel::Kvm, count(1), &mut Vcpus::default()).await.unwrap();
        assert_eq!(asked(), ["device_del cpu-1"]);
        let error = set(&qmp, Accel::Tcg, count(4), &mut Vcpus::default())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "the VM can have 3 vCPUs, and not 4");
    }

    #[tokio::test]
    async fn one_that_may_still_go_does_not_count_and_is_waited_for_only_if_no_place_is_free() {
        let (qmp, asked) = qemu();
        let asked = || std::mem::take(&mut *asked.lock().unwrap());
        let count = |count| NonZeroU32::new(count).unwrap();
        let mut vcpus = Vcpus {
            leaving: BTreeMap::from([("cpu-1".to_owned(), Instant::now())]),
            ..Vcpus::default()
        };
        set(&qmp, Accel::Kvm, count(2), &mut vcpus).await.unwrap();
        assert_eq!(asked(), ["device_add cpu-2", "device_del cpu-1"]);
        assert_eq!(vcpus.leaving.len(), 1);
        // The places are listed as before: once it has gone, what was added is added again.
        set(&qmp, Accel::Kvm, count(3), &mut vcpus).await.unwrap();
        assert_eq!(asked(), ["device_add cpu-2", "device_del cpu-1", "device_add cpu-2"]);
        assert!(vcpus.leaving.is_empty() && vcpus.lacking.is_none());
    }

    /// As QEMU 10.0.2 answers for `-smp 1,maxcpus=3`.
    fn answer() -> Value {
        let at = |core: u32| json!({ "core-id": core, "thread-id": 0, "socket-id": 0 });
        json!([
            { "props": at(2), "vcpus-count": 1, "type": "max-x86_64-cpu" },
            { "props": at(1), "vcpus-count": 1, "type": "max-x86_64-cpu", "qom-path": "/machine/peripheral/cpu-1" },
            { "props": at(0), "vcpus-count": 1, "type": "max-x86_64-cpu", "qom-path": "/machine/unattached/device[0]" },
        ])
    }

    #[test]
    fn places_are_in_the_machines_order_and_those_of_the_boot_cannot_be_unplugged() {
        let places = places(&answer());
        let plugged: Vec<_> = places.iter().map(Place::plugged).collect();
        assert_eq!(plugged, [None, Some("cpu-1"), None]);
        assert_eq!(
            places[2].device_add(2),
            json!({ "driver": "max-x86_64-cpu", "id": "cpu-2", "core-id": 2, "thread-id": 0, "socket-id": 0 })
        );
    }

    #[test]
    fn what_is_no_list_of_places_has_none() {
        assert_eq!(places(&json!({})), []);
        assert_eq!(places(&json!([{ "type": 1 }, 2])), []);
    }
}
