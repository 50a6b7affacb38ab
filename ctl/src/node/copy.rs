//! Copies an installation into a directory of the node, in one step: a shim that is started meanwhile finds the old one or
//! the new one whole.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::NodeError;
use super::programs::below;

/// A file of each unpacked archive, which a package has in /etc.
const CONFIGURATION: &str = "etc/configuration.toml";
/// A file of each copy: a directory without it was made by somebody else.
const MARK: &str = ".tatami-copy";

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
    if to.file_name().is_none() {
        return Err(NodeError::Configuration {
            path: to.to_owned(),
            why: "is no directory to copy into".to_owned(),
        });
    }
    // A package's programs are in /usr, beside those of the distribution.
    if !from.join(CONFIGURATION).is_file() {
        return Err(NodeError::Configuration {
            path: from.to_owned(),
            why: "is no directory of this runtime alone: --copy-to copies an unpacked archive, or what the image has"
                .to_owned(),
        });
    }
    if !is_replaceable(to).map_err(failed(to))? {
        return Err(NodeError::Configuration {
            path: to.to_owned(),
            why: "has files that no copy of this program's installation left there: it is not replaced".to_owned(),
        });
    }
    let new = hidden(to, ".tatami-new");
    replaced(from, &new, to).map_err(|error| {
        // The half of a copy takes room that the disk may not have. The next one removes it if this fails.
        let _ = remove(&new);
        failed(to)(error)
    })
}

/// Whether it is a copy, empty, or not there.
fn is_replaceable(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        entries => Ok(directory.join(MARK).exists() || entries?.next().is_none()),
    }
}

/// Removes a copy that [`tree`] has made. While a sandbox runs it stays: its shim is called once more when it ends. The answer is what is
/// to be printed.
pub(crate) fn removed(root: &Path, directory: &Path, dry_run: bool) -> Result<String, NodeError> {
    let path = below(root, directory);
    let (new, old) = (hidden(&path, ".tatami-new"), hidden(&path, ".tatami-old"));
    let failed = |source| NodeError::Io {
        operation: "remove",
        path: path.clone(),
        source,
    };
    if !dry_run {
        // What an interrupted copy or removal left.
        remove(&new).and_then(|()| remove(&old)).map_err(failed)?;
    }
    if !path.exists() {
        return Ok(String::new());
    }
    if !path.join(MARK).exists() {
        return Err(NodeError::Configuration {
            path,
            why: "is no copy of this program's installation: it is not removed".to_owned(),
        });
    }
    let directories = below(root, Path::new(protocol::SANDBOXES));
    let running = sandboxes(&directories).map_err(|source| NodeError::Io {
        operation: "read",
        path: directories,
        source,
    })?;
    if running > 0 {
        return Ok(format!(
            "note    {} stays: {running} sandboxes run; remove it when they have ended\n",
            directory.display()
        ));
    }
    if !dry_run {
        fs::rename(&path, &old).and_then(|()| remove(&old)).map_err(failed)?;
    }
    Ok(format!("remove  {}\n", directory.display()))
}

/// How many sandboxes have a directory on the node.
fn sandboxes(directory: &Path) -> io::Result<usize> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
        Ok(entries) => Ok(entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.path().join("sandbox.json").exists())
            })
            .count()),
    }
}

/// A name beside a directory that nothing else has.
fn hidden(path: &Path, end: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(end);
    path.with_file_name(name)
}

fn replaced(from: &Path, new: &Path, to: &Path) -> io::Result<()> {
    // What an interrupted copy left.
    remove(new)?;
    fs::create_dir_all(new.parent().unwrap_or(Path::new("/")))?;
    directory(from, new)?;
    fs::write(
        new.join(MARK),
        "A copy of Tatami's installation by `kata-ctl node install --copy-to`.\n",
    )?;
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
    fn a_copy_is_removed_when_no_sandbox_runs_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let copy = Path::new("/opt/tatami");
        assert_eq!(removed(root.path(), copy, false).unwrap(), "");
        fs::create_dir_all(at("opt/tatami/bin")).unwrap();
        assert!(removed(root.path(), copy, false).is_err());
        // An installation of a package has the same files, and others beside them.
        for file in ["bin/kata-ctl", "bin/containerd-shim-kata-v2", "bin/sh"] {
            fs::write(at("opt/tatami").join(file), "").unwrap();
        }
        fs::create_dir_all(at("opt/tatami/share/tatami")).unwrap();
        let error = tree(&at("opt/tatami"), &at("opt/copy")).unwrap_err().to_string();
        assert!(error.contains("is no directory of this runtime alone"), "{error}");
        assert!(!at("opt/copy").exists());
        fs::create_dir_all(at("opt/tatami/etc")).unwrap();
        fs::write(at("opt/tatami").join(CONFIGURATION), "").unwrap();
        assert!(removed(root.path(), copy, false).is_err());
        assert!(tree(&at("opt/tatami"), &at("opt/tatami")).is_err());
        assert!(at("opt/tatami/bin/sh").exists());
        fs::rename(at("opt/tatami"), at("installed")).unwrap();
        tree(&at("installed"), &at("opt/tatami")).unwrap();
        fs::create_dir_all(at("run/tatami/pod-1")).unwrap();
        fs::write(at("run/tatami/pod-1/sandbox.json"), "").unwrap();
        let said = removed(root.path(), copy, false).unwrap();
        assert!(
            said.contains("stays: 1 sandboxes run") && at("opt/tatami").exists(),
            "{said}"
        );
        fs::remove_dir_all(at("run/tatami/pod-1")).unwrap();
        assert_eq!(removed(root.path(), copy, true).unwrap(), "remove  /opt/tatami\n");
        assert!(at("opt/tatami").exists());
        fs::create_dir_all(at("opt/.tatami.tatami-old/half")).unwrap();
        removed(root.path(), copy, false).unwrap();
        assert_eq!(fs::read_dir(at("opt")).unwrap().count(), 0);
        // One that was ended in its first copy.
        fs::create_dir_all(at("opt/.tatami.tatami-new/half")).unwrap();
        assert_eq!(removed(root.path(), copy, false).unwrap(), "");
        assert_eq!(fs::read_dir(at("opt")).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_replaces_an_older_one_and_what_an_interrupted_one_left() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("opt/tatami"));
        for directory in ["bin", "etc"] {
            fs::create_dir_all(from.join(directory)).unwrap();
        }
        fs::write(from.join(CONFIGURATION), "").unwrap();
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
