//! Finds out the outcome of a step that QEMU has not answered in time, and defines which steps may be repeated.
//!
//! QEMU's main loop may be blocked for longer than a command's time limit, and still carry out the command afterwards. A
//! slot is given to another device only after QEMU has reported that it is empty.

use serde_json::{Value, json};

use super::disk::Names;
use super::release::{ReleaseError, exists, lists, release};
use super::slots::Slot;
use super::{Hotplug, HotplugError};
use crate::qmp::QmpError;

impl HotplugError {
    /// Whether the step may still be done.
    fn is_open(&self) -> bool {
        matches!(
            self,
            HotplugError::Step {
                source: QmpError::Timeout { .. },
                ..
            }
        )
    }
}

impl Hotplug {
    /// Gives the place of a device back that could not be plugged in: at once if QEMU has refused it, else when it is known that
    /// the device is not there. `close` are the commands that undo what comes before the device.
    pub(super) fn after_failure(
        &self,
        error: &HotplugError,
        slot: Slot,
        id: String,
        close: Vec<(&'static str, Value)>,
    ) {
        if error.is_open() {
            let this = self.clone();
            tokio::spawn(async move { this.recover(slot, &id, close).await });
        } else {
            self.give_back(slot);
        }
    }

    async fn recover(&self, slot: Slot, id: &str, close: Vec<(&'static str, Value)>) {
        loop {
            let gone = match exists(&self.qmp, id).await {
                Ok(false) => Ok(()),
                Ok(true) => release(&self.qmp, id, self.patience).await,
                Err(error) => Err(ReleaseError::Qmp(error)),
            };
            match gone {
                Ok(()) => break,
                Err(ReleaseError::Qmp(QmpError::Timeout { .. })) => {}
                Err(ReleaseError::Qmp(error)) => {
                    tracing::debug!(%error, id, "QEMU is not asked any more what became of a device");
                    return;
                }
                Err(ReleaseError::Held(reason)) => {
                    tracing::warn!(id, reason, "a device that came too late stays, and its place is taken");
                    return;
                }
            }
        }
        for (command, arguments) in close {
            if let Err(error) = self.qmp.execute(command, arguments).await {
                // It was not made.
                tracing::debug!(%error, id, "nothing to undo");
            }
        }
        self.give_back(slot);
    }

    /// Closes a disk's block node. One that QEMU does not have any more was closed by an attempt that was not answered.
    pub(super) async fn close_node(&self, names: Names) -> Result<(), QmpError> {
        let node = json!({ "node-name": names.id() });
        match self.qmp.execute("blockdev-del", node).await {
            Err(refused @ QmpError::Refused { .. }) => {
                let nodes = json!({ "flat": true });
                let nodes = self.qmp.execute("query-named-block-nodes", nodes).await?;
                still_there(lists(&nodes, "node-name", &json!(names.id())), refused)
            }
            closed => closed.map(drop),
        }
    }

    /// The same of its file.
    pub(super) async fn close_file(&self, names: Names) -> Result<(), QmpError> {
        match self.qmp.execute("remove-fd", names.add_fd()).await {
            Err(refused @ QmpError::Refused { .. }) => {
                let sets = self.qmp.execute("query-fdsets", Value::Null).await?;
                still_there(lists(&sets, "fdset-id", &json!(names.number)), refused)
            }
            closed => closed.map(drop),
        }
    }

    /// The same of a network device's back end.
    pub(super) async fn close_netdev(&self, id: &str) -> Result<(), QmpError> {
        match self.qmp.execute("netdev_del", json!({ "id": id })).await {
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => Ok(()),
            closed => closed.map(drop),
        }
    }
}

fn still_there(there: bool, refused: QmpError) -> Result<(), QmpError> {
    if there { Err(refused) } else { Ok(()) }
}
