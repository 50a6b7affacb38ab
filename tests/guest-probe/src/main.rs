//! Reports what a container got.

fn main() {}
