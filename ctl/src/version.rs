//! `kata-ctl version`.

use crate::report::Report;

/// Name and version of this build; all parts of an installation have the same one.
pub(crate) fn report(json: bool) -> Report {
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let text = if json {
        format!("{}\n", serde_json::json!({ "name": name, "version": version }))
    } else {
        format!("{name} {version}\n")
    };
    Report { text, good: true }
}

#[cfg(test)]
mod tests {
    use super::report;

    #[test]
    fn the_json_has_the_version_of_the_text() {
        let json: serde_json::Value = serde_json::from_str(&report(true).text).unwrap();
        let text = format!(
            "{} {}\n",
            json["name"].as_str().unwrap(),
            json["version"].as_str().unwrap()
        );
        assert_eq!(report(false).text, text);
    }
}
