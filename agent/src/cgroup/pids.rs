//! The pids controller: the limit of tasks.

use oci_spec::runtime::LinuxPids;

use super::setting::{Setting, limit};

/// 0 is "not set", as runc has it.
pub(super) fn settings(pids: LinuxPids) -> Option<Setting> {
    (pids.limit() != 0).then(|| Setting::new("pids.max", limit(pids.limit())))
}
