//! The FIFOs of a process's standard output and error. They are open before the process is made, and stay open: nothing is lost, however short it is. `ctr`
//! gives up a FIFO that it has not opened yet when the process has ended.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::{libc, sys::stat::Mode, unistd::mkfifo};
use rustix::pipe::fcntl_setpipe_size;

use crate::{Error, Result};

/// What a FIFO holds, in bytes: a process that prints more waits for ever.
const HELD: usize = 1 << 20;

/// Two FIFOs that nobody reads before the end.
#[derive(Debug)]
pub struct Fifos {
    stdout: Fifo,
    stderr: Fifo,
}

#[derive(Debug)]
struct Fifo {
    path: PathBuf,
    file: File,
}

impl Fifos {
    /// Makes them in a directory.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let fifo = |stream: &str| Fifo::new(directory.join(format!("{name}.{stream}")));
        Ok(Self {
            stdout: fifo("stdout")?,
            stderr: fifo("stderr")?,
        })
    }

    /// Their paths, of standard output first.
    pub(crate) fn paths(&self) -> [String; 2] {
        [&self.stdout, &self.stderr].map(|fifo| fifo.path.display().to_string())
    }

    /// What was written to each, once the process is deleted.
    pub fn read(self) -> Result<[Vec<u8>; 2]> {
        Ok([self.stdout.read()?, self.stderr.read()?])
    }
}

impl Fifo {
    fn new(path: PathBuf) -> Result<Self> {
        let failed = |error| Error::io(format!("making {}", path.display()))(error);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| failed(errno.into()))?;
        // For writing as well: it has no end.
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(&path).map_err(failed)?;
        fcntl_setpipe_size(&file, HELD).map_err(|errno| failed(errno.into()))?;
        Ok(Self { path, file })
    }

    fn read(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.file.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(bytes),
            other => Err(Error::unexpected(format!(
                "{} has an end: {other:?}",
                self.path.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_when_the_writer_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let fifos = Fifos::new(directory.path(), "x").unwrap();
        let [stdout, _] = fifos.paths();
        std::fs::write(stdout, vec![b'x'; HELD - 1]).unwrap();
        let [stdout, stderr] = fifos.read().unwrap();
        assert_eq!((stdout.len(), stderr.len()), (HELD - 1, 0));
    }
}
