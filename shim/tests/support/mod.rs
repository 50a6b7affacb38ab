//! A shim without QEMU: the real sandbox and the real services, between a fake containerd and a fake guest.

mod agent;
mod boot;
mod cables;
mod calls;
mod containerd;
mod disks;
pub(crate) mod fake_guest;
mod host;
pub(crate) mod hung_file;
pub(crate) mod liar;
mod network;
mod size;
mod vm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PidsRequest,
    StartRequest, StateRequest, StateResponse, StatsRequest, Status, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use guest::streams::StdioPaths;
use lifecycle::Timeouts;
use node::sizing::Sizing;
use protocol::agent::SandboxSetup;
use protocol::diagnostics_ttrpc::DiagnosticsClient;
use shim::events::Publisher;
use shim::id::{ContainerId, Namespace, SandboxId};
use shim::sandbox::boot::BootPlan;
use shim::sandbox::{CreateRequest, Parts, Sandbox};
use shim::service::Service;
use tempfile::TempDir;
use tokio::sync::Notify;
use ttrpc::r#async::Server;

pub(crate) use self::calls::{refusal, soon};
use self::containerd::Containerd;
use self::fake_guest::Guest;
use self::host::FakeHost;
pub(crate) use self::vm::{Boot, CONSOLE, PID};

/// Timeout for the creation and the start of a process.
const CREATION: Duration = Duration::from_secs(20);

pub(crate) const POD: &str = "pod";

/// The streams of a process: paths of FIFOs, or nothing.
#[derive(Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// A sandbox with its server, as containerd meets it.
pub(crate) struct Shim {
    pub(crate) tasks: TaskClient,
    pub(crate) sandbox: SandboxClient,
    pub(crate) containerd: Containerd,
    pub(crate) guest: Arc<Guest>,
    pub(crate) host: Arc<FakeHost>,
    /// Notified when containerd has asked for the server's end and got it.
    pub(crate) shutdown: Arc<Notify>,
    core: Arc<Sandbox>,
    _server: Server,
    directory: TempDir,
}

impl Shim {
    /// A sandbox that begins to boot.
    pub(crate) async fn new(boot: Boot) -> Self {
        Self::with(boot, true, CREATION).await
    }

    /// The same, without the network of the container's namespace.
    pub(crate) async fn without_network() -> Self {
        Self::with(Boot::Works, false, CREATION).await
    }

    /// The same, with a limit for the creation and the start of a process.
    pub(crate) async fn with_creations_of(create_timeout: Duration) -> Self {
        Self::with(Boot::Works, true, create_timeout).await
    }

    async fn with(boot: Boot, networked: bool, create_timeout: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let containerd = Containerd::listen(&directory.path().join("containerd.sock")).await;
        let host = Arc::new(FakeHost::default());
        let guest = Guest::new();
        let timeouts = Timeouts::scaled(0.05);
        let core = Sandbox::start(
            Parts {
                id: SandboxId::new(POD).unwrap(),
                namespace: Namespace::new("default").unwrap(),
                host: Arc::clone(&host) as _,
                events: Publisher::start(containerd.address(), "default"),
                relays: Default::default(),
                timeouts,
                debug_console: true,
                kernel: "/share/vmlinuz".into(),
                sizing: sizing(),
                networked,
                serves_mounts: false,
                tracing: None,
            },
            BootPlan {
                queue: None,
                dial_timeout: boot.dial_timeout(),
                launcher: Arc::new(vm::FakeLauncher::new(boot, Arc::clone(&guest))),
                setup: SandboxSetup {
                    sandbox_id: POD.to_owned(),
                    ..Default::default()
                },
                create_timeout,
                timeouts,
                log: guest.log_sink(),
            },
        );
        let shutdown = Arc::new(Notify::new());
        let service = Service::new(Arc::clone(&core), Arc::clone(&shutdown));
        let address = format!("unix://{}", directory.path().join("shim.sock").display());
        let server = Server::new().bind(&address).unwrap();
        let mut server = server.register_service(service.methods());
        server.start().await.unwrap();
        Self {
            tasks: TaskClient::new(Client::connect(&address).await.unwrap()),
            sandbox: SandboxClient::new(Client::connect(&address).await.unwrap()),
            containerd,
            guest,
            host,
            shutdown,
            core,
            _server: server,
            directory,
        }
    }

    /// Another connection to the same server.
    pub(crate) async fn connect(&self) -> TaskClient {
        TaskClient::new(self.client().await)
    }

    /// The same server as `kata-ctl` meets it.
    pub(crate) async fn diagnostics(&self) -> DiagnosticsClient {
        DiagnosticsClient::new(self.client().await)
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address()).await.unwrap()
    }

    /// Where it listens, as containerd is told.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.directory.path().join("shim.sock").display())
    }

    /// Whether it has an owner.
    pub(crate) fn was_asked(&self) -> bool {
        self.core.was_asked()
    }

    /// A FIFO that containerd has made.
    pub(crate) fn fifo(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// An image of the host.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, [0; 4096]).unwrap();
        path
    }

    /// Creates a container with images as disks; `true` is one that it only reads.
    pub(crate) async fn create_on(
        &self,
        id: &str,
        program: &[&str],
        images: &[(&std::path::Path, bool)],
    ) -> ttrpc::Result<u32> {
        let request = self.request_on(id, program, images);
        self.tasks.create(soon(), &request).await.map(|response| response.pid)
    }

    /// The same, with a FIFO as its output.
    pub(crate) async fn create_on_with(
        &self,
        id: &str,
        program: &[&str],
        images: &[(&std::path::Path, bool)],
        stdout: &str,
    ) -> ttrpc::Result<u32> {
        let mut request = self.request_on(id, program, images);
        request.stdout = stdout.to_owned();
        self.tasks.create(soon(), &request).await.map(|response| response.pid)
    }

    /// Creates a container with a limit of memory, in MiB.
    pub(crate) async fn create_limited(&self, id: &str, program: &[&str], limit: u64) -> ttrpc::Result<u32> {
        let request = self.create_request(id, program, Stdio::default());
        let spec = serde_json::json!({ "process": { "args": program }, "linux": { "resources": memory(limit) } });
        std::fs::write(PathBuf::from(&request.bundle).join("config.json"), spec.to_string()).unwrap();
        self.tasks.create(soon(), &request).await.map(|response| response.pid)
    }

    /// Creates a container that sleeps and may use two CPUs.
    pub(crate) async fn create_with_two_cpus(&self, id: &str) -> ttrpc::Result<u32> {
        let request = self.create_request(id, &["sleep"], Stdio::default());
        let cpu = serde_json::json!({ "cpu": { "quota": 200_000, "period": 100_000 } });
        let spec = serde_json::json!({ "process": { "args": ["sleep"] }, "linux": { "resources": cpu } });
        std::fs::write(PathBuf::from(&request.bundle).join("config.json"), spec.to_string()).unwrap();
        self.tasks.create(soon(), &request).await.map(|response| response.pid)
    }

    /// Changes a container's limit of memory, in MiB.
    pub(crate) async fn update(&self, id: &str, limit: u64) -> ttrpc::Result<()> {
        let request = UpdateTaskRequest {
            id: id.to_owned(),
            resources: Some(Any {
                value: memory(limit).to_string().into_bytes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.tasks.update(soon(), &request).await.map(drop)
    }

    /// The same without containerd: whoever drops the future gives the creation up.
    pub(crate) async fn create_given_up(&self, id: &str, program: &[&str], image: &std::path::Path) {
        let request = self.request_on(id, program, &[(image, false)]);
        let request = CreateRequest {
            id: ContainerId::new(id).unwrap(),
            bundle: request.bundle.into(),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
        };
        let _ = self.core.create(request).await;
    }

    fn request_on(&self, id: &str, program: &[&str], images: &[(&std::path::Path, bool)]) -> CreateTaskRequest {
        let request = self.create_request(id, program, Stdio::default());
        let images = images
            .iter()
            .map(|(image, read_only)| serde_json::json!({ "image": image, "readOnly": read_only }));
        let spec = serde_json::json!({ "process": { "args": program }, "disks": images.collect::<Vec<_>>() });
        std::fs::write(PathBuf::from(&request.bundle).join("config.json"), spec.to_string()).unwrap();
        request
    }

    fn bundle(&self, id: &str, program: &[&str]) -> PathBuf {
        let bundle = self.directory.path().join("bundles").join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), spec(program)).unwrap();
        bundle
    }

    /// What containerd sends to create a container that runs one of the guest's programs.
    pub(crate) fn create_request(&self, id: &str, program: &[&str], stdio: Stdio) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.to_owned(),
            bundle: self.bundle(id, program).to_str().unwrap().to_owned(),
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, id: &str, program: &[&str]) -> ttrpc::Result<u32> {
        self.create_with(id, program, Stdio::default()).await
    }

    pub(crate) async fn create_with(&self, id: &str, program: &[&str], stdio: Stdio) -> ttrpc::Result<u32> {
        let request = self.create_request(id, program, stdio);
        self.tasks.create(soon(), &request).await.map(|response| response.pid)
    }

    /// Starts a container, or an exec where one is named.
    pub(crate) async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.tasks.start(soon(), &request).await.map(|response| response.pid)
    }

    pub(crate) async fn run(&self, id: &str, program: &[&str]) {
        self.create(id, program).await.unwrap();
        self.start(id, "").await.unwrap();
    }

    pub(crate) async fn exec(&self, id: &str, exec: &str, program: &[&str]) -> ttrpc::Result<()> {
        self.exec_with(id, exec, program, Stdio::default()).await
    }

    pub(crate) async fn exec_with(&self, id: &str, exec: &str, program: &[&str], stdio: Stdio) -> ttrpc::Result<()> {
        let process = serde_json::json!({ "args": program });
        self.exec_process(id, exec, &process, stdio).await
    }

    /// Adds an exec with all of its OCI `process` object.
    pub(crate) async fn exec_process(
        &self,
        id: &str,
        exec: &str,
        process: &serde_json::Value,
        stdio: Stdio,
    ) -> ttrpc::Result<()> {
        let request = ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
            spec: Some(Any {
                value: process.to_string().into_bytes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.tasks.exec(soon(), &request).await.map(drop)
    }

    /// The exit status, once there is one.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let response = self.tasks.wait(soon(), &request).await?;
        assert!(response.exited_at.seconds > 0, "an exit has a time");
        Ok(response.exit_status)
    }

    pub(crate) async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.tasks.kill(soon(), &request).await.map(drop)
    }

    pub(crate) async fn close_stdin(&self, id: &str, exec: &str) {
        let request = CloseIORequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.tasks.close_io(soon(), &request).await.unwrap();
    }

    pub(crate) async fn pids(&self, id: &str) -> ttrpc::Result<Vec<u32>> {
        let request = PidsRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let listed = self.tasks.pids(soon(), &request).await?;
        Ok(listed.processes.iter().map(|process| process.pid).collect())
    }

    pub(crate) async fn stats(&self, id: &str) -> ttrpc::Result<()> {
        let request = StatsRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.tasks.stats(soon(), &request).await.map(drop)
    }

    pub(crate) async fn state(&self, id: &str, exec: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.tasks.state(soon(), &request).await
    }

    /// The status as `State` gives it.
    pub(crate) async fn status(&self, id: &str, exec: &str) -> Status {
        self.state(id, exec).await.unwrap().status.enum_value().unwrap()
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.tasks.delete(soon(), &request).await
    }

    /// Ends the sandbox as the server does when containerd wants it gone.
    pub(crate) async fn stop(&self) {
        self.core.stop().await;
    }
}

/// A VM of one vCPU and 256 MiB that can have 4 and 4096.
fn sizing() -> Sizing {
    let mut config = config::Config::default();
    config.hypervisor.default_maxmemory = Some(config::Mebibytes(4096));
    // Nothing is added for translated code then, which would depend on the machine.
    config.hypervisor.accelerator = config::Accelerator::Kvm;
    Sizing::new(&config, &oci_spec::runtime::Spec::default())
}

/// OCI's `linux.resources`.
fn memory(limit: u64) -> serde_json::Value {
    serde_json::json!({ "memory": { "limit": limit << 20 } })
}

fn spec(program: &[&str]) -> String {
    serde_json::json!({ "process": { "args": program } }).to_string()
}
