//! Files of cgroup v2 that the specification names directly.

use std::collections::{BTreeMap, HashMap};

use super::error::Error;
use super::setting::Setting;

/// In the order of their names, so that the same specification gives the same result.
pub(super) fn settings(unified: &HashMap<String, String>) -> Result<Vec<Setting>, Error> {
    let sorted: BTreeMap<_, _> = unified.iter().collect();
    let setting = |(name, value): (&String, &String)| {
        if name.contains('/') || !name.contains('.') || name.starts_with('.') {
            return Err(Error::Invalid(format!("{name:?} is not the name of a cgroup's file")));
        }
        Ok(Setting::new(name.as_str(), value))
    };
    sorted.into_iter().map(setting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in ["../x", "a/b.c", "..", "memory", ""] {
            let unified = HashMap::from([(name.to_owned(), "1".to_owned())]);
            assert!(settings(&unified).is_err(), "{name}");
        }
    }
}
