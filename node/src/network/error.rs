//! The errors of setting up a sandbox's network.

use std::io;
use std::path::PathBuf;

/// Why a sandbox has no network.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum PodNetworkError {
    /// The namespace has gone, or never was.
    #[error("cannot open network namespace {}", path.display())]
    Namespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The namespace cannot be made or entered.
    #[error("cannot {operation} network namespace {namespace}")]
    Enter {
        /// The failed operation, as the message names it.
        operation: &'static str,
        namespace: String,
        #[source]
        source: io::Error,
    },
    /// The configuration forbids what the container asks for.
    #[error(
        "the container asks for the host's network, which a VM cannot have, and the configuration forbids to run it \
         without one (runtime.host_network = \"deny\")"
    )]
    HostNetwork,
    /// An interface whose frames a VM cannot take.
    #[error(
        "interface {name} of network namespace {namespace} is of a kind that a VM cannot have ({kind}): only interfaces \
         with Ethernet frames are supported"
    )]
    Unsupported {
        name: String,
        namespace: String,
        /// What it is, as the kernel calls it.
        kind: String,
    },
    /// One of two interfaces of which a VM can have one.
    #[error(
        "interface {name} of network namespace {namespace} has addresses, and {upper} stands on it: a VM can have one of the \
         two (remove the addresses of {name}, or make {upper} inside the container)"
    )]
    Stacked {
        name: String,
        namespace: String,
        upper: String,
    },
    #[error(
        "interface {name} of network namespace {namespace} has an ingress qdisc: another sandbox uses it, or something \
         limits it (tc qdisc show dev {name})"
    )]
    Taken { name: String, namespace: String },
    /// More than the VM has places for.
    #[error("network namespace {namespace} has {count} interfaces that are in use: a VM has places for {most}")]
    TooMany {
        namespace: String,
        count: usize,
        most: usize,
    },
    /// Another sandbox is about to redirect its frames.
    #[error("another sandbox is about to use network namespace {namespace}: there is one VM for each")]
    Claimed { namespace: String },
    #[error("network namespace {namespace}: cannot {step} {on}{}", hint(step))]
    Step {
        namespace: String,
        /// The failed operation, as the message names it.
        step: &'static str,
        /// The object of the operation, as the message names it.
        on: String,
        #[source]
        source: io::Error,
    },
    /// A tap or one of its devices cannot be opened.
    #[error("network namespace {namespace}: cannot open {device} for {on}")]
    Tap {
        namespace: String,
        /// `/dev/net/tun`, `/dev/tapN` or `/dev/vhost-net`.
        device: String,
        on: String,
        #[source]
        source: io::Error,
    },
}

/// What the steps need that a kernel may lack.
fn hint(step: &str) -> &'static str {
    match step {
        "redirect the frames of" => " (it needs the kernel's cls_u32 and act_mirred)",
        "put an ingress qdisc on" => " (it needs the kernel's sch_ingress)",
        "make a macvtap on" => " (it needs the kernel's macvtap, and an interface that has no macvlan yet)",
        _ => "",
    }
}

/// The kernel's word alone, where it is one.
pub(super) fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        error => io::Error::other(error),
    }
}
