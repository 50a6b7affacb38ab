//! The streams of a program that is run in the guest for a tool: FIFOs, as containerd makes them for its execs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;

/// A directory with FIFOs. They go when this is dropped.
pub(super) struct Fifos {
    pub(super) directory: PathBuf,
}

impl Drop for Fifos {
    fn drop(&mut self) {
        // What stays goes with the sandbox's directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Fifos {
    /// Makes the directory, and the FIFOs of these names in it.
    pub(super) fn make(directory: &Path, names: &[&str]) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(directory)?;
        let fifos = Self {
            directory: directory.to_owned(),
        };
        for name in names {
            mknodat(CWD, directory.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        Ok(fifos)
    }

    /// The end from which a program's output is read. It is open for both directions, as that of the input: without the other end a FIFO
    /// is at its end, or cannot be opened for writing (fifo(7)).
    pub(super) fn output(&self, name: &str) -> io::Result<pipe::Receiver> {
        both_ways().open_receiver(self.directory.join(name))
    }

    /// The end into which a program's input is written.
    pub(super) fn input(&self, name: &str) -> io::Result<pipe::Sender> {
        both_ways().open_sender(self.directory.join(name))
    }
}

fn both_ways() -> pipe::OpenOptions {
    let mut options = pipe::OpenOptions::new();
    options.read_write(true);
    options
}
