//! The meaning of mount options (OCI runtime specification, config.md "Mounts"; mount(8)).
//!
//! Pure: it parses words and makes no system call.

use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
};

/// Attributes of a mount to be set and cleared (mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: u64,
    pub(super) clear: u64,
}

impl Attributes {
    /// A later option overrides an earlier one, as with mount(8).
    fn change(&mut self, (set, clear): (u64, u64)) {
        self.set = (self.set & !clear) | set;
        self.clear |= clear;
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Of the mount alone.
    pub(super) here: Attributes,
    /// Of the mount and all below it.
    pub(super) below: Attributes,
    /// `MS_*` propagation types, in order, each with whether it is recursive.
    pub(super) propagation: Vec<(u64, bool)>,
    /// A bind mount; with what is mounted below its source?
    pub(super) bind: Option<bool>,
    /// Nothing new is mounted: what is mounted there changes.
    pub(super) remount: bool,
    /// Read-only only after the container's files are in place.
    pub(super) seal: bool,
    /// A tmpfs that begins with what the directory below it holds (an extension that runc has, too).
    pub(super) copy_up: bool,
    /// A mapping of owners is of what is mounted below as well.
    pub(super) maps_below: bool,
    /// Flags that every file system has (mount(2), `MS_SYNCHRONOUS` and the like), in their order; a bind has its source's.
    pub(super) superblock: Vec<&'static str>,
    /// Parameters of the file system: `key` or `key=value`.
    pub(super) data: Vec<String>,
}

impl Options {
    pub(super) fn parse<S: AsRef<str>>(options: &[S]) -> Self {
        let mut parsed = Self::default();
        for option in options.iter().flat_map(|option| words(option.as_ref())) {
            parsed.add(option);
        }
        parsed
    }

    /// Has the mount made read-only last, where it is to be read-only.
    pub(super) fn defer_read_only(&mut self) {
        self.seal = (self.here.set | self.below.set) & MOUNT_ATTR_RDONLY != 0;
        for attributes in [&mut self.here, &mut self.below] {
            attributes.set &= !MOUNT_ATTR_RDONLY;
        }
    }

    fn add(&mut self, option: &str) {
        match option {
            // The last ones are the file system's own affair: whether it has them is not for mount(2) to say, whose flags the kernel
            // passes over.
            "" | "defaults" | "loud" | "silent" | "acl" | "noacl" | "iversion" | "noiversion" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "remount" => self.remount = true,
            // By which mapping is not an option's to say.
            "idmap" => {}
            "ridmap" => self.maps_below = true,
            _ => {
                if let Some(flag) = SUPERBLOCK.iter().find(|flag| **flag == option) {
                    self.superblock.push(flag);
                } else if let Some(change) = attribute(option) {
                    self.here.change(change);
                } else if let Some(change) = option.strip_prefix('r').and_then(attribute) {
                    self.below.change(change);
                } else if let Some(propagation) = propagation(option) {
                    self.propagation.push(propagation);
                } else {
                    self.data.push(option.to_owned());
                }
            }
        }
    }
}

/// Flags of a superblock that fsconfig(2) sets and clears for any file system (the kernel's fs/fs_context.c).
const SUPERBLOCK: [&str; 7] = ["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"];

/// The options in one word, as tmpfs reads them: a comma before a digit is part of a list of memory nodes (`mpol=bind:0,2`).
fn words(option: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(option);
    std::iter::from_fn(move || {
        let text = rest?;
        let is_end = |(at, _): &(usize, &str)| !text[at + 1..].starts_with(|next: char| next.is_ascii_digit());
        let end = text.match_indices(',').find(is_end).map(|(at, _)| at);
        rest = end.map(|end| &text[end + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

/// What to set and what to clear for an option that concerns the mount and not the file system.
fn attribute(option: &str) -> Option<(u64, u64)> {
    let on = |flag| (flag, flag);
    let off = |flag| (0, flag);
    Some(match option {
        "ro" => on(MOUNT_ATTR_RDONLY),
        "rw" => off(MOUNT_ATTR_RDONLY),
        "nosuid" => on(MOUNT_ATTR_NOSUID),
        "suid" => off(MOUNT_ATTR_NOSUID),
        "nodev" => on(MOUNT_ATTR_NODEV),
        "dev" => off(MOUNT_ATTR_NODEV),
        "noexec" => on(MOUNT_ATTR_NOEXEC),
        "exec" => off(MOUNT_ATTR_NOEXEC),
        "nodiratime" => on(MOUNT_ATTR_NODIRATIME),
        "diratime" => off(MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => on(MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => off(MOUNT_ATTR_NOSYMFOLLOW),
        // The access time is one field of which exactly one value holds; 0 is relatime, the kernel's default.
        "noatime" => (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
        "strictatime" => (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, MOUNT_ATTR__ATIME),
        _ => return None,
    })
}

/// The propagation type of an option, and whether it is recursive.
pub(super) fn propagation(option: &str) -> Option<(u64, bool)> {
    Some(match option {
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_containerd_asks_for_shm_is_understood() {
        let options = Options::parse(&["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]);
        assert_eq!(
            options.here.set,
            MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV
        );
        assert_eq!(options.data, ["mode=1777", "size=65536k"]);
    }

    #[test]
    fn a_read_only_bind_is_understood() {
        let options = Options::parse(&["rbind", "rprivate", "ro"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.propagation, [(libc::MS_PRIVATE, true)]);
        assert_eq!(
            options.here,
            Attributes {
                set: MOUNT_ATTR_RDONLY,
                clear: MOUNT_ATTR_RDONLY
            }
        );
    }

    #[test]
    fn recursive_options_go_below_and_their_namesakes_do_not() {
        assert_eq!(Options::parse(&["rro"]).below.set, MOUNT_ATTR_RDONLY);
        assert_eq!(Options::parse(&["rnosuid"]).below.set, MOUNT_ATTR_NOSUID);
        let relatime = Options::parse(&["relatime"]);
        assert!(relatime.below.is_empty());
        assert_eq!(
            relatime.here,
            Attributes {
                set: 0,
                clear: MOUNT_ATTR__ATIME
            }
        );
    }

    #[test]
    fn the_last_of_two_contradicting_options_wins() {
        assert_eq!(Options::parse(&["ro", "rw"]).here.set, 0);
        assert_eq!(
            Options::parse(&["noatime", "strictatime"]).here.set,
            MOUNT_ATTR_STRICTATIME
        );
    }

    #[test]
    fn a_comma_before_a_digit_belongs_to_the_option() {
        let options = Options::parse(&["ro,mpol=bind:0,2,nosuid,size=1g", "", ",", "mpol=interleave:0-1,3"]);
        assert_eq!(options.data, ["mpol=bind:0,2", "size=1g", "mpol=interleave:0-1,3"]);
        assert_eq!(options.here.set, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
    }

    #[test]
    fn flags_of_the_superblock_keep_their_order() {
        let options = Options::parse(&["sync", "lazytime", "acl", "async"]);
        assert_eq!(options.superblock, ["sync", "lazytime", "async"]);
        assert!(options.data.is_empty() && options.here.is_empty());
    }

    #[test]
    fn every_option_that_the_runtime_claims_to_know_is_known() {
        for option in protocol::MOUNT_OPTIONS {
            let parsed = Options::parse(&[option]);
            assert!(parsed.data.is_empty(), "{option}");
        }
        assert_eq!(Options::parse(&["no-such"]).data, ["no-such"]);
    }

    proptest! {
        #[test]
        fn any_words_are_read(words: Vec<String>) {
            let _ = Options::parse(&words);
        }

        #[test]
        fn nothing_is_set_that_is_not_also_cleared_first(words in proptest::collection::vec("r?(no)?(atime|suid|dev|exec)|ro|rw", 0..9)) {
            let options = Options::parse(&words);
            prop_assert_eq!(options.here.set & !options.here.clear, 0);
            prop_assert_eq!(options.below.set & !options.below.clear, 0);
        }
    }
}
