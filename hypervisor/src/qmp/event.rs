//! What QEMU tells unasked.

use serde_json::Value;

/// Something that QEMU tells unasked.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `DEVICE_DELETED`.
    pub name: String,
    /// What belongs to it; null if nothing does.
    pub data: Value,
}
