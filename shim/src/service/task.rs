//! containerd's task service: decodes each request, calls the sandbox, encodes the answer.

use std::path::PathBuf;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::Task;
use guest::streams::StdioPaths;
use oci_spec::runtime::LinuxResources;
use protocol::phase::Phase;
use serde::de::DeserializeOwned;
use ttrpc::r#async::TtrpcContext;

use super::Service;
use crate::events::timestamp;
use crate::id::{ContainerId, ExecId};
use crate::sandbox::CreateRequest;
use crate::sandbox::error::Error;
use crate::sandbox::process::{ProcessName, View};

fn name(container: &str, exec: &str) -> Result<ProcessName, Error> {
    Ok(ProcessName {
        container: ContainerId::new(container)?,
        exec: if exec.is_empty() {
            None
        } else {
            Some(ExecId::new(exec)?)
        },
    })
}

/// Reads the JSON in an `Any`, as containerd's typeurl package packs the OCI types.
fn json<T: DeserializeOwned>(any: Option<&Any>, what: &'static str, subject: &dyn ToString) -> Result<T, Error> {
    let invalid = |reason: String| Error::Invalid {
        what,
        subject: subject.to_string(),
        reason,
    };
    let any = any.ok_or_else(|| invalid("it is missing".to_owned()))?;
    serde_json::from_slice(&any.value).map_err(|error| invalid(error.to_string()))
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, process) = self.sandbox()?.process(&name(&request.id, &request.exec_id)?)?;
        let view = process.view();
        let status = match view {
            // Created until the start has succeeded.
            View::In(Phase::Creating | Phase::Created | Phase::Starting) => Status::CREATED,
            View::In(Phase::Paused) => Status::PAUSED,
            View::In(Phase::Running) => Status::RUNNING,
            View::In(Phase::Stopped) | View::Stopped(_) => Status::STOPPED,
        };
        let mut response = StateResponse {
            id: container.id.to_string(),
            exec_id: request.exec_id,
            bundle: container.bundle.display().to_string(),
            pid: self.sandbox()?.pid_of(&container),
            status: status.into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            ..Default::default()
        };
        if let View::Stopped(exit) = view {
            response.exit_status = exit.status;
            response.exited_at = Some(timestamp(exit.at)).into();
        }
        Ok(response)
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let id = ContainerId::new(&request.id).map_err(Error::from)?;
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported("restoring a checkpoint").into());
        }
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            let invalid = Error::Invalid {
                what: "the bundle",
                subject: format!("container {id}"),
                reason: format!("{:?} is not an absolute path", request.bundle),
            };
            return Err(invalid.into());
        }
        let request = CreateRequest {
            id,
            bundle,
            rootfs: request.rootfs,
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        let pid = self.sandbox()?.create(request).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let pid = self
            .sandbox()?
            .start_process(&name(&request.id, &request.exec_id)?)
            .await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let (pid, exit) = self.sandbox()?.delete(&name(&request.id, &request.exec_id)?).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let id = ContainerId::new(&request.id).map_err(Error::from)?;
        let sandbox = self.sandbox()?;
        // Answered without the guest, and for a container that has ended, too. containerd's clients look the numbers up on the host,
        // where the guest's are other processes; and when it comes back from a restart it asks every shim, without a time-out, and
        // takes one that gives no number for a leaked one.
        let mut info = ProcessInfo::new();
        info.pid = sandbox.pid_of(&*sandbox.container(&id)?);
        Ok(PidsResponse {
            processes: vec![info],
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let id = ContainerId::new(&request.id).map_err(Error::from)?;
        self.sandbox()?.set_paused(&id, true).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let id = ContainerId::new(&request.id).map_err(Error::from)?;
        self.sandbox()?.set_paused(&id, false).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(Error::Unsupported("a checkpoint").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let name = name(&request.id, &request.exec_id)?;
        self.sandbox()?.kill(&name, request.signal, request.all).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let name = name(&request.id, &request.exec_id)?;
        if name.exec.is_none() {
            ExecId::new("").map_err(Error::from)?;
        }
        let mut process: serde_json::Value = json(request.spec.as_ref(), "the process specification", &name)?;
        if let Some(process) = process.as_object_mut() {
            process.insert("terminal".to_owned(), request.terminal.into());
        }
        let stdio = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = process.to_string();
        self.sandbox()?.add_exec(&name, stdio, process.as_bytes()).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let name = name(&request.id, &request.exec_id)?;
        self.sandbox()?.resize(&name, request.width, request.height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let name = name(&request.id, &request.exec_id)?;
        if request.stdin {
            self.sandbox()?.close_stdin(&name)?;
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let id = ContainerId::new(&request.id).map_err(Error::from)?;
        let subject = format!("container {id}");
        let what = "the resources";
        let resources: LinuxResources = json(request.resources.as_ref(), what, &subject)?;
        self.sandbox()?.update(&id, resources).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = self.sandbox()?.process(&name(&request.id, &request.exec_id)?)?;
        let exit = process.stopped().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let id = ContainerId::new(&request.id).map_err(Error::from)?;
        Ok(StatsResponse {
            stats: Some(self.cgroup_metrics(&id).await?).into(),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let sandbox = self.sandbox()?;
        let container = sandbox.container(&ContainerId::new(&request.id).map_err(Error::from)?)?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: sandbox.pid_of(&container),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // containerd asks after every container of a pod that it deletes, and after every create that failed; the last one
        // counts.
        // One that never began is as empty as can be.
        if self.cell.get().is_none_or(|sandbox| sandbox.is_empty()) {
            self.shutdown.notify_one();
        }
        Ok(Empty::new())
    }
}
