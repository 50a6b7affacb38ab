//! The pool: shims whose VMs have booted before anybody asked for them (docs/decisions/0045).
//!
//! ```text
//!            the agent has called             a `start` claims it
//!  Booting ───────────────────────► Ready ───────────────────────► Adopted: a sandbox's shim like any other
//!     └───────────────────────────────┴──────► Ended: retired, too old, another configuration, too little memory, the VM died
//! ```
//! A member is a process of this program. Its VM waits for the answer to the agent's hello, which contains everything that is specific to a
//! sandbox. A member is used once. It has one *slot*, a number below `vm_cache_number`, whose file it keeps locked. So there are
//! never more members than slots, and the slot of a dead member is free at once.
//!
//! ```text
//! /run/tatami/pool/KEY.N.lock     locked by the member in slot N
//! /run/tatami/pool/KEY.N/         the member's files; renamed to the sandbox's directory when it is adopted
//! /run/tatami/pool/KEY.N/claim    the socket on which it is claimed
//! ```
//! With a template ([`template`]) the VM of a member is a copy, and so is that of a sandbox for which there is no member.
//! `KEY` is a hash of everything that determines a VM ([`Key`]). The module does not know what a sandbox does with its VM.

mod claim;
mod fill;
mod key;
mod maker;
mod member;
mod place;
mod report;
mod status;
mod template;
mod warm;
mod wire;

pub(crate) use self::claim::claim;
pub(crate) use self::fill::{Failed, drain, fill, refill, wanted};
pub(crate) use self::key::{Caller, Key};
pub(crate) use self::maker::make;
pub(crate) use self::member::{Adoption, run};
pub(crate) use self::status::status;
pub(crate) use self::template::{Template, count_boot};
