//! One connection of a local socket (Unix or TCP), continued over a byte stream between the guest and the host.
//!
//! The stream carries frames ([`frame`]), for two reasons. Messages (SOCK_SEQPACKET, SOCK_DGRAM) keep their boundaries. And the end
//! of a direction is said, not shown by a half-close: what is in flight across vhost-user-vsock is dropped at a close, so the
//! stream is closed only once both sides have said that they have everything ([`connection`]).
//!
//! The shim and the agent use the same code. It knows neither, nor which socket is whose.

pub mod connection;
pub mod frame;
pub mod socket;
mod sys;

pub use connection::{Side, Traffic, refuse, relay};
pub use socket::{Listener, Socket};
