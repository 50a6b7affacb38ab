//! memory.

use oci_spec::runtime::LinuxMemory;

use super::{Error, Setting, limit};

/// `swap` of the specification is memory and swap together, as cgroup v1 counts; v2 counts swap alone. 0 is "not set",
/// as runc has it.
pub(super) fn settings(memory: &LinuxMemory) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    let max = memory.limit().filter(|max| *max != 0);
    if let Some(max) = max {
        settings.push(Setting::new("memory.max", limit(max)));
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        settings.push(Setting::new("memory.low", limit(reservation)));
    }
    let swap = match (memory.swap().filter(|swap| *swap != 0), max) {
        (None, Some(..=-1)) | (Some(..=-1), _) => Some("max".to_owned()),
        (None, _) => None,
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
        let settings = settings(&serde_json::from_str(json).unwrap()).unwrap();
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
            assert!(settings(&serde_json::from_str(json).unwrap()).is_err());
        }
    }
}
