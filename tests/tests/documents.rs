//! What docs/kubernetes.md has an operator write is what containerd takes: each of its releases reads it and means it. And the tests that a decision
//! names are there.

use std::{fs, process::Command};

use framework::{
    Error, Result,
    locate::{self, Version},
};

/// The TOML blocks of a document.
fn toml_blocks(text: &str) -> Vec<String> {
    let blocks = text.split("\n```toml\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("\n```").next());
    blocks.map(|block| format!("{block}\n")).collect()
}

/// The same with what is offered in comments: lines that would be TOML without their mark.
fn with_what_is_offered(block: &str) -> String {
    let lines = block.lines().map(|line| {
        let offered = line
            .strip_prefix("# ")
            .filter(|text| text.starts_with('[') || text.contains(" = "));
        format!("{}\n", offered.unwrap_or(line))
    });
    lines.collect()
}

/// What a containerd makes of a configuration: all of its settings, with quotation marks of one kind.
fn understood(version: Version, configuration: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.toml");
    fs::write(&file, configuration)?;
    let program = version.binary("containerd")?;
    let output = Command::new(&program)
        .arg("--config")
        .arg(&file)
        .args(["config", "dump"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).replace('\'', "\""));
    }
    Err(Error::unexpected(format!(
        "{}: {said}\n{configuration}",
        program.display()
    )))
}

/// Fails unless containerd gives the section of the runtime just the values that the block gives it.
fn means_it(version: Version, block: &str) -> Result<()> {
    let all = understood(version, block)?;
    let section = all.split(".containerd.runtimes.kata]").nth(1).unwrap_or_default();
    let section = section.split(".containerd.runtimes.").next().unwrap_or_default();
    let options = all
        .split(".containerd.runtimes.kata.options]")
        .nth(1)
        .unwrap_or_default();
    let options = options.split("[plugins").next().unwrap_or_default();
    let settings = block
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with(['#', 'v', '[']));
    for setting in settings {
        let found = section
            .lines()
            .chain(options.lines())
            .any(|line| line.trim() == setting);
        if !found {
            return Err(Error::unexpected(format!(
                "{version:?} does not know {setting}: {section}{options}"
            )));
        }
    }
    Ok(())
}

#[test]
fn every_configuration_of_containerd_in_the_documents_is_understood_by_its_releases() -> Result<()> {
    let text = fs::read_to_string(locate::workspace().join("docs/kubernetes.md"))?;
    let blocks = toml_blocks(&text);
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        let versions = match block.lines().next() {
            Some("version = 2") => &[Version::Installed, Version::V1_7, Version::V2_1][..],
            Some("version = 3") => &[Version::V2_1],
            other => return Err(Error::unexpected(format!("a configuration that begins with {other:?}"))),
        };
        for version in versions {
            means_it(*version, &block)?;
            means_it(*version, &with_what_is_offered(&block))?;
        }
    }
    Ok(())
}

#[test]
fn the_manifest_names_the_runtime_that_the_node_is_configured_with() -> Result<()> {
    let text = fs::read_to_string(locate::workspace().join("docs/kubernetes.md"))?;
    let manifest = text
        .split("\n```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("\n```").next());
    let manifest = manifest.ok_or_else(|| Error::unexpected("no manifest"))?;
    let value = |key: &str| {
        let mut lines = manifest.lines().filter_map(|line| line.trim().strip_prefix(key));
        lines.next().map(str::trim)
    };
    let handler = value("handler:").unwrap_or_default();
    assert!(text.contains(&format!(".containerd.runtimes.{handler}]")), "{handler}");
    assert_eq!(value("runtimeClassName:"), value("name:"));
    Ok(())
}

#[test]
fn the_tests_that_the_decision_on_the_lifecycle_names_are_there() -> Result<()> {
    let workspace = locate::workspace();
    let text = fs::read_to_string(workspace.join("docs/decisions/0024-lifecycle-core.md"))?;
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains(".rs`: `"));
    let mut count = 0;
    for row in rows {
        let words: Vec<_> = row.split('`').collect();
        let [_, file, _, name, _] = words[..] else {
            return Err(Error::unexpected(format!("a row of another form: {row}")));
        };
        let source = fs::read_to_string(workspace.join(file))?;
        assert!(source.contains(&format!("fn {name}(")), "{file} has no test {name}");
        count += 1;
    }
    assert_eq!(count, 21);
    Ok(())
}

/// Each row names files, and after each the tests in it. A file that was named before may be named by its last part.
#[test]
fn the_tests_that_the_table_of_attacks_names_are_there() -> Result<()> {
    let workspace = locate::workspace();
    let text = fs::read_to_string(workspace.join("docs/decisions/0036-what-a-guest-may-answer.md"))?;
    let rows = text.lines().filter(|line| line.contains(".rs`: `"));
    let (mut files, mut count) = (Vec::<&str>::new(), 0);
    for (number, row) in (1..).zip(rows) {
        assert!(row.starts_with(&format!("| {number} |")), "{row}");
        let mut source = String::new();
        for word in row.split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                let known = files.iter().find(|file| file.rsplit('/').next() == Some(word));
                let file = *known.unwrap_or(&word);
                files.push(file);
                source = fs::read_to_string(workspace.join(file))?;
            } else if word.contains('_') {
                assert!(source.contains(&format!("fn {word}(")), "{row}: no test {word}");
                count += 1;
            }
        }
    }
    assert_eq!(count, 29);
    Ok(())
}

#[test]
fn the_tests_of_each_bound_are_there() -> Result<()> {
    let workspace = locate::workspace();
    let text = fs::read_to_string(workspace.join("docs/security.md"))?;
    let table = text
        .split("| what | bound | beyond it | test |")
        .nth(1)
        .unwrap_or_default();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut count = 0;
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let files: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!files.is_empty(), "{row}");
        for file in files {
            assert!(workspace.join(file).is_file(), "{row}: {file}");
            count += 1;
        }
    }
    assert!(count > 25, "{count}");
    Ok(())
}
