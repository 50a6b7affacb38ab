//! Diagnostics.

fn main() {}
