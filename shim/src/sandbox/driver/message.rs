//! The driver's messages: requests of clients, and reports of what has happened.

use std::sync::Arc;

use lifecycle::{Answer, Input, Reply, Request};
use oci_spec::runtime::LinuxResources;
use tokio::sync::oneshot;
use trace::Place;

use crate::sandbox::error::Shared;
use crate::sandbox::records::container::CreateRequest;
use crate::sandbox::records::process::Process;

/// What comes with a request, and is none of the state machine's business.
pub(in crate::sandbox) enum Payload {
    Nothing,
    Create(CreateRequest),
    Exec(Arc<Process>),
    Update(Box<LinuxResources>),
}

/// An input of the driver.
pub(in crate::sandbox) enum Message {
    /// A client makes a request.
    Request {
        reply: Reply,
        request: Request,
        payload: Payload,
        /// Where the client is in a trace.
        place: Option<Place>,
        answer: oneshot::Sender<Answer<Shared>>,
    },
    /// Something has happened; whoever says so may wait until it has been taken note of.
    Input(Input<Shared>, Option<oneshot::Sender<()>>),
}
