//! The programs of the node that are asked or told: containerd, dockerd and systemctl, in the node's own root.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::error::NodeError;

/// The hidden command that [`exec_in`] is reached by.
pub(crate) const IN_ROOT: &str = "in-root";

/// Becomes a program of another root: the image that installs a node has no chroot(8). Returns if that fails.
pub(crate) fn exec_in(root: &Path, program: &Path, arguments: &[String]) -> io::Error {
    match rustix::process::chroot(root).and_then(|()| rustix::process::chdir("/")) {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error.into(),
    }
}

/// Where programs are looked for, below the node's root: as systemd has it for its services, and k3s.
pub(crate) const PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// The node's root as this process sees it.
    root: &'a Path,
    /// Where the program is below it.
    path: PathBuf,
}

/// A path of the node as this process reaches it.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

impl<'a> Program<'a> {
    pub(crate) fn find(root: &'a Path, name: &str) -> Option<Self> {
        let mut paths = PATH.iter().map(|directory| Path::new(directory).join(name));
        let path = paths.find(|path| below(root, path).is_file())?;
        Some(Self { root, path })
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, NodeError> {
        let mut command = match self.root.parent() {
            None => Command::new(&self.path),
            Some(_) => {
                let mut command = Command::new("/proc/self/exe");
                command.arg(IN_ROOT).arg(self.root).arg(&self.path);
                // systemctl would do nothing in a root that is not its own.
                command.env("SYSTEMD_IGNORE_CHROOT", "1");
                command
            }
        };
        let said = |why: String| NodeError::Program {
            command: format!("{} {}", self.path.display(), arguments.join(" ")),
            why,
        };
        let output = command.args(arguments).output();
        let Output { status, stdout, stderr } = output.map_err(|error| said(error.to_string()))?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&stderr);
        let last = text.trim().lines().last().unwrap_or("it says nothing");
        Err(said(format!("{status}: {last}")))
    }

    /// The release in what `--version` prints: "containerd github.com/containerd/containerd v1.7.24 …".
    pub(crate) fn release(&self) -> Result<Release, NodeError> {
        let said = self.run(&["--version"])?;
        release(&said).ok_or_else(|| NodeError::Program {
            command: format!("{} --version", self.path.display()),
            why: format!("no version in {said:?}"),
        })
    }
}

/// A release of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Release {
    /// Whether a handler's `runtime_path` has an effect. containerd 1.6 takes the first shim of its PATH.
    pub(crate) fn reads_runtime_path(self) -> bool {
        self >= Self { major: 1, minor: 7 }
    }
}

/// The release of `--containerd-version`.
pub(crate) fn version(text: &str) -> Result<Release, String> {
    release(text).ok_or_else(|| "must be a version such as 1.7 or 2.1".to_owned())
}

fn release(said: &str) -> Option<Release> {
    said.split_whitespace().find_map(|word| {
        let (major, rest) = word.trim_start_matches('v').split_once('.')?;
        let digits = rest.split(|next: char| !next.is_ascii_digit()).next()?;
        let (major, minor) = (major.parse().ok()?, digits.parse().ok()?);
        Some(Release { major, minor })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_containerd_are_read() {
        for (said, wanted) in [
            (
                "containerd github.com/containerd/containerd v1.7.24 88bf19b2105c8b17560993bee28a01ddc2f97182",
                Some((1, 7)),
            ),
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                Some((1, 6)),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                Some((2, 1)),
            ),
            ("containerd v2.3", Some((2, 3))),
            ("containerd", None),
        ] {
            let wanted = wanted.map(|(major, minor)| Release { major, minor });
            assert_eq!(release(said), wanted, "{said}");
        }
    }
}
