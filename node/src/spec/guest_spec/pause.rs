//! A pod's sandbox: the process that keeps the pod's namespaces. The guest has its own program for it, so it needs
//! neither an image nor a mount of the host. The other settings of the specification apply as for any container.

use super::GuestSpec;
use super::error::GuestSpecError;

impl GuestSpec {
    /// Leaves out what is mounted from the host: the sandbox's process reads none of it.
    pub(super) fn keep_only_the_guests_mounts(&mut self) {
        let Some(mut mounts) = self.spec.mounts().clone() else {
            return;
        };
        mounts.retain(|mount| {
            let bound = |option: &String| option == "bind" || option == "rbind";
            mount.typ().as_deref() != Some("bind") && !mount.options().iter().flatten().any(bound)
        });
        self.spec.set_mounts(Some(mounts));
    }

    /// Puts the guest's program in the place of the image's.
    pub(super) fn become_pause(&mut self) -> Result<(), GuestSpecError> {
        let mut root = self.spec.root().clone().ok_or(GuestSpecError::Missing("root"))?;
        root.set_path(protocol::PAUSE_ROOT.into()).set_readonly(Some(true));
        self.spec.set_root(Some(root));
        let mut process = self.spec.process().clone().ok_or(GuestSpecError::Missing("process"))?;
        process
            .set_args(Some(vec![protocol::PAUSE_PROGRAM.to_owned()]))
            .set_cwd("/".into())
            .set_terminal(None);
        self.spec.set_process(Some(process));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use serde_json::json;

    #[test]
    fn a_pods_sandbox_is_the_guests_own_program_and_has_nothing_of_the_host() {
        let sandbox = || {
            json!({
                "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/etc/resolv.conf", "type": "bind", "source": "/gone", "options": ["rbind", "ro"]},
                ],
            })
        };
        let guest = translate(sandbox(), "me").unwrap();
        assert!(guest.pause && guest.binds.is_empty());
        let root = guest.spec.root().clone().unwrap();
        assert_eq!(root.path(), std::path::Path::new("/run/tatami/pause"));
        let process = guest.spec.process().clone().unwrap();
        assert_eq!(process.args().clone().unwrap(), ["/pause"]);
        assert_eq!(guest.spec.mounts().as_ref().unwrap().len(), 1);
        // A container of the pod that claims to be its sandbox is none.
        let member = translate(
            json!({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}),
            "pod",
        );
        assert!(!member.unwrap().pause);
        assert!(!translate(json!({}), "me").unwrap().pause);
    }
}
