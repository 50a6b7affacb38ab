//! Whether a container should still be attached.
//!
//! Opening its sources on the host takes time. Meanwhile the client may have cancelled the creation, and the container
//! may have been detached. A later mount would stay, and block the next container of that name. So each step that changes
//! the shared directory runs under a lock, and only if the container was not detached.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::ShareError;
use lifecycle::id::ContainerId;

/// The right to attach something for a container, until it is detached.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub(super) container: ContainerId,
    pub(super) number: u64,
}

#[derive(Debug, Default)]
pub(super) struct Attachments(Mutex<Latest>);

#[derive(Debug, Default)]
pub(super) struct Latest {
    last: u64,
    of: HashMap<ContainerId, u64>,
}

impl Attachments {
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, container: &ContainerId) -> Attachment {
        let mut latest = self.lock();
        latest.last += 1;
        let number = latest.last;
        latest.of.insert(container.clone(), number);
        Attachment {
            container: container.clone(),
            number,
        }
    }

    /// Nobody detaches as long as the answer is held.
    pub(super) fn hold(&self, attachment: &Attachment) -> Result<MutexGuard<'_, Latest>, ShareError> {
        let latest = self.lock();
        if latest.of.get(&attachment.container) == Some(&attachment.number) {
            Ok(latest)
        } else {
            Err(ShareError::Detached(attachment.container.clone()))
        }
    }

    /// Nobody attaches anything more for the container, unless it is begun again.
    pub(super) fn end(&self, container: &ContainerId) -> MutexGuard<'_, Latest> {
        let mut latest = self.lock();
        latest.of.remove(container);
        latest
    }
}
