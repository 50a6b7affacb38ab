//! The VM's life as one task: its boot, its reports and its end. Other tasks can request its end or wait for it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use guest::relays::Relays;
use guest::streams::StreamRegistry;
use guest::vm::RunningVm;
use lifecycle::{Input, KILLED, Timeouts};
use node::sizing::Sizing;
use rustix::process::Signal;
use scrape::durations::Durations;
use tokio::sync::{mpsc, watch};

use crate::events::Publisher;
use crate::id::{ContainerId, Namespace, SandboxId};
use crate::sandbox::driver::Driver;
use crate::sandbox::host::HostSide;
use crate::sandbox::host::changes;
use crate::sandbox::programs::forwards::Forwards;
use crate::sandbox::records::process::{Exit, ProcessName};
use crate::sandbox::records::stand_in::StandIn;
use crate::sandbox::size::sizes::Sizes;
use crate::sandbox::vm::boot::{self, BootPlan, GuestBootError};
use crate::sandbox::{Sandbox, VmState, ended};
use crate::spans::Tracing;

pub struct Parts {
    pub id: SandboxId,
    pub namespace: Namespace,
    /// The host's side of its containers.
    pub host: Arc<dyn HostSide>,
    pub events: Publisher,
    /// What the guest may be connected with.
    pub relays: Relays,
    pub timeouts: Timeouts,
    /// Whether programs may be run in the guest's own namespaces.
    pub debug_console: bool,
    pub kernel: PathBuf,
    /// How big the VM has to be.
    pub sizing: Sizing,
    /// Whether the guest gets the network of the container's namespace.
    pub networked: bool,
    /// Whether a file server has made its mount namespace already, as that of a pool's VM has.
    pub serves_mounts: bool,
    /// Where its spans go; None: nothing is traced.
    pub tracing: Option<Tracing>,
}

impl Sandbox {
    /// Begins to boot, and returns at once.
    #[must_use]
    pub fn start(parts: Parts, plan: BootPlan) -> Arc<Self> {
        let (inputs, messages) = mpsc::unbounded_channel();
        let own = parts.sizing.is_pod().then(|| ContainerId::from(&parts.id));
        let sizes = Sizes::new(parts.sizing, &parts.id);
        let sandbox = Arc::new(Self {
            id: parts.id,
            created_at: SystemTime::now(),
            namespace: parts.namespace,
            host: parts.host,
            events: parts.events,
            streams: StreamRegistry::default(),
            relays: parts.relays,
            networked: parts.networked,
            names: tokio::sync::Mutex::default(),
            records: Mutex::default(),
            inputs,
            next_reply: AtomicU64::new(0),
            first_start: watch::Sender::new(false),
            consoles: Mutex::default(),
            debug_console: parts.debug_console,
            kernel: parts.kernel,
            disks: Arc::default(),
            sizes,
            network: tokio::sync::Mutex::default(),
            vm_state: watch::Sender::new(VmState::Booting),
            running: Mutex::default(),
            serves_mounts: watch::Sender::new(parts.serves_mounts),
            stand_in: Mutex::default(),
            stand_in_killed: AtomicBool::new(false),
            stopping: watch::Sender::new(false),
            given_up: watch::Sender::new(None),
            timeouts: parts.timeouts,
            direct_volumes: Mutex::default(),
            programs: tokio::sync::OnceCell::new(),
            tracing: parts.tracing,
            call_durations: Durations::default(),
            forwards: Forwards::default(),
            unanswered_stats: Arc::default(),
        });
        tokio::spawn(Driver::new(Arc::clone(&sandbox), own).run(messages));
        tokio::spawn(Arc::clone(&sandbox).live(plan));
        sandbox
    }

    /// Boots the VM and waits for its end.
    pub(in crate::sandbox) async fn live(self: Arc<Self>, plan: BootPlan) {
        let mut stopping = self.stopping.subscribe();
        let mut hopeless = self.given_up.subscribe();
        let booting = boot::boot(&plan, self.streams.clone(), self.relays.clone(), |vm| {
            *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(vm));
            if let Err(error) = self.stand_for_the_sandbox(vm) {
                self.give_up(format!("no pid can be made for the sandbox: {error}"));
            }
            self.serves_mounts.send_replace(true);
        });
        let booting = Box::pin(async {
            tokio::select! {
                booted = booting => booted,
                () = told_to_stop(&mut stopping) => Err(GuestBootError::Stopped),
            }
        });
        let booted = match &self.tracing {
            None => booting.await,
            Some(tracing) => {
                let span = tracing.root().start_itself("boot", trace::Kind::Internal);
                span.run(booting, |error| base::chain(error)).await
            }
        };
        let (booted, mut signals) = match booted {
            Ok((booted, signals)) => (Arc::new(booted), signals),
            Err(error) => {
                tracing::error!(sandbox = %self.id, error = base::chain(&error), "the sandbox did not start");
                if let Some(vm) = self.running_vm() {
                    vm.stop(Duration::ZERO).await;
                }
                self.vm_state.send_replace(VmState::Failed(error));
                self.report(Input::VmEnded { out_of_memory: false });
                return;
            }
        };
        self.sizes.booted(booted.hello.memory_bytes);
        self.vm_state.send_replace(VmState::Ready(Arc::clone(&booted)));
        self.report(Input::VmReady);
        if let Some(watches) = self.host.watches() {
            tokio::spawn(changes::tell(watches, booted.agent.clone(), self.vm_state.subscribe()));
        }
        if let Some(copies) = self.host.copies() {
            tokio::spawn(changes::copy(copies, booted.agent.clone(), self.vm_state.subscribe()));
        }
        let following = tokio::spawn(Arc::clone(&self).follow_network(Arc::clone(&booted)));
        let vm = Arc::clone(&booted.vm);
        let late_vcpus = tokio::spawn(async move { vm.follow_late_vcpus().await });
        let demands = signals.demands.take();
        let scaling = demands.map(|demands| tokio::spawn(Arc::clone(&self).follow_demands(demands)));
        let mut ending = loop {
            tokio::select! {
                event = signals.events.recv() => match event {
                    Some(event) => if let Some(ending) = self.handle(event).await { break ending },
                    None => break ended("its connections ended"),
                },
                ending = booted.vm.ended() => break ending,
                _ = &mut signals.lost => {
                    // A VM that dies takes its connections with it: its own reason is the better one.
                    let ending = tokio::time::timeout(self.timeouts.power_off(), booted.vm.ended()).await;
                    break ending.unwrap_or_else(|_| ended("the guest's agent is gone"));
                },
                reason = given_up(&mut hopeless) => break ended(&reason),
                () = told_to_stop(&mut stopping) => {
                    // It may have been told already; what matters is that it goes.
                    let _ = booted.agent.shutdown().await;
                    break ended("the sandbox was stopped");
                }
            }
        };
        following.abort();
        late_vcpus.abort();
        if let Some(scaling) = scaling {
            scaling.abort();
        }
        let expected_end = *self.stopping.borrow();
        if !expected_end {
            let console = guest::agent_client::printable(&booted.vm.console_tail().await, 4 << 10);
            tracing::error!(sandbox = %self.id, reason = ending.reason, console, "the sandbox's VM has ended");
        }
        // An agent that has been told to power off waits for this.
        let mut events = signals.hang_up();
        let grace = if expected_end {
            self.timeouts.power_off()
        } else {
            Duration::ZERO
        };
        booted.vm.stop(grace).await;
        // It keeps the pod's network namespace.
        self.names.lock().await.take();
        // What the agent published before the end still counts.
        while let Some(event) = events.recv().await {
            if let Some(told) = self.handle(event).await {
                ending.reason = told.reason;
            }
        }
        let at = SystemTime::now();
        let status = if expected_end { 0 } else { KILLED };
        self.vm_state.send_replace(VmState::Ended {
            ending: ending.clone(),
            exit: Exit { status, at },
        });
        self.end_consoles(at);
        let out_of_memory = ending.out_of_memory;
        self.report(Input::VmEnded { out_of_memory });
    }

    /// Makes the pid that stands for the sandbox. Whoever kills it ends the VM, as it would end a container of runc; if others that are no pod's have joined its
    /// first container, that container alone.
    pub(in crate::sandbox) fn stand_for_the_sandbox(self: &Arc<Self>, vm: &Arc<dyn RunningVm>) -> io::Result<()> {
        let stand_in = StandIn::new(self.id.as_str(), vm.pid(), vm.network_namespace(), &vm.cgroup_members())?;
        let killed = stand_in.killed()?;
        let pid = stand_in.pid();
        *self.stand_in.lock().unwrap_or_else(PoisonError::into_inner) = Some(stand_in);
        let sandbox = Arc::downgrade(self);
        tokio::spawn(async move {
            killed.await;
            let Some(sandbox) = sandbox.upgrade() else { return };
            let first = ContainerId::from(&sandbox.id);
            let others = sandbox.created().iter().any(|container| container.id != first);
            if others && !sandbox.sizes.is_pod() {
                tracing::warn!(container = %first, pid, "the process that stands for a container was killed: so is the container");
                // Before its end, after which it can be created again.
                sandbox.stand_in_killed.store(true, Ordering::SeqCst);
                let init = ProcessName::init(first);
                if let Err(error) = sandbox.kill(&init, Signal::KILL.as_raw().unsigned_abs(), true).await {
                    tracing::debug!(container = %init.container, error = error.message(), "it was not to be killed");
                }
                return;
            }
            sandbox.give_up(format!(
                "process {pid}, which stands for the sandbox on the host, was killed"
            ));
        });
        Ok(())
    }

    /// Ends the VM, and with it every container. Returns when it is gone; may be called again.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        let mut vm = self.vm_state.subscribe();
        // The sender is in self: it cannot be gone.
        let _ = vm
            .wait_for(|vm| matches!(vm, VmState::Failed(_) | VmState::Ended { .. }))
            .await;
    }

    /// Ends a VM that does not do what it must, as if it had died: its containers are killed. Returns at once.
    pub(in crate::sandbox) fn give_up(&self, reason: String) {
        self.given_up.send_if_modified(|given_up| {
            let first = given_up.is_none();
            given_up.get_or_insert(reason);
            first
        });
    }

    /// Waits for the VM's end. The status is 0 if it was stopped, 137 if it died, and 1 if it never came up.
    pub async fn ended(&self) -> Exit {
        let mut vm = self.vm_state.subscribe();
        let ended = vm
            .wait_for(|vm| matches!(vm, VmState::Failed(_) | VmState::Ended { .. }))
            .await;
        match ended.as_deref() {
            Ok(VmState::Ended { exit, .. }) => *exit,
            _ => Exit {
                status: 1,
                at: SystemTime::now(),
            },
        }
    }
}

/// Waits without holding on to the channel's value.
async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // The sender lives as long as the sandbox.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Waits until the VM is given up, and says why.
async fn given_up(reason: &mut watch::Receiver<Option<String>>) -> String {
    let given_up = reason.wait_for(Option::is_some).await;
    // The sender lives as long as the sandbox, and there is a reason now.
    given_up.ok().and_then(|reason| reason.clone()).unwrap_or_default()
}
