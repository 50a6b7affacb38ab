//! The process of a container: what of its settings a guest has no use for.

use super::{GuestSpec, GuestSpecError};

impl GuestSpec {
    pub(super) fn process(&mut self) -> Result<(), GuestSpecError> {
        let mut process = self.spec.process().clone().ok_or(GuestSpecError::Missing("process"))?;
        let labels = [process.apparmor_profile().is_some(), process.selinux_label().is_some()];
        if labels.contains(&true) {
            self.warnings
                .push("the guest has neither AppArmor nor SELinux: the labels are left out".to_owned());
        }
        process.set_apparmor_profile(None).set_selinux_label(None);
        self.spec.set_process(Some(process));
        Ok(())
    }
}
