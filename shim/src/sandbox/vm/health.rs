//! Checks for diagnostics whether the VM and its agent answer. It waits only a short time, and changes nothing.

use std::path::Path;
use std::time::Duration;

use base::chain;
use futures::future::join_all;
use guest::agent_client::AgentError;
use hypervisor::Sample;
use protocol::agent::{GuestMetricsResponse, HelloRequest, StatsResponse};
use scrape::durations::Durations;

use crate::id::ContainerId;
use crate::sandbox::error::Error;
use crate::sandbox::verbs::agent_container;
use crate::sandbox::{Sandbox, VmState};

/// Timeout for the VMM to answer: it does so at once unless its main loop is stuck.
const ANSWER: Duration = Duration::from_secs(3);

/// The state of the VM and its agent, for diagnostics.
pub struct Health {
    /// `booting`, `ready`, `failed` or `ended`.
    pub vm_state: &'static str,
    /// Why it failed or ended; empty otherwise.
    pub reason: String,
    /// The VMM's run state, or why it does not tell.
    pub vmm: Result<String, String>,
    /// What the agent says, or why it says nothing.
    pub agent: Result<GuestMetricsResponse, String>,
    /// The agent's first message; empty before it.
    pub hello: HelloRequest,
    /// Whether the debug console is allowed.
    pub debug_console: bool,
    /// Every container, and its state in words.
    pub containers: Vec<(ContainerId, &'static str)>,
}

impl Sandbox {
    /// Asks the VM and the agent, each for a few seconds at most.
    pub async fn health(&self) -> Health {
        let vm = self.vm_state.borrow().clone();
        let (vm_state, reason, hello) = match &vm {
            VmState::Booting => ("booting", String::new(), HelloRequest::new()),
            VmState::Failed(error) => ("failed", chain(error), HelloRequest::new()),
            VmState::Ready(booted) => ("ready", String::new(), booted.hello.clone()),
            VmState::Ended { ending, .. } => ("ended", ending.reason.clone(), HelloRequest::new()),
        };
        let (vmm, agent) = tokio::join!(self.vmm_status(), self.guest_metrics());
        Health {
            vm_state,
            reason,
            vmm,
            agent: agent.map_err(|error| chain(&error)),
            hello,
            debug_console: self.debug_console,
            containers: self.container_states(),
        }
    }

    async fn vmm_status(&self) -> Result<String, String> {
        let vm = self.running_vm().ok_or("it does not run")?;
        let asked = tokio::time::timeout(ANSWER, vm.status()).await;
        asked.unwrap_or_else(|_| Err(silent()))
    }

    /// Where the vCPUs are.
    ///
    /// # Errors
    /// There is no VMM, or it does not say.
    pub async fn sample(&self) -> Result<Sample, Error> {
        let failed = |reason| Error::VmEnded {
            operation: "look at the vCPUs of",
            subject: format!("sandbox {}", self.id),
            reason,
        };
        let vm = self
            .running_vm()
            .ok_or_else(|| failed("its VMM does not run".to_owned()))?;
        let asked = tokio::time::timeout(ANSWER, vm.sample()).await;
        asked.unwrap_or_else(|_| Err(silent())).map_err(failed)
    }

    /// What the guest as a whole uses.
    ///
    /// # Errors
    /// There is no agent, or it does not answer.
    pub async fn guest_metrics(&self) -> Result<GuestMetricsResponse, Error> {
        let subject = format!("sandbox {}", self.id);
        let agent = self.agent("ask the agent of", &subject)?;
        agent.guest_metrics().await.map_err(|source: AgentError| Error::Agent {
            operation: "ask the agent of",
            subject,
            source,
        })
    }

    /// How long calls to the agent have taken; none before it has called.
    #[must_use]
    pub fn agent_durations(&self) -> Option<Durations> {
        let agent = self.agent("ask the agent of", &self.id.to_string());
        agent.ok().map(|agent| agent.durations())
    }

    /// The figures of each container that runs, in the order of their ids; none where the guest does not tell them in time.
    /// All are asked for at once: one that hangs costs its own time, and nobody else's.
    pub async fn figures(&self) -> Vec<(ContainerId, Option<StatsResponse>)> {
        let ids = self.container_ids().into_iter();
        let asked = ids.map(|id| async move {
            let (agent, _) = self.living(&id, "read the figures of").ok()?;
            let figures = agent.sample(&agent_container(&id)).await.ok();
            Some((id, figures))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The VMM's and its helpers' processes.
    #[must_use]
    pub fn vm_pids(&self) -> Vec<u32> {
        self.running_vm().map_or_else(Vec::new, |vm| vm.pids())
    }

    /// The path of the guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    fn container_states(&self) -> Vec<(ContainerId, &'static str)> {
        let records = self.records();
        let states = records
            .iter()
            .map(|(id, container)| (id.clone(), container.init.phase().name()));
        let mut states: Vec<_> = states.collect();
        states.sort();
        states
    }
}

fn silent() -> String {
    format!("QEMU's monitor has not answered for {} s", ANSWER.as_secs())
}
