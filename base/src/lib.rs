//! What several crates need of Linux and of the standard library: text of errors.
//!
//! It knows neither containers nor VMs.

mod error_chain;

pub use error_chain::chain;
