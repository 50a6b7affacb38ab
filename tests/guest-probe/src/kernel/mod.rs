//! Tests of the guest kernel: each looks for one fault, from inside a container that may do everything.
//!
//! A test ends in one of three ways: the kernel is right, it is wrong in the very way that the test looks for, or the test
//! could not tell (an error). A kernel without a fix has to be found wrong, which an error is not.

mod caching;
mod fuse;
mod memory;
mod peer;
mod perf;
mod sys;
mod verdict;

use serde_json::json;

use self::verdict::Verdict;
use crate::error::Result;

/// Runs one test and prints its verdict as JSON. `args` are what the test needs, a path for example.
pub(crate) fn run(test: &str, args: &[&str]) -> Result<()> {
    let verdict = match (test, args) {
        ("pruned", [path]) => fuse::pruned(path),
        ("pruned-by-oom", [path]) => fuse::pruned_by_oom(path),
        ("host-change", [path]) => fuse::host_change(path),
        ("submount-acl", [path]) => fuse::submount_acl(path),
        ("one-superblock", [path]) => fuse::one_superblock(path),
        ("close-to-open", [path]) => caching::close_to_open(path),
        ("changed-by-name", [path]) => caching::changed_by_name(path),
        ("kept-open", [path]) => caching::kept_open(path),
        ("kept-listing", [path]) => caching::kept_listing(path),
        ("write-caps", [path]) => caching::write_caps(path),
        ("bounded-inodes", [path]) => caching::bounded_inodes(path),
        ("compat-readdir", [path]) => caching::compat_readdir(path),
        ("memory-to-come", []) => memory::to_come(),
        ("growth", []) => perf::growth(),
        ("lowered", []) => perf::lowered(),
        ("limit-used-up", []) => perf::limit_used_up(),
        ("unmapped-by-other", []) => perf::unmapped_by_other(),
        ("charged-ends-first", []) => perf::charged_ends_first(),
        ("redirected", []) => perf::redirected(),
        ("aux-unmapped-by-other", []) => perf::aux_unmapped_by_other(),
        ("aux-user", []) => perf::aux_user(),
        ("aux-failed", []) => perf::aux_failed(),
        ("replaced-buffer", []) => perf::replaced_buffer(),
        _ => Err(format!("there is no kernel test {test} that takes {args:?}").into()),
    }?;
    let (verdict, says) = match verdict {
        Verdict::Right(says) => ("right", says),
        Verdict::Wrong(says) => ("wrong", says),
    };
    println!("{}", json!({ "test": test, "verdict": verdict, "says": says }));
    Ok(())
}
