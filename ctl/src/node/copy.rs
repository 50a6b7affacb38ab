//! Copies an installation into a directory of the node, in one step: a shim that is started meanwhile finds the old one or
//! the new one whole.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::NodeError;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::Io {
        operation: "copy the installation to",
        path,
        source,
    }
}

/// Replaces `to` by a copy of `from`. Running sandboxes keep the files that they have open.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<(), NodeError> {
    let name = to.file_name().ok_or_else(|| NodeError::Configuration {
        path: to.to_owned(),
        why: "is no directory to copy into".to_owned(),
    })?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(".tatami-new");
    let new: PathBuf = to.with_file_name(beside);
    replaced(from, &new, to).map_err(failed(to))
}

fn replaced(from: &Path, new: &Path, to: &Path) -> io::Result<()> {
    // What an interrupted copy left.
    remove(new)?;
    fs::create_dir_all(new.parent().unwrap_or(Path::new("/")))?;
    directory(from, new)?;
    // A name that was never written to the disk is not to replace one that was.
    rustix::fs::sync();
    match renameat_with(CWD, new, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => remove(new),
        Err(rustix::io::Errno::NOENT) => fs::rename(new, to),
        Err(error) => Err(error.into()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, new) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            directory(&entry.path(), &new)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &new)?;
        } else {
            fs::copy(entry.path(), &new)?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_replaces_an_older_one_and_what_an_interrupted_one_left() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("opt/tatami"));
        fs::create_dir_all(from.join("bin")).unwrap();
        fs::write(from.join("bin/program"), "1").unwrap();
        symlink("program", from.join("bin/other")).unwrap();
        fs::create_dir_all(place.path().join("opt/.tatami.tatami-new/half")).unwrap();
        tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("bin/other")).unwrap(), "1");
        fs::write(from.join("bin/program"), "2").unwrap();
        fs::write(to.join("old"), "").unwrap();
        tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("bin/program")).unwrap(), "2");
        assert!(!to.join("old").exists());
        assert_eq!(fs::read_dir(place.path().join("opt")).unwrap().count(), 1);
    }
}
