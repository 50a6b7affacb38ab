//! Whatever a QEMU answers late, never, twice or not at all: what the manager says is there is there, what it does not say is not,
//! and no slot is lost. The scripted QEMU panics if two devices get one slot, or a back end goes before its device.

use proptest::prelude::*;

use super::*;
use crate::scripted::{Fault, Guest, ScriptedQemu};

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
        Just(Guest::Refuses),
        Just(Guest::Silent),
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

/// How many parts of plugged memory there are: itself and its device.
fn memory(qemu: &ScriptedQemu) -> usize {
    qemu.has().iter().filter(|part| part.contains("memory")).count()
}

enum Done {
    Gone(String),
    Vcpus(u32),
    Memory(u32),
    Other,
}

async fn detach(devices: &DeviceManager, key: &str) -> Result<(), HotplugError> {
    if key.starts_with("nic") {
        devices.detach_nic(key).await
    } else {
        devices.detach_disk(key).await
    }
}

async fn carry_out(devices: &DeviceManager, call: Call, leaving: &mut Vec<String>) -> Done {
    match call {
        Call::AttachDisk => drop(devices.attach_disk(disk()).await),
        Call::AttachNic => drop(devices.attach_nic(nic()).await),
        Call::Detach(number) => {
            let mut keys: Vec<String> = devices.plugged().keys().cloned().collect();
            keys.sort();
            if keys.is_empty() {
                return Done::Other;
            }
            let key = keys.swap_remove(number % keys.len());
            leaving.push(key.clone());
            if detach(devices, &key).await.is_ok() {
                return Done::Gone(key);
            }
        }
        Call::Vcpus(count) => {
            if devices.set_vcpus(NonZeroU32::new(count).unwrap()).await.is_ok() {
                return Done::Vcpus(count);
            }
        }
        Call::Memory(wanted) => {
            if devices.set_memory(Mebibytes(wanted)).await.is_ok() {
                return Done::Memory(wanted);
            }
        }
    }
    Done::Other
}

fn vcpus(qemu: &ScriptedQemu) -> u32 {
    let plugged = qemu.has().iter().filter(|part| part.contains("cpu")).count();
    1 + u32::try_from(plugged).unwrap()
}

/// Each call with the seconds after which its caller gives up.
async fn runs(accel: Accel, guest: Guest, calls: Vec<(Call, Option<u64>)>, faults: Vec<Fault>) {
    let faults = Arc::new(Mutex::new(faults));
    let left = Arc::clone(&faults);
    let (qemu, devices) = ScriptedQemu::start(accel, guest, move |command| match left.lock().unwrap().pop() {
        Some(Fault::Refuses) if is_refused_by_nobody(command) => Fault::None,
        fault => fault.unwrap_or(Fault::None),
    });
    // A detachment that failed has removed some of these.
    let mut leaving: Vec<String> = Vec::new();
    // How many vCPUs there are for certain, and stay.
    let mut sure = None;
    // A caller has given up: what it asked for goes on, and is looked at in the end.
    let mut given_up = false;
    for (call, limit) in calls {
        let limit = limit.map_or(Duration::MAX, Duration::from_secs);
        if matches!(call, Call::Vcpus(_)) {
            sure = None;
        }
        let Ok(done) = tokio::time::timeout(limit, carry_out(&devices, call, &mut leaving)).await else {
            given_up = true;
            continue;
        };
        if given_up {
            continue;
        }
        match done {
            Done::Gone(key) => {
                let gone = parts_of([&key]);
                assert!(gone.iter().all(|part| !qemu.has().contains(part)), "{gone:?} stay");
            }
            Done::Vcpus(count) => {
                // More only if the guest may still let go of some, or never does.
                assert!(vcpus(&qemu) >= count);
                sure = Some(count);
            }
            Done::Memory(wanted) => {
                let more = u64::from(wanted - 256).next_multiple_of(4) << 20;
                assert_eq!(if memory(&qemu) == 2 { qemu.requested() } else { 0 }, more);
            }
            Done::Other => {}
        }
        let has = has(&qemu);
        let needed = parts_of(devices.plugged().keys().filter(|key| !leaving.contains(*key)));
        let missing: Vec<_> = needed.iter().filter(|part| !has.contains(part)).collect();
        assert!(missing.is_empty(), "{missing:?} are missing");
    }
    // From here on QEMU answers. What nobody waits for is done after a while.
    faults.lock().unwrap().clear();
    qemu.set_guest(Guest::LetsGo);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    if let (Some(sure), false) = (sure, given_up) {
        assert!(vcpus(&qemu) >= sure, "some went later that were counted");
    }
    let there: Vec<String> = devices.plugged().keys().cloned().collect();
    for key in &there {
        detach(&devices, key).await.unwrap();
    }
    assert_eq!(has(&qemu), Vec::<String>::new());
    devices.set_memory(Mebibytes(512)).await.unwrap();
    devices.set_vcpus(NonZeroU32::new(4).unwrap()).await.unwrap();
    assert_eq!((memory(&qemu), qemu.requested(), vcpus(&qemu)), (2, 256 << 20, 4));
    // One slot is that of the memory.
    for _ in 0..CAPACITY - 1 {
        devices.attach_disk(disk()).await.unwrap();
    }
    assert!(matches!(devices.attach_disk(disk()).await, Err(HotplugError::Full)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_manager_says_is_what_qemu_has(
        kvm in any::<bool>(),
        guest in guest(),
        calls in prop::collection::vec((call(), prop_oneof![6 => Just(None), 1 => (0..60_u64).prop_map(Some)]), 1..12),
        faults in prop::collection::vec(fault(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(runs(if kvm { Accel::Kvm } else { Accel::Tcg }, guest, calls, faults));
    }
}

#[tokio::test(start_paused = true)]
async fn vcpus_that_go_late_are_not_counted_as_present() {
    let late = Guest::LetsGoAfter(Duration::from_secs(20));
    let (qemu, devices) = ScriptedQemu::start(Accel::Kvm, late, |_| Fault::None);
    let set = |count| devices.set_vcpus(NonZeroU32::new(count).unwrap());
    set(3).await.unwrap();
    let error = set(2).await.unwrap_err();
    assert!(matches!(error, CpuError::Held { .. }), "{error}");
    set(3).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(vcpus(&qemu), 3);
}

/// Sets a number of vCPUs, and says what came of it and how many seconds that took.
async fn timed(devices: &DeviceManager, count: u32) -> (Result<(), CpuError>, u64) {
    let began = tokio::time::Instant::now();
    let done = devices.set_vcpus(NonZeroU32::new(count).unwrap()).await;
    (done, began.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_vcpu_that_the_guest_keeps_is_waited_for_once_and_comes_again_when_it_has_gone() {
    let (qemu, devices) = ScriptedQemu::start(Accel::Kvm, Guest::LetsGo, |_| Fault::None);
    timed(&devices, 4).await.0.unwrap();
    qemu.set_guest(Guest::Silent);
    let (held, seconds) = timed(&devices, 3).await;
    assert!(matches!(held, Err(CpuError::Held { .. })) && seconds == 15, "{held:?}");
    // No place is free, and the guest had its time: neither the first creation waits nor the next ones.
    for _ in 0..3 {
        let (held, seconds) = timed(&devices, 4).await;
        assert!(
            matches!(held, Err(CpuError::Held { .. })) && seconds == 0,
            "{held:?} after {seconds} s"
        );
    }
    // Nor does a change that takes more away.
    let (held, seconds) = timed(&devices, 2).await;
    assert!(held.is_err() && seconds == 0, "{held:?} after {seconds} s");
    timed(&devices, 4).await.0.unwrap_err();
    assert_eq!(vcpus(&qemu), 4);
    let late = async || tokio::time::timeout(Duration::from_secs(1), devices.vcpus_came_late()).await;
    assert!(late().await.is_err(), "none has come yet");
    qemu.set_guest(Guest::LetsGo);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(vcpus(&qemu), 4, "those that went are there again");
    assert!(late().await.is_ok(), "who pins them is told");
    assert!(late().await.is_err(), "once");
    timed(&devices, 2).await.0.unwrap();
    assert_eq!(vcpus(&qemu), 2);
}

#[tokio::test(start_paused = true)]
async fn a_vcpu_that_the_guest_keeps_is_asked_for_again_by_the_next_change() {
    let (qemu, devices) = ScriptedQemu::start(Accel::Kvm, Guest::LetsGo, |_| Fault::None);
    timed(&devices, 3).await.0.unwrap();
    qemu.set_guest(Guest::Silent);
    timed(&devices, 2).await.0.unwrap_err();
    assert_eq!(vcpus(&qemu), 3);
    qemu.asked();
    timed(&devices, 3).await.0.unwrap();
    assert_eq!(
        qemu.asked(),
        ["query-hotpluggable-cpus", "device_add", "device_del"],
        "a free place is used, and the guest is asked again"
    );
    qemu.set_guest(Guest::LetsGo);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(vcpus(&qemu), 3);
}

#[tokio::test(start_paused = true)]
async fn a_vcpu_that_the_guest_says_late_that_it_keeps_counts_again() {
    let (qemu, devices) = ScriptedQemu::start(Accel::Kvm, Guest::LetsGo, |_| Fault::None);
    timed(&devices, 4).await.0.unwrap();
    qemu.set_guest(Guest::Silent);
    timed(&devices, 3).await.0.unwrap_err();
    qemu.set_guest(Guest::Refuses);
    tokio::time::sleep(Duration::from_secs(1)).await;
    qemu.asked();
    timed(&devices, 4).await.0.unwrap();
    assert_eq!(qemu.asked(), ["query-hotpluggable-cpus"]);
    qemu.set_guest(Guest::LetsGo);
    timed(&devices, 3).await.0.unwrap();
    assert_eq!(vcpus(&qemu), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_vcpu_takes_those_before_it_with_it_but_under_tcg() {
    for (accel, left) in [(Accel::Kvm, 1), (Accel::Tcg, 2)] {
        let mut plugged = 0;
        let (qemu, devices) = ScriptedQemu::start(accel, Guest::LetsGo, move |command| {
            let adds = command == "device_add";
            plugged += u32::from(adds);
            if adds && plugged == 2 {
                Fault::Refuses
            } else {
                Fault::None
            }
        });
        devices.set_vcpus(NonZeroU32::new(4).unwrap()).await.unwrap_err();
        assert_eq!(vcpus(&qemu), left);
    }
}
