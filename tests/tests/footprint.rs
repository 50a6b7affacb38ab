//! What a sandbox takes of the host's memory.

use framework::{Node, Result, bench};

/// So many run at once.
const SANDBOXES: u8 = 4;

/// MiB for a sandbox with an idle container, without the code that QEMU translates where there is no KVM. docs/boot.md has what was measured.
const LIMIT: f64 = 120.0;

mod kata_only {
    use super::*;

    #[test]
    fn a_sandbox_with_an_idle_container_takes_no_more_memory_than_the_documents_say() -> Result<()> {
        let node = Node::start()?;
        let each = bench::of_each(&node, SANDBOXES)?;
        println!(
            "each of {SANDBOXES} sandboxes: {:.1} MiB, of which translated code {:.1} MiB",
            each.all, each.translated
        );
        let own = each.all - each.translated;
        assert!(own > 0.0 && own < LIMIT, "{each:?}");
        node.nothing_left()
    }
}
