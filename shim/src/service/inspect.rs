//! The VM as `kata-ctl` sees it: converts between the sandbox's own types and the protocol's. Data from the guest is
//! bounded here.

use std::path::Path;
use std::sync::Arc;

use guest::agent_client::printable;
use protocol::diagnostics::{ConsoleRequest, ConsoleResponse, ContainerHealth, HealthResponse, Vcpu, VcpusResponse};

use crate::sandbox::error::Error;
use crate::sandbox::{Sandbox, console};

/// Longest reason that is passed on, in bytes: a console's tail is in some.
const REASON: usize = 8 << 10;

pub(super) async fn health(sandbox: &Sandbox) -> HealthResponse {
    let health = sandbox.health().await;
    let (vmm_status, vmm_error) = match health.vmm {
        Ok(status) => (status, String::new()),
        Err(error) => (String::new(), error),
    };
    let containers = health.containers.into_iter().map(|(id, state)| ContainerHealth {
        container_id: id.to_string(),
        state: state.to_owned(),
        ..Default::default()
    });
    HealthResponse {
        vm_state: health.vm_state.to_owned(),
        reason: printable(&health.reason, REASON),
        vmm_status,
        vmm_error,
        agent_answers: health.agent.is_ok(),
        agent_error: health
            .agent
            .err()
            .map_or_else(String::new, |error| printable(&error, REASON)),
        agent_version: printable(&health.hello.agent_version, 64),
        kernel_release: printable(&health.hello.kernel_release, 64),
        debug_console: health.debug_console,
        containers: containers.collect(),
        ..Default::default()
    }
}

pub(super) async fn vcpus(sandbox: &Sandbox) -> ttrpc::Result<VcpusResponse> {
    let sample = sandbox.sample().await?;
    let vcpus = sample.vcpus.iter().map(|vcpu| Vcpu {
        index: vcpu.index,
        instruction: vcpu.instruction,
        halted: vcpu.halted,
        level: u32::from(vcpu.level),
        ..Default::default()
    });
    Ok(VcpusResponse {
        vcpus: vcpus.collect(),
        first_handler: sample.first_handler.unwrap_or(0),
        kernel: sandbox.kernel().display().to_string(),
        ..Default::default()
    })
}

pub(super) async fn console(sandbox: &Arc<Sandbox>, request: ConsoleRequest) -> ttrpc::Result<ConsoleResponse> {
    let invalid = |what, reason: &str| Error::Invalid {
        what,
        subject: "a console".to_owned(),
        reason: reason.to_owned(),
    };
    if request.args.is_empty() {
        return Err(invalid("the program", "there is none").into());
    }
    if !Path::new(&request.directory).is_absolute() {
        return Err(invalid("the directory", "it is not an absolute path").into());
    }
    let request = console::ConsoleRequest {
        id: request.console_id,
        args: request.args,
        env: request.env,
        directory: request.directory.into(),
        terminal: request.terminal.then_some((request.columns, request.rows)),
    };
    let status = sandbox.run_console(request).await?;
    Ok(ConsoleResponse {
        status,
        ..Default::default()
    })
}
