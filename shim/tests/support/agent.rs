//! The agent's service as the shim calls it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use protocol::agent::{
    CloseStdinRequest, ContainerCreated, ContainerId, CreateContainerRequest, DeleteResponse, Empty, ExecRequest,
    GuestMetricsResponse, MemlockReport, MemlockRequest, Network, ProcessId, ProcessStarted, ResizeRequest,
    ResizeTerminalRequest, SignalRequest, StatsResponse, UpdateRequest,
};
use protocol::agent_ttrpc::Agent;
use serde_json::Value;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use super::fake_guest::{Guest, GuestProcess, Key, exit};

pub(super) struct FakeAgent(pub(super) Arc<Guest>);

fn refused(code: Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

fn args(process: &Value) -> Vec<String> {
    let words = process["args"].as_array().into_iter().flatten();
    words.filter_map(Value::as_str).map(str::to_owned).collect()
}

impl FakeAgent {
    fn called(&self, verb: &str, container: &str) {
        self.0
            .calls
            .send_modify(|calls| calls.push(format!("{verb} {container}")));
    }

    fn process(&self, key: &Key) -> ttrpc::Result<Arc<GuestProcess>> {
        let process = self.0.processes.lock().unwrap().get(key).cloned();
        process.ok_or_else(|| refused(Code::NOT_FOUND, "no such process"))
    }

    fn of(&self, process: Option<&ProcessId>) -> ttrpc::Result<Arc<GuestProcess>> {
        self.process(&process.map(key).unwrap_or_default())
    }
}

fn key(process: &ProcessId) -> Key {
    (process.container_id.clone(), process.exec_id.clone())
}

#[async_trait]
impl Agent for FakeAgent {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<ContainerCreated> {
        self.called("create", &request.container_id);
        let serials = request.devices.iter().map(|device| device.serial.clone()).collect();
        self.0
            .serials
            .lock()
            .unwrap()
            .insert(request.container_id.clone(), serials);
        let spec: Value = serde_json::from_slice(&request.spec).unwrap();
        let args = args(&spec["process"]);
        match args[0].as_str() {
            "slow" => {
                let id = &request.container_id;
                let mut making = self.0.making.subscribe();
                self.0.making.send_if_modified(|making| making.insert(id.clone()));
                tokio::select! {
                    () = self.0.until_released() => {}
                    _ = making.wait_for(|making| !making.contains(id)) => {
                        return Err(refused(Code::CANCELLED, "it was given up"));
                    }
                }
                self.0.making.send_if_modified(|making| making.remove(id));
            }
            "refused" => return Err(refused(Code::INVALID_ARGUMENT, "the device does not exist")),
            _ => {}
        }
        let added = self
            .0
            .add((request.container_id, String::new()), args, &request.stdio)
            .await;
        added.map_err(|error| refused(Code::INTERNAL, &error.to_string()))?;
        Ok(ContainerCreated::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerId) -> ttrpc::Result<Empty> {
        self.called("start", &request.container_id);
        let key = (request.container_id, String::new());
        let process = self.process(&key)?;
        match process.args[0].as_str() {
            "missing" => return Err(refused(Code::NOT_FOUND, "exec /bin/missing: no such file")),
            "stuck" => self.0.until_released().await,
            _ => {}
        }
        tokio::spawn(Arc::clone(&self.0).run(key, process));
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ProcessStarted> {
        self.called("exec", &request.container_id);
        let args = args(&serde_json::from_slice(&request.process).unwrap());
        match args[0].as_str() {
            "missing" => return Err(refused(Code::NOT_FOUND, "exec /bin/missing: no such file")),
            "stuck" => self.0.until_released().await,
            _ => {}
        }
        let key = (request.container_id, request.exec_id);
        let process = self.0.add(key.clone(), args, &request.stdio).await;
        let process = process.map_err(|error| refused(Code::INTERNAL, &error.to_string()))?;
        tokio::spawn(Arc::clone(&self.0).run(key, process));
        Ok(ProcessStarted::new())
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        self.called("signal", &request.process.container_id);
        let process = self.of(request.process.as_ref())?;
        if process.args[0] == "hung" {
            self.0.until_released().await;
        }
        self.0.signal(key(&request.process), &process, request.signal);
        Ok(Empty::new())
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        self.called("resize to", &request.cpus.to_string());
        Ok(Empty::new())
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> ttrpc::Result<Empty> {
        self.of(request.process.as_ref()).map(|_| Empty::new())
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        let process = self.of(request.process.as_ref())?;
        process.stdin_length.send_replace(Some(request.length));
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerId) -> ttrpc::Result<StatsResponse> {
        self.called("stats", &request.container_id);
        if self.process(&(request.container_id, String::new()))?.args[0] == "mute" {
            self.0.until_released().await;
        }
        Ok(StatsResponse::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerId) -> ttrpc::Result<Empty> {
        self.called("pause", &request.container_id);
        if self.process(&(request.container_id, String::new()))?.args[0] == "tough" {
            self.0.until_released().await;
        }
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, _: ContainerId) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn update_network(&self, _: &TtrpcContext, _: Network) -> ttrpc::Result<Empty> {
        match self.0.network.update() {
            true => Ok(Empty::new()),
            false => Err(refused(Code::INTERNAL, "no place for an interface")),
        }
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessId) -> ttrpc::Result<DeleteResponse> {
        self.called("delete", &request.container_id);
        // As the real one: what is being made is given up.
        if self
            .0
            .making
            .send_if_modified(|making| making.remove(&request.container_id))
        {
            return Ok(DeleteResponse {
                finished: true,
                ..Default::default()
            });
        }
        let process = self.of(Some(&request))?;
        match process.args[0].as_str() {
            // Its agent answers nothing from now on.
            "speechless" => {
                self.0.silent.store(true, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            // Its disk gets on no further.
            "stalled" => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Ok(DeleteResponse {
                    waits_for: "its disk\u{7}".to_owned(),
                    ..Default::default()
                });
            }
            "clinging" => return Err(refused(Code::INTERNAL, "it does not go away")),
            // Its disk is slow, and gets on.
            "flushing" if !self.0.is_released() => {
                let progress = self.0.progress.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Ok(DeleteResponse {
                    progress,
                    ..Default::default()
                });
            }
            _ => {}
        }
        // As the real one: what runs is not deleted, and what waits to be started is killed.
        let init = request.exec_id.is_empty();
        if !init && !process.has_ended() || init && process.has_started() && !process.has_ended() {
            return Err(refused(
                Code::FAILED_PRECONDITION,
                "cannot delete it while it is running",
            ));
        }
        if !process.has_ended() {
            let _ = self.0.publish(exit(&request.container_id, "", 137, 0)).await;
        }
        self.0.processes.lock().unwrap().remove(&key(&request));
        Ok(DeleteResponse {
            finished: true,
            ..Default::default()
        })
    }

    async fn guest_metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<GuestMetricsResponse> {
        self.called("ping", "");
        if self.0.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(GuestMetricsResponse {
            oom_kills: 3,
            memory_bytes: HashMap::from([("Mem\"\nTotal".to_owned(), 4096)]),
            ..Default::default()
        })
    }

    async fn memlock(&self, _: &TtrpcContext, request: MemlockRequest) -> ttrpc::Result<MemlockReport> {
        self.process(&(request.container_id, String::new()))?;
        Ok(MemlockReport {
            pid: request.pid,
            command: "a\u{1b}[2J\u{7}".repeat(100),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.called("shutdown", "");
        tokio::spawn(Arc::clone(&self.0).power_off());
        Ok(Empty::new())
    }
}
