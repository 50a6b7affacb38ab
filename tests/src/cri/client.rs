//! The calls of CRI, one function each, over containerd's socket. Knows neither pods' files nor what a test wants.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use tonic::Request;

use super::messages::{
    AttachRequest, Container, ContainerId, ContainerStats, ContainerStatsResponse, ContainerStatus,
    ContainerStatusResponse, CreateContainerRequest, Empty, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    HandlerFeatures, ImageSpec, ImageStatusRequest, ImageStatusResponse, ListContainerStatsResponse,
    ListContainersResponse, ListPodSandboxResponse, ListPodSandboxStatsResponse, NodeStatusResponse, PodId, PodSandbox,
    PodSandboxStats, PodSandboxStatsResponse, PodSandboxStatus, PodSandboxStatusResponse, PortForwardRequest,
    RunPodSandboxRequest, StatusRequest, StopContainerRequest, StreamingUrl, UpdateContainerResourcesRequest,
};
use crate::{Error, Result, grpc::Connection};

/// A connection to a containerd's CRI plugin. Its calls block; any number of threads may make some.
#[derive(Debug)]
pub struct Client(Connection);

impl Client {
    /// Connects to the socket at `address`, at the first call.
    pub fn new(address: &Path) -> Result<Self> {
        Connection::new(address).map(Self)
    }

    fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.0
            .call(&format!("runtime.v1.{service}"), method, Request::new(request))
    }

    fn runtime<Q: Message + 'static, A: Message + Default + 'static>(&self, method: &str, request: Q) -> Result<A> {
        self.call("RuntimeService", method, request)
    }

    /// Starts a pod; the answer is its id.
    pub fn run_pod(&self, request: RunPodSandboxRequest) -> Result<String> {
        let pod: PodId = self.runtime("RunPodSandbox", request)?;
        Ok(pod.pod_sandbox_id)
    }

    /// Stops a pod and all of its containers.
    pub fn stop_pod(&self, pod: &str) -> Result<()> {
        let _: Empty = self.runtime("StopPodSandbox", pod_id(pod))?;
        Ok(())
    }

    /// Removes a pod and all of its containers.
    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        let _: Empty = self.runtime("RemovePodSandbox", pod_id(pod))?;
        Ok(())
    }

    /// The runtimes that pods can ask for, and what each can do; nothing for one that was not asked.
    pub fn handlers(&self) -> Result<BTreeMap<String, HandlerFeatures>> {
        let response: NodeStatusResponse = self.runtime("Status", Empty {})?;
        let known = response.handlers.into_iter();
        Ok(known
            .filter_map(|handler| Some((handler.name, handler.features?)))
            .collect())
    }

    pub fn pod_status(&self, pod: &str) -> Result<PodSandboxStatus> {
        let response: PodSandboxStatusResponse = self.runtime("PodSandboxStatus", status_of(pod))?;
        response.status.ok_or_else(|| absent("PodSandboxStatus"))
    }

    /// What containerd tells of a pod besides its status, a JSON text.
    pub fn pod_info(&self, pod: &str) -> Result<serde_json::Value> {
        let response: PodSandboxStatusResponse = self.runtime("PodSandboxStatus", status_of(pod))?;
        let info = response.info.get("info").ok_or_else(|| absent("PodSandboxStatus"))?;
        Ok(serde_json::from_str(info)?)
    }

    pub fn pods(&self) -> Result<Vec<PodSandbox>> {
        let response: ListPodSandboxResponse = self.runtime("ListPodSandbox", Empty {})?;
        Ok(response.items)
    }

    /// Creates a container; the answer is its id.
    pub fn create_container(&self, request: CreateContainerRequest) -> Result<String> {
        let container: ContainerId = self.runtime("CreateContainer", request)?;
        Ok(container.container_id)
    }

    pub fn start_container(&self, container: &str) -> Result<()> {
        let _: Empty = self.runtime("StartContainer", container_id(container))?;
        Ok(())
    }

    /// Stops a container: by its stop signal, and after so many seconds by force.
    pub fn stop_container(&self, container: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest {
            container_id: container.to_owned(),
            timeout,
        };
        let _: Empty = self.runtime("StopContainer", request)?;
        Ok(())
    }

    pub fn remove_container(&self, container: &str) -> Result<()> {
        let _: Empty = self.runtime("RemoveContainer", container_id(container))?;
        Ok(())
    }

    pub fn container_status(&self, container: &str) -> Result<ContainerStatus> {
        let response: ContainerStatusResponse = self.runtime("ContainerStatus", status_of(container))?;
        response.status.ok_or_else(|| absent("ContainerStatus"))
    }

    pub fn containers(&self) -> Result<Vec<Container>> {
        let response: ListContainersResponse = self.runtime("ListContainers", Empty {})?;
        Ok(response.containers)
    }

    pub fn update_resources(&self, request: UpdateContainerResourcesRequest) -> Result<()> {
        let _: Empty = self.runtime("UpdateContainerResources", request)?;
        Ok(())
    }

    /// Has the container's log opened anew, after a rotation.
    pub fn reopen_log(&self, container: &str) -> Result<()> {
        let _: Empty = self.runtime("ReopenContainerLog", container_id(container))?;
        Ok(())
    }

    /// Runs a command in a container to its end, or for so many seconds; 0 is for ever.
    pub fn exec_sync(&self, container: &str, cmd: &[&str], timeout: i64) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        self.runtime("ExecSync", request)
    }

    /// Prepares an exec; the answer is where its streams are.
    pub fn exec(&self, request: ExecRequest) -> Result<String> {
        let prepared: StreamingUrl = self.runtime("Exec", request)?;
        Ok(prepared.url)
    }

    /// Prepares an attach; the answer is where its streams are.
    pub fn attach(&self, request: AttachRequest) -> Result<String> {
        let prepared: StreamingUrl = self.runtime("Attach", request)?;
        Ok(prepared.url)
    }

    /// Prepares port forwarding; the answer is where its streams are.
    pub fn port_forward(&self, pod: &str, port: u16) -> Result<String> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![port.into()],
        };
        let prepared: StreamingUrl = self.runtime("PortForward", request)?;
        Ok(prepared.url)
    }

    pub fn container_stats(&self, container: &str) -> Result<ContainerStats> {
        let response: ContainerStatsResponse = self.runtime("ContainerStats", container_id(container))?;
        response.stats.ok_or_else(|| absent("ContainerStats"))
    }

    pub fn all_container_stats(&self) -> Result<Vec<ContainerStats>> {
        let response: ListContainerStatsResponse = self.runtime("ListContainerStats", Empty {})?;
        Ok(response.stats)
    }

    /// A pod's figures. containerd has them since 1.7.
    pub fn pod_stats(&self, pod: &str) -> Result<PodSandboxStats> {
        let response: PodSandboxStatsResponse = self.runtime("PodSandboxStats", pod_id(pod))?;
        response.stats.ok_or_else(|| absent("PodSandboxStats"))
    }

    pub fn all_pod_stats(&self) -> Result<Vec<PodSandboxStats>> {
        let response: ListPodSandboxStatsResponse = self.runtime("ListPodSandboxStats", Empty {})?;
        Ok(response.stats)
    }

    pub fn has_image(&self, name: &str) -> Result<bool> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec { image: name.to_owned() }),
        };
        let response: ImageStatusResponse = self.call("ImageService", "ImageStatus", request)?;
        Ok(response.image.is_some())
    }
}

fn pod_id(pod: &str) -> PodId {
    PodId {
        pod_sandbox_id: pod.to_owned(),
    }
}

fn container_id(container: &str) -> ContainerId {
    ContainerId {
        container_id: container.to_owned(),
    }
}

fn status_of(id: &str) -> StatusRequest {
    StatusRequest {
        id: id.to_owned(),
        verbose: true,
    }
}

fn absent(method: &str) -> Error {
    Error::unexpected(format!("{method} answered without what was asked for"))
}
