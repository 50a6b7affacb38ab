//! The memory controller: limit, reservation, swap.

use std::path::Path;

use oci_spec::runtime::LinuxMemory;

use super::error::{Error, failed};
use super::setting::{Setting, limit};

/// Refuses a limit below what is used already, where the specification asks for that (`checkBeforeUpdate`): the kernel would kill.
pub(super) fn check(memory: &LinuxMemory, current: &Path) -> Result<(), Error> {
    let limit = memory.limit().and_then(|limit| u64::try_from(limit).ok());
    let Some(limit) = limit.filter(|limit| *limit != 0 && memory.check_before_update() == Some(true)) else {
        return Ok(());
    };
    let text = std::fs::read_to_string(current).map_err(failed("read", current))?;
    match text.trim().parse::<u64>() {
        Ok(used) if used > limit => Err(Error::Invalid(format!(
            "a limit of memory of {limit} bytes is less than the {used} bytes that are used (checkBeforeUpdate)"
        ))),
        _ => Ok(()),
    }
}

/// `swap` of the specification is memory and swap together, as cgroup v1 counts; v2 counts swap alone. 0 is "not set",
/// as runc has it. `current` is what memory.max says now: an update may give a limit of swap alone.
pub(super) fn settings(memory: &LinuxMemory, current: &str) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    let given = memory.limit().filter(|max| *max != 0);
    if let Some(max) = given {
        settings.push(Setting::new("memory.max", limit(max)));
    }
    let max = given.or_else(|| current.trim().parse().ok());
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        settings.push(Setting::new("memory.low", limit(reservation)));
    }
    let swap = match (memory.swap().filter(|swap| *swap != 0), max) {
        (None, _) => given.filter(|max| *max < 0).map(|_| "max".to_owned()),
        (Some(..=-1), _) => Some("max".to_owned()),
        (Some(both), Some(max @ 0..)) if both >= max => Some((both - max).to_string()),
        (Some(both), Some(max @ 0..)) => {
            return Err(Error::Invalid(format!(
                "memory and swap ({both}) are less than memory alone ({max})"
            )));
        }
        (Some(_), _) => return Err(Error::Invalid("a limit of swap needs a limit of memory".to_owned())),
    };
    // A kernel without swap has nothing to limit.
    settings.extend(swap.map(|swap| Setting::new("memory.swap.max", swap).optional()));
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<String> {
        let settings = settings(&serde_json::from_str(json).unwrap(), "max\n").unwrap();
        settings
            .into_iter()
            .map(|set| format!("{} {}", set.file, set.value))
            .collect()
    }

    #[test]
    fn swap_is_what_remains_without_memory() {
        assert_eq!(
            of(r#"{"limit":100,"swap":150}"#),
            ["memory.max 100", "memory.swap.max 50"]
        );
        assert_eq!(
            of(r#"{"limit":100,"swap":-1}"#),
            ["memory.max 100", "memory.swap.max max"]
        );
        assert_eq!(of(r#"{"limit":-1}"#), ["memory.max max", "memory.swap.max max"]);
        assert_eq!(
            of(r#"{"limit":100,"reservation":50,"swap":0}"#),
            ["memory.max 100", "memory.low 50"]
        );
    }

    #[test]
    fn swap_without_memory_and_less_than_memory_are_refused() {
        for json in [r#"{"swap":100}"#, r#"{"limit":100,"swap":99}"#] {
            assert!(settings(&serde_json::from_str(json).unwrap(), "max").is_err());
        }
    }

    #[test]
    fn a_limit_below_what_is_used_is_refused_where_that_is_asked_for() {
        let current = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&current, "4096\n").unwrap();
        let check = |json: &str| check(&serde_json::from_str(json).unwrap(), current.path());
        assert!(check(r#"{"limit":4095,"checkBeforeUpdate":true}"#).is_err());
        for fine in [
            r#"{"limit":4096,"checkBeforeUpdate":true}"#,
            r#"{"limit":-1,"checkBeforeUpdate":true}"#,
            r#"{"limit":1}"#,
        ] {
            check(fine).unwrap();
        }
    }

    #[test]
    fn swap_alone_counts_from_the_limit_that_is_in_force() {
        let settings = settings(&serde_json::from_str(r#"{"swap":150}"#).unwrap(), "100\n").unwrap();
        assert_eq!(settings, [Setting::new("memory.swap.max", "50").optional()]);
    }
}
