//! What the public suites ask of a runtime, asked anew over containerd's task API: runc's integration tests, runtime-tools' validation and
//! youki's contest. Each case has a name of ours and names the originals that it is in the spirit of; docs/oci.md has the same list.
//!
//! A group is a few containers and what is read off them: one container answers for many cases where that falsifies none. On our runtime
//! the containers are those of one pod, so that they share a VM; on runc the same specifications run by themselves.

mod bench;
mod case;
mod cgroups;
mod confinement;
mod exec;
mod files;
mod hooks;
mod kernel_binds;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod refusals;
mod suite;
mod table;

pub use bench::Bench;
pub use case::{Case, Group, Seen};
pub use suite::groups;
pub use table::{Column, Row, documented, run};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_originals() {
        let cases: Vec<_> = groups().flat_map(|group| group.cases).collect();
        let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| !case.like.is_empty()));
        assert!(cases.len() >= 120, "{}", cases.len());
    }

    #[test]
    fn the_document_has_them_all() {
        let document = std::fs::read_to_string(crate::locate::workspace().join("docs/oci.md")).unwrap();
        let missing: Vec<_> = documented()
            .lines()
            .filter(|line| !document.contains(line))
            .map(str::to_owned)
            .collect();
        assert!(
            missing.is_empty(),
            "`conformance --list` prints the table of docs/oci.md, which lacks\n{}",
            missing.join("\n")
        );
    }
}
