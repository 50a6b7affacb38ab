//! What a failure of work means for the state machine.

use guest::agent_client::{AgentError, Refusal};
use lifecycle::{Failure, Fault};

use crate::sandbox::error::{Error, Shared};

/// The result of a job.
pub(in crate::sandbox) type Done = Result<(), Failure<Shared>>;

pub(in crate::sandbox) fn failure(error: Error) -> Failure<Shared> {
    let fault = match &error {
        Error::Agent { source, .. } => fault(source),
        Error::VmEnded { .. } => Fault::Gone,
        _ => Fault::Refused,
    };
    Failure {
        fault,
        error: error.into(),
    }
}

/// Whether the agent has refused. Otherwise it may have done what it was asked for.
pub(in crate::sandbox) fn is_answer(error: &AgentError) -> bool {
    !matches!(fault(error), Fault::Unanswered | Fault::Gone)
}

fn fault(error: &AgentError) -> Fault {
    match error {
        AgentError::Refused { refusal, .. } => match refusal {
            Refusal::Missing => Fault::Missing,
            Refusal::Phase => Fault::Phase,
            // The guest has the same time-out for a call as the shim, and either may be the first to notice.
            Refusal::Unanswered => Fault::Unanswered,
            Refusal::Exists
            | Refusal::Invalid
            | Refusal::Unsupported
            | Refusal::Exhausted
            | Refusal::GivenUp
            | Refusal::Failed => Fault::Refused,
        },
        AgentError::TimedOut(_) => Fault::Unanswered,
        AgentError::Broken(_) => Fault::Gone,
    }
}

/// Work that has come to no end.
pub(in crate::sandbox) fn interrupted(subject: String) -> Done {
    Err(Failure {
        fault: Fault::Unanswered,
        error: Error::Interrupted { subject }.into(),
    })
}
