//! Waiting for the guest to let go of a device.

use std::time::Duration;

use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::qmp::{Event, Qmp, QmpError};

/// Why a device is still there.
#[derive(Debug)]
pub(super) enum ReleaseError {
    /// The guest does not let go of it, and what was seen of that.
    Held(String),
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
        Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => return Ok(()),
        Err(error) => return Err(ReleaseError::Qmp(error)),
    }
    let answered = async {
        loop {
            match events.recv().await {
                Ok(event) => match verdict(&event, id) {
                    Some(true) => return Ok(()),
                    Some(false) => return Err(ReleaseError::Held("it reports that it cannot".to_owned())),
                    None => {}
                },
                Err(RecvError::Lagged(_)) if !exists(qmp, id).await? => return Ok(()),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err(ReleaseError::Qmp(QmpError::Closed)),
            }
        }
    };
    tokio::select! {
        answered = tokio::time::timeout(patience, answered) => {
            answered.unwrap_or_else(|_| Err(ReleaseError::Held(format!("it has not answered for {patience:?}"))))
        }
        _ = qmp.closed() => Err(ReleaseError::Qmp(QmpError::Closed)),
    }
}

/// Asked where events were lost, because too many came.
async fn exists(qmp: &Qmp, id: &str) -> Result<bool, ReleaseError> {
    let list = json!({ "path": "/machine/peripheral" });
    let listed = qmp.execute("qom-list", list).await.map_err(ReleaseError::Qmp)?;
    let devices = listed.as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(devices.iter().any(|device| device["name"] == id))
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
