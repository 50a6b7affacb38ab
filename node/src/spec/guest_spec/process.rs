//! The process of a container, or of an exec: removes the settings that have no effect in a guest.

use serde_json::Value;

use super::{GuestSpec, GuestSpecError};

/// The fields that are left out, with the reason.
const LEFT_OUT: [(&str, &str); 2] = [
    ("apparmorProfile", "the guest has no AppArmor"),
    ("selinuxLabel", "the guest has no SELinux"),
];

/// What stands for no label at all.
const NO_LABEL: [&str; 2] = ["", "unconfined"];

/// Takes the fields out of a `process` in JSON. One sentence for each that asked for something.
pub(super) fn leave_out(process: &mut Value) -> Vec<String> {
    let Some(fields) = process.as_object_mut() else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    for (name, reason) in LEFT_OUT {
        let Some(value) = fields.remove(name) else { continue };
        if !value.as_str().is_some_and(|label| NO_LABEL.contains(&label)) {
            warnings.push(left_out(name, reason));
        }
    }
    warnings
}

fn left_out(name: &str, reason: &str) -> String {
    format!("process.{name} is left out: {reason}")
}

impl GuestSpec {
    pub(super) fn process(&mut self) -> Result<(), GuestSpecError> {
        let mut process = self.spec.process().clone().ok_or(GuestSpecError::Missing("process"))?;
        let label = |label: &Option<String>| label.as_deref().is_some_and(|label| !NO_LABEL.contains(&label));
        let asked = [label(process.apparmor_profile()), label(process.selinux_label())];
        let asked = LEFT_OUT.into_iter().zip(asked).filter(|(_, asked)| *asked);
        self.warnings
            .extend(asked.map(|((name, reason), _)| left_out(name, reason)));
        process.set_apparmor_profile(None).set_selinux_label(None);
        self.spec.set_process(Some(process));
        Ok(())
    }
}
