//! Waits for the guest to release a device.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::qmp::{Event, Qmp, QmpError};

/// What QEMU says of a device that the guest was asked to let go of a moment ago (`qmp_device_del` in its system/qdev-monitor.c).
pub(crate) const UNDER_WAY: &str = "is already in the process of unplug";

/// Why a device is still there.
#[derive(Debug)]
pub(super) enum ReleaseError {
    /// The guest does not let go of it.
    Held {
        /// What was seen of that.
        reason: String,
        /// It has not answered, and may let go of it later.
        undecided: bool,
    },
    /// QEMU refuses, or has ended.
    Qmp(QmpError),
}

/// Has the guest let go of the device `id`, and waits until it has. One that is not there any more has been let go of.
pub(super) async fn release(qmp: &Qmp, id: &str, patience: Duration) -> Result<(), ReleaseError> {
    // Before the command: the event may be there before its answer.
    let mut events = qmp.events();
    match qmp.execute("device_del", json!({ "id": id })).await {
        Ok(_) => {}
        // The guest has let go of it after an earlier attempt had been given up.
        Err(error) if error.is_not_found() => return Ok(()),
        // The guest was asked by an earlier attempt, and has yet to let go of it.
        Err(QmpError::Refused { description, .. }) if description.contains(UNDER_WAY) => {}
        Err(unanswered @ QmpError::Timeout { .. }) => {
            return match exists(qmp, id).await {
                Ok(false) => Ok(()),
                Ok(true) => Err(ReleaseError::Qmp(unanswered)),
                Err(error) => Err(ReleaseError::Qmp(error)),
            };
        }
        Err(error) => return Err(ReleaseError::Qmp(error)),
    }
    let answered = async {
        loop {
            match events.recv().await {
                Ok(event) => match verdict(&event, id) {
                    Some(true) => return Ok(()),
                    Some(false) => {
                        let reason = "it reports that it cannot".to_owned();
                        let undecided = false;
                        return Err(ReleaseError::Held { reason, undecided });
                    }
                    None => {}
                },
                Err(RecvError::Lagged(_)) if !exists(qmp, id).await.map_err(ReleaseError::Qmp)? => return Ok(()),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err(ReleaseError::Qmp(QmpError::Closed)),
            }
        }
    };
    tokio::select! {
        answered = tokio::time::timeout(patience, answered) => {
            answered.unwrap_or_else(|_| {
                let reason = format!("it has not answered for {patience:?}");
                Err(ReleaseError::Held { reason, undecided: true })
            })
        }
        _ = qmp.closed() => Err(ReleaseError::Qmp(QmpError::Closed)),
    }
}

/// Whether QEMU has a device of this name. QEMU carries out commands in their order: all that were sent before have been when
/// it answers.
pub(super) async fn exists(qmp: &Qmp, id: &str) -> Result<bool, QmpError> {
    let devices = qmp
        .execute("qom-list", json!({ "path": "/machine/peripheral" }))
        .await?;
    Ok(lists(&devices, "name", &json!(id)))
}

/// Whether one entry of a list has this value.
pub(super) fn lists(answer: &Value, key: &str, value: &Value) -> bool {
    let entries = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().any(|entry| entry[key] == *value)
}

/// Whether an event says that the device is gone (true) or stays (QEMU's QAPI, "Device infrastructure").
fn verdict(event: &Event, id: &str) -> Option<bool> {
    if event.data["device"] != id {
        return None;
    }
    match event.name.as_str() {
        "DEVICE_DELETED" => Some(true),
        "DEVICE_UNPLUG_GUEST_ERROR" => Some(false),
        _ => None,
    }
}
