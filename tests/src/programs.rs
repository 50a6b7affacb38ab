//! Programs of this machine in a container's root: real ones, dynamically linked, with their libraries.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Result};

/// A program and the files that it needs beside its libraries.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its path, here and in the container.
    pub path: &'static str,
    /// The Debian package that has it.
    package: &'static str,
    /// A command that prints paths of what else it needs, one a line.
    also: &'static str,
}

/// The smallest.
pub const TRUE: Program = Program {
    path: "/usr/bin/true",
    package: "coreutils",
    also: "true",
};
/// The one that follows logs.
pub const TAIL: Program = Program {
    path: "/usr/bin/tail",
    package: "coreutils",
    also: "true",
};
/// The shell.
pub const BASH: Program = Program {
    path: "/usr/bin/bash",
    package: "bash",
    also: "true",
};
/// Many small reads, renames, locks.
pub const GIT: Program = Program {
    path: "/usr/bin/git",
    package: "git",
    also: "true",
};
/// Many small files.
pub const PYTHON: Program = Program {
    path: "/usr/bin/python3",
    package: "python3",
    also: "stdlib=$(/usr/bin/python3 -Sc 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))'); \
           echo $stdlib; ls $stdlib/lib-dynload/*.so",
};
/// A program that starts big programs. Its linker is not there.
pub const GCC: Program = Program {
    path: "/usr/bin/gcc",
    package: "gcc",
    also: "for part in cc1 as; do part=$(gcc -print-prog-name=$part); command -v $part; done",
};

/// A program of a node.
pub const CONTAINERD: Program = Program {
    path: "/usr/bin/containerd",
    package: "containerd",
    also: "true",
};

/// What sets the rules of a network namespace, with its matches and targets.
pub const IPTABLES: Program = Program {
    path: "/usr/sbin/xtables-nft-multi",
    package: "iptables",
    also: "dpkg -L iptables libxtables12 | grep 'xtables/lib.*\\.so'",
};

/// It runs gcc, as the one program that has to see which files are newer.
pub const MAKE: Program = Program {
    path: "/usr/bin/make",
    package: "make",
    also: "true",
};
/// Links, sparse files, owners, times.
pub const TAR: Program = Program {
    path: "/usr/bin/tar",
    package: "tar",
    also: "true",
};
/// Processes, pipes, sockets and locks in a few lines.
pub const PERL: Program = Program {
    path: "/usr/bin/perl",
    package: "perl-base",
    also: "perl -e 'print join qq(\\n), grep { -d && m(perl-base) } @INC'",
};

/// Copies programs, and what they need, to the same paths below `root`.
///
/// # Errors
/// A program is not installed, or a file cannot be copied.
pub fn add(root: &Path, programs: &[Program]) -> Result<()> {
    for program in programs {
        if !Path::new(program.path).is_file() {
            return Err(Error::unexpected(format!(
                "{} is not there: apt-get install {}",
                program.path, program.package
            )));
        }
        let mut files = vec![PathBuf::from(program.path)];
        files.extend(lines(program.also)?.into_iter().map(PathBuf::from));
        let programs: Vec<_> = files.iter().filter(|file| file.is_file()).collect();
        let mut all: BTreeSet<PathBuf> = files.iter().cloned().collect();
        for program in programs {
            all.extend(libraries(program)?);
        }
        copy(root, &all)?;
    }
    Ok(())
}

/// The libraries and the loader of a dynamic program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let words = format!("ldd {}", program.display());
    let path = |line: String| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    Ok(lines(&words)?.into_iter().filter_map(path).collect())
}

/// Links are followed: what they lead to may not be copied.
fn copy(root: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    let status = Command::new("cp")
        .args(["-rL", "--parents", "-t"])
        .arg(root)
        .args(files)
        .status()
        .map_err(Error::io("running cp"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::unexpected(format!("cp into {}: {status}", root.display())))
    }
}

fn lines(script: &str) -> Result<Vec<String>> {
    let output = Command::new("sh")
        .args(["-c", script])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(Error::io(format!("running {script}")))?;
    if !output.status.success() {
        return Err(Error::unexpected(format!("{script}: {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}
