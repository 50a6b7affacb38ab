//! The debug console: a program in the guest's own namespaces, to inspect the guest from inside.
//!
//! For the agent it is a special container: its root is the guest's root, and it creates no namespaces. containerd does
//! not know it. It belongs to its client: when the client disconnects, the program is ended.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use guest::agent_client::AgentClient;
use guest::streams::StdioPaths;
use lifecycle::{KILLED, NOT_STARTED, Output, SIGKILL};
use protocol::agent::CreateContainerRequest;
use protocol::phase::Phase;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::sandbox::records::process::{Exit, Process, ProcessName, View, is_created};
use crate::sandbox::verbs::{agent_container, failed, signal_request};

/// Consoles of one sandbox at once.
const MOST: usize = 16;

/// The key that allows it.
const KEY: &str = "debug_console_enabled = true in [agent.kata] of the runtime's configuration";

#[derive(Debug, Clone)]
pub struct ConsoleRequest {
    /// Its name among the sandbox's consoles.
    pub id: String,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The environment, each entry as NAME=value.
    pub env: Vec<String>,
    /// Where the FIFOs are.
    pub directory: PathBuf,
    /// Whether it has a terminal, and of which size: columns, rows.
    pub terminal: Option<(u32, u32)>,
}

fn container_id(id: &str) -> Result<ContainerId, Error> {
    let plain = (1..=32).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    if !plain {
        return Err(Error::Invalid {
            what: "the id",
            subject: "a console".to_owned(),
            reason: format!("{id:?} is not 1 to 32 of [0-9a-z]"),
        });
    }
    // No container of containerd's has two dots and such a name.
    Ok(ContainerId::new(&format!("kata-ctl..console-{id}"))?)
}

impl Sandbox {
    pub(in crate::sandbox) fn console(&self, id: &ContainerId) -> Option<Arc<Process>> {
        let consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        consoles.get(id).cloned()
    }

    pub(in crate::sandbox) fn all_consoles(&self) -> Vec<Arc<Process>> {
        let consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        consoles.values().cloned().collect()
    }

    /// Whether consoles can be opened.
    ///
    /// # Errors
    /// The configuration does not allow it.
    pub fn console_allowed(&self) -> Result<(), Error> {
        if self.debug_console {
            return Ok(());
        }
        Err(Error::NotEnabled {
            operation: "run a program in the guest of",
            sandbox: self.id.to_string(),
            key: KEY,
        })
    }

    /// Runs a program to its end; the answer is its exit code. Dropping the future ends the program.
    ///
    /// # Errors
    /// The configuration does not allow it, the id is taken, or the program cannot be executed.
    pub async fn run_console(self: &Arc<Self>, request: ConsoleRequest) -> Result<u32, Error> {
        self.console_allowed()?;
        let specification = specification(&request);
        self.run_unlisted(request, specification).await
    }

    /// Runs a program of the host's archive in the guest, to its end: it has the guest's network, and the archive for its root. The answer
    /// is its exit code. Dropping the future ends the program.
    ///
    /// # Errors
    /// There is no such archive, files are not shared with the guest, the id is taken, or the program cannot be executed.
    pub async fn run_program(self: &Arc<Self>, request: ConsoleRequest) -> Result<u32, Error> {
        let unpacked = self.programs.get_or_try_init(|| self.host.unpack_programs()).await;
        unpacked.map_err(|source| Error::Host {
            operation: "unpack programs for",
            subject: format!("sandbox {}", self.id),
            source,
        })?;
        let specification = program_specification(&request);
        self.run_unlisted(request, specification).await
    }

    /// Runs what containerd does not know of.
    async fn run_unlisted(self: &Arc<Self>, request: ConsoleRequest, specification: Value) -> Result<u32, Error> {
        let container = container_id(&request.id)?;
        let agent = self.ready().await?;
        let process = self.reserve_console(container, &request)?;
        // Dropped with this future; the work is a task of its own, so that its unwinding is not cut short.
        let (_alive, abandoned) = oneshot::channel::<()>();
        let sandbox = Arc::clone(self);
        let work = tokio::spawn(async move {
            let status = sandbox.live_console(&agent, &process, &specification, abandoned).await;
            if let Err(error) = agent.delete(&process.name.to_agent()).await {
                tracing::debug!(%error, "the guest has nothing of the console to remove");
            }
            let mut consoles = sandbox.consoles.lock().unwrap_or_else(PoisonError::into_inner);
            consoles.remove(&process.name.container);
            status
        });
        let subject = format!("a console of sandbox {}", self.id);
        work.await.unwrap_or(Err(Error::Interrupted { subject }))
    }

    /// Its program has ended. Its output comes first, and before that its start.
    pub(in crate::sandbox) fn console_exited(self: &Arc<Self>, console: Arc<Process>, exit: Exit, output: Output) {
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            console.reach(is_created).await;
            sandbox.finish_streams(&console, output).await;
            console.enter(View::Stopped(exit), || {});
        });
    }

    /// The VM is gone, and all their programs with it.
    pub(in crate::sandbox) fn end_consoles(self: &Arc<Self>, at: SystemTime) {
        for console in self.all_consoles() {
            self.console_exited(console, Exit { status: KILLED, at }, Output::default());
        }
    }

    fn reserve_console(&self, container: ContainerId, request: &ConsoleRequest) -> Result<Arc<Process>, Error> {
        let path = |name: &str| request.directory.join(name).display().to_string();
        let stdio = StdioPaths {
            stdin: path("stdin"),
            stdout: path("stdout"),
            stderr: if request.terminal.is_some() {
                String::new()
            } else {
                path("stderr")
            },
            terminal: request.terminal.is_some(),
        };
        let name = ProcessName::init(container.clone());
        let subject = format!("console {} of sandbox {}", request.id, self.id);
        let mut consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        if consoles.contains_key(&container) {
            return Err(Error::Exists { subject });
        }
        if consoles.len() >= MOST {
            return Err(Error::State {
                operation: "open",
                subject,
                state: "one too many: others have to end first",
            });
        }
        let process = Arc::new(Process::new(name, stdio, Vec::new()));
        consoles.insert(container, Arc::clone(&process));
        Ok(process)
    }

    async fn live_console(
        &self,
        agent: &AgentClient,
        process: &Arc<Process>,
        specification: &Value,
        abandoned: oneshot::Receiver<()>,
    ) -> Result<u32, Error> {
        let started = self.start_console(agent, process, specification).await;
        if let Err(error) = started {
            // Whatever has become of it in the guest must not stay there.
            process.enter(View::In(Phase::Created), || {});
            let signal = signal_request(&process.name, SIGKILL, true);
            if agent.signal(&signal).await.is_ok() {
                // If it does not die, the deletion says why.
                let _ = tokio::time::timeout(self.timeouts.console_death(), process.stopped()).await;
            }
            process.drop_streams();
            let exit = Exit {
                status: NOT_STARTED,
                at: SystemTime::now(),
            };
            process.enter(View::Stopped(exit), || {});
            return Err(error);
        }
        process.enter(View::In(Phase::Running), || {});
        tokio::select! {
            exit = process.stopped() => return Ok(exit.status),
            _ = abandoned => {}
        }
        let signal = signal_request(&process.name, SIGKILL, true);
        if let Err(error) = agent.signal(&signal).await {
            tracing::debug!(%error, "the console's program cannot be killed");
        }
        // If it does not die, the deletion in the guest says why.
        let _ = tokio::time::timeout(self.timeouts.console_death(), process.stopped()).await;
        Ok(128 + SIGKILL)
    }

    async fn start_console(
        &self,
        agent: &AgentClient,
        process: &Arc<Process>,
        specification: &Value,
    ) -> Result<(), Error> {
        let name = &process.name;
        let stdio = self.prepare_streams(process).await?;
        let call = CreateContainerRequest {
            container_id: name.container.to_string(),
            spec: specification.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            memory_grows_to_bytes: self.sizes.tell_growth(),
            ..Default::default()
        };
        agent.create_container(&call).await.map_err(failed("open", name))?;
        self.connect_streams(process, agent).await?;
        let started = agent.start_container(&agent_container(&name.container)).await;
        started.map(drop).map_err(failed("start", name))
    }

    /// Sets the size of a console's terminal.
    ///
    /// # Errors
    /// There is no such console, or it has no terminal.
    pub async fn resize_console(&self, id: &str, columns: u32, rows: u32) -> Result<(), Error> {
        let container = container_id(id)?;
        let Some(process) = self.console(&container) else {
            return Err(Error::NotFound {
                subject: format!("console {id} of sandbox {}", self.id),
            });
        };
        let request = protocol::agent::ResizeTerminalRequest {
            process: Some(process.name.to_agent()).into(),
            columns,
            rows,
            ..Default::default()
        };
        let agent = self.agent("resize", &process.name.to_string())?;
        let resized = agent.resize_terminal(&request).await;
        resized
            .map(drop)
            .map_err(failed("resize the terminal of", &process.name))
    }
}

/// All capabilities (capabilities(7)).
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// All of the guest: its root, its devices, every capability, no namespace of its own.
fn specification(request: &ConsoleRequest) -> Value {
    let capabilities = CAPABILITIES;
    let mut specification = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "/" },
        "process": {
            "terminal": request.terminal.is_some(),
            "user": { "uid": 0, "gid": 0 },
            "args": request.args,
            "env": request.env,
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": [],
            },
        },
        // Bound, so that the guest's /dev is left as it is.
        "mounts": [{ "destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rw"] }],
        "linux": {
            "namespaces": [],
            "resources": { "devices": [{ "allow": true, "access": "rwm" }] },
        },
    });
    if let Some((columns, rows)) = request.terminal {
        specification["process"]["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    specification
}

/// What a program of the archive has: the archive for its root, read-only, the guest's network, and the right to change that.
fn program_specification(request: &ConsoleRequest) -> Value {
    let capabilities = ["CAP_NET_ADMIN", "CAP_NET_RAW"];
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": format!("{}/{}", protocol::SHARE_MOUNTPOINT, protocol::PROGRAMS), "readonly": true },
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": request.args,
            "env": request.env,
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": [],
            },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
        ],
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_has_the_guests_root_and_devices_and_no_namespace() {
        let request = ConsoleRequest {
            id: "a".to_owned(),
            args: vec!["sh".to_owned()],
            env: Vec::new(),
            directory: "/tmp".into(),
            terminal: Some((80, 24)),
        };
        let specification: oci_spec::runtime::Spec = serde_json::from_value(specification(&request)).unwrap();
        let linux = specification.linux().as_ref().unwrap();
        assert!(linux.namespaces().as_ref().unwrap().is_empty());
        let process = specification.process().as_ref().unwrap();
        assert_eq!(process.console_size().unwrap().width(), 80);
        assert!(
            !process
                .capabilities()
                .as_ref()
                .unwrap()
                .effective()
                .as_ref()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_program_of_the_archive_has_the_guests_network_and_little_else() {
        let request = ConsoleRequest {
            id: "a".to_owned(),
            args: vec!["iptables-save".to_owned()],
            env: Vec::new(),
            directory: "/tmp".into(),
            terminal: None,
        };
        let specification: oci_spec::runtime::Spec = serde_json::from_value(program_specification(&request)).unwrap();
        assert!(specification.root().as_ref().unwrap().readonly().unwrap());
        let linux = specification.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        let network =
            |one: &oci_spec::runtime::LinuxNamespace| one.typ() == oci_spec::runtime::LinuxNamespaceType::Network;
        assert!(namespaces.len() == 2 && !namespaces.iter().any(network));
    }

    #[test]
    fn an_id_is_short_and_plain() {
        assert!(container_id("0a1b").is_ok());
        for id in ["", "../x", "A", "a b", &"a".repeat(33)] {
            assert!(container_id(id).is_err(), "{id:?}");
        }
    }
}
