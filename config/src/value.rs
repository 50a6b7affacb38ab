//! The types of settings: sizes, counts, modes and patterns, each with its own rule of what is valid.
//!
//! Knows no key, no file and no host: the caller passes the host's number of CPUs to [`Vcpus::resolve`].

use std::ffi::OsStr;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

/// Most vCPUs that a VM gets, whatever is asked: Kata's limit for QEMU on x86_64.
pub const MAX_VCPUS: NonZeroU32 = match NonZeroU32::new(240) {
    Some(number) => number,
    None => NonZeroU32::MIN,
};

/// A size in MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mebibytes(pub u32);

impl Mebibytes {
    /// The same size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A directory or file of the host for the guest itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxBind {
    /// Its absolute path on the host.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub writable: bool,
}

impl SandboxBind {
    /// Reads `PATH`, `PATH:ro` or `PATH:rw`, Kata's form. None if the path is not absolute, or has no name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (path, writable) = match text.strip_suffix(":rw") {
            Some(path) => (path, true),
            None => (text.strip_suffix(":ro").unwrap_or(text), false),
        };
        let plain = path.starts_with('/')
            && !path.contains(|c: char| c.is_control() || c == ':')
            && !path.split('/').any(|part| part == "." || part == "..");
        let path = PathBuf::from(path);
        (plain && path.file_name().is_some()).then_some(Self { path, writable })
    }

    /// Its name in the guest.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

impl fmt::Display for SandboxBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.writable { ":rw" } else { "" };
        write!(f, "{}{suffix}", self.path.display())
    }
}

/// How many vCPUs: as many as the host has CPUs, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vcpus {
    /// As many as the host has CPUs.
    Host,
    /// This many, if the host has them.
    Count(NonZeroU32),
}

impl Vcpus {
    /// The number for a host with `host_cpus` CPUs: never more than those, never more than [`MAX_VCPUS`].
    #[must_use]
    pub fn resolve(self, host_cpus: NonZeroU32) -> NonZeroU32 {
        let wanted = match self {
            Vcpus::Host => host_cpus,
            Vcpus::Count(count) => count.min(host_cpus),
        };
        wanted.min(MAX_VCPUS)
    }
}

/// Thousandths of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliCpus(pub u32);

/// A factor in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor(pub u32);

impl Factor {
    /// The factor itself.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

/// Generates an enum whose variants have a name in the file.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// All that there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in the configuration file.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use choice;

choice! {
    /// How an interface of the pod's network namespace reaches the VM.
    InterNetworking {
        /// By a tap, between which and the interface traffic control redirects every frame.
        TcFilter = "tcfilter",
        /// By a macvtap on top of the interface.
        Macvtap = "macvtap",
        /// Not at all: the VM has no network.
        None = "none",
    }
}

choice! {
    /// What becomes of a container that asks for the host's network, which a VM cannot have.
    HostNetwork {
        /// It runs without a network, and there is a warning.
        None = "none",
        /// It is refused.
        Deny = "deny",
    }
}

choice! {
    /// QEMU's machine (`-machine`).
    MachineType {
        /// PCI Express on x86_64.
        Q35 = "q35",
    }
}

choice! {
    /// How the host's directories reach the guest.
    SharedFs {
        /// virtio-fs, served by a virtiofsd of our own.
        VirtioFs = "virtio-fs",
        /// No directory of the host is shared: files are copied, or are on disks.
        None = "none",
    }
}

choice! {
    /// Where emptyDirs that are not in memory are.
    EmptyDirMode {
        /// On the host, as any other directory.
        SharedFs = "shared-fs",
        /// On disks of the guest, in images that are not encrypted.
        BlockPlain = "block-plain",
    }
}

choice! {
    /// How QEMU reads and writes disks (`aio` of its block drivers).
    BlockAio {
        /// By QEMU's own pool of threads.
        Threads = "threads",
        /// By Linux AIO, which needs disks that bypass the host's cache.
        Native = "native",
        /// By io_uring.
        IoUring = "io_uring",
    }
}

choice! {
    /// virtiofsd's `--cache`.
    VirtioFsCache {
        /// Metadata is cached for a second, data while a file is open.
        Auto = "auto",
        /// Metadata and data are cached and never expire.
        Always = "always",
        /// Nothing is cached.
        Never = "never",
        /// Metadata is cached and never expires, data is not cached.
        Metadata = "metadata",
    }
}

choice! {
    /// What runs the guest's instructions.
    Accelerator {
        /// KVM where it can run an ordinary guest, otherwise TCG.
        Auto = "auto",
        /// The kernel's KVM, or an error.
        Kvm = "kvm",
        /// QEMU's own translator.
        Tcg = "tcg",
    }
}

choice! {
    /// What connects host and guest.
    Vsock {
        /// The kernel's where `/dev/vhost-vsock` is usable, otherwise the daemon.
        Auto = "auto",
        /// The kernel's vhost-vsock.
        Vhost = "vhost",
        /// The vhost-device-vsock daemon.
        VhostUser = "vhost-user",
    }
}

/// A regular expression that an annotation's name has to match as a whole.
#[derive(Debug, Clone)]
pub struct NamePattern {
    text: String,
    regex: Regex,
}

impl NamePattern {
    /// Compiles the expression.
    ///
    /// # Errors
    /// It is no valid expression, or too large a one; the text says why.
    pub fn new(text: &str) -> Result<Self, regex_lite::Error> {
        let regex = Regex::new(&format!("^(?:{text})$"))?;
        // An expression that closes the group by itself would escape the anchors.
        Regex::new(text)?;
        Ok(Self {
            text: text.to_owned(),
            regex,
        })
    }

    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// The expression as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for NamePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for NamePattern {}

/// A pattern of absolute paths, as in glob(7): `*`, `?` and `[…]`, none of which matches a slash.
#[derive(Debug, Clone)]
pub struct PathPattern {
    text: String,
    regex: Regex,
}

impl PathPattern {
    /// Compiles the pattern.
    ///
    /// # Errors
    /// A bracket expression is not valid.
    pub fn new(text: &str) -> Result<Self, regex_lite::Error> {
        Ok(Self {
            text: text.to_owned(),
            regex: Regex::new(&glob_to_regex(text))?,
        })
    }

    /// Whether the path is absolute, has no `.` or `..` in it, and matches.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        let Some(text) = path.to_str() else { return false };
        let plain = text.starts_with('/') && !text.split('/').any(|part| part == "." || part == "..");
        plain && self.regex.is_match(text)
    }

    /// Whether it matches nothing but the path that it is.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        !self.text.contains(['*', '?', '['])
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathPattern {}

fn glob_to_regex(glob: &str) -> String {
    let mut regex = String::from("^");
    let mut rest = glob.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '[' => {
                regex.push('[');
                if rest.next_if(|next| matches!(next, '!' | '^')).is_some() {
                    regex.push_str("^/");
                }
                let mut first = true;
                for inner in rest.by_ref() {
                    if inner == ']' && !first {
                        break;
                    }
                    first = false;
                    if matches!(inner, '[' | ']' | '^' | '\\' | '&' | '~') {
                        regex.push('\\');
                    }
                    regex.push(inner);
                }
                regex.push(']');
            }
            other => regex.push_str(&regex_lite::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push('$');
    regex
}

/// A text that is used and never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps it.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Whether there is one.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { "(not shown)" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    proptest! {
        #[test]
        fn no_vm_has_more_cpus_than_the_host_or_the_limit(wanted in 1..=u32::MAX, host in 1..=u32::MAX) {
            for vcpus in [Vcpus::Host, Vcpus::Count(count(wanted))] {
                let resolved = vcpus.resolve(count(host));
                prop_assert!(resolved.get() <= host && resolved <= MAX_VCPUS);
            }
        }
    }

    #[test]
    fn a_number_that_the_host_has_is_kept() {
        assert_eq!(Vcpus::Count(count(3)).resolve(count(4)), count(3));
        assert_eq!(Vcpus::Count(count(5)).resolve(count(4)), count(4));
        assert_eq!(Vcpus::Host.resolve(count(4)), count(4));
        assert_eq!(Vcpus::Host.resolve(count(1000)), MAX_VCPUS);
    }

    #[test]
    fn a_path_of_the_host_for_the_guest_is_read_as_kata_reads_it() {
        for (text, writable) in [("/a/b", false), ("/a/b:ro", false), ("/a/b:rw", true)] {
            let bind = SandboxBind::parse(text).unwrap();
            assert_eq!((bind.name(), bind.writable), (OsStr::new("b"), writable), "{text}");
        }
        for text in ["", "a", "/", "/a/..", "/a:b", "/a:rx", ":rw", "/a/\n"] {
            assert_eq!(SandboxBind::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn mebibytes_do_not_overflow() {
        assert_eq!(Mebibytes(256).bytes(), 268_435_456);
        assert_eq!(Mebibytes(u32::MAX).bytes(), 4_503_599_626_321_920);
    }

    #[test]
    fn globs_match_within_one_directory() {
        for (glob, path, expected) in [
            ("/opt/*/qemu", "/opt/a/qemu", true),
            ("/opt/*/qemu", "/opt/a/b/qemu", false),
            ("/opt/*", "/opt/", true),
            ("/opt/?", "/opt/ab", false),
            ("/opt/?", "/opt//", false),
            ("/opt/[a-c]x", "/opt/bx", true),
            ("/opt/[!a-c]x", "/opt/bx", false),
            ("/opt[!a]x", "/opt/x", false),
            ("/opt/[]]", "/opt/]", true),
            ("/opt/a.b", "/opt/aab", false),
            ("*", "relative", false),
            ("/*/x", "/../x", false),
        ] {
            assert_eq!(
                PathPattern::new(glob).unwrap().matches(Path::new(path)),
                expected,
                "{glob} {path}"
            );
        }
    }

    #[test]
    fn a_name_pattern_cannot_escape_its_anchors() {
        for text in ["a)|(?:b", "(?x) a # ", "a("] {
            assert!(
                !NamePattern::new(text).is_ok_and(|pattern| pattern.matches("ab")),
                "{text}"
            );
        }
        assert!(NamePattern::new("a|b").unwrap().matches("b"));
        assert!(!NamePattern::new("a|b").unwrap().matches("bb"));
        assert!(!NamePattern::new("a").unwrap().matches("a\n"));
    }
}
