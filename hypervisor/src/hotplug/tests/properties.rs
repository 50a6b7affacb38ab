//! Whatever a QEMU answers late, never, twice or not at all: what the manager says is there is there, what it does not say is not,
//! and no slot is lost. The scripted QEMU panics if two devices get one slot, or a back end goes before its device.

use proptest::prelude::*;

use super::*;
use crate::scripted::{Fault, Guest, ScriptedQemu};

/// One call of the manager's.
#[derive(Debug, Clone)]
enum Call {
    AttachDisk,
    AttachNic,
    /// Of those that are there, the one of this number modulo their count.
    Detach(usize),
    Vcpus(u32),
    Memory(u32),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => Just(Call::AttachDisk),
        3 => Just(Call::AttachNic),
        4 => any::<usize>().prop_map(Call::Detach),
        1 => (1..=4_u32).prop_map(Call::Vcpus),
        1 => (256..=2048_u32).prop_map(Call::Memory),
    ]
}

/// What becomes of one command. Limits in the manager: 30 s for an answer, 10 s for a guest.
fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        12 => Just(Fault::None),
        2 => Just(Fault::Refuses),
        2 => (1..200_u64).prop_map(|seconds| Fault::Late(Duration::from_secs(seconds))),
        2 => Just(Fault::Silent),
        1 => Just(Fault::Lost),
        2 => Just(Fault::Twice),
    ]
}

fn guest() -> impl Strategy<Value = Guest> {
    prop_oneof![
        Just(Guest::LetsGo),
        (0..25_u64).prop_map(|seconds| Guest::LetsGoAfter(Duration::from_secs(seconds))),
    ]
}

/// A QEMU that refuses to remove what is there, for no reason, would keep it for good. That is not looked at.
fn is_refused_by_nobody(command: &str) -> bool {
    command.starts_with("query-")
        || [
            "qom-list",
            "qom-get",
            "device_del",
            "blockdev-del",
            "netdev_del",
            "object-del",
            "remove-fd",
            "closefd",
        ]
        .contains(&command)
}

/// What QEMU has to have of these disks and network devices.
fn parts_of<'a>(keys: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut parts: Vec<String> = keys
        .into_iter()
        .flat_map(|key| match key.strip_prefix("tatami-") {
            Some(number) => vec![
                format!("files {number}"),
                format!("node disk-{number}"),
                format!("device disk-{number}"),
            ],
            None => vec![key.replace("nic", "netdev net"), format!("device {key}")],
        })
        .collect();
    parts.sort();
    parts
}

/// What QEMU has of disks and network devices.
fn has(qemu: &ScriptedQemu) -> Vec<String> {
    let mut has = qemu.has();
    has.retain(|part| !part.contains("memory") && !part.contains("cpu"));
    has.sort();
    has
}

fn vcpus(qemu: &ScriptedQemu) -> u32 {
    let plugged = qemu.has().iter().filter(|part| part.contains("cpu")).count();
    1 + u32::try_from(plugged).unwrap()
}

async fn runs(accel: Accel, guest: Guest, calls: Vec<Call>, faults: Vec<Fault>) {
    let faults = Arc::new(Mutex::new(faults));
    let left = Arc::clone(&faults);
    let (qemu, devices) = ScriptedQemu::start(accel, guest, move |command| match left.lock().unwrap().pop() {
        Some(Fault::Refuses) if is_refused_by_nobody(command) => Fault::None,
        fault => fault.unwrap_or(Fault::None),
    });
    let mut there: Vec<String> = Vec::new();
    // A detachment that failed has removed some of these.
    let mut leaving: Vec<String> = Vec::new();
    for call in calls {
        match call {
            Call::AttachDisk => there.extend(devices.attach_disk(disk()).await),
            Call::AttachNic => there.extend(devices.attach_nic(nic()).await),
            Call::Detach(_) if there.is_empty() => {}
            Call::Detach(number) => {
                let number = number % there.len();
                let key = &there[number];
                let done = if key.starts_with("nic") {
                    devices.detach_nic(key).await
                } else {
                    devices.detach_disk(key).await
                };
                if done.is_err() {
                    leaving.push(key.clone());
                } else {
                    let gone = parts_of([&there.swap_remove(number)]);
                    assert!(gone.iter().all(|part| !qemu.has().contains(part)), "{gone:?} stay");
                }
            }
            Call::Vcpus(count) => {
                let done = devices.set_vcpus(NonZeroU32::new(count).unwrap()).await;
                let has = vcpus(&qemu);
                if done.is_ok() {
                    assert!(if accel == Accel::Tcg {
                        has >= count
                    } else {
                        has == count
                    });
                }
            }
            Call::Memory(wanted) => {
                if devices.set_memory(Mebibytes(wanted)).await.is_ok() {
                    let more = u64::from(wanted - 256).next_multiple_of(4) << 20;
                    assert!(qemu.requested() == more);
                }
            }
        }
        let has = has(&qemu);
        let needed = parts_of(there.iter().filter(|key| !leaving.contains(*key)));
        let missing: Vec<_> = needed.iter().filter(|part| !has.contains(part)).collect();
        assert!(missing.is_empty(), "{missing:?} are missing");
    }
    // From here on QEMU answers. What nobody waits for is done after a while.
    faults.lock().unwrap().clear();
    qemu.set_guest(Guest::LetsGo);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for key in &there {
        let done = if key.starts_with("nic") {
            devices.detach_nic(key).await
        } else {
            devices.detach_disk(key).await
        };
        done.unwrap();
    }
    assert_eq!(has(&qemu), Vec::<String>::new());
    devices.set_memory(Mebibytes(512)).await.unwrap();
    devices.set_vcpus(NonZeroU32::new(4).unwrap()).await.unwrap();
    assert_eq!((qemu.requested(), vcpus(&qemu)), (256 << 20, 4));
    // One slot is that of the memory.
    for _ in 0..CAPACITY - 1 {
        there.push(devices.attach_disk(disk()).await.unwrap());
    }
    assert!(matches!(devices.attach_disk(disk()).await, Err(HotplugError::Full)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_manager_says_is_what_qemu_has(
        kvm in any::<bool>(),
        guest in guest(),
        calls in prop::collection::vec(call(), 1..12),
        faults in prop::collection::vec(fault(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(runs(if kvm { Accel::Kvm } else { Accel::Tcg }, guest, calls, faults));
    }
}
