//! What `guest-probe report` says of the container that it runs in.

use serde_json::Value;

use crate::{Error, Output, Result};

/// A report from inside a container.
#[derive(Debug, Clone)]
pub struct Report(Value);

impl Report {
    /// Reads a report from a command's output.
    pub fn parse(output: &Output) -> Result<Self> {
        output.json().map(Self)
    }

    /// Reads a report from the text that the probe printed.
    pub fn parse_text(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| Error::unexpected(format!("{error}: {text}")))
    }

    /// The fact at a JSON pointer (RFC 6901); null if there is none.
    pub fn fact(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    pub fn text(&self, pointer: &str) -> Result<&str> {
        self.fact(pointer)
            .as_str()
            .ok_or_else(|| Error::unexpected(format!("no text at {pointer} in {}", self.0)))
    }

    /// A line of `/proc/self/status`.
    pub fn status(&self, key: &str) -> Result<&str> {
        self.text(&format!("/status/{key}"))
    }

    /// A capability set of `/proc/self/status` as a number.
    pub fn capabilities(&self, set: &str) -> Result<u64> {
        let hex = self.status(set)?;
        u64::from_str_radix(hex, 16).map_err(|error| Error::unexpected(format!("{set}: {hex}: {error}")))
    }

    /// The mount at `point`, as an object with `options`, `type` and `super`.
    pub fn mount(&self, point: &str) -> Result<&Value> {
        self.fact("/mounts")
            .as_array()
            .and_then(|mounts| mounts.iter().rfind(|mount| mount["point"] == point))
            .ok_or_else(|| Error::unexpected(format!("nothing is mounted at {point}: {}", self.fact("/mounts"))))
    }
}
