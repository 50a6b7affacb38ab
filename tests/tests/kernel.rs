//! The shipped guest kernel has the fixes that the runtime depends on. That these tests can fail is shown by `make
//! test-kernel`, which runs them on kernels without the fixes as well.

use framework::{
    Error, Result,
    kernel::{self, KernelNode, Verdict},
};

/// Our runtime's guests alone have that kernel.
mod kata_only {
    use super::*;

    #[test]
    fn the_shipped_kernel_keeps_host_mounts_after_memory_was_short() -> Result<()> {
        passes("fuse-")
    }

    #[test]
    fn the_shipped_kernel_tells_programs_what_memory_may_come() -> Result<()> {
        passes("memory-")
    }

    #[test]
    fn the_shipped_kernel_charges_perf_buffers_to_whom_it_should() -> Result<()> {
        passes("perf-")
    }
}

/// Runs the tests of the fixes whose names begin so.
fn passes(prefix: &str) -> Result<()> {
    let node = KernelNode::shipped()?;
    let fixes = kernel::fixes()?;
    let tests: Vec<_> = fixes
        .iter()
        .filter(|fix| fix.id.starts_with(prefix))
        .flat_map(|fix| &fix.tests)
        .filter(|test| !kernel::needs_test_pmu(test))
        .collect();
    assert!(!tests.is_empty());
    let mut wrong = Vec::new();
    for test in tests {
        if let Verdict::Wrong(says) = node.run(test)? {
            wrong.push(format!("{test}: {says}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::unexpected(wrong.join("\n")))
}
