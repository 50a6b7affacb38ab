//! `virtio_fs_extra_args`: options for virtiofsd, and who may set which.
//!
//! The operator may set all options except those that the runtime sets itself. A pod may set the options of a short list,
//! because an option can give the guest access to more of the host's files or resources.

use crate::raw::Refusal;

/// What the runtime tells virtiofsd itself: an argument that says otherwise could serve other files to the guest.
const OWN: &[&str] = &[
    "--socket-path",
    "--fd",
    "--shared-dir",
    "--cache",
    "--sandbox",
    "--seccomp",
    "--socket-group",
    "--tag",
    "-o",
];

/// Options of the C virtiofsd (`-o a,b=c`), as Kata's files have them, and what they are here. An empty one is the default.
const OLD: [(&str, &str); 12] = [
    ("announce_submounts", ""),
    ("no_announce_submounts", "--no-announce-submounts"),
    ("xattr", "--xattr"),
    ("no_xattr", ""),
    ("posix_acl", "--posix-acl"),
    ("no_posix_acl", ""),
    ("writeback", "--writeback"),
    ("no_writeback", ""),
    ("allow_direct_io", "--allow-direct-io"),
    ("no_allow_direct_io", ""),
    ("flock", ""),
    ("no_flock", ""),
];

/// What a pod may set: nothing of it reaches files or rights on the host.
const OF_A_POD: [&str; 5] = [
    "--thread-pool-size",
    "--log-level",
    "--announce-submounts",
    "--xattr",
    "--posix-acl",
];

/// Threads that a pod may have its virtiofsd start.
const MOST_THREADS: u32 = 64;

/// The arguments as virtiofsd takes them: each option one word, with its value after a `=`.
pub(crate) fn arguments(words: &[String]) -> Result<Vec<String>, Refusal> {
    let mut arguments: Vec<String> = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.strip_prefix("-o") {
            Some(list) if !word.starts_with("--") => {
                let list = if list.is_empty() {
                    rest.next().map_or("", String::as_str)
                } else {
                    list
                };
                for option in list.split(',') {
                    arguments.extend(from_old(option).ok_or_else(|| refusal(&format!("-o {option}")))?);
                }
            }
            // The value of the option before it.
            _ if !word.starts_with('-') && arguments.last().is_some_and(|before| takes_a_value(before)) => {
                if let Some(option) = arguments.last_mut() {
                    option.push('=');
                    option.push_str(word);
                }
            }
            _ => arguments.push(word.clone()),
        }
    }
    if let Some(argument) = arguments.iter().find(|argument| !is_valid(argument)) {
        return Err(refusal(argument));
    }
    let maps = arguments
        .iter()
        .filter_map(|argument| argument.strip_prefix("--xattrmap="));
    match maps.into_iter().find(|map| !leaves_capabilities(map)) {
        None => Ok(arguments),
        Some(map) => Err(Refusal::new(format!(
            "a mapping that leaves security.capability as it is, because only then the host's kernel takes it off a file that is \
             written to; {map:?} gives it another name, which a rule before the others prevents: \
             \":ok:all:security.capability::\""
        ))),
    }
}

/// Whether a mapping of extended attributes (virtiofsd's doc/xattr-mapping.md) keeps the name of the file capabilities. The first rule
/// that fits counts, and a name that none fits is an error.
fn leaves_capabilities(map: &str) -> bool {
    const NAME: &str = "security.capability";
    let mut rest = map.trim_start();
    while let Some(separator) = rest.chars().next() {
        let mut fields = rest[separator.len_utf8()..].splitn(5, separator);
        let mut field = || fields.next().unwrap_or_default();
        let (kind, second) = (field(), field());
        if kind == "map" {
            // Short for rules that give the names that begin with this, or all, another beginning.
            return !NAME.starts_with(second);
        }
        let (key, _prepend, next) = (field(), field(), field());
        if matches!(second, "client" | "all") && NAME.starts_with(key) {
            return kind != "prefix";
        }
        rest = next.trim_start();
    }
    true
}

/// As [`arguments`], in an annotation.
pub(crate) fn arguments_of_a_pod(words: &[String]) -> Result<Vec<String>, Refusal> {
    let arguments = arguments(words)?;
    let bounded = |argument: &str| match argument.split_once('=') {
        Some(("--thread-pool-size", number)) => number.parse().is_ok_and(|number: u32| number <= MOST_THREADS),
        _ => true,
    };
    match arguments
        .iter()
        .find(|argument| !OF_A_POD.contains(&name(argument)) || !bounded(argument))
    {
        None => Ok(arguments),
        Some(argument) => Err(Refusal::new(format!(
            "of {}, with at most {MOST_THREADS} threads; {argument:?} is not: only hypervisor.qemu.virtio_fs_extra_args in the \
             configuration can give it",
            OF_A_POD.join(", ")
        ))),
    }
}

fn refusal(argument: &str) -> Refusal {
    Refusal::new(format!(
        "a list of virtiofsd's long options with their values after a `=`, without {}; {argument:?} is not one",
        OWN.join(", ")
    ))
}

fn from_old(option: &str) -> Option<Option<String>> {
    let (_, new) = OLD.iter().find(|(old, _)| *old == option)?;
    Some((!new.is_empty()).then(|| (*new).to_owned()))
}

fn takes_a_value(option: &str) -> bool {
    option.starts_with("--") && !option.contains('=')
}

fn name(argument: &str) -> &str {
    argument.split('=').next().unwrap_or_default()
}

fn is_valid(argument: &str) -> bool {
    let name = name(argument);
    name.len() > 2 && name.starts_with("--") && !argument.contains(char::is_control) && !OWN.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn katas_ways_of_writing_an_option_are_understood() {
        for (written, taken) in [
            ("--thread-pool-size=1 -o announce_submounts", "--thread-pool-size=1"),
            (
                "--thread-pool-size 1 --announce-submounts",
                "--thread-pool-size=1 --announce-submounts",
            ),
            ("-oxattr,allow_direct_io", "--xattr --allow-direct-io"),
            ("-o no_xattr,no_writeback --log-level debug", "--log-level=debug"),
        ] {
            assert_eq!(arguments(&words(written)).unwrap().join(" "), taken, "{written}");
        }
    }

    #[test]
    fn what_the_runtime_sets_itself_is_refused_however_it_is_written() {
        for written in [
            "-o source=/",
            "-osandbox=none",
            "-o announce_submounts,cache=always",
            "--shared-dir /",
            "--sandbox=none",
            "-o",
            "-f",
            "value",
            "-o cache=always",
        ] {
            assert!(arguments(&words(written)).is_err(), "{written}");
        }
    }

    #[test]
    fn file_capabilities_keep_their_name() {
        for (map, keeps) in [
            (":map::user.virtiofs.:", false),
            (":map:security.:user.:", false),
            (":map:trusted.:user.virtiofs.:", true),
            (":prefix:all::user.virtiofs.::bad:all:::", false),
            (
                ":ok:all:security.capability:: :prefix:all::user.virtiofs.::bad:all:::",
                true,
            ),
            ("/prefix/all/trusted./user./  /ok/all///", true),
            (":prefix:server::user.::ok:client:::", true),
            (":bad:all:security.::", true),
            (":prefix:client:security.capability:user.:", false),
            (":", true),
            ("", true),
        ] {
            let taken = arguments(&[format!("--xattrmap={map}")]);
            assert_eq!(taken.is_ok(), keeps, "{map}");
            if let Err(refusal) = taken {
                assert!(refusal.0.contains(":ok:all:security.capability::"), "{}", refusal.0);
            }
        }
    }

    #[test]
    fn a_pod_may_set_what_is_harmless_and_the_operator_the_rest() {
        for written in [
            "--thread-pool-size=4",
            "--log-level=debug --xattr",
            "-o announce_submounts",
        ] {
            assert!(arguments_of_a_pod(&words(written)).is_ok(), "{written}");
        }
        for written in [
            "--thread-pool-size=65",
            "--thread-pool-size=x",
            "--inode-file-handles=mandatory",
            "--modcaps=+sys_admin",
            "--xattrmap=:map:trusted.:user.virtiofs.:",
            "--rlimit-nofile=1000000",
            "--translate-uid=map:0:1:1",
            "--writeback",
            "--allow-direct-io",
        ] {
            assert!(arguments(&words(written)).is_ok(), "{written}");
            let said = arguments_of_a_pod(&words(written)).unwrap_err().0;
            assert!(said.contains("hypervisor.qemu.virtio_fs_extra_args"), "{said}");
        }
    }
}
