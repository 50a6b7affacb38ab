//! Files of the node as they are and as they are to be: read, shown, written at once or not at all, put back.
//!
//! Every file is replaced as a whole (rename(2)), so that a program that reads it meanwhile, or a power cut, sees the old
//! one or the new one.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::error::NodeError;

/// Largest file that is changed, in bytes: a configuration is smaller, and anything else is a mistake.
const LARGEST: u64 = 4 << 20;

/// Longest file that is shown as a whole, in lines.
const LONG: usize = 30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Absent,
    /// A file with this text.
    Text(String),
    Link(PathBuf),
}

/// The state of one path before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: PathBuf,
    pub(crate) before: State,
    pub(crate) after: State,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::Io {
        operation,
        path,
        source,
    }
}

/// The text of a file, through links; none if there is no file.
pub(crate) fn text(path: &Path) -> Result<Option<String>, NodeError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
        Ok(found) if !found.is_file() || found.len() > LARGEST => {
            return Err(NodeError::NoConfiguration { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).map_err(failed("read", path))
}

impl State {
    /// A file's text, whatever links lead to it.
    pub(crate) fn of_file(path: &Path) -> Result<Self, NodeError> {
        Ok(text(path)?.map_or(Self::Absent, Self::Text))
    }

    /// Does not follow a symbolic link.
    pub(crate) fn of_link(path: &Path) -> Result<Self, NodeError> {
        match fs::read_link(path) {
            Ok(target) => Ok(Self::Link(target)),
            // Not a link: a program, whose bytes nobody asks for.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Self::Text(String::new())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Absent),
            Err(error) => Err(failed("read", path)(error)),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }
}

impl Change {
    /// Whether something is to be done.
    pub(crate) fn is_needed(&self) -> bool {
        self.before != self.after
    }

    /// What it does, as lines with `+` and `-` below the path.
    pub(crate) fn shown(&self) -> String {
        let what = match (&self.before, &self.after) {
            (_, State::Link(target)) => {
                return format!("link    {} -> {}\n", self.path.display(), target.display());
            }
            (State::Absent, _) => "create ",
            (_, State::Absent) => "remove ",
            _ => "change ",
        };
        let mut shown = format!("{what} {}", self.path.display());
        // A copy, or a whole configuration: how long it is says enough.
        let made = match (&self.before, &self.after) {
            (State::Absent, State::Text(text)) | (State::Text(text), State::Absent) => text.lines().count(),
            _ => 0,
        };
        if made > LONG {
            return format!("{shown} ({made} lines)\n");
        }
        shown.push('\n');
        let (before, after): (Vec<_>, Vec<_>) = (
            self.before.text().lines().collect(),
            self.after.text().lines().collect(),
        );
        // Our changes are one part of a file: what is the same before and after it is not shown.
        let same = before
            .iter()
            .zip(&after)
            .take_while(|(one, other)| one == other)
            .count();
        let left = before.len().min(after.len()) - same;
        let (rest, other) = (before.iter().rev(), after.iter().rev());
        let end = rest
            .zip(other)
            .take(left)
            .take_while(|(one, other)| one == other)
            .count();
        for (sign, lines) in [
            ('-', &before[same..before.len() - end]),
            ('+', &after[same..after.len() - end]),
        ] {
            for line in lines {
                shown.push_str(&format!("  {sign} {line}\n"));
            }
        }
        shown
    }

    fn write(&self, state: &State) -> Result<(), NodeError> {
        match state {
            State::Absent => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.path)(error)),
                _ => Ok(()),
            },
            State::Text(text) => {
                // A file behind a link is replaced where it is.
                let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
                replace(&path, text).map_err(failed("write", &path))
            }
            State::Link(target) => link(target, &self.path).map_err(failed("link", &self.path)),
        }
    }
}

/// A name beside the file, which nobody reads as a configuration.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tatami-new"))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Puts a file in the place of another, with its owner and mode.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(parent(path))?;
    let new = beside(path);
    let written = (|| {
        let mut file = File::create(&new)?;
        match fs::metadata(path) {
            Ok(old) => {
                chown(&new, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
            }
            Err(_) => file.set_permissions(Permissions::from_mode(0o644))?,
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // It is not there if it could not be made.
        let _ = fs::remove_file(&new);
    }
    written?;
    File::open(parent(path))?.sync_all()
}

fn link(target: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(parent(path))?;
    let new = beside(path);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &new)?;
    fs::rename(&new, path)
}

/// Makes all changes, then asks `check` whether they are good. If one cannot be made, or they are not good, everything is as
/// it was before.
pub(crate) fn apply(changes: &[Change], check: impl FnOnce() -> Result<(), NodeError>) -> Result<(), NodeError> {
    let mut made = Vec::new();
    let done = (|| {
        for change in changes.iter().filter(|change| change.is_needed()) {
            change.write(&change.after)?;
            made.push(change);
        }
        check()
    })();
    let Err(error) = done else {
        return Ok(());
    };
    for change in made.iter().rev() {
        if let Err(again) = change.write(&change.before) {
            return Err(NodeError::HalfWay {
                path: change.path.clone(),
                because: Box::new(error),
                source: Box::new(again),
            });
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &Path, before: &str, after: &str) -> Change {
        let state = |text: &str| match text {
            "" => State::Absent,
            text => State::Text(text.to_owned()),
        };
        Change {
            path: path.to_owned(),
            before: state(before),
            after: state(after),
        }
    }

    #[test]
    fn only_the_lines_that_change_are_shown() {
        let path = Path::new("/c.toml");
        let shown = change(path, "a\nb\nc\n", "a\nx\ny\nc\n").shown();
        assert_eq!(shown, "change  /c.toml\n  - b\n  + x\n  + y\n");
        assert_eq!(change(path, "a\na\n", "a\na\na\n").shown(), "change  /c.toml\n  + a\n");
        assert_eq!(change(path, "", "a\n").shown(), "create  /c.toml\n  + a\n");
    }

    #[test]
    fn a_file_keeps_its_mode_and_its_link() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        symlink("real", &link).unwrap();
        apply(&[change(&link, "old", "new")], || Ok(())).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("real"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_fails_half_way_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("d/one"), directory.path().join("two"));
        fs::write(&two, "old").unwrap();
        // A directory cannot be replaced by a file.
        let bad = directory.path().join("bad");
        fs::create_dir(&bad).unwrap();
        let changes = [
            change(&one, "", "new"),
            change(&two, "old", "new"),
            change(&bad, "", "new"),
        ];
        let error = apply(&changes, || Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert!(!one.exists() && !beside(&bad).exists());
        assert_eq!(fs::read_to_string(&two).unwrap(), "old");
        // So is what the check refuses.
        let refused = || Err(NodeError::NoConfiguration { path: two.clone() });
        assert!(apply(&changes[..2], refused).is_err());
        assert!(!one.exists());
        assert_eq!(fs::read_to_string(&two).unwrap(), "old");
    }
}
