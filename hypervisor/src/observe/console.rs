//! The guest's console: a bounded file, and its end in memory.
//!
//! The guest may print without end. The stored size is bounded (two files of [`HALF`] bytes; the older one has `.1` at
//! the end of its name), and so is the rate of reading. A guest that floods its console only slows down its own serial
//! port.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base::tail::Tail;
use rustix::fs::{Mode, OFlags};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Bytes of one of the two files.
const HALF: u64 = 512 << 10;

/// Bytes that may be read at once, and afterwards per second.
const RATE: u32 = 1 << 20;

/// How long the end of a dead VM's console is waited for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of a console that is being read. Clones are of the same console.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    pub(crate) tail: Tail,
    drained: watch::Receiver<bool>,
}

impl Console {
    /// Reads `stream` to its end into the file. Must be called in a runtime.
    pub(crate) fn collect(mut stream: UnixStream, path: PathBuf) -> Self {
        let (sender, drained) = watch::channel(false);
        let console = Self {
            tail: Tail::default(),
            drained,
        };
        let tail = console.tail.clone();
        tokio::spawn(async move {
            let (path, _directory) = followed(path);
            let mut ring = Ring {
                path,
                file: None,
                size: 0,
            };
            let mut pace = Pace {
                budget: RATE,
                since: Instant::now(),
            };
            let mut buffer = vec![0; 32 << 10];
            let mut failed = false;
            // An error is an end as well: QEMU is gone.
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                tail.push(&buffer[..count]);
                if !failed && let Err(error) = ring.write(&buffer[..count]).await {
                    tracing::warn!(path = ?ring.path, %error, "the guest's console cannot be written to its file");
                    failed = true;
                }
                if let Some(wait) = pace.spend(count, Instant::now()) {
                    tokio::time::sleep(wait).await;
                }
            }
            sender.send_replace(true);
        });
        console
    }

    /// Waits a moment for the end of what a dead VM has printed.
    pub(crate) async fn drained(&self) {
        let mut drained = self.drained.clone();
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained.wait_for(|drained| *drained)).await;
    }
}

/// The same file by a path that holds when its directory is renamed (`/proc/PID/fd`, proc_pid_fd(5)), and what it needs. A directory that
/// cannot be opened is named as it is.
fn followed(path: PathBuf) -> (PathBuf, Option<OwnedFd>) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = path
        .parent()
        .and_then(|parent| rustix::fs::open(parent, flags, Mode::empty()).ok());
    match (opened, path.file_name()) {
        (Some(directory), Some(name)) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
            (path, Some(directory))
        }
        _ => (path, None),
    }
}

struct Ring {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Ring {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size >= HALF {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            tokio::fs::rename(&self.path, older).await?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.size = 0;
                self.file.insert(File::create(&self.path).await?)
            }
        };
        file.write_all(bytes).await?;
        file.flush().await?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// A token bucket of [`RATE`] bytes.
struct Pace {
    budget: u32,
    since: Instant,
}

impl Pace {
    /// Takes `count` bytes; how long to wait before the next ones, if at all.
    fn spend(&mut self, count: usize, now: Instant) -> Option<Duration> {
        let earned = now.duration_since(self.since).as_secs_f64() * f64::from(RATE);
        self.since = now;
        // The cast saturates, and so does the sum at the bucket's size.
        self.budget = self.budget.saturating_add(earned as u32).min(RATE);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if let Some(rest) = self.budget.checked_sub(count) {
            self.budget = rest;
            return None;
        }
        let debt = count - self.budget;
        self.budget = 0;
        // The time that pays the debt earns nothing else.
        let wait = Duration::from_secs_f64(f64::from(debt) / f64::from(RATE));
        self.since = now + wait;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_console_is_in_the_file_and_in_the_tail() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let console = Console::collect(ours, path.clone());
        guest.write_all(b"Kernel panic\x1b[0m\n").await.unwrap();
        drop(guest);
        console.drained().await;
        assert_eq!(std::fs::read(&path).unwrap(), b"Kernel panic\x1b[0m\n");
        assert_eq!(console.tail.text(), "Kernel panic\\x1b[0m");
    }

    #[tokio::test]
    async fn the_files_stay_small_and_keep_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut ring = Ring {
            path: path.clone(),
            file: None,
            size: 0,
        };
        let piece = vec![b'x'; 30_000];
        for _ in 0..100 {
            ring.write(&piece).await.unwrap();
        }
        ring.write(b"the end").await.unwrap();
        let newer = std::fs::read(&path).unwrap();
        let older = std::fs::read(directory.path().join("console.log.1")).unwrap();
        let limit = usize::try_from(HALF).unwrap() + piece.len();
        assert!(newer.ends_with(b"the end"));
        assert!(newer.len() < limit && older.len() < limit);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_burst_is_free_and_a_flood_is_paced() {
        let start = Instant::now();
        let mut pace = Pace {
            budget: RATE,
            since: start,
        };
        assert_eq!(pace.spend(RATE as usize, start), None);
        assert_eq!(pace.spend(RATE as usize / 2, start), Some(Duration::from_millis(500)));
        let paid = start + Duration::from_millis(500);
        assert_eq!(pace.spend(RATE as usize, paid), Some(Duration::from_secs(1)));
    }

    /// What the guest prints, in pieces that come at once or later.
    #[test]
    fn fuzz_console() {
        fuzz::run("console", |bytes| {
            let (tail, mut now) = (Tail::default(), Instant::now());
            let mut pace = Pace {
                budget: RATE,
                since: now,
            };
            for piece in bytes.chunks(61) {
                tail.push(piece);
                let count = usize::from(piece[0]) << 14;
                if let Some(wait) = pace.spend(count, now) {
                    assert!(wait <= Duration::from_secs(5));
                    now += wait;
                }
            }
            let text = tail.text();
            let harmless = |character: char| !character.is_control() || "\n\t".contains(character);
            assert!(text.chars().all(harmless), "{text:?}");
        });
    }
}
