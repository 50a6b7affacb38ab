//! The sections about the runtime itself: environment, configuration and its source, shim, image, initrd.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base::chain;
use sha2::{Digest, Sha256};
use toml::de::{DeTable, DeValue};

use super::page::{Page, read};
use super::scope::Host;
use crate::{command, config as own_config, env};

/// Bytes of an image that are summed and listed.
const IMAGE: u64 = 256 << 20;

/// Names of an archive that are shown.
const NAMES: usize = 100;

pub(super) async fn environment(page: &Page, host: &Host) {
    match env::collect(host.config.as_deref()).await {
        Ok(value) => match toml::to_string(&value) {
            Ok(text) => page.code("toml", &text),
            Err(error) => page.missing(&error.to_string()),
        },
        Err(error) => page.missing(&chain(&error)),
    }
}

pub(super) fn configuration(page: &Page, host: &Host) {
    let used = own_config::path(host.config.as_deref());
    page.heading("Runtime default config files");
    page.code(
        "",
        &format!("{}\n{}", config::DEFAULT_PATHS[0], config::DEFAULT_PATHS[1]),
    );
    let environment = std::env::var("KATA_CONF_FILE").unwrap_or_else(|_| "not set".to_owned());
    page.line(&format!(
        "KATA_CONF_FILE here: `{environment}`. Used here: `{}`.",
        used.display()
    ));
    page.heading("Runtime config file contents");
    let mut paths = vec![used.clone()];
    paths.extend(
        config::DEFAULT_PATHS
            .iter()
            .map(PathBuf::from)
            .filter(|path| *path != used),
    );
    let loaded = config::load(&used);
    if let Ok(loaded) = &loaded {
        paths.extend(
            loaded
                .files
                .iter()
                .filter(|file| !paths.contains(file))
                .cloned()
                .collect::<Vec<_>>(),
        );
    }
    for path in &paths {
        if !page.file(path, "toml") {
            page.line(&format!("Config file `{}` not found", path.display()));
        }
    }
    page.heading("Effective configuration");
    match loaded {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                page.line(&format!("Warning: `{warning}`"));
            }
            page.code("toml", &effective(&loaded));
        }
        Err(error) => page.missing(&chain(&error)),
    }
}

/// Every value, and the file and line that it comes from.
fn effective(loaded: &config::Loaded) -> String {
    let origins = origins(&loaded.files);
    let mut text = String::new();
    for (name, table) in tables(&loaded.config.to_table()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "[{name}]");
        for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
            let from = origins.get(&format!("{name}.{key}")).map_or("default", String::as_str);
            let _ = writeln!(text, "{key} = {value} # {from}");
        }
    }
    text
}

/// The tables by their full names.
fn tables(root: &toml::Table) -> Vec<(String, toml::Table)> {
    let mut found = Vec::new();
    let mut waiting: Vec<_> = root.iter().map(|(name, value)| (name.clone(), value)).collect();
    while let Some((name, value)) = waiting.pop() {
        let Some(table) = value.as_table() else { continue };
        if table.values().any(|value| !value.is_table()) {
            found.push((name.clone(), table.clone()));
        }
        waiting.extend(table.iter().map(|(key, value)| (format!("{name}.{key}"), value)));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Where each key was set last.
fn origins(files: &[PathBuf]) -> BTreeMap<String, String> {
    let mut origins = BTreeMap::new();
    for file in files {
        let text = read(file).unwrap_or_default();
        if let Ok(document) = DeTable::parse(&text) {
            note(&mut origins, "", document.get_ref(), &text, file);
        }
    }
    origins
}

fn note(origins: &mut BTreeMap<String, String>, within: &str, table: &DeTable<'_>, text: &str, file: &Path) {
    for (key, value) in table {
        let name = if within.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{within}.{}", key.get_ref())
        };
        if let DeValue::Table(table) = value.get_ref() {
            note(origins, &name, table, text, file);
        } else {
            let before = text.get(..key.span().start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            origins.insert(name, format!("{}:{line}", file.display()));
        }
    }
}

pub(super) async fn shim(page: &Page, host: &Host) {
    const NAME: &str = "containerd-shim-kata-v2";
    if page.command(host, NAME, &["--version"]).await {
        return;
    }
    page.line(&format!("No `{NAME}` in PATH"));
    // Beside this program, where both are installed.
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name(NAME));
    if let Some(beside) = beside.filter(|path| path.exists()) {
        page.command(host, &beside.display().to_string(), &["--version"]).await;
    }
}

pub(super) async fn throttler(page: &Page, host: &Host) {
    if !page.command(host, "kata-ksm-throttler", &["--version"]).await {
        page.line("No `kata-ksm-throttler`: this runtime does not come with one.");
    }
    let read = |name: &str| std::fs::read_to_string(format!("/sys/kernel/mm/ksm/{name}"));
    match read("run") {
        Ok(run) => {
            let shared = read("pages_sharing").unwrap_or_default();
            let (run, shared) = (run.trim(), shared.trim());
            page.line(&format!("KSM: run = `{run}`, pages_sharing = `{shared}`"));
        }
        Err(error) => page.line(&format!("KSM: `{error}`")),
    }
}

pub(super) fn image(page: &Page) {
    page.line("No image: the guest boots from an initrd.");
}

pub(super) fn initrd(page: &Page, host: &Host) {
    let loaded = match config::load(&own_config::path(host.config.as_deref())) {
        Ok(loaded) => loaded,
        Err(error) => return page.missing(&chain(&error)),
    };
    let path = loaded.config.hypervisor.initrd;
    let mut bytes = Vec::new();
    let opened = File::open(&path).and_then(|file| file.take(IMAGE).read_to_end(&mut bytes));
    if let Err(error) = opened {
        return page.missing(&format!("the initrd `{}` cannot be read: {error}", path.display()));
    }
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut text = format!(
        "path: {}\nbytes: {}\nsha256: {digest}\ncontents:\n",
        path.display(),
        bytes.len()
    );
    match names(&bytes) {
        Ok(names) => {
            let more = names.len().saturating_sub(NAMES);
            names.iter().take(NAMES).for_each(|name| {
                let _ = writeln!(text, "  - {name}");
            });
            if more > 0 {
                let _ = writeln!(text, "  # and {more} more");
            }
        }
        Err(error) => {
            let _ = writeln!(text, "  # {error}");
        }
    }
    page.code("yaml", &text);
}

/// The names in an uncompressed cpio archive of the kind `newc` (the kernel's initramfs buffer format).
fn names(archive: &[u8]) -> io::Result<Vec<String>> {
    const HEADER: usize = 110;
    let mut names = Vec::new();
    let mut at = 0;
    loop {
        let rest = archive.get(at..).unwrap_or_default();
        if at == 0 && !is_member(rest) {
            return Err(io::Error::other(
                "it is compressed, or no cpio archive of the kind newc",
            ));
        }
        let Some(header) = rest.get(..HEADER).filter(|header| is_member(header)) else {
            return Err(io::Error::other("the archive ends in the middle"));
        };
        // Thirteen numbers of eight hexadecimal digits follow the magic.
        let field = |index: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * index..14 + 8 * index]).ok();
            digits.and_then(|digits| usize::from_str_radix(digits, 16).ok())
        };
        let (Some(size), Some(length)) = (field(6), field(11)) else {
            return Err(io::Error::other("a header has no sizes"));
        };
        let name = archive.get(at + HEADER..at + HEADER + length).unwrap_or_default();
        let name = command::harmless(name.split(|byte| *byte == 0).next().unwrap_or_default());
        if name == "TRAILER!!!" {
            return Ok(names);
        }
        names.push(name);
        // Names and contents are padded to four bytes.
        at = (at + HEADER + length)
            .next_multiple_of(4)
            .saturating_add(size)
            .next_multiple_of(4);
    }
}

/// Whether a cpio entry of the format newc begins here, with a checksum or without.
fn is_member(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(name: &str, contents: &[u8]) -> Vec<u8> {
        let mut bytes = b"070701".to_vec();
        for index in 0..13 {
            let value = match index {
                6 => contents.len(),
                11 => name.len() + 1,
                _ => 0,
            };
            bytes.extend(format!("{value:08x}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_archive_tells_its_names() {
        let archive = [member("dev", b""), member("init", b"agent"), member("TRAILER!!!", b"")].concat();
        assert_eq!(names(&archive).unwrap(), ["dev", "init"]);
        assert!(names(&archive[..150]).is_err());
        assert!(names(b"\x1f\x8b").is_err());
    }

    #[test]
    fn each_value_says_where_it_comes_from() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("configuration.toml");
        std::fs::write(
            &file,
            "[hypervisor.qemu]\nkernel = \"/k\"\ninitrd = \"/i\"\ndefault_memory = 128\n",
        )
        .unwrap();
        std::fs::create_dir(directory.path().join("config.d")).unwrap();
        let more = directory.path().join("config.d/50.toml");
        std::fs::write(&more, "# one\n[hypervisor.qemu]\ndefault_memory = 512\n").unwrap();
        let text = effective(&config::load(&file).unwrap());
        assert!(
            text.contains(&format!("kernel = \"/k\" # {}:2\n", file.display())),
            "{text}"
        );
        assert!(
            text.contains(&format!("default_memory = 512 # {}:3\n", more.display())),
            "{text}"
        );
        assert!(text.contains("default_vcpus = 1 # default\n"), "{text}");
    }

    proptest! {
        #[test]
        fn no_archive_makes_it_panic(sizes in "[0-9a-f]{104}", rest: Vec<u8>) {
            let mut archive = format!("070701{sizes}").into_bytes();
            archive.extend(rest);
            let _ = names(&archive);
        }
    }
}
