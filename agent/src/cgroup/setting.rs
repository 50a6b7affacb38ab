//! What is written to the files of a cgroup.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use super::error::Error;

/// A value for one file of a cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: String,
    pub(super) value: String,
    /// The kernel may be built without it, and then there is nothing to limit.
    pub(super) optional: bool,
    /// The same value comes again later: whether it is taken depends on what is written in between.
    pub(super) again: bool,
}

impl Setting {
    pub(super) fn new(file: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            value: value.into(),
            optional: false,
            again: false,
        }
    }

    pub(super) fn again(mut self) -> Self {
        self.again = true;
        self
    }

    pub(super) fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// A limit as cgroup v2 writes it; -1 is "none" in the specification.
pub(super) fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Writes them in their order. If one is refused, those before it get their values back, the last one first, as runc writes its old
/// configuration back.
///
/// # Errors
/// The first one that is refused.
pub(super) fn write_all(cgroup: &Path, settings: Vec<Setting>) -> Result<(), Error> {
    let mut written = Vec::new();
    for setting in settings {
        let path = cgroup.join(&setting.file);
        // What cannot be read (memory.reclaim) cannot be undone either.
        let before = fs::read_to_string(&path).ok();
        let before = before.map(|text| undoing(&setting, &text));
        match write(&path, &setting.value) {
            Ok(()) => written.extend(before.map(|before| (path, before))),
            Err(_) if setting.again => {}
            Err(error) if setting.optional && error.kind() == ErrorKind::NotFound => {}
            Err(source) => {
                for (path, before) in written.iter().rev() {
                    if let Err(error) = write(path, before) {
                        tracing::warn!(path = %path.display(), before, %error, "a limit does not get its value back");
                    }
                }
                let Setting { file, value, .. } = setting;
                return Err(Error::Refused { file, value, source });
            }
        }
    }
    Ok(())
}

/// Never makes the file: the kernel answers that with EACCES, and not with ENOENT.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// What undoes a setting of a file that says `text`. A file with a line for each device (`io.max`) is written line by line, and does not list
/// devices without a value.
fn undoing(setting: &Setting, text: &str) -> String {
    let key = setting.value.split_whitespace().next();
    let mut lines = text.lines();
    if let Some(line) = lines.find(|line| line.split_whitespace().next() == key) {
        return line.to_owned();
    }
    let key = key.unwrap_or_default();
    match setting.file.as_str() {
        "io.max" => format!("{key} rbps=max wbps=max riops=max wiops=max"),
        "io.weight" => format!("{key} default"),
        "io.latency" => format!("{key} target=0"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_a_refusal_is_undone() {
        let cgroup = tempfile::tempdir().unwrap();
        let path = |name: &str| cgroup.path().join(name);
        let files = [("cpu.weight", "100\n"), ("memory.max", "max\n"), ("pids.max", "5\n")];
        for (name, text) in files {
            fs::write(path(name), text).unwrap();
        }
        // A directory: it cannot be written to.
        fs::create_dir(path("memory.low")).unwrap();
        let settings = [
            Setting::new("cpu.weight", "200"),
            Setting::new("cpu.weight", "300"),
            Setting::new("memory.max", "1048576"),
            Setting::new("io.weight", "default 5").optional(),
            Setting::new("memory.low", "1"),
            Setting::new("pids.max", "7"),
        ];
        let refused = write_all(cgroup.path(), settings.into()).unwrap_err();
        assert!(refused.to_string().contains("memory.low"), "{refused}");
        for (name, text) in files {
            assert_eq!(fs::read_to_string(path(name)).unwrap().trim(), text.trim(), "{name}");
        }
        assert!(!path("io.weight").exists());
    }

    #[test]
    fn a_device_gets_its_own_line_back() {
        let undo = |file: &str, value: &str, text: &str| undoing(&Setting::new(file, value), text);
        let max = "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max\n";
        let second = "8:16 rbps=2 wbps=max riops=max wiops=max";
        assert_eq!(undo("io.max", "8:16 rbps=9", max), second);
        let none = "8:1 rbps=max wbps=max riops=max wiops=max";
        assert_eq!(undo("io.max", "8:1 rbps=9", max), none);
        assert_eq!(undo("io.weight", "8:0 50", "default 100\n"), "8:0 default");
        assert_eq!(undo("io.weight", "default 50", "default 100\n8:0 7\n"), "default 100");
        assert_eq!(undo("cpu.max", "5000 100000", "max 100000\n"), "max 100000\n");
    }
}
