//! A span's place in its trace, and its form in a request: W3C Trace Context, version 00.

use std::fmt;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

/// Names a span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Context {
    trace: u128,
    span: u64,
}

impl Context {
    /// The first span of a new trace.
    #[must_use]
    pub fn root() -> Self {
        let mut bytes = [0; 16];
        random(&mut bytes);
        Self {
            // Zero is no id.
            trace: u128::from_be_bytes(bytes).max(1),
            span: span_id(),
        }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            trace: self.trace,
            span: span_id(),
        }
    }

    /// The trace, in hex.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span, in hex.
    #[must_use]
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }

    /// Whether both are spans of one trace.
    #[must_use]
    pub fn shares_trace(&self, other: &Self) -> bool {
        self.trace == other.trace
    }
}

fn span_id() -> u64 {
    let mut bytes = [0; 8];
    random(&mut bytes);
    u64::from_be_bytes(bytes).max(1)
}

/// An id has to be unlikely, not secret: a guest that has just booted does not wait for entropy (getrandom(2), GRND_INSECURE).
fn random(bytes: &mut [u8]) {
    // On a kernel without the flag ids would repeat; every kernel that this runs on has it (5.6).
    let _ = getrandom(bytes, GetRandomFlags::INSECURE);
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

/// Not a `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAContext;

impl fmt::Display for NotAContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a traceparent of version 00")
    }
}

impl FromStr for Context {
    type Err = NotAContext;

    fn from_str(text: &str) -> Result<Self, NotAContext> {
        let lower = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let parts: Vec<&str> = text.split('-').collect();
        let ["00", trace, span, flags] = parts[..] else {
            return Err(NotAContext);
        };
        if trace.len() != 32 || span.len() != 16 || flags.len() != 2 || ![trace, span, flags].into_iter().all(lower) {
            return Err(NotAContext);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| NotAContext)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| NotAContext)?;
        match trace != 0 && span != 0 {
            true => Ok(Self { trace, span }),
            false => Err(NotAContext),
        }
    }
}

impl TryFrom<String> for Context {
    type Error = NotAContext;

    fn try_from(text: String) -> Result<Self, NotAContext> {
        text.parse()
    }
}

impl From<Context> for String {
    fn from(context: Context) -> Self {
        context.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_context_survives_its_text_and_a_child_is_in_the_same_trace() {
        let root = Context::root();
        assert_eq!(root.to_string().parse(), Ok(root));
        let child = root.child();
        assert!(child.shares_trace(&root) && child != root);
        assert!(!Context::root().shares_trace(&root));
    }

    /// The example of the recommendation, and its rules: lower case, no id of zeros, no other version.
    #[test]
    fn only_a_traceparent_of_version_00_is_read() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: Context = text.parse().unwrap();
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id(), "00f067aa0ba902b7");
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(wrong.parse::<Context>(), Err(NotAContext), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_context_or_not(text in "\\PC{0,60}") {
            if let Ok(context) = text.parse::<Context>() {
                // Only the flags may differ.
                prop_assert_eq!(&context.to_string()[..53], &text[..53]);
            }
        }
    }
}
