//! Waits for the guest to release a device.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::qmp::{Event, Qmp, QmpError};

/// What QEMU says of a device that the guest was asked to let go of a moment ago (`qmp_device_del` in its system/qdev-monitor.c).
pub(crate) const UNDER_WAY: &str = "is already in the process of unplug";

/// ACPI's events of which a status may be told, as far as they are ejections: by the platform, and by the guest itself (ACPI specification, _OST).
const EJECTION: [u64; 2] = [3, 0x103];

/// ACPI's statuses of an ejection that has been done, or is being done (ACPI specification, _OST).
const GETS_ON: [u64; 2] = [0, 0x84];

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
                Ok(event) => match answer_of(&event).filter(|(device, _)| *device == id) {
                    Some((_, Answer::Gone)) => return Ok(()),
                    Some((_, Answer::Stays)) => {
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

/// What the guest does with a device that it was asked to let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// QEMU does not have it any more.
    Gone,
    /// The guest does not let go of it.
    Stays,
}

/// The device that an event is the guest's answer for, and the answer (QEMU's QAPI, "Device infrastructure" and ACPI_DEVICE_OST).
pub(super) fn answer_of(event: &Event) -> Option<(&str, Answer)> {
    let data = &event.data;
    match event.name.as_str() {
        "DEVICE_DELETED" => Some((data["device"].as_str()?, Answer::Gone)),
        "DEVICE_UNPLUG_GUEST_ERROR" => Some((data["device"].as_str()?, Answer::Stays)),
        // The only answer for a vCPU that stays.
        "ACPI_DEVICE_OST" => {
            let info = &data["info"];
            let of_an_ejection = EJECTION.contains(&info["source"].as_u64()?);
            let stays = of_an_ejection && !GETS_ON.contains(&info["status"].as_u64()?);
            stays.then_some((info["device"].as_str()?, Answer::Stays))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_keeps_a_vcpu_says_so_by_acpi() {
        let event = |source: u64, status: u64| Event {
            name: "ACPI_DEVICE_OST".to_owned(),
            data: json!({ "info": { "device": "cpu-1", "slot": "1", "slot-type": "CPU", "source": source, "status": status } }),
        };
        for status in [1, 0x80, 0x82] {
            assert_eq!(answer_of(&event(3, status)), Some(("cpu-1", Answer::Stays)));
            assert_eq!(answer_of(&event(0x103, status)), Some(("cpu-1", Answer::Stays)));
            // A device that was found, or not.
            assert_eq!(answer_of(&event(1, status)), None);
        }
        for status in GETS_ON {
            assert_eq!(answer_of(&event(3, status)), None);
        }
        let no_id = Event {
            name: "ACPI_DEVICE_OST".to_owned(),
            data: json!({ "info": { "slot": "1", "slot-type": "CPU", "source": 3, "status": 1 } }),
        };
        assert_eq!(answer_of(&no_id), None);
    }
}
