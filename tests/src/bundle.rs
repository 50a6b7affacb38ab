//! A program of this machine with its loader and its libraries, so that it runs in any container.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Result};

/// Where a container finds it.
const INSIDE: &str = "/bundle";
const LOADER: &str = "loader";

/// One program, in a directory of its own.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    name: String,
}

impl Bundle {
    /// Copies a program and what it needs into `dir`, which is made. Libraries may be where its package has them, installed
    /// or unpacked somewhere.
    pub fn make(program: &Path, dir: PathBuf) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::create_dir_all(&dir).map_err(Error::io(format!("making {}", dir.display())))?;
        let mut files = vec![(program.to_owned(), name.clone())];
        for needed in libraries(program)? {
            let file = needed.file_name().unwrap_or_default().to_string_lossy();
            let file = if file.starts_with("ld-linux") { LOADER } else { &file };
            let file = file.to_owned();
            files.push((needed, file));
        }
        for (from, to) in files {
            fs::copy(&from, dir.join(to)).map_err(Error::io(format!("copying {}", from.display())))?;
        }
        Ok(Self { dir, name })
    }

    /// `--mount` of `ctr run`.
    pub fn mount(&self) -> String {
        format!(
            "--mount=type=bind,src={},dst={INSIDE},options=rbind:ro",
            self.dir.display()
        )
    }

    /// How a container that has the mount runs it; arguments may follow.
    pub fn inside(&self) -> [String; 4] {
        self.line(Path::new(INSIDE))
    }

    /// The command line that runs it on the host.
    pub fn outside(&self) -> [String; 4] {
        self.line(&self.dir)
    }

    fn line(&self, dir: &Path) -> [String; 4] {
        let path = |name: &str| dir.join(name).display().to_string();
        [
            path(LOADER),
            "--library-path".to_owned(),
            dir.display().to_string(),
            path(&self.name),
        ]
    }
}

/// What ldd(1) says: `name => path (address)`, and the loader as a path alone.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let beside = program.ancestors().nth(2).unwrap_or(program).join("lib");
    let output = Command::new("ldd")
        .arg(program)
        .env(
            "LD_LIBRARY_PATH",
            beside.join(format!("{}-linux-gnu", std::env::consts::ARCH)),
        )
        .output()
        .map_err(Error::io("running ldd"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || said.contains("not found") {
        return Err(Error::unexpected(format!("ldd {}: {said}", program.display())));
    }
    let paths = said
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_runs_without_the_libraries_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::make(Path::new("/usr/bin/env"), dir.path().join("env")).unwrap();
        let [loader, arguments @ ..] = bundle.outside();
        let output = Command::new(loader).args(arguments).arg("--version").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(dir.path().join("env/libc.so.6").exists());
    }
}
