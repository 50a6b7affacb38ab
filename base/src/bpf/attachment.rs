//! Where in the kernel a program is asked.

/// The events that a program decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// Accesses to devices.
    Device,
    /// The address that a socket is connected to.
    Connect4,
    /// The same for IPv6.
    Connect6,
    /// The address that a datagram is sent to.
    Send4,
    /// The address that a datagram came from.
    Receive4,
    /// The same for IPv6.
    Receive6,
    /// The address that getpeername(2) tells.
    Peer4,
    /// The same for IPv6.
    Peer6,
    /// The socket that gets what is dialled in a network namespace.
    SocketLookup,
}

impl Attachment {
    /// The type of the program and of its attachment: `enum bpf_prog_type` and `bpf_attach_type` (linux/bpf.h).
    pub(super) fn numbers(self) -> (u32, u32) {
        const DEVICE: u32 = 15;
        const SOCKET_ADDRESS: u32 = 18;
        const SOCKET_LOOKUP: u32 = 30;
        match self {
            Attachment::Device => (DEVICE, 6),
            Attachment::Connect4 => (SOCKET_ADDRESS, 10),
            Attachment::Connect6 => (SOCKET_ADDRESS, 11),
            Attachment::Send4 => (SOCKET_ADDRESS, 14),
            Attachment::Receive4 => (SOCKET_ADDRESS, 19),
            Attachment::Receive6 => (SOCKET_ADDRESS, 20),
            Attachment::Peer4 => (SOCKET_ADDRESS, 29),
            Attachment::Peer6 => (SOCKET_ADDRESS, 30),
            Attachment::SocketLookup => (SOCKET_LOOKUP, 36),
        }
    }
}
