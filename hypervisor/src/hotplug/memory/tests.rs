//! Tests of plugging memory with a scripted QEMU and guest.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use super::*;
use crate::scripted;

const MIB: u64 = 1 << 20;

/// How much of what is asked for the guest takes or gives back, each time that it is looked at.
type Guest = Box<dyn FnMut(u64, u64) -> u64 + Send>;

struct Qemu {
    memory: Memory,
    asked: Arc<Mutex<Vec<String>>>,
}

fn size(memory: u32) -> Size {
    Size {
        vcpus: NonZeroU32::MIN,
        memory: Mebibytes(memory),
    }
}

impl Qemu {
    /// A VM of 256 MiB that can have 1026 MiB. `refused` is a command that QEMU refuses.
    fn new(refused: &'static str, mut guest: Guest) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let (mut requested, mut has) = (0, 0);
        let qmp = scripted::qemu(move |name, arguments| {
            kept.lock().unwrap().push(name.to_owned());
            if name == refused {
                return Some(vec![json!({ "error": { "class": "GenericError", "desc": "no" } })]);
            }
            match name {
                "device_add" => requested = arguments["requested-size"].as_u64().unwrap(),
                "qom-set" => requested = arguments["value"].as_u64().unwrap(),
                "qom-get" if arguments["property"] == "requested-size" => {
                    return Some(vec![json!({ "return": requested })]);
                }
                _ => {}
            }
            let mut says = vec![json!({ "return": has })];
            let next = guest(has, requested);
            if next != has {
                has = next;
                says.push(json!({ "event": "MEMORY_DEVICE_SIZE_CHANGE", "data": { "size": has } }));
            }
            Some(says)
        });
        let mut memory = Memory::new(qmp, Places::default(), size(256), size(1026), Backing::default());
        memory.patience = Duration::from_millis(100);
        Self { memory, asked }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.retain(|name| name != "qom-get");
        asked
    }
}

/// Takes and gives back a piece at a time.
fn willing() -> Guest {
    Box::new(|has, requested| {
        if has < requested {
            (has + 128 * MIB).min(requested)
        } else {
            requested
        }
    })
}

#[tokio::test]
async fn the_device_is_made_when_memory_is_first_wanted_and_asked_afterwards() {
    let mut qemu = Qemu::new("", willing());
    qemu.memory.set(Mebibytes(200)).await.unwrap();
    assert_eq!(qemu.asked(), Vec::<String>::new());
    qemu.memory.set(Mebibytes(700)).await.unwrap();
    assert_eq!(qemu.asked(), ["object-add", "device_add"]);
    for wanted in [1024, 300, 256, 0] {
        let mut beyond = qemu.memory.set(Mebibytes(wanted)).await.unwrap();
        while beyond.0 > 0 {
            beyond = qemu.memory.surplus().other_than(beyond).await.unwrap();
        }
        assert_eq!(qemu.asked(), ["qom-set"]);
    }
}

#[tokio::test]
async fn more_than_the_vm_can_have_is_refused_before_anything_is_done() {
    let mut qemu = Qemu::new("", willing());
    let error = qemu.memory.set(Mebibytes(1028)).await.unwrap_err();
    assert_eq!(error.to_string(), "the VM can have 1026 MiB, and not 1028 MiB");
    assert_eq!(qemu.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn what_qemu_refuses_is_undone_and_may_be_tried_again() {
    for (refused, asked) in [
        ("object-add", &["object-add"][..]),
        ("device_add", &["object-add", "device_add", "object-del"]),
    ] {
        let mut qemu = Qemu::new(refused, willing());
        for _ in 0..40 {
            let error = qemu.memory.set(Mebibytes(512)).await.unwrap_err();
            assert!(matches!(error, MemoryError::Step { .. }), "{error}");
            assert_eq!(qemu.asked(), asked);
        }
    }
}

#[tokio::test]
async fn a_guest_that_stops_in_between_is_waited_for_so_long_and_named() {
    let mut qemu = Qemu::new("", Box::new(|has, requested| requested.min(has + MIB).min(8 * MIB)));
    let error = qemu.memory.set(Mebibytes(512)).await.unwrap_err();
    let said = "the guest has 8 MiB of plugged memory and was asked to have 256 MiB";
    assert_eq!(error.to_string(), said);
    // Giving back what it has not is no trouble.
    assert_eq!(qemu.memory.set(Mebibytes(264)).await.unwrap(), Mebibytes(0));
}

/// A guest that has 400 MiB and gives back what and when the test says.
fn slow() -> (Memory, impl Fn(u64)) {
    let has = Arc::new(Mutex::new(0));
    let (tell, unasked) = tokio::sync::mpsc::unbounded_channel();
    let (known, mut requested) = (Arc::clone(&has), 0);
    let rule = move |name: &str, arguments: &Value| {
        let mut has = known.lock().unwrap();
        match name {
            "device_add" => {
                requested = arguments["requested-size"].as_u64().unwrap();
                *has = requested;
            }
            "qom-set" => requested = arguments["value"].as_u64().unwrap(),
            _ => {}
        }
        let value = if arguments["property"] == "size" {
            *has
        } else {
            requested
        };
        Some(vec![json!({ "return": value })])
    };
    let qmp = scripted::talkative(rule, unasked);
    let mut memory = Memory::new(
        qmp.clone(),
        Places::default(),
        size(256),
        size(1026),
        Backing::default(),
    );
    memory.patience = Duration::from_millis(100);
    let moves = move |now: u64| {
        *has.lock().unwrap() = now * MIB;
        tell.send(json!({ "event": "MEMORY_DEVICE_SIZE_CHANGE", "data": { "size": now * MIB } }))
            .unwrap();
    };
    (memory, moves)
}

#[tokio::test]
async fn what_a_guest_gives_back_late_is_told_when_it_does() {
    let (mut memory, moves) = slow();
    memory.set(Mebibytes(656)).await.unwrap();
    let asked = memory.set(Mebibytes(256)).await.unwrap();
    assert_eq!(asked, Mebibytes(400), "nobody waits for it");
    let surplus = memory.surplus();
    let wait = surplus.other_than(asked);
    tokio::pin!(wait);
    // Longer than one that is to take memory may be silent; and what is no change wakes nobody.
    let long = memory.patience * 3;
    assert!(tokio::time::timeout(long, &mut wait).await.is_err());
    moves(400);
    assert!(tokio::time::timeout(long, &mut wait).await.is_err());
    moves(100);
    assert_eq!(wait.await.unwrap(), Mebibytes(100));
    // What was asked meanwhile counts.
    assert_eq!(memory.set(Mebibytes(300)).await.unwrap(), Mebibytes(56));
    let wait = surplus.other_than(Mebibytes(56));
    moves(44);
    assert_eq!(wait.await.unwrap(), Mebibytes(0));
}

#[tokio::test]
async fn whoever_waits_for_memory_of_a_qemu_that_ends_is_told() {
    let mut asked = 0;
    let qmp = scripted::qemu(move |_, arguments| {
        asked += 1;
        let value = if arguments["property"] == "size" {
            8 * MIB
        } else {
            4 * MIB
        };
        (asked <= 2).then(|| vec![json!({ "return": value })])
    });
    let wait = tokio::spawn({
        let surplus = Surplus(qmp.clone());
        async move { surplus.other_than(Mebibytes(4)).await }
    });
    // Whether it is waited for by then or asked once more: there is no answer.
    let _ = qmp.execute("quit", Value::Null).await;
    assert!(matches!(
        wait.await.unwrap(),
        Err(MemoryError::Step {
            source: QmpError::Closed,
            ..
        })
    ));
}

/// What QEMU really has, and what it is asked: it refuses what cannot be, as QEMU does.
#[derive(Default)]
struct Model {
    backend: bool,
    device: bool,
    requested: u64,
    /// Commands so far.
    asked: usize,
    /// The number of the command that is carried out and never answered.
    silent: Option<usize>,
}

impl Model {
    fn answers(&mut self, name: &str, arguments: &Value) -> Vec<Value> {
        let refused = || json!({ "error": { "class": "GenericError", "desc": "no" } });
        self.asked += 1;
        let answer = match name {
            "object-add" if self.backend => refused(),
            "object-add" => {
                self.backend = true;
                json!({ "return": {} })
            }
            "object-del" if !self.backend || self.device => refused(),
            "object-del" => {
                self.backend = false;
                json!({ "return": {} })
            }
            "device_add" if self.device || !self.backend => refused(),
            "device_add" => {
                self.device = true;
                self.requested = arguments["requested-size"].as_u64().unwrap();
                json!({ "return": {} })
            }
            "qom-set" => {
                self.requested = arguments["value"].as_u64().unwrap();
                json!({ "return": {} })
            }
            "qom-list" if self.backend && arguments["path"] == "/objects" => json!({ "return": [{ "name": BACKEND }] }),
            "qom-list" if self.device && arguments["path"] != "/objects" => json!({ "return": [{ "name": DEVICE }] }),
            "qom-list" => json!({ "return": [] }),
            // The guest takes everything at once.
            _ => json!({ "return": self.requested }),
        };
        if self.silent == Some(self.asked) {
            Vec::new()
        } else {
            vec![answer]
        }
    }
}

fn modelled(model: Model) -> (Memory, Arc<Mutex<Model>>, tokio::sync::watch::Receiver<usize>) {
    let model = Arc::new(Mutex::new(model));
    let (tell, asked) = tokio::sync::watch::channel(0);
    let known = Arc::clone(&model);
    let qmp = scripted::qemu(move |name, arguments| {
        let mut model = known.lock().unwrap();
        let says = model.answers(name, arguments);
        tell.send_replace(model.asked);
        Some(says)
    });
    let memory = Memory::new(
        qmp.clone(),
        Places::default(),
        size(256),
        size(1026),
        Backing::default(),
    );
    (memory, model, asked)
}

#[tokio::test]
async fn a_caller_that_gives_up_after_any_step_leaves_memory_that_can_grow() {
    for step in 0..4 {
        let (mut memory, model, mut asked) = modelled(Model::default());
        {
            let mut growing = Box::pin(memory.set(Mebibytes(512)));
            tokio::select! {
                biased;
                _ = asked.wait_for(|asked| *asked >= step) => {}
                grown = &mut growing => drop(grown.unwrap()),
            }
        }
        assert_eq!(memory.set(Mebibytes(768)).await.unwrap(), Mebibytes(0), "step {step}");
        let model = model.lock().unwrap();
        assert!(model.backend && model.device, "step {step}");
        assert_eq!(model.requested, 512 * MIB);
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_qemu_does_and_does_not_answer_is_read_back() {
    for silent in 1..4 {
        let (mut memory, model, _) = modelled(Model {
            silent: Some(silent),
            ..Model::default()
        });
        let first = memory.set(Mebibytes(512)).await;
        // A question that is not answered has no outcome.
        assert_eq!(first.is_ok(), silent < 3, "command {silent}: {first:?}");
        assert_eq!(
            memory.set(Mebibytes(768)).await.unwrap(),
            Mebibytes(0),
            "command {silent}"
        );
        assert_eq!(model.lock().unwrap().requested, 512 * MIB);
    }
}
