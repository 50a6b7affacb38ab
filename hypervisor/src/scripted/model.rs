//! What a scripted QEMU has, and how commands change it: as QEMU 10 does, refusals included, but for one: it refuses a second
//! device_del of a disk or network device as long as the guest has not let go, and QEMU does so for a limited time. A command that a real QEMU would carry
//! out to the damage of the guest is a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::hotplug::UNDER_WAY;

/// How many vCPUs there is place for.
pub(super) const MOST_VCPUS: u32 = 4;

/// What the guest does when it is to let go of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It lets go at once.
    LetsGo,
    /// It lets go after so long.
    LetsGoAfter(Duration),
    /// It says that it cannot.
    Refuses,
    /// It does not answer.
    Silent,
}

/// A scripted QEMU. Clones are the same one.
#[derive(Debug, Clone)]
pub struct ScriptedQemu {
    state: Arc<Mutex<State>>,
    tell: mpsc::UnboundedSender<Value>,
}

#[derive(Debug)]
struct State {
    guest: Guest,
    /// The names of all commands that came.
    asked: Vec<String>,
    /// Numbers of sets of files.
    sets: BTreeSet<u64>,
    /// Names of files that were handed over and not taken.
    files: BTreeSet<String>,
    /// Block nodes, each with the set of files that it is of.
    nodes: BTreeMap<String, String>,
    netdevs: BTreeSet<String>,
    objects: BTreeSet<String>,
    /// By id, the arguments that it was plugged with.
    devices: BTreeMap<String, Value>,
    /// Those that the guest was asked to let go of.
    leaving: BTreeSet<String>,
    /// Bytes of plugged memory that the guest was asked to have, and has.
    requested: u64,
}

/// What a command does not do, and why.
enum Refusal {
    Generic(String),
    NotFound,
}

type Done = Result<Value, Refusal>;

fn refused(why: impl Into<String>) -> Refusal {
    Refusal::Generic(why.into())
}

/// QEMU's answer to what it does not do.
pub(super) fn refusal(class: &str, description: &str) -> Value {
    json!({ "error": { "class": class, "desc": description } })
}

/// Of a path of QEMU's, the device.
fn device_of(arguments: &Value) -> String {
    text(arguments, "path")
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn is_vcpu(id: &str) -> bool {
    id.starts_with("cpu-")
}

/// What QEMU tells when the guest has let go of a device.
fn gone(id: &str) -> Value {
    json!({ "event": "DEVICE_DELETED", "data": { "device": id } })
}

/// What QEMU tells when the guest has said that a device stays.
fn stays(id: &str) -> Value {
    if is_vcpu(id) {
        let info = json!({ "device": id, "slot": "1", "slot-type": "CPU", "source": 3, "status": 0x82 });
        return json!({ "event": "ACPI_DEVICE_OST", "data": { "info": info } });
    }
    json!({ "event": "DEVICE_UNPLUG_GUEST_ERROR", "data": { "device": id } })
}

fn text(arguments: &Value, key: &str) -> String {
    arguments[key].as_str().unwrap_or_default().to_owned()
}

impl ScriptedQemu {
    pub(super) fn new(guest: Guest, tell: mpsc::UnboundedSender<Value>) -> Self {
        let state = State {
            guest,
            asked: Vec::new(),
            sets: BTreeSet::new(),
            files: BTreeSet::new(),
            nodes: BTreeMap::new(),
            netdevs: BTreeSet::new(),
            objects: BTreeSet::new(),
            devices: BTreeMap::new(),
            leaving: BTreeSet::new(),
            requested: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            tell,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the guest does this, and answers so what it has not answered yet.
    pub fn set_guest(&self, guest: Guest) {
        let mut state = self.state();
        state.guest = guest;
        let answers = match guest {
            Guest::LetsGo => gone,
            Guest::Refuses => stays,
            Guest::LetsGoAfter(_) | Guest::Silent => return,
        };
        for id in std::mem::take(&mut state.leaving) {
            if guest == Guest::LetsGo {
                state.devices.remove(&id);
            }
            let _ = self.tell.send(answers(&id));
        }
    }

    /// The names of all commands that came since this was asked last.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }

    /// Everything that there is, in one list: for comparing.
    #[must_use]
    pub fn has(&self) -> Vec<String> {
        let state = self.state();
        let sets = state.sets.iter().map(|set| format!("files {set}"));
        let files = state.files.iter().map(|file| format!("file {file}"));
        let nodes = state.nodes.keys().map(|node| format!("node {node}"));
        let netdevs = state.netdevs.iter().map(|netdev| format!("netdev {netdev}"));
        let objects = state.objects.iter().map(|object| format!("object {object}"));
        let devices = state.devices.keys().map(|device| format!("device {device}"));
        sets.chain(files)
            .chain(nodes)
            .chain(netdevs)
            .chain(objects)
            .chain(devices)
            .collect()
    }

    /// Bytes of plugged memory that the guest is asked to have.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.state().requested
    }

    /// Carries out a command, and says what QEMU would.
    pub(super) fn carry_out(&self, name: &str, arguments: &Value) -> Vec<Value> {
        let mut state = self.state();
        state.asked.push(name.to_owned());
        if name == "device_del" {
            return self.device_del(&mut state, &text(arguments, "id"));
        }
        match state.carry_out(name, arguments) {
            Ok(value) => vec![json!({ "return": value })],
            Err(Refusal::Generic(why)) => vec![refusal("GenericError", &why)],
            Err(Refusal::NotFound) => vec![refusal("DeviceNotFound", "not found")],
        }
    }

    fn device_del(&self, state: &mut State, id: &str) -> Vec<Value> {
        if !state.devices.contains_key(id) {
            return vec![refusal("DeviceNotFound", &format!("Device '{id}' not found"))];
        }
        if state.devices[id]["memdev"].is_string() && state.requested > 0 {
            return vec![refusal(
                "GenericError",
                "virtio-mem device cannot get unplugged while some of its memory is in use",
            )];
        }
        if state.leaving.contains(id) && !is_vcpu(id) {
            return vec![refusal("GenericError", &format!("Device {id} {UNDER_WAY}"))];
        }
        let done = json!({ "return": {} });
        match state.guest {
            Guest::LetsGo => {
                state.leaving.remove(id);
                state.devices.remove(id);
                // Before the answer: it must not be missed.
                vec![gone(id), done]
            }
            Guest::Refuses => {
                state.leaving.remove(id);
                vec![done, stays(id)]
            }
            Guest::Silent => {
                state.leaving.insert(id.to_owned());
                vec![done]
            }
            Guest::LetsGoAfter(time) => {
                if !state.leaving.insert(id.to_owned()) {
                    return vec![done];
                }
                let (qemu, id) = (self.clone(), id.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    {
                        let mut state = qemu.state();
                        if !state.leaving.remove(&id) {
                            return;
                        }
                        state.devices.remove(&id);
                    }
                    let _ = qemu.tell.send(gone(&id));
                });
                vec![done]
            }
        }
    }
}

impl State {
    fn carry_out(&mut self, name: &str, arguments: &Value) -> Done {
        let nothing = || json!({});
        match name {
            "add-fd" => {
                self.sets.insert(arguments["fdset-id"].as_u64().unwrap_or_default());
                Ok(nothing())
            }
            "remove-fd" => {
                let set = arguments["fdset-id"].as_u64().unwrap_or_default();
                let gone = self.sets.remove(&set);
                gone.then(nothing).ok_or_else(|| refused("no such set of files"))
            }
            "query-fdsets" => Ok(self.sets.iter().map(|set| json!({ "fdset-id": set })).collect()),
            "getfd" => {
                self.files.insert(text(arguments, "fdname"));
                Ok(nothing())
            }
            "closefd" => {
                let closed = self.files.remove(&text(arguments, "fdname"));
                closed.then(nothing).ok_or_else(|| refused("no such file"))
            }
            "blockdev-add" => self.blockdev_add(arguments),
            "blockdev-del" => {
                let node = text(arguments, "node-name");
                if self.devices.values().any(|device| device["drive"] == *node) {
                    return Err(refused(format!("Node {node} is in use")));
                }
                let gone = self.nodes.remove(&node);
                gone.map(|_| nothing()).ok_or_else(|| refused("no such node"))
            }
            "query-named-block-nodes" => Ok(self.nodes.keys().map(|node| json!({ "node-name": node })).collect()),
            "netdev_add" => self.netdev_add(arguments),
            "netdev_del" => {
                let id = text(arguments, "id");
                let used = self.devices.values().any(|device| device["netdev"] == *id);
                assert!(!used, "the back end {id} is taken from under its device");
                self.netdevs.remove(&id).then(nothing).ok_or(Refusal::NotFound)
            }
            "object-add" => {
                let new = self.objects.insert(text(arguments, "id"));
                new.then(nothing).ok_or_else(|| refused("duplicate id"))
            }
            "object-del" => {
                let id = text(arguments, "id");
                if self.devices.values().any(|device| device["memdev"] == *id) {
                    return Err(refused("object is in use"));
                }
                let gone = self.objects.remove(&id);
                gone.then(nothing).ok_or_else(|| refused("no such object"))
            }
            "device_add" => self.device_add(arguments),
            "qom-list" => Ok(self.list(&text(arguments, "path"))),
            "qom-set" | "qom-get" if !self.devices.contains_key(&device_of(arguments)) => Err(Refusal::NotFound),
            "qom-set" => {
                self.requested = arguments["value"].as_u64().unwrap_or_default();
                Ok(nothing())
            }
            // The guest takes and gives back everything at once.
            "qom-get" => Ok(json!(self.requested)),
            "query-hotpluggable-cpus" => Ok(self.vcpus()),
            _ => Ok(nothing()),
        }
    }

    fn blockdev_add(&mut self, arguments: &Value) -> Done {
        let node = text(arguments, "node-name");
        let file = if arguments["file"].is_object() {
            &arguments["file"]
        } else {
            arguments
        };
        let path = text(file, "filename");
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| set.parse().ok());
        if self.nodes.contains_key(&node) || !set.is_some_and(|set| self.sets.contains(&set)) {
            return Err(refused("duplicate node, or no such file"));
        }
        self.nodes.insert(node, path);
        Ok(json!({}))
    }

    fn netdev_add(&mut self, arguments: &Value) -> Done {
        let keys = ["fd", "fds", "vhostfd", "vhostfds"];
        let named = keys.iter().filter_map(|key| arguments[key].as_str());
        let files: Vec<&str> = named.flat_map(|names| names.split(':')).collect();
        let id = text(arguments, "id");
        if self.netdevs.contains(&id) || !files.iter().all(|file| self.files.contains(*file)) {
            return Err(refused("duplicate id, or no such file"));
        }
        for file in files {
            self.files.remove(file);
        }
        self.netdevs.insert(id);
        Ok(json!({}))
    }

    fn device_add(&mut self, arguments: &Value) -> Done {
        let id = text(arguments, "id");
        let missing =
            |key: &str, there: &dyn Fn(&str) -> bool| arguments[key].as_str().is_some_and(|name| !there(name));
        if missing("drive", &|name| self.nodes.contains_key(name))
            || missing("netdev", &|name| self.netdevs.contains(name))
            || missing("memdev", &|name| self.objects.contains(name))
            || self.devices.contains_key(&id)
        {
            return Err(refused("duplicate id, or no such back end"));
        }
        for key in ["addr", "core-id"] {
            let taken = |other: &Value| !arguments[key].is_null() && other[key] == arguments[key];
            let by = self.devices.iter().find(|(_, device)| taken(device));
            assert!(by.is_none(), "{id} and {by:?} have the same {key}");
        }
        if let Some(requested) = arguments["requested-size"].as_u64() {
            self.requested = requested;
        }
        self.devices.insert(id, arguments.clone());
        Ok(json!({}))
    }

    fn list(&self, path: &str) -> Value {
        let entry = |name: &String| json!({ "name": name, "type": "child<>" });
        match path {
            "/objects" => self.objects.iter().map(entry).collect(),
            _ => self.devices.keys().map(entry).collect(),
        }
    }

    /// The first is that of the boot.
    fn vcpus(&self) -> Value {
        let place = |core: u32| {
            let mut place = json!({ "type": "max-x86_64-cpu", "vcpus-count": 1, "props": { "core-id": core } });
            let plugged = self.devices.iter().find(|(_, device)| device["core-id"] == core);
            if core == 0 {
                place["qom-path"] = json!("/machine/unattached/device[0]");
            } else if let Some((id, _)) = plugged {
                place["qom-path"] = json!(format!("/machine/peripheral/{id}"));
            }
            place
        };
        (0..MOST_VCPUS).map(place).collect()
    }
}
