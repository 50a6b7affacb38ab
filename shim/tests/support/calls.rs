//! Calls to a ttrpc server, and what comes back.

use std::time::Duration;

use ttrpc::context::{self, Context};

/// No call of a test may hang.
pub(crate) fn soon() -> Context {
    context::with_duration(Duration::from_secs(60))
}

/// The code and the message of a call that must have failed.
pub(crate) fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("a refusal was expected, and this came: {other:?}"),
    }
}
