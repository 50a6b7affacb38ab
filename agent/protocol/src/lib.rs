//! The protocol between the shim (host) and the agent (guest): messages, services, connections, well-known paths.
//!
//! It knows neither side. The messages are described in `proto/agent.proto`. The messages between `kata-ctl` and the
//! shim, which contain some of the agent's, are in `proto/diagnostics.proto`.

pub mod phase;
pub mod preamble;
mod refusal;
mod weight;

pub use refusal::refusal;
pub use weight::cpu_weight;

/// The options of mounts that the agent carries out itself; others are parameters of the file system. Sorted.
pub const MOUNT_OPTIONS: [&str; 62] = [
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// The generated messages and services.
#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    clippy::panic,
    clippy::unwrap_used
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated/mod.rs"));
}

pub use generated::{agent, agent_ttrpc, diagnostics, diagnostics_ttrpc};

/// The vsock CID under which a guest finds its host (`VMADDR_CID_HOST`, vsock(7)).
pub const HOST_CID: u32 = 2;

/// The port of the host that the guest dials where the kernel's command line does not name one: fixed with vhost-user,
/// where every VM has a socket of its own.
pub const DEFAULT_HOST_PORT: u32 = 1024;

/// Key of the kernel's command line that names the port of the host: `tatami.port=1024`.
pub const PORT_PARAMETER: &str = "tatami.port";

/// Word of the kernel's command line of a VM that boots before anybody needs it: its guest runs a container for nobody before it calls the host.
pub const REHEARSAL_PARAMETER: &str = "tatami.rehearsal";

/// Word of the kernel's command line of a VM that becomes a template: it boots without a vsock device. Each copy of the VM is given one,
/// and the guest waits until then.
pub const TEMPLATE_PARAMETER: &str = "tatami.template";

/// What a guest with [`TEMPLATE_PARAMETER`] prints on its console, in a line of its own, when it waits and does nothing else.
pub const TEMPLATE_WAITS: &str = "tatami: booted, and waiting for a vsock device";

/// The port of the host that a guest with [`TEMPLATE_PARAMETER`] dials, by its own CID. No two guests of a host have the same one, except behind
/// vhost-user, where the CIDs are small and every VM has a socket of its own.
#[must_use]
pub const fn port_by_cid(cid: u32) -> u32 {
    if cid > DEFAULT_HOST_PORT {
        cid
    } else {
        DEFAULT_HOST_PORT
    }
}

/// Bytes of `SandboxSetup.random_seed`.
pub const SEED: usize = 64;

/// The virtio-fs tag of the sandbox's shared directory; Kata's name for it.
pub const SHARE_TAG: &str = "kataShared";

/// Where the guest mounts [`SHARE_TAG`].
pub const SHARE_MOUNTPOINT: &str = "/run/tatami/shared";

/// The directory of the sandbox's volumes in the shared one, each under its number. No container can have that name.
pub const VOLUMES: &str = ".volumes";

/// The file of the kernel's modules in the shared directory (guest-kernel/modules); not there where the kernel has none. No
/// container can have that name.
pub const MODULES: &str = ".modules";

/// The directory in the shared one of programs of the host that are run in the guest (guest-kernel/iptables); there only once one was
/// needed. No container can have that name.
pub const PROGRAMS: &str = ".programs";

/// The directory in the shared one of what the guest itself is to have of the host, and no container; there only if something is
/// configured (`sandbox_bind_mounts`). No container can have that name.
pub const SANDBOX_MOUNTS: &str = ".sandbox-mounts";

/// Where the guest shows [`SANDBOX_MOUNTS`]: Kata's place.
pub const GUEST_SANDBOX_MOUNTS: &str = "/run/kata-containers/shared/containers/sandbox-mounts";

/// Where every sandbox of this host has a directory of its own, for root alone.
pub const SANDBOXES: &str = "/run/tatami";

/// The name in a sandbox's directory of the socket on which its shim serves containerd and `kata-ctl`.
pub const SHIM_SOCKET: &str = "shim.sock";

/// The name in a sandbox's directory of the socket of the management API, which is Kata's.
pub const MONITOR_SOCKET: &str = "shim-monitor.sock";

/// The name in a sandbox's directory of the socket that leads to the guest's debug console.
pub const CONSOLE_SOCKET: &str = "debug-console.sock";

/// Where Kata's tools reach the guest of the sandbox that has this directory: `hvsock://PATH:PORT`, a Unix socket on which
/// `CONNECT PORT` chooses a port of the guest (kata-containers, src/runtime/cmd/kata-runtime/kata-exec.go). The port in it is
/// that of Kata's agent, which they replace by the debug console's.
#[must_use]
pub fn agent_url(sandbox: &std::path::Path) -> String {
    format!("hvsock://{}:1024", sandbox.join(CONSOLE_SOCKET).display())
}

/// Where the guest mounts the file systems of its own that containers use ([`agent::Storage`]), each under its name.
pub const STORAGE_DIRECTORY: &str = "/run/tatami/storage";

/// Where the guest has the sockets that stand for the host's ([`agent::HostSocket`]), each under its number.
pub const SOCKET_DIRECTORY: &str = "/run/tatami/sockets";

/// Docker's name server in the networks that its users make: always this address, port 53.
pub const DOCKER_NAME_SERVER: [u8; 4] = [127, 0, 0, 11];

/// Where the guest has the root of a pod's sandbox: its process is the agent's own, and needs no image.
pub const PAUSE_ROOT: &str = "/run/tatami/pause";

/// The program in [`PAUSE_ROOT`]. Without arguments it keeps the pod's namespaces; `dial PORT` connects its standard
/// streams with a port of the pod.
pub const PAUSE_PROGRAM: &str = "/pause";

/// Largest message either side accepts, in bytes: ttrpc's own limit (4 MiB).
pub const MAX_MESSAGE: usize = 4 << 20;
