//! One change of a node at a time: two would remove each other's half-written copy, or one would put back what the other has changed.
//!
//! The lock is flock(2) on the node's root directory, which leaves no file behind and is the same for a container that has the root mounted.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::NodeError;

/// As [`alone`], unless nothing is changed.
pub(super) fn unless(dry_run: bool, root: &Path) -> Result<Option<File>, NodeError> {
    match dry_run {
        true => Ok(None),
        false => alone(root).map(Some),
    }
}

/// Waits until no other `kata-ctl node` changes the node. The lock ends with what is returned.
pub(super) fn alone(root: &Path) -> Result<File, NodeError> {
    let failed = |source| NodeError::Io {
        operation: "lock",
        path: root.to_owned(),
        source,
    };
    let directory = File::open(root).map_err(failed)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            crate::report::print_message("waiting for another `kata-ctl node` to end …");
            flock(&directory, FlockOperation::LockExclusive)
        }
        other => other,
    }
    .or_else(|error| match error {
        Errno::INTR => Err(failed(error.into())),
        // A root on NFS has no such lock for a directory.
        _ => {
            crate::report::print_message(&format!(
                "the node cannot be locked ({error}): run one `kata-ctl node` at a time"
            ));
            Ok(())
        }
    })?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn the_second_waits_for_the_first() {
        let root = tempfile::tempdir().unwrap();
        let ended = AtomicBool::new(false);
        let first = alone(root.path()).unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                alone(root.path()).unwrap();
                assert!(ended.load(Ordering::SeqCst));
            });
            while !second.is_finished() && !waits(root.path()) {
                thread::yield_now();
            }
            ended.store(true, Ordering::SeqCst);
            drop(first);
            second.join().unwrap();
        });
        assert!(alone(&root.path().join("gone")).is_err());
    }

    /// Whether somebody waits for the lock (proc_locks(5): a line with an arrow).
    fn waits(directory: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let inode = std::fs::metadata(directory).unwrap().ino();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let is_it = |line: &str| line.contains("->") && line.contains(&format!(":{inode} "));
        locks.lines().any(is_it)
    }
}
