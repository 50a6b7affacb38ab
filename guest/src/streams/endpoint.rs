//! The FIFOs and files that containerd named. Opens them so that neither the shim nor the client can block the other.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::error::StreamError;

/// A writing end of stdin's FIFO that nobody writes to.
pub(super) struct Hold {
    _sender: pipe::Sender,
}

impl Hold {
    fn open(path: &Path) -> io::Result<Self> {
        let _sender = pipe::OpenOptions::new().open_sender(path)?;
        Ok(Self { _sender })
    }
}

/// The FIFO of standard input.
pub(super) struct Input {
    source: Source,
    hold: Option<Hold>,
}

impl Input {
    /// Opens the FIFO; none if the path is empty.
    ///
    /// It is opened without waiting for a writer, and ends with the last writer (fifo(7)); before the first one came it
    /// has not ended. That is how `echo x | ctr run …` ends its container's stdin: ctr has read all there is before the
    /// task exists, and then calls CloseIO for nobody. Once the process runs [`Source::hold`] holds off the end until CloseIO.
    ///
    /// A terminal's is held from the beginning: there is no end that a client could have meant.
    pub(super) fn open(uri: &str, terminal: bool) -> Result<Option<Self>, StreamError> {
        let Some(path) = plain_path(uri)? else {
            return Ok(None);
        };
        let failed = |source| StreamError::Open {
            name: "stdin",
            path: path.clone(),
            source,
        };
        let receiver = pipe::OpenOptions::new().open_receiver(&path).map_err(failed)?;
        let hold = if terminal {
            Some(Hold::open(&path).map_err(failed)?)
        } else {
            None
        };
        let source = Source { receiver, path };
        Ok(Some(Self { source, hold }))
    }

    pub(super) fn into_parts(self) -> (Source, Option<Hold>) {
        (self.source, self.hold)
    }
}

/// The reading end of stdin's FIFO.
pub(super) struct Source {
    receiver: pipe::Receiver,
    path: PathBuf,
}

impl Source {
    /// Reads into the buffer, and returns the number of bytes; 0 at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let ready = self.receiver.ready(Interest::READABLE).await?;
            match self.receiver.try_read(buffer) {
                // The last writer was gone before the hold: that was the end.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready.is_read_closed() => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// Holds off the end from now on; none if all writers have gone by now. What they have written is read all the same.
    pub(super) fn hold(&self) -> Option<Hold> {
        // poll(2): POLLHUP on a FIFO's reading end is the end of its last writer, and not the want of a first one.
        match polled(&self.receiver, PollFlags::IN) {
            Ok(events) if events.contains(PollFlags::HUP) => return None,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "stdin may end with its client"),
        }
        match Hold::open(&self.path) {
            Ok(hold) => Some(hold),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "stdin ends with its client");
                None
            }
        }
    }
}

/// What an output is written to: a FIFO, a file, a program, or nothing.
pub(super) struct Target {
    to: Option<Pin<Box<dyn AsyncWrite + Send + Sync>>>,
    /// A FIFO's end for writing alone.
    fifo: Option<OwnedFd>,
}

impl Target {
    /// Opens a FIFO or the file of a `file://` URI; none if the URI is empty.
    ///
    /// A FIFO is opened for reading as well, which never waits (fifo(7)) and lets a reader come late or come back:
    /// until then the process waits in its write, as it does with runc.
    pub(super) async fn open(name: &'static str, uri: &str) -> Result<Option<Self>, StreamError> {
        if let Some(path) = uri.strip_prefix("file://") {
            return open_file(name, absolute(uri, path)?).await.map(Some);
        }
        let Some(path) = plain_path(uri)? else {
            return Ok(None);
        };
        let open = || -> io::Result<Self> {
            let sender = pipe::OpenOptions::new().read_write(true).open_sender(&path)?;
            // The same FIFO, whatever has its name by now.
            let same = format!("/proc/self/fd/{}", sender.as_raw_fd());
            let fifo = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(same)?;
            Ok(Self {
                to: Some(Box::pin(sender)),
                fifo: Some(fifo.into()),
            })
        };
        let opened = open();
        opened
            .map(Some)
            .map_err(|source| StreamError::Open { name, path, source })
    }

    /// Writes to a pipe.
    pub(super) fn pipe(sender: pipe::Sender) -> Self {
        Self::to(sender)
    }

    /// A target that discards the output.
    pub(super) fn nowhere() -> Self {
        Self { to: None, fifo: None }
    }

    fn to(writer: impl AsyncWrite + Send + Sync + 'static) -> Self {
        Self {
            to: Some(Box::pin(writer)),
            fifo: None,
        }
    }

    /// Writes some of it and says how much. A reader that is gone for good is no error, the process must not notice: then
    /// everything counts as written.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(target) = self.to.as_mut() else {
            return bytes.len();
        };
        match target.write(bytes).await {
            Ok(count @ 1..) => return count,
            Ok(0) => tracing::warn!("output cannot be written and is lost from here on"),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => tracing::warn!(%error, "output cannot be written and is lost from here on"),
        }
        self.to = None;
        bytes.len()
    }

    /// Makes sure that a file has everything, and that the reader of a FIFO has taken everything. It is not waited for if there is none, or if it takes
    /// nothing for `pause`.
    ///
    /// A client may close its end when it hears of the exit, and loses what it has not read: containerd's own does so for a
    /// terminal (`ctr run -t` of 1.6).
    pub(super) async fn finish(mut self, pause: Duration) {
        if let Some(target) = self.to.as_mut() {
            // A failed flush has nobody left to be told.
            let _ = target.flush().await;
        }
        // From now on poll(2) tells whether there is a reader: this end was one.
        self.to = None;
        let Some(fifo) = self.fifo else { return };
        let (mut left, mut since) = (u64::MAX, Instant::now());
        loop {
            match ioctl_fionread(&fifo) {
                Ok(1..) if !has_reader(&fifo) => return,
                Ok(now @ 1..) if now < left => (left, since) = (now, Instant::now()),
                Ok(1..) if since.elapsed() < pause => {}
                Ok(1..) => return tracing::debug!(left, "a reader does not take the end of an output"),
                Ok(0) | Err(_) => return,
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}

/// Between two looks at what a reader has left: a pipe wakes its writers only if it was full.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Whether somebody has the other end of a pipe open (poll(2): POLLERR at the end for writing if nobody has).
fn has_reader(fifo: &OwnedFd) -> bool {
    polled(fifo, PollFlags::empty()).is_ok_and(|events| !events.contains(PollFlags::ERR))
}

/// What poll(2) says of a descriptor now.
fn polled(descriptor: &impl AsFd, wanted: PollFlags) -> rustix::io::Result<PollFlags> {
    let mut events = [PollFd::new(descriptor, wanted)];
    poll(&mut events, Some(&Timespec::default()))?;
    Ok(events[0].revents())
}

async fn open_file(name: &'static str, path: PathBuf) -> Result<Target, StreamError> {
    let opened = path.clone();
    let open = move || {
        if let Some(parent) = opened.parent() {
            std::fs::create_dir_all(parent)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o644).open(opened)
    };
    let file = tokio::task::spawn_blocking(open)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    match file {
        Ok(file) => Ok(Target::to(tokio::fs::File::from_std(file))),
        Err(source) => Err(StreamError::Open { name, path, source }),
    }
}

/// The path of a FIFO; none for the empty string.
fn plain_path(uri: &str) -> Result<Option<PathBuf>, StreamError> {
    if uri.is_empty() {
        return Ok(None);
    }
    absolute(uri, uri.strip_prefix("fifo://").unwrap_or(uri)).map(Some)
}

fn absolute(uri: &str, path: &str) -> Result<PathBuf, StreamError> {
    let refused = |reason| StreamError::Uri {
        uri: uri.to_owned(),
        reason,
    };
    if path.contains("://") {
        return Err(refused("the scheme is not known"));
    }
    if path.contains('\0') {
        return Err(refused("a path holds no NUL"));
    }
    if !Path::new(path).is_absolute() {
        return Err(refused("the path is not absolute"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    proptest! {
        #[test]
        fn only_absolute_paths_pass(uri in "\\PC{0,40}") {
            if let Ok(Some(path)) = plain_path(&uri) {
                prop_assert!(path.is_absolute());
            }
        }
    }

    fn fifo(directory: &tempfile::TempDir) -> String {
        let path = directory.path().join("stdin");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn open(path: &str, terminal: bool) -> (Source, Option<Hold>) {
        Input::open(path, terminal).unwrap().unwrap().into_parts()
    }

    async fn write(path: &str) {
        let path = path.to_owned();
        let writer = tokio::task::spawn_blocking(move || std::fs::write(path, "x"));
        writer.await.unwrap().unwrap();
    }

    /// Whether there is nothing to read, and no end.
    async fn is_open(stdin: &Source) -> bool {
        let read = tokio::time::timeout(Duration::from_millis(50), async { stdin.read(&mut [0]).await });
        read.await.is_err()
    }

    #[tokio::test]
    async fn stdin_ends_with_its_last_writer_and_not_before_its_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let (stdin, hold) = open(&path, false);
        assert!(hold.is_none() && is_open(&stdin).await);
        write(&path).await;
        let mut byte = [0];
        assert_eq!(stdin.read(&mut byte).await.unwrap(), 1);
        assert_eq!((byte, stdin.read(&mut [0]).await.unwrap()), (*b"x", 0));
    }

    #[tokio::test]
    async fn an_end_before_the_process_runs_is_not_held_off_though_it_has_not_been_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let (stdin, _) = open(&path, false);
        write(&path).await;
        assert!(stdin.hold().is_none());
        assert_eq!(stdin.read(&mut [0]).await.unwrap(), 1);
        assert_eq!(stdin.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn stdin_of_a_process_that_runs_outlives_its_clients_until_it_is_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        // With a terminal it is held from the beginning. Without one: a client that has come, and one that has not come yet.
        for (terminal, client) in [(true, false), (false, true), (false, false)] {
            let (stdin, held) = open(&path, terminal);
            let client = client.then(|| OpenOptions::new().write(true).open(&path).unwrap());
            let hold = held.or_else(|| stdin.hold());
            assert!(hold.is_some());
            drop(client);
            assert!(is_open(&stdin).await);
            write(&path).await;
            assert_eq!(stdin.read(&mut [0]).await.unwrap(), 1);
            assert!(is_open(&stdin).await);
            drop(hold);
            assert_eq!(stdin.read(&mut [0]).await.unwrap(), 0);
        }
    }

    async fn output(path: &str, bytes: &[u8]) -> Target {
        let mut target = Target::open("stdout", path).await.unwrap().unwrap();
        assert_eq!(target.write(bytes).await, bytes.len());
        target
    }

    fn reader(path: &str) -> pipe::Receiver {
        pipe::OpenOptions::new().open_receiver(path).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_output_ends_when_its_reader_has_taken_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let mut reader = reader(&path);
        let target = output(&path, &[7; 40_000]).await;
        // A client removes the name before.
        std::fs::remove_file(&path).unwrap();
        let end = tokio::spawn(target.finish(LONG));
        let mut buffer = [0; 1000];
        for _ in 0..40 {
            assert!(!end.is_finished());
            tokio::time::sleep(Duration::from_millis(2)).await;
            reader.read_exact(&mut buffer).await.unwrap();
        }
        end.await.unwrap();
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_output_that_nobody_reads_ends_at_once_and_one_of_a_reader_that_stalls_after_the_pause() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let began = Instant::now();
        output(&path, b"x").await.finish(LONG).await;
        let gone = reader(&path);
        let target = output(&path, b"x").await;
        drop(gone);
        target.finish(LONG).await;
        let _stalls = reader(&path);
        output(&path, b"x").await.finish(Duration::from_millis(100)).await;
        let elapsed = began.elapsed();
        assert!(elapsed >= Duration::from_millis(100) && elapsed < LONG, "{elapsed:?}");
    }

    #[test]
    fn a_scheme_that_is_not_known_is_named() {
        let error = plain_path("streaming://x").unwrap_err();
        assert!(error.to_string().contains("streaming://x"), "{error}");
        assert!(plain_path("").unwrap().is_none());
        assert!(plain_path("/run/fifo").unwrap().is_some());
    }
}
