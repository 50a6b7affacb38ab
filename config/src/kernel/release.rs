//! Parses a kernel's release (`uname -r`): a version, and the suffix of its builder.

use std::fmt;

/// What our build appends, with the number of fixes that it found, to the version.
const OURS: &str = "-tatami.";

/// What our build appends after that to the kernel of `make kernel-debug`.
const DEBUG: &str = "-debug";

/// A version of Linux. Ordered as released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    /// 0 for the first release of a series.
    patch: u32,
}

impl Version {
    /// Reads `6.7` or `6.12.117`, and nothing else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| {
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            if digits { number.parse().ok() } else { None }
        });
        let version = Self {
            major: numbers.next()??,
            minor: numbers.next()??,
            patch: match numbers.next() {
                Some(patch) => patch?,
                None => 0,
            },
        };
        numbers.next().is_none().then_some(version)
    }

    pub(super) fn series(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 {
            write!(f, ".{}", self.patch)?;
        }
        Ok(())
    }
}

/// A release, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Release<'a> {
    pub(super) version: Version,
    /// Whether it is a pre-release of its version.
    pub(super) candidate: bool,
    /// How many fixes of the table our build found in its source; none if the kernel is not of our build.
    pub(super) verified: usize,
    suffix: &'a str,
}

impl<'a> Release<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let end = text
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let version = Version::parse(number)?;
        Some(Self {
            version,
            candidate: suffix.starts_with("-rc"),
            verified: suffix
                .strip_prefix(OURS)
                .and_then(|count| count.strip_suffix(DEBUG).unwrap_or(count).parse().ok())
                .unwrap_or_default(),
            suffix,
        })
    }

    /// Whether it is a distribution's that has the number of a series' first release whatever is in it.
    pub(super) fn hides_patch_level(&self) -> bool {
        self.version.patch == 0 && !self.suffix.is_empty() && !self.candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_and_printed_as_known() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("6.12.9") < version("6.12.117"));
        assert!(version("6.9") < version("6.12"));
        assert_eq!(version("6.7").to_string(), "6.7");
        assert_eq!(version("6.6.8").to_string(), "6.6.8");
        for wrong in ["", "6", "6.", "6.7.", "6.7.8.9", "+6.7", "6.-7", "6.7x"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text: String) {
            let _ = Release::parse(&text);
        }
    }
}
