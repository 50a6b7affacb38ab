//! The fixes that the guest kernel must have, and which of them a given kernel has.
//!
//! The table is `guest-kernel/fixes.toml`, which the kernel's build reads as well. The release of a kernel from that
//! build contains the number of the table's fixes that the build found in the source. Any other kernel is judged by its
//! version, because nothing else is known of it. If the version does not tell, the result is [`Standing::Unknown`].

mod release;

use std::sync::LazyLock;

use release::{Release, Version};
use toml::{Table, Value};

const TABLE: &str = include_str!("../../guest-kernel/fixes.toml");

/// The table of this version of the runtime, in the file's order.
static FIXES: LazyLock<Vec<Fix>> = LazyLock::new(|| parse(TABLE).unwrap_or_default());

/// One fix that the runtime depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// The name by which messages and tests call it.
    pub id: String,
    /// What the fix is about, in one line.
    pub title: String,
    /// What a user of a kernel without it sees.
    pub symptom: String,
    /// Upstream's commits, in full; none if it is ours.
    pub commits: Vec<String>,
    /// The first version of each series that has it.
    fixed: Vec<Version>,
}

impl Fix {
    /// The versions that have it first, as users know them; none if no release has it.
    pub fn fixed(&self) -> Vec<String> {
        self.fixed.iter().map(ToString::to_string).collect()
    }

    /// Whether releases of Linux have it, so that a kernel without it can be replaced by another.
    pub fn is_upstream(&self) -> bool {
        !self.commits.is_empty()
    }
}

/// Whether a kernel has a fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The kernel has the fix.
    Has,
    /// The kernel lacks the fix.
    Lacks,
    /// Its release does not tell: it is no version of Linux, a pre-release, or a distribution's that keeps the number of
    /// the first release of a series and puts fixes into it.
    Unknown,
}

/// The fixes, in the table's order.
pub fn fixes() -> &'static [Fix] {
    &FIXES
}

/// Judges a kernel by its release, as `uname -r` prints it.
pub fn judge(release: &str) -> Vec<(&'static Fix, Standing)> {
    let release = Release::parse(release);
    FIXES
        .iter()
        .enumerate()
        .map(|(index, fix)| (fix, standing(release.as_ref(), index, fix)))
        .collect()
}

fn standing(release: Option<&Release>, index: usize, fix: &Fix) -> Standing {
    let Some(release) = release else {
        return Standing::Unknown;
    };
    let by_version = fixed_in(release.version, &fix.fixed);
    // Of a pre-release of the very version with the fix it is not known; every later version's has it.
    let pre_release_of_the_fix = release.candidate && fix.fixed.contains(&release.version);
    if release.verified > index || (by_version && !pre_release_of_the_fix) {
        return Standing::Has;
    }
    // A fix of ours is in no distribution either.
    if fix.is_upstream() && (pre_release_of_the_fix || release.hides_patch_level()) {
        return Standing::Unknown;
    }
    Standing::Lacks
}

/// The rule of fixes.toml. `guest-kernel/fixes` has the same one for the build.
fn fixed_in(version: Version, fixed: &[Version]) -> bool {
    match fixed.iter().find(|first| first.series() == version.series()) {
        Some(first) => version >= *first,
        None => fixed.iter().max().is_some_and(|newest| version >= *newest),
    }
}

fn parse(text: &str) -> Result<Vec<Fix>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let fixes = table.get("fix").and_then(Value::as_array).ok_or("no fix")?;
    fixes
        .iter()
        .map(|fix| {
            let text = |key: &str| {
                let text = fix.get(key).and_then(Value::as_str);
                text.map(str::to_owned).ok_or_else(|| format!("a fix without {key}"))
            };
            let list = |key: &str| {
                let list = fix.get(key).and_then(Value::as_array);
                let texts = list.and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
                texts.ok_or_else(|| format!("a fix without {key}"))
            };
            let versions: Vec<String> = list("fixed")?;
            Ok(Fix {
                id: text("id")?,
                title: text("title")?,
                symptom: text("symptom")?,
                commits: list("commits")?,
                fixed: versions
                    .iter()
                    .map(|version| Version::parse(version).ok_or_else(|| format!("{version} is no version")))
                    .collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(release: &str, id: &str) -> Standing {
        let judged = judge(release);
        judged.iter().find(|(fix, _)| fix.id == id).unwrap().1
    }

    #[test]
    fn the_table_can_be_read_and_names_whole_commits() {
        let fixes = parse(TABLE).unwrap();
        assert!(fixes.len() >= 8);
        for fix in fixes {
            for commit in &fix.commits {
                assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
            assert_eq!(fix.commits.is_empty(), fix.fixed.is_empty(), "{}", fix.id);
        }
    }

    #[test]
    fn a_series_is_judged_by_its_own_first_version_and_a_later_one_has_everything() {
        use Standing::{Has, Lacks};
        for (release, standing) in [
            ("6.12.117", Has),
            ("7.1", Has),
            ("6.7", Has),
            ("6.6.8", Has),
            ("6.6.7", Lacks),
            ("6.5.13", Lacks),
            ("6.1.70", Has),
            ("6.1.69", Lacks),
            ("5.15.146", Has),
            ("5.15.145", Lacks),
            // Has submounts, and never got the fix.
            ("5.10.230", Lacks),
            ("4.19.300", Lacks),
            // What distributions append does not count where they keep the stable number.
            ("6.6.7-200.fc39.x86_64", Lacks),
            ("6.6.8-arch1-1", Has),
            ("6.1.66-91.160.amzn2023.x86_64", Lacks),
            ("6.8.0-31-generic", Has),
        ] {
            assert_eq!(of(release, "fuse-8040"), standing, "{release}");
        }
        assert_eq!(of("5.4.19", "perf-growth"), Has);
        assert_eq!(of("5.4.18", "perf-growth"), Lacks);
        assert_eq!(of("5.5.19", "perf-growth"), Lacks);
        assert_eq!(of("5.10.1", "perf-growth"), Has);
    }

    /// The kernel's build has the rule in bash, because it must not need a Rust program.
    #[test]
    fn the_build_judges_versions_by_the_same_rule() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-kernel/fixes");
        for version in [
            "7.0", "6.12.117", "6.6.8", "6.6.7", "6.1.70", "5.15.145", "5.10.230", "5.5.19", "5.4.19", "5.4.18",
        ] {
            let output = std::process::Command::new(script)
                .args(["version", version])
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            let by_script: Vec<_> = said.lines().filter_map(|line| line.split('\t').next()).collect();
            let judged = judge(version);
            let by_us: Vec<_> = judged
                .iter()
                // What our patches carry is not the version's affair there.
                .filter(|(fix, standing)| fix.is_upstream() && *standing == Standing::Lacks)
                .map(|(fix, _)| fix.id.as_str())
                .collect();
            assert_eq!(by_script, by_us, "{version}");
        }
    }

    #[test]
    fn what_a_release_does_not_tell_is_unknown() {
        for release in [
            "",
            "linux",
            "6",
            "-1.2",
            "6.x.1",
            "99999999999999999999.1.2",
            // Debian's, Ubuntu's and Red Hat's names of kernels with fixes of many stable versions.
            "6.1.0-18-amd64",
            "5.15.0-91-generic",
            "5.14.0-427.13.1.el9_4.x86_64",
            "6.7.0-rc3",
            "6.7-rc3-custom",
        ] {
            assert_eq!(of(release, "fuse-8040"), Standing::Unknown, "{release}");
        }
        // A pre-release of what has no fix in any case.
        assert_eq!(of("6.6.0-rc1", "fuse-8040"), Standing::Lacks);
    }

    #[test]
    fn only_a_kernel_of_our_build_has_what_no_release_has_and_it_has_what_the_build_found() {
        for ours in [
            "perf-charged-mm",
            "perf-aux-user",
            "perf-failed-aux",
            "perf-replaced-buffer",
            "fuse-host-change",
            "fuse-submount-acl",
            "fuse-close-to-open",
            "fuse-bounded-inodes",
            "fuse-compat-readdir",
            "fuse-one-superblock",
            "fuse-changed-by-name",
            "fuse-kept-open",
            "memory-to-come",
            "fuse-kept-listing",
            "fuse-write-caps",
        ] {
            assert_eq!(of("6.12.117", ours), Standing::Lacks);
            assert_eq!(of("6.12.0-1-amd64", ours), Standing::Lacks);
            assert_eq!(of("6.12.117-tatami", ours), Standing::Lacks);
            assert_eq!(of("6.12.117-tatami-test", ours), Standing::Lacks);
            assert_eq!(of("6.12.117-tatami.17", ours), Standing::Has);
            assert_eq!(of("6.12.117-tatami.17-debug", ours), Standing::Has);
        }
        // The table had three fixes when this one was built.
        assert_eq!(of("6.12.117-tatami.3", "perf-charged-mm"), Standing::Has);
        assert_eq!(of("6.12.117-tatami.3", "perf-aux-user"), Standing::Lacks);
        assert_eq!(of("6.12.117-tatami.3x", "perf-charged-mm"), Standing::Lacks);
    }
}
