//! Tests of plugging with a scripted QEMU: the requests, their order, and what is undone.

use super::*;
use crate::qmp::scripted;

/// A QEMU that answers every command by a rule, and keeps their names.
struct Qemu {
    hotplug: Hotplug,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What a scripted QEMU does with a command.
enum Does {
    Accepts,
    Refuses(&'static str),
    /// Accepts, and answers this.
    Says(Value),
    /// Accepts, and tells an event.
    Tells(&'static str, Value),
    Ends,
    /// Does not answer.
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
            hotplug: Hotplug::new(qmp, DiskOptions::of(&config::Hypervisor::default())),
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

fn nic() -> crate::machine::nic::Nic {
    crate::machine::nic::Nic {
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
        qemu.hotplug.resize("tatami-1", 4096).await,
        Err(HotplugError::Unknown(_))
    ));
    let serial = qemu.hotplug.attach(disk()).await.unwrap();
    qemu.hotplug.resize(&serial, 4096).await.unwrap();
    let refused = qemu.hotplug.resize(&serial, 8192).await.unwrap_err();
    assert!(matches!(refused, HotplugError::Resize { .. }), "{refused}");
}

#[tokio::test]
async fn a_disk_is_plugged_in_and_unplugged() {
    let qemu = Qemu::new(lets_go);
    let serial = qemu.hotplug.attach(disk()).await.unwrap();
    assert_eq!(serial, "tatami-1");
    assert_eq!(qemu.asked(), ["add-fd", "blockdev-add", "device_add"]);
    qemu.hotplug.detach(&serial).await.unwrap();
    assert_eq!(qemu.asked(), ["device_del", "blockdev-del", "remove-fd"]);
    assert!(matches!(
        qemu.hotplug.detach(&serial).await,
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
            let error = qemu.hotplug.attach(disk()).await.unwrap_err();
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
        serials.push(qemu.hotplug.attach(disk()).await.unwrap());
    }
    let error = qemu.hotplug.attach(disk()).await.unwrap_err();
    assert_eq!(error.to_string(), "all 31 places for devices of the VM are taken");
    qemu.hotplug.detach(&serials[3]).await.unwrap();
    assert_eq!(qemu.hotplug.attach(disk()).await.unwrap(), "tatami-32");
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
    qemu.hotplug.patience = Duration::from_millis(50);
    let serial = qemu.hotplug.attach(disk()).await.unwrap();
    for reason in ["it has not answered for 50ms", "it reports that it cannot"] {
        let error = qemu.hotplug.detach(&serial).await.unwrap_err();
        assert!(error.to_string().ends_with(reason), "{error}");
    }
    qemu.hotplug.detach(&serial).await.unwrap();
}

#[tokio::test]
async fn a_qemu_that_ends_meanwhile_is_told_and_nothing_hangs() {
    let qemu = Qemu::new(|name, _| match name {
        "device_del" => Does::Ends,
        _ => Does::Accepts,
    });
    let serial = qemu.hotplug.attach(disk()).await.unwrap();
    let error = qemu.hotplug.detach(&serial).await.unwrap_err();
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
    let mut attaching = Box::pin(qemu.hotplug.attach(disk()));
    // It has begun, and is dropped.
    assert!(futures_poll_once(attaching.as_mut()).await.is_none());
    drop(attaching);
    // The next one is served after it: the first is whole by then.
    qemu.hotplug.attach(disk()).await.unwrap();
    qemu.hotplug.detach("tatami-1").await.unwrap();
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
    let nics = NicHotplug(qemu.hotplug.clone());
    qemu.hotplug.attach(disk()).await.unwrap();
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
        ("getfd", &["getfd", "closefd", "closefd"][..]),
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
        let nics = NicHotplug(qemu.hotplug.clone());
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
async fn a_place_is_given_to_nobody_until_qemu_says_that_nothing_is_in_it() {
    for there in [false, true] {
        let mut hung = false;
        let qemu = Qemu::new(move |name, arguments| match name {
            // The first is carried out late, or not at all.
            "device_add" if !std::mem::replace(&mut hung, true) => Does::Hangs,
            "qom-list" if there => Does::Says(json!([{ "name": "disk-1" }])),
            _ => lets_go(name, arguments),
        });
        let error = qemu.hotplug.attach(disk()).await.unwrap_err();
        assert!(error.to_string().contains("plug in"), "{error}");
        // Its undoing and the question are on their way: the place is not the next one's.
        let taken = qemu.hotplug.place().unwrap().1;
        assert_eq!(taken.address(), "0x2");
        let asked = settled(&qemu).await;
        assert_eq!(asked.contains(&"device_del".to_owned()), there, "{asked:?}");
        assert_eq!(qemu.hotplug.place().unwrap().1.address(), "0x1", "it is free again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_whose_end_was_not_answered_can_be_unplugged_again() {
    for hangs in ["device_del", "blockdev-del", "remove-fd"] {
        let mut hung = false;
        let qemu = Qemu::new(move |name, arguments| match name {
            name if name == hangs && !std::mem::replace(&mut hung, true) => Does::Hangs,
            // It was done.
            "device_del" if hung => Does::Refuses("DeviceNotFound"),
            "blockdev-del" | "remove-fd" if hung => Does::Refuses("GenericError"),
            "query-named-block-nodes" | "query-fdsets" => Does::Says(json!([])),
            _ => lets_go(name, arguments),
        });
        let serial = qemu.hotplug.attach(disk()).await.unwrap();
        qemu.hotplug.detach(&serial).await.unwrap_err();
        qemu.hotplug.detach(&serial).await.unwrap();
        assert_eq!(qemu.hotplug.place().unwrap().1.address(), "0x1");
    }
}

#[tokio::test]
async fn a_disk_that_qemu_does_not_close_stays_known() {
    let qemu = Qemu::new(|name, arguments| match name {
        "blockdev-del" => Does::Refuses("GenericError"),
        "query-named-block-nodes" => Does::Says(json!([{ "node-name": "disk-1" }])),
        _ => lets_go(name, arguments),
    });
    let serial = qemu.hotplug.attach(disk()).await.unwrap();
    let error = qemu.hotplug.detach(&serial).await.unwrap_err();
    assert!(error.to_string().contains("close"), "{error}");
    assert!(!matches!(
        qemu.hotplug.detach(&serial).await,
        Err(HotplugError::Unknown(_))
    ));
}
