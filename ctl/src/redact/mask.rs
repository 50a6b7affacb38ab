//! What the redacted text has in place of secrets.

/// What stands where a secret was.
pub(crate) const MASK: &str = "[REDACTED]";
