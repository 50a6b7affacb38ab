//! containerd's task API by itself (containerd/api/services/tasks/v1): the steps that `ctr` takes at once, each alone.

use prost::Message;
use serde_json::Value;
use tonic::Request;

use crate::{Error, Fifos, Result, grpc::Connection};

const SERVICE: &str = "containerd.services.tasks.v1.Tasks";

/// Names of the specification's types begin so (containerd's typeurl).
const TYPES: &str = "types.containerd.io/opencontainers/runtime-spec/1";

/// The tasks of a namespace. Containers and execs by their ids; an exec's is empty for the container's first process.
#[derive(Debug)]
pub struct Tasks {
    connection: Connection,
    namespace: String,
}

impl Tasks {
    pub(crate) fn new(connection: Connection, namespace: &str) -> Self {
        Self {
            connection,
            namespace: namespace.to_owned(),
        }
    }

    fn call<Q: Message + 'static, A: Message + Default + 'static>(&self, method: &str, message: Q) -> Result<A> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse();
        let namespace = namespace.map_err(|_| Error::unexpected("a namespace that is no header"))?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        self.connection.call(SERVICE, method, request)
    }

    /// Creates the task of a container whose specification names its root.
    pub fn create(&self, container: &str) -> Result<()> {
        self.create_on(container, Vec::new())
    }

    /// Creates the task of a container on a rootfs of these mounts, whatever its snapshot is.
    pub fn create_on(&self, container: &str, rootfs: Vec<Mount>) -> Result<()> {
        let request = CreateTaskRequest {
            container_id: container.to_owned(),
            rootfs,
            ..CreateTaskRequest::default()
        };
        self.call("Create", request).map(|Empty {}| ())
    }

    /// Creates the task of a container whose specification names its root, with standard output and error.
    pub fn create_with(&self, container: &str, fifos: &Fifos) -> Result<()> {
        let [stdout, stderr] = fifos.paths();
        let request = CreateTaskRequest {
            container_id: container.to_owned(),
            stdout,
            stderr,
            ..CreateTaskRequest::default()
        };
        self.call("Create", request).map(|Empty {}| ())
    }

    /// Starts a container's first process, or an exec.
    pub fn start(&self, container: &str, exec: &str) -> Result<()> {
        self.call("Start", process(container, exec)).map(|Empty {}| ())
    }

    /// Adds an exec: an OCI `process`.
    pub fn exec(&self, container: &str, exec: &str, process: &Value) -> Result<()> {
        let request = ExecProcessRequest {
            container_id: container.to_owned(),
            spec: Some(Any::new("Process", process)),
            exec_id: exec.to_owned(),
            ..ExecProcessRequest::default()
        };
        self.call("Exec", request).map(|Empty {}| ())
    }

    /// Adds an exec with standard output and error.
    pub fn exec_with(&self, container: &str, exec: &str, process: &Value, fifos: &Fifos) -> Result<()> {
        let [stdout, stderr] = fifos.paths();
        let request = ExecProcessRequest {
            container_id: container.to_owned(),
            stdout,
            stderr,
            spec: Some(Any::new("Process", process)),
            exec_id: exec.to_owned(),
        };
        self.call("Exec", request).map(|Empty {}| ())
    }

    /// Changes a container's limits: `linux.resources` of the OCI specification.
    pub fn update(&self, container: &str, resources: &Value) -> Result<()> {
        let request = UpdateTaskRequest {
            container_id: container.to_owned(),
            resources: Some(Any::new("LinuxResources", resources)),
        };
        self.call("Update", request).map(|Empty {}| ())
    }

    pub fn kill(&self, container: &str, exec: &str, signal: u32) -> Result<()> {
        let request = KillRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            signal,
        };
        self.call("Kill", request).map(|Empty {}| ())
    }

    /// Waits for the end; the exit status.
    pub fn wait(&self, container: &str, exec: &str) -> Result<u32> {
        let ended: WaitResponse = self.call("Wait", process(container, exec))?;
        Ok(ended.exit_status)
    }

    pub fn delete(&self, container: &str) -> Result<()> {
        self.call("Delete", process(container, "")).map(|Empty {}| ())
    }

    pub fn delete_exec(&self, container: &str, exec: &str) -> Result<()> {
        self.call("DeleteProcess", process(container, exec)).map(|Empty {}| ())
    }
}

fn process(container: &str, exec: &str) -> ProcessRequest {
    ProcessRequest {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
    }
}

/// A mount of a rootfs, as snapshotters describe it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    /// As for mount(8).
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, repeated, tag = "3")]
    rootfs: Vec<Mount>,
    #[prost(string, tag = "5")]
    stdout: String,
    #[prost(string, tag = "6")]
    stderr: String,
}

/// StartRequest, WaitRequest, DeleteTaskRequest and DeleteProcessRequest have the same fields.
#[derive(Clone, PartialEq, prost::Message)]
struct ProcessRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "3")]
    stdout: String,
    #[prost(string, tag = "4")]
    stderr: String,
    #[prost(message, optional, tag = "6")]
    spec: Option<Any>,
    #[prost(string, tag = "7")]
    exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KillRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    exec_id: String,
    #[prost(uint32, tag = "3")]
    signal: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WaitResponse {
    #[prost(uint32, tag = "1")]
    exit_status: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UpdateTaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, optional, tag = "2")]
    resources: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl Any {
    fn new(kind: &str, value: &Value) -> Self {
        Self {
            type_url: format!("{TYPES}/{kind}"),
            value: value.to_string().into_bytes(),
        }
    }
}

/// An answer of which nothing is needed: what it has is skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}
