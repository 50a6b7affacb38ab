//! Why a call to the agent failed. The one place that knows the agent's status codes: behind it a refusal says what the agent means.

use std::time::Duration;

use ttrpc::Code;

/// What the agent's answer means. The agent's own table is `agent::rpc::status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such container or process, or it has ended.
    Missing,
    /// There is one already.
    Exists,
    /// What was asked for cannot be understood or carried out.
    Invalid,
    /// The phase of a container does not allow it.
    Phase,
    /// The kernel or a process of the guest has not done it in time.
    Unanswered,
    /// The guest has no such thing.
    Unsupported,
    /// The guest has not enough of something.
    Exhausted,
    /// It was given up, because another call came first.
    GivenUp,
    /// Anything else.
    Failed,
}

impl Refusal {
    /// The meaning of a status code. OK is no code of an error: whatever the guest means by it, the call has failed.
    pub(super) fn of(code: Code) -> Self {
        match code {
            Code::NOT_FOUND => Self::Missing,
            Code::ALREADY_EXISTS => Self::Exists,
            Code::INVALID_ARGUMENT => Self::Invalid,
            Code::FAILED_PRECONDITION => Self::Phase,
            Code::DEADLINE_EXCEEDED => Self::Unanswered,
            Code::UNIMPLEMENTED => Self::Unsupported,
            Code::RESOURCE_EXHAUSTED => Self::Exhausted,
            Code::CANCELLED => Self::GivenUp,
            _ => Self::Failed,
        }
    }
}

/// The guest said no, or nothing.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum AgentError {
    #[error("{message}")]
    Refused {
        refusal: Refusal,
        /// The agent's message, bounded and without control characters.
        message: String,
    },
    #[error("the guest's agent did not answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("the connection to the guest's agent is broken: {0}")]
    Broken(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ok_that_is_an_error_stays_an_error() {
        assert_eq!(Refusal::of(Code::OK), Refusal::Failed);
        assert_eq!(Refusal::of(Code::NOT_FOUND), Refusal::Missing);
    }
}
