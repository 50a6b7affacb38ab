//! Spans of a distributed trace: what the shim and the agent record of a request, and how one side names its place in the
//! trace to the other (W3C Trace Context, header `traceparent`).
//!
//! A task that works for a traced request has a [`Place`] in the trace ([`Place::scope`], [`current`]). Without one, as
//! always when tracing is off, every function here returns at once. It knows neither what is traced nor where spans go.

mod context;
mod record;
mod span;

pub use self::context::Context;
pub use self::record::Record;
pub use self::span::{Kind, Place, Span, carried, current, step};

/// Longest name of a span or an attribute, in bytes.
pub const NAME_MAX: usize = 64;

/// Longest value of an attribute, in bytes.
pub const VALUE_MAX: usize = 256;

/// Most attributes of a span.
pub const ATTRIBUTES_MAX: usize = 8;

/// Longest error of a span, in bytes.
pub const ERROR_MAX: usize = 1024;

/// The key of a request's metadata that holds its sender's [`Context`].
pub const TRACEPARENT: &str = "traceparent";
