//! Tests of plugging with a scripted QEMU: the requests, their order, and what is undone.

mod properties;

use serde_json::Value;

use super::*;
use crate::scripted;

/// A QEMU that answers every command by a rule, and keeps their names.
struct Qemu {
    devices: DeviceManager,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What a scripted QEMU does with a command.
enum Does {
    Accepts,
    Refuses(&'static str),
    /// Refuses with these words.
    Is(String),
    /// Accepts, and answers this.
    Says(Value),
    /// Accepts, and tells an event.
    Tells(&'static str, Value),
    Ends,
    Hangs,
}

impl Qemu {
    fn new(mut rule: impl FnMut(&str, &Value) -> Does + Send + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let qmp = scripted::qemu(move |name, arguments| {
            let done = rule(name, arguments);
            kept.lock().unwrap().push(name.to_owned());
            match done {
                Does::Accepts => Some(vec![json!({ "return": {} })]),
                Does::Refuses(class) => Some(vec![json!({ "error": { "class": class, "desc": "no" } })]),
                Does::Is(words) => Some(vec![json!({ "error": { "class": "GenericError", "desc": words } })]),
                // Before the answer: it must not be missed.
                Does::Tells(event, data) => {
                    Some(vec![json!({ "event": event, "data": data }), json!({ "return": {} })])
                }
                Does::Says(value) => Some(vec![json!({ "return": value })]),
                Does::Hangs => Some(Vec::new()),
                Does::Ends => None,
            }
        });
        Self {
            devices: scripted::devices(qmp),
            asked,
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn disk() -> Disk {
    Disk {
        file: std::fs::File::open("/dev/null").unwrap().into(),
        kind: DiskKind::File,
        read_only: true,
        direct: false,
        sectors: None,
    }
}

fn nic() -> Nic {
    Nic {
        mac: crate::machine::mac_address::MacAddress([2, 0, 0, 0, 0, 7]),
        taps: (0..2)
            .map(|_| std::fs::File::open("/dev/null").unwrap().into())
            .collect(),
        vhost: Arc::new([]),
    }
}

fn lets_go(name: &str, arguments: &Value) -> Does {
    match name {
        "device_del" => Does::Tells("DEVICE_DELETED", json!({ "device": arguments["id"] })),
        _ => Does::Accepts,
    }
}

#[tokio::test]
async fn a_disk_is_resized_by_its_node_and_one_that_is_not_there_is_unknown() {
    let qemu = Qemu::new(|name, arguments| match name {
        "block_resize" if arguments["size"] == 4096 && arguments["node-name"] == "disk-1" => Does::Accepts,
        "block_resize" => Does::Refuses("GenericError"),
        _ => Does::Accepts,
    });
    assert!(matches!(
        qemu.devices.resize_disk("tatami-1", 4096).await,
        Err(HotplugError::Unknown(_))
    ));
    let serial = qemu.devices.attach_disk(disk()).await.unwrap();
    qemu.devices.resize_disk(&serial, 4096).await.unwrap();
    let refused = qemu.devices.resize_disk(&serial, 8192).await.unwrap_err();
    assert!(matches!(refused, HotplugError::Resize { .. }), "{refused}");
}

#[tokio::test]
async fn a_disk_is_plugged_in_and_unplugged() {
    let qemu = Qemu::new(lets_go);
    let serial = qemu.devices.attach_disk(disk()).await.unwrap();
    assert_eq!(serial, "tatami-1");
    assert_eq!(qemu.asked(), ["add-fd", "blockdev-add", "device_add"]);
    qemu.devices.detach_disk(&serial).await.unwrap();
    assert_eq!(qemu.asked(), ["device_del", "blockdev-del", "remove-fd"]);
    assert!(matches!(
        qemu.devices.detach_disk(&serial).await,
        Err(HotplugError::Unknown(_))
    ));
}

#[tokio::test]
async fn what_qemu_refuses_is_undone_and_its_place_is_free_again() {
    for (refused, undone) in [
        ("add-fd", &["add-fd"][..]),
        ("blockdev-add", &["add-fd", "blockdev-add", "remove-fd"]),
        (
            "device_add",
            &["add-fd", "blockdev-add", "device_add", "blockdev-del", "remove-fd"],
        ),
    ] {
        let qemu = Qemu::new(move |name, _| match name {
            name if name == refused => Does::Refuses("GenericError"),
            _ => Does::Accepts,
        });
        for _ in 0..40 {
            let error = qemu.devices.attach_disk(disk()).await.unwrap_err();
            assert!(matches!(error, HotplugError::Step { .. }), "{error}");
            assert_eq!(qemu.asked(), undone);
        }
    }
}

#[tokio::test]
async fn the_thirty_second_disk_is_refused_until_one_goes() {
    let qemu = Qemu::new(lets_go);
    let mut serials = Vec::new();
    for _ in 0..31 {
        serials.push(qemu.devices.attach_disk(disk()).await.unwrap());
    }
    let error = qemu.devices.attach_disk(disk()).await.unwrap_err();
    assert_eq!(error.to_string(), "all 31 places for devices of the VM are taken");
    qemu.devices.detach_disk(&serials[3]).await.unwrap();
    assert_eq!(qemu.devices.attach_disk(disk()).await.unwrap(), "tatami-32");
}

#[tokio::test]
async fn a_guest_that_does_not_let_go_is_waited_for_so_long_and_may_be_asked_again() {
    let mut asked = 0;
    let mut qemu = Qemu::new(move |name, arguments| match name {
        "device_del" => {
            asked += 1;
            match asked {
                // It answers for another device.
                1 => Does::Tells("DEVICE_DELETED", json!({ "device": "disk-9" })),
                2 => Does::Tells("DEVICE_UNPLUG_GUEST_ERROR", json!({ "device": arguments["id"] })),
                _ => Does::Refuses("DeviceNotFound"),
            }
        }
        _ => Does::Accepts,
    });
    qemu.devices.patience = Duration::from_millis(50);
    let serial = qemu.devices.attach_disk(disk()).await.unwrap();
    for reason in ["it has not answered for 50ms", "it reports that it cannot"] {
        let error = qemu.devices.detach_disk(&serial).await.unwrap_err();
        assert!(error.to_string().ends_with(reason), "{error}");
    }
    qemu.devices.detach_disk(&serial).await.unwrap();
}

#[tokio::test]
async fn a_qemu_that_ends_meanwhile_is_told_and_nothing_hangs() {
    let qemu = Qemu::new(|name, _| match name {
        "device_del" => Does::Ends,
        _ => Does::Accepts,
    });
    let serial = qemu.devices.attach_disk(disk()).await.unwrap();
    let error = qemu.devices.detach_disk(&serial).await.unwrap_err();
    assert!(matches!(
        error,
        HotplugError::Step {
            source: QmpError::Closed,
            ..
        }
    ));
}

#[tokio::test]
async fn a_caller_who_gives_up_leaves_nothing_half_done() {
    let qemu = Qemu::new(lets_go);
    let mut attaching = Box::pin(qemu.devices.attach_disk(disk()));
    // It has begun, and is dropped.
    assert!(futures_poll_once(attaching.as_mut()).await.is_none());
    drop(attaching);
    // The next one is served after it: the first is whole by then.
    qemu.devices.attach_disk(disk()).await.unwrap();
    qemu.devices.detach_disk("tatami-1").await.unwrap();
}

async fn futures_poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|context| match std::pin::Pin::new(&mut future).poll(context) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_network_device_is_plugged_in_beside_a_disk_and_unplugged() {
    let qemu = Qemu::new(lets_go);
    let nics = NicHotplug(qemu.devices.clone());
    qemu.devices.attach_disk(disk()).await.unwrap();
    qemu.asked();
    let id = nics.attach(nic()).await.unwrap();
    assert_eq!(id, "nic-2");
    assert_eq!(qemu.asked(), ["getfd", "getfd", "netdev_add", "device_add"]);
    nics.detach(&id).await.unwrap();
    assert_eq!(qemu.asked(), ["device_del", "netdev_del"]);
    let error = nics.detach(&id).await.unwrap_err();
    assert_eq!(error.to_string(), "the VM has no network device nic-2");
}

#[tokio::test]
async fn what_qemu_refuses_of_a_network_device_is_undone_and_its_place_is_free_again() {
    for (refused, asked) in [
        ("getfd", &["getfd"][..]),
        ("netdev_add", &["getfd", "getfd", "netdev_add", "closefd", "closefd"]),
        (
            "device_add",
            &["getfd", "getfd", "netdev_add", "device_add", "netdev_del"],
        ),
    ] {
        let qemu = Qemu::new(move |name, _| match name {
            name if name == refused => Does::Refuses("GenericError"),
            _ => Does::Accepts,
        });
        let nics = NicHotplug(qemu.devices.clone());
        for _ in 0..40 {
            let error = nics.attach(nic()).await.unwrap_err();
            assert!(matches!(error, HotplugError::Step { .. }), "{error}");
            assert_eq!(qemu.asked(), asked);
        }
    }
}

/// Which commands were sent until no more comes.
async fn settled(qemu: &Qemu) -> Vec<String> {
    let mut asked = Vec::new();
    // The clock is paused: it moves when nobody has anything to do.
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        match qemu.asked() {
            more if more.is_empty() => return asked,
            more => asked.extend(more),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_given_to_nobody_until_qemu_says_that_nothing_is_in_it() {
    for there in [false, true] {
        let mut stuck = 0;
        let qemu = Qemu::new(move |name, arguments| match name {
            // It does not answer these: the device, whether it is there, its removal, and whether that is done.
            "device_add" | "qom-list" | "device_del" if stuck < 4 => {
                stuck += 1;
                Does::Hangs
            }
            "device_del" if !there => Does::Refuses("DeviceNotFound"),
            _ => lets_go(name, arguments),
        });
        let error = qemu.devices.attach_disk(disk()).await.unwrap_err();
        assert!(error.to_string().contains("plug in"), "{error}");
        let taken = qemu.devices.places.take().unwrap().1;
        assert_eq!(taken.address(), "0x2", "it is not the next one's");
        let asked = settled(&qemu).await;
        assert!(
            asked.ends_with(&["device_del", "blockdev-del", "remove-fd"].map(str::to_owned)),
            "{asked:?}"
        );
        assert_eq!(
            qemu.devices.places.take().unwrap().1.address(),
            "0x1",
            "it is free again"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_qemu_has_decides_if_the_answer_to_a_step_is_lost() {
    for lost in ["add-fd", "blockdev-add", "device_add"] {
        for there in [false, true] {
            let mut hung = false;
            let qemu = Qemu::new(move |name, arguments| match name {
                name if name == lost && !std::mem::replace(&mut hung, true) => Does::Hangs,
                "query-fdsets" if there => Does::Says(json!([{ "fdset-id": 1 }])),
                "query-named-block-nodes" if there => Does::Says(json!([{ "node-name": "disk-1" }])),
                "qom-list" if there => Does::Says(json!([{ "name": "disk-1" }])),
                "query-fdsets" | "query-named-block-nodes" | "qom-list" => Does::Says(json!([])),
                _ => lets_go(name, arguments),
            });
            let attached = qemu.devices.attach_disk(disk()).await;
            assert_eq!(attached.is_ok(), there, "{lost}: {attached:?}");
            let next = if there { "0x2" } else { "0x1" };
            assert_eq!(qemu.devices.places.take().unwrap().1.address(), next);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_whose_end_is_not_answered_is_gone_if_qemu_does_not_have_it() {
    for hangs in ["device_del", "blockdev-del", "remove-fd"] {
        let mut hung = false;
        let qemu = Qemu::new(move |name, arguments| match name {
            name if name == hangs && !std::mem::replace(&mut hung, true) => Does::Hangs,
            "qom-list" | "query-named-block-nodes" | "query-fdsets" => Does::Says(json!([])),
            _ => lets_go(name, arguments),
        });
        let serial = qemu.devices.attach_disk(disk()).await.unwrap();
        qemu.devices.detach_disk(&serial).await.unwrap();
        assert_eq!(qemu.devices.places.take().unwrap().1.address(), "0x1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_asked_before_is_waited_for() {
    let mut asked = 0;
    let qemu = Qemu::new(move |name, arguments| match name {
        "device_del" => {
            asked += 1;
            match asked {
                1 => Does::Accepts,
                2 => Does::Is(format!("Device disk-1 {UNDER_WAY}")),
                _ => lets_go(name, arguments),
            }
        }
        _ => lets_go(name, arguments),
    });
    let serial = qemu.devices.attach_disk(disk()).await.unwrap();
    for _ in 0..2 {
        let error = qemu.devices.detach_disk(&serial).await.unwrap_err();
        assert!(matches!(error, HotplugError::Held { .. }), "{error}");
    }
    qemu.devices.detach_disk(&serial).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_qemu_does_not_close_stays_known() {
    let qemu = Qemu::new(|name, arguments| match name {
        "blockdev-del" => Does::Refuses("GenericError"),
        "query-named-block-nodes" => Does::Says(json!([{ "node-name": "disk-1" }])),
        _ => lets_go(name, arguments),
    });
    let serial = qemu.devices.attach_disk(disk()).await.unwrap();
    let error = qemu.devices.detach_disk(&serial).await.unwrap_err();
    assert!(error.to_string().contains("close"), "{error}");
    assert!(!matches!(
        qemu.devices.detach_disk(&serial).await,
        Err(HotplugError::Unknown(_))
    ));
}
