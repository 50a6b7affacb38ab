//! Whether a process is this server or a descendant of it: virtiofsd's changes are made for the guest.
//!
//! The kernel reports pids, which are reused. A remembered pid counts only as long as a descriptor of the process
//! (pidfd_open(2)) shows that the process still runs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::host::process::is_descendant;

/// The ones that are known. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Helpers(Arc<Mutex<HashMap<i32, OwnedFd>>>);

impl Helpers {
    pub(super) fn has(&self, pid: i32) -> bool {
        let known = self.lock().get(&pid).map(runs);
        match known {
            Some(true) => true,
            // Its number may be anybody's by now.
            Some(false) => {
                self.lock().retain(|_, process| runs(process));
                self.learn(pid)
            }
            None => self.learn(pid),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, pid: i32) -> bool {
        // First: whoever has the number now has it until the descriptor says otherwise.
        let process = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let helper = is_descendant(pid);
        if let (true, Some(process)) = (helper, process)
            && runs(&process)
        {
            self.lock().insert(pid, process);
        }
        helper
    }
}

/// Whether a process has not ended: its descriptor becomes readable then.
fn runs(process: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_known_until_it_ends_and_its_number_says_nothing_then() {
        let helpers = Helpers::default();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(helpers.has(pid) && helpers.has(pid));
        assert!(!helpers.has(1));
        child.kill().unwrap();
        child.wait().unwrap();
        // As if somebody else had got the number: the known process is not the one that has it.
        let ours = helpers.lock().remove(&pid).unwrap();
        helpers.lock().insert(1, ours);
        assert!(!helpers.has(1) && !helpers.has(pid));
        assert!(helpers.lock().is_empty());
    }
}
