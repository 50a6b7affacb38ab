//! The parts of a device in QEMU, and what is done with them: all are added, or all are removed.
//!
//! ```text
//!                          add: in order                       remove: in reverse order
//!  (nothing of it is there) ────────────► (all parts are there) ────────────► (nothing of it is there)
//! ```
//! A part is what one command makes: a set of files, a block node, a device. If QEMU refuses a part, those before it are
//! removed. If QEMU has not answered, it is asked what it has: a part that is there counts as added, or removed, whatever
//! became of the answer. Files that were handed over and back ends of network devices are in no list of QEMU's: those are
//! removed. If QEMU does not answer that either, the outcome is unknown and [`Left`] says of what. A removal may be
//! repeated until QEMU answers: a part that is not there is removed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};

use super::release::{ReleaseError, exists, lists, release};
use crate::qmp::{Qmp, QmpError};

#[derive(Debug)]
pub(super) struct Command {
    /// As a message names it, before the device.
    step: &'static str,
    name: &'static str,
    arguments: Value,
    file: Option<OwnedFd>,
}

impl Command {
    pub(super) fn new(step: &'static str, name: &'static str, arguments: Value) -> Self {
        let file = None;
        Self {
            step,
            name,
            arguments,
            file,
        }
    }

    /// One that hands over a file.
    pub(super) fn with_file(step: &'static str, name: &'static str, arguments: Value, file: OwnedFd) -> Self {
        Self {
            file: Some(file),
            ..Self::new(step, name, arguments)
        }
    }

    async fn run(self, qmp: &Qmp) -> Result<(), (&'static str, QmpError)> {
        let done = match self.file {
            Some(file) => qmp.execute_with(self.name, self.arguments, file).await,
            None => qmp.execute(self.name, self.arguments).await,
        };
        done.map(drop).map_err(|error| (self.step, error))
    }
}

/// QEMU's name of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A file that was handed over, until a back end takes it. QEMU has no list of them.
    File(String),
    /// A set of files.
    Files(u32),
    Node(String),
    /// The back end of a network device. QEMU has no list of them.
    Netdev(String),
    /// An object, such as memory.
    Object(String),
    /// A device, a vCPU included.
    Device(String),
}

impl Name {
    /// Whether QEMU has it; none if QEMU does not tell.
    async fn is_there(&self, qmp: &Qmp) -> Result<Option<bool>, QmpError> {
        match self {
            Name::Files(number) => {
                let sets = qmp.execute("query-fdsets", Value::Null).await?;
                Ok(Some(lists(&sets, "fdset-id", &json!(number))))
            }
            Name::Node(name) => {
                let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
                Ok(Some(lists(&nodes, "node-name", &json!(name))))
            }
            Name::File(_) | Name::Netdev(_) => Ok(None),
            Name::Object(id) => {
                let objects = qmp.execute("qom-list", json!({ "path": "/objects" })).await?;
                Ok(Some(lists(&objects, "name", &json!(id))))
            }
            Name::Device(id) => exists(qmp, id).await.map(Some),
        }
    }

    /// Whether this answer to its removal says that QEMU does not have it: the only one for which QEMU refuses to close a file
    /// (`qmp_closefd` in its monitor/fds.c).
    fn is_absent_after(&self, error: &QmpError) -> bool {
        match self {
            Name::File(_) => matches!(error, QmpError::Refused { .. }),
            _ => error.is_not_found(),
        }
    }

    /// What is done to remove it, as messages name it.
    pub(super) fn removal(&self) -> &'static str {
        match self {
            Name::File(_) | Name::Files(_) => "close the file of",
            Name::Node(_) | Name::Netdev(_) => "close",
            Name::Object(_) => "remove the memory of",
            Name::Device(_) => "unplug",
        }
    }

    /// Removes it. One that is not there has been removed.
    async fn remove(&self, qmp: &Qmp, patience: Duration) -> Result<(), ReleaseError> {
        let (command, arguments) = match self {
            Name::File(name) => ("closefd", json!({ "fdname": name })),
            Name::Files(number) => ("remove-fd", json!({ "fdset-id": number })),
            Name::Node(name) => ("blockdev-del", json!({ "node-name": name })),
            Name::Netdev(id) => ("netdev_del", json!({ "id": id })),
            Name::Object(id) => ("object-del", json!({ "id": id })),
            Name::Device(id) => return release(qmp, id, patience).await,
        };
        let error = match qmp.execute(command, arguments).await {
            Ok(_) => return Ok(()),
            Err(closed @ QmpError::Closed) => return Err(ReleaseError::Qmp(closed)),
            Err(error) => error,
        };
        match self.is_there(qmp).await {
            Ok(Some(false)) => Ok(()),
            Ok(None) if self.is_absent_after(&error) => Ok(()),
            Ok(_) => Err(ReleaseError::Qmp(error)),
            Err(unanswered) => Err(ReleaseError::Qmp(unanswered)),
        }
    }
}

/// A part of a device, and how it is made.
#[derive(Debug)]
pub(super) struct Part {
    name: Name,
    command: Command,
    /// In its place if QEMU refuses it, and what is logged then.
    instead: Option<(Command, &'static str)>,
    /// QEMU has taken the files before it when it is there.
    takes_files: bool,
}

impl Part {
    pub(super) fn new(name: Name, command: Command) -> Self {
        Self {
            name,
            command,
            instead: None,
            takes_files: false,
        }
    }

    /// What is run if QEMU refuses the command, and what is logged then.
    pub(super) fn or(mut self, instead: Option<Command>, logged: &'static str) -> Self {
        self.instead = instead.map(|command| (command, logged));
        self
    }

    /// It takes the files that were handed over before it: they are no parts of the device any more.
    pub(super) fn takes_files(mut self) -> Self {
        self.takes_files = true;
        self
    }

    /// Adds it. If QEMU has not answered, what it has decides.
    async fn add(self, qmp: &Qmp) -> Result<Name, Failed> {
        let Self {
            name, command, instead, ..
        } = self;
        let done = match (command.run(qmp).await, instead) {
            (Err((_, error @ QmpError::Refused { .. })), Some((instead, logged))) => {
                tracing::warn!(%error, ?name, "{logged}");
                instead.run(qmp).await
            }
            (done, _) => done,
        };
        let Err((step, source)) = done else {
            return Ok(name);
        };
        let there = match source {
            QmpError::Timeout { .. } => name.is_there(qmp).await.unwrap_or(None),
            QmpError::Refused { .. } | QmpError::Closed => Some(false),
        };
        if there == Some(true) {
            tracing::info!(?name, "QEMU has done what it had not answered");
            return Ok(name);
        }
        let maybe = there.is_none().then_some(name);
        Err(Failed { step, source, maybe })
    }
}

struct Failed {
    step: &'static str,
    source: QmpError,
    /// It may be there all the same.
    maybe: Option<Name>,
}

/// What QEMU has of a device that was not added.
#[derive(Debug)]
pub(super) enum Left {
    Nothing,
    /// Perhaps these: QEMU does not answer, or does not remove them.
    Perhaps(Vec<Name>),
}

#[derive(Debug)]
pub(super) struct NotAdded {
    /// The operation that failed, as messages name it.
    pub(super) step: &'static str,
    pub(super) source: QmpError,
    pub(super) left: Left,
    /// The device that the guest was asked to let go of and may still let go of.
    pub(super) leaving: Option<Name>,
}

/// What becomes of the parts before one that is not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    Removed,
    /// They stay: each is of use by itself.
    Kept,
}

/// Adds all parts, or none. The answer is their names, in order.
pub(super) async fn add(qmp: &Qmp, parts: Vec<Part>, undo: Undo, patience: Duration) -> Result<Vec<Name>, NotAdded> {
    let mut added = Vec::new();
    for part in parts {
        let takes_files = part.takes_files;
        match part.add(qmp).await {
            Ok(name) => {
                if takes_files {
                    added.retain(|name| !matches!(name, Name::File(_)));
                }
                added.push(name);
            }
            Err(Failed { step, source, maybe }) => {
                added.extend(maybe);
                let (left, leaving) = match undo {
                    Undo::Removed => what_is_left(qmp, added, patience).await,
                    Undo::Kept => (Left::Nothing, None),
                };
                return Err(NotAdded {
                    step,
                    source,
                    left,
                    leaving,
                });
            }
        }
    }
    Ok(added)
}

/// Removes what was added, and says what that leaves, and which device may go later.
async fn what_is_left(qmp: &Qmp, added: Vec<Name>, patience: Duration) -> (Left, Option<Name>) {
    match remove(qmp, &added, patience).await {
        // With QEMU all of it has ended.
        Ok(()) | Err((_, ReleaseError::Qmp(QmpError::Closed))) => (Left::Nothing, None),
        Err((_, ReleaseError::Held { undecided: false, .. } | ReleaseError::Qmp(QmpError::Refused { .. }))) => {
            (Left::Perhaps(added), None)
        }
        Err((name, _)) => (Left::Perhaps(added), Some(name)),
    }
}

/// Removes all parts, the last one first, and says which one is not removed and why. May be repeated.
pub(super) async fn remove(qmp: &Qmp, parts: &[Name], patience: Duration) -> Result<(), (Name, ReleaseError)> {
    for part in parts.iter().rev() {
        part.remove(qmp, patience)
            .await
            .map_err(|error| (part.clone(), error))?;
    }
    Ok(())
}
