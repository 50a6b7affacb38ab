//! Finds the file that the process executes. Its errors have the same wording as runc's.

use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD};

use super::fault::{Fault, Result, reason};

/// A program with its arguments and environment, ready for execve(2).
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Finds the program as the process will see it: inside its root, with its user's permissions.
    pub(super) fn find(arguments: &[String], environment: &[String]) -> Result<Self> {
        let name = arguments
            .first()
            .ok_or_else(|| Fault::Refused("the process has no arguments".to_owned()))?;
        let path = environment
            .iter()
            .find_map(|variable| variable.strip_prefix("PATH="))
            .unwrap_or_default();
        Ok(Self {
            path: look_up(name, path)?,
            arguments: strings(arguments)?,
            environment: strings(environment)?,
        })
    }

    /// Executes it. Returns only to say why it could not.
    pub(super) fn execute(&self) -> Fault {
        let path = match CString::new(self.path.as_os_str().as_bytes()) {
            Ok(path) => path,
            Err(why) => return Fault::refused("the program's path", why),
        };
        match nix::unistd::execve(&path, &self.arguments, &self.environment) {
            Ok(never) => match never {},
            Err(errno) => Fault::refused(format_args!("exec {}", self.path.display()), reason(&errno.into())),
        }
    }
}

fn strings(words: &[String]) -> Result<Vec<CString>> {
    words
        .iter()
        .map(|word| CString::new(word.as_str()).map_err(|why| Fault::refused(format_args!("exec: {word:?}"), why)))
        .collect()
}

fn look_up(name: &str, search: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                Err(Fault::Refused(format!("exec: {name:?}: stat {name}: {}", reason(&why))))
            }
            Err(why) => Err(Fault::Refused(format!("exec: {name:?}: {}", reason(&why)))),
        };
    }
    let found = search
        .split(':')
        .filter(|_| !search.is_empty() && !name.is_empty())
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|candidate| executable(candidate).is_ok());
    found.ok_or_else(|| Fault::Refused(format!("exec: {name:?}: executable file not found in $PATH")))
}

/// Whether the calling process may execute a file, by its effective user.
fn executable(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    Ok(rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, search: &str) -> String {
        look_up(name, search).unwrap_err().to_string()
    }

    #[test]
    fn failures_read_as_runc_prints_them() {
        assert_eq!(
            refusal("no-such", "/bin:/usr/bin"),
            "exec: \"no-such\": executable file not found in $PATH"
        );
        assert_eq!(refusal("sh", ""), "exec: \"sh\": executable file not found in $PATH");
        assert_eq!(
            refusal("/no/such", ""),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(refusal("/bin/", ""), "exec: \"/bin/\": is a directory");
        assert_eq!(refusal("/etc/passwd", ""), "exec: \"/etc/passwd\": permission denied");
    }

    #[test]
    fn the_search_path_is_gone_through_in_order() {
        assert_eq!(look_up("sh", "/nowhere:/bin:/usr/bin").unwrap(), Path::new("/bin/sh"));
    }
}
