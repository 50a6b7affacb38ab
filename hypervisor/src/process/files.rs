//! Files that a boot needs or creates: checked before anything starts, removed when their owner is dropped.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// Longest path of a Unix socket in bytes: `sun_path` without its final zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A file that cannot serve its purpose.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum FileError {
    #[error("{role}: {path:?} cannot be executed")]
    Program {
        role: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A bare name that no directory of PATH has.
    #[error("{role}: no program {name:?} in PATH")]
    NotInPath { role: &'static str, name: PathBuf },
    /// A file is missing or cannot be read.
    #[error("{role}: {path:?} cannot be read")]
    Unreadable {
        role: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A socket's path does not fit into its address.
    #[error("{path:?} is too long for a socket: {length} bytes, and {MAX_SOCKET_PATH} are possible")]
    SocketPath {
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
}

/// The program's path: a bare name is looked up in PATH.
pub(crate) fn program(role: &'static str, path: &Path) -> Result<PathBuf, FileError> {
    if path.as_os_str().as_bytes().contains(&b'/') {
        executable(path).map_err(|source| FileError::Program {
            role,
            path: path.to_owned(),
            source,
        })?;
        return Ok(path.to_owned());
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search)
        .map(|directory| directory.join(path))
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| FileError::NotInPath {
            role,
            name: path.to_owned(),
        })
}

fn executable(path: &Path) -> io::Result<()> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(rustix::fs::access(path, Access::EXEC_OK)?)
}

/// Checks that the file is there, has bytes, and can be read.
pub(crate) fn readable(role: &'static str, path: &Path) -> Result<PathBuf, FileError> {
    let check = || {
        let metadata = File::open(path)?.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(io::Error::other("the file is empty"));
        }
        Ok(path.to_owned())
    };
    check().map_err(|source| FileError::Unreadable {
        role,
        path: path.to_owned(),
        source,
    })
}

/// The path of a socket, which is removed when this is dropped, whoever made it. Its directory may have another name by then, and
/// another socket the path: it is removed from the directory that the path led to at first.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    directory: OwnedFd,
}

impl SocketFile {
    /// Takes charge of a path in a directory that exists; it need not exist itself yet.
    pub(crate) fn new(path: PathBuf) -> Result<Self, FileError> {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(FileError::SocketPath { path, length });
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = openat(
            CWD,
            parent,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        match directory {
            Ok(directory) => Ok(Self { path, directory }),
            Err(error) => Err(FileError::Unreadable {
                role: "the directory of a socket",
                path: parent.to_owned(),
                source: error.into(),
            }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let name = self.path.file_name().unwrap_or_default();
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            // NOENT also if the directory itself has been removed.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!(path = ?self.path, %error, "a socket cannot be removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_goes_from_its_own_directory_whatever_that_is_called_by_then() {
        let place = tempfile::tempdir().unwrap();
        let [first, renamed] = ["first", "renamed"].map(|name| place.path().join(name));
        for round in 0..2 {
            std::fs::create_dir(&first).unwrap();
            std::fs::write(first.join("socket"), "").unwrap();
            let file = SocketFile::new(first.join("socket")).unwrap();
            if round == 0 {
                std::fs::rename(&first, &renamed).unwrap();
                std::fs::create_dir(&first).unwrap();
                std::fs::write(first.join("socket"), "another").unwrap();
                drop(file);
                assert!(first.join("socket").exists() && !renamed.join("socket").exists());
                std::fs::remove_dir_all(&first).unwrap();
            } else {
                std::fs::remove_dir_all(&first).unwrap();
                drop(file);
            }
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = program("QEMU", Path::new("/nowhere/qemu")).unwrap_err();
        assert!(error.to_string().contains("QEMU: \"/nowhere/qemu\""), "{error}");
    }

    #[test]
    fn a_bare_name_is_looked_up_in_path() {
        assert!(program("shell", Path::new("sh")).unwrap().is_absolute());
        assert!(matches!(
            program("shell", Path::new("no such shell")),
            Err(FileError::NotInPath { .. })
        ));
    }

    #[test]
    fn a_file_without_the_right_to_execute_is_no_program() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(program("QEMU", file.path()), Err(FileError::Program { .. })));
    }

    #[test]
    fn an_empty_kernel_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            readable("kernel", file.path()),
            Err(FileError::Unreadable { .. })
        ));
    }

    #[test]
    fn a_socket_path_has_107_bytes_at_most() {
        let fits = PathBuf::from(format!("/{}", "x".repeat(106)));
        assert!(SocketFile::new(fits).is_ok());
        let too_long = PathBuf::from(format!("/{}", "x".repeat(107)));
        assert!(matches!(
            SocketFile::new(too_long),
            Err(FileError::SocketPath { length: 108, .. })
        ));
    }

    #[test]
    fn a_socket_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let file = SocketFile::new(path.clone()).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(file.path()).unwrap();
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
    }
}
