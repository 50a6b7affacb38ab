//! The manual pages and the shells' completions, both from the definition of the command line.

use std::io;
use std::path::{Path, PathBuf};

use clap_complete::Shell;

use crate::arguments::definition;
use crate::report::Report;

#[derive(Debug, thiserror::Error)]
#[error("cannot write the manual pages into {}", directory.display())]
pub(crate) struct ManualError {
    directory: PathBuf,
    #[source]
    source: io::Error,
}

/// What a shell reads to complete `kata-ctl`.
pub(crate) fn completions(shell: Shell) -> Report {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut definition(), "kata-ctl", &mut text);
    Report {
        text: String::from_utf8_lossy(&text).into_owned(),
        good: true,
    }
}

/// Writes `kata-ctl.1`, and `kata-ctl-COMMAND.1` for every command, into a directory.
pub(crate) fn pages(directory: &Path) -> Result<Report, ManualError> {
    let written = clap_mangen::generate_to(definition(), directory);
    written.map_err(|source| ManualError {
        directory: directory.to_owned(),
        source,
    })?;
    Ok(Report {
        text: String::new(),
        good: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_page_that_is_named_is_there() {
        let directory = tempfile::tempdir().unwrap();
        pages(directory.path()).unwrap();
        let bash = completions(Shell::Bash).text;
        for sub in definition().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = sub.get_name();
            assert!(bash.contains(name), "{name}");
            assert!(directory.path().join(format!("kata-ctl-{name}.1")).exists(), "{name}");
        }
        let mut named = 0;
        for page in std::fs::read_dir(directory.path()).unwrap() {
            // In roff a dash that is one is written `\-`.
            let text = std::fs::read_to_string(page.unwrap().path())
                .unwrap()
                .replace("\\-", "-");
            for word in text.split_whitespace().filter(|word| word.starts_with("kata-ctl-")) {
                if let Some(other) = word.strip_suffix("(1)") {
                    named += 1;
                    assert!(directory.path().join(format!("{other}.1")).exists(), "{other}");
                }
            }
        }
        // All but the first page are named by one above them.
        assert_eq!(named + 1, std::fs::read_dir(directory.path()).unwrap().count());
        assert!(
            pages(Path::new("/nonexistent"))
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
    }
}
