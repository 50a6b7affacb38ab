//! How a command of the probe fails: with a text for the test that called it.

use std::error::Error;

/// A result whose error is printed.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;
