//! Runs the work that the state machine requests: calls the function for it, and interprets its failure.

use std::sync::Arc;

use guest::agent_client::{AgentError, Refusal};
use lifecycle::{Failure, Fault, Work};
use oci_spec::runtime::LinuxResources;

use crate::sandbox::Sandbox;
use crate::sandbox::error::{Error, Shared};
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::Process;

/// What becomes of work.
pub(in crate::sandbox) type Done = Result<(), Failure<Shared>>;

/// Work, with the records of what it is about.
pub(in crate::sandbox) struct Order {
    pub(in crate::sandbox) work: Work,
    pub(in crate::sandbox) found: Option<(Arc<Container>, Arc<Process>)>,
    pub(in crate::sandbox) resources: Option<LinuxResources>,
}

impl Sandbox {
    /// Carries out one piece of work, and returns what to report.
    pub(in crate::sandbox) async fn work(self: Arc<Self>, order: Order) -> Done {
        if order.work == Work::Ping {
            return self.ping().await.map_err(failure);
        }
        let Some((container, process)) = order.found else {
            return interrupted(format!("{:?}", order.work));
        };
        let done = match order.work {
            Work::Attach(_) => self.attach(&container).await,
            Work::CreateHooks(_) => self.run_create_hooks(&container).await,
            Work::Provision(_) => self.provision(&container).await,
            Work::GuestCreate(_) => self.create_in_guest(&container).await,
            Work::Connect(_) => self.connect(&container).await,
            Work::Network(_) => self.follow_network_for(&process).await,
            Work::GuestStart(_) => self.start_in_guest(&process).await,
            Work::StartHooks(_) => self.run_start_hooks(&container).await,
            Work::OpenStreams(_) => self.open_streams(&process).await,
            Work::GuestExec(_) => self.exec_in_guest(&process).await,
            Work::ConnectExec(_) => self.connect_exec(&process).await,
            Work::Signal { name, signal, all } => self.signal_in_guest(&name, signal, all).await,
            Work::GuestPause(_) => self.freeze_in_guest(&process.name, true).await,
            Work::GuestResume(_) => self.freeze_in_guest(&process.name, false).await,
            Work::Update(..) => {
                self.update_in_guest(&container, order.resources.unwrap_or_default())
                    .await
            }
            Work::GuestDelete(name) => return self.delete_in_guest(&name).await,
            Work::ReleaseDisks(_) => {
                self.release_disks(&container.id).await;
                Ok(())
            }
            Work::Detach(_) => self.detach(&container.id).await,
            Work::StopHooks(_) => {
                self.run_stop_hooks(&container).await;
                Ok(())
            }
            Work::FinishStreams(_, output) => {
                self.finish_streams(&process, output).await;
                Ok(())
            }
            Work::Ping => Ok(()),
        };
        done.map_err(failure)
    }
}

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
