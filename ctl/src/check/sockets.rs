//! Which sockets of the host containers may connect to: who looks over a node wants to see that, and a pattern with a link in it matches
//! nothing.

use std::path::{Path, PathBuf};

use config::{Config, PathPattern};

use super::finding::Finding;

const WHAT: &str = "share_host_sockets";

/// The list, if there is one, and each entry that cannot match.
pub(super) fn shared(config: &Config) -> Vec<Finding> {
    let patterns = &config.runtime.share_host_sockets;
    if patterns.is_empty() {
        return Vec::new();
    }
    let listed: Vec<_> = patterns.iter().map(PathPattern::as_str).collect();
    let listed = format!("every pod may connect to {} if it mounts it", listed.join(", "));
    let ok = Finding::ok(WHAT, listed);
    std::iter::once(ok).chain(patterns.iter().filter_map(linked)).collect()
}

/// A pattern whose beginning is a link is compared with paths that have none.
fn linked(pattern: &PathPattern) -> Option<Finding> {
    let text = pattern.as_str();
    let literal = text.find(['*', '?', '[']).map_or(text, |at| &text[..at]);
    let beginning = match literal.len() == text.len() || literal.ends_with('/') {
        true => Path::new(literal),
        false => Path::new(literal).parent()?,
    };
    let leads: PathBuf = beginning.canonicalize().ok()?;
    if leads.as_path() == beginning || leads.components().eq(beginning.components()) {
        return None;
    }
    Some(Finding::warn(
        WHAT,
        format!("{} is {} on this host", beginning.display(), leads.display()),
        format!("the entry {text} matches nothing: paths are compared without links"),
        format!("write {} in its place", leads.display()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_a_link_in_it_is_warned_of_and_an_empty_list_is_no_finding() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().canonicalize().unwrap();
        std::fs::create_dir(directory.join("run")).unwrap();
        std::os::unix::fs::symlink("run", directory.join("var-run")).unwrap();
        let found = |entries: &[&str]| {
            let mut config = Config::default();
            let pattern = |entry: &&str| PathPattern::new(&format!("{}/{entry}", directory.display())).unwrap();
            config.runtime.share_host_sockets = entries.iter().map(pattern).collect();
            shared(&config).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(found(&[]).is_empty());
        assert_eq!(found(&["run/*.sock", "missing/x.sock", "run/x*"]).len(), 1);
        let said = found(&["var-run/*.sock"]);
        assert!(
            said.len() == 2 && said[1].starts_with("warn") && said[1].contains("matches nothing"),
            "{said:?}"
        );
    }
}
