//! What the host accounts to a program: its score for the OOM killer and its resource limits. A child sets them between fork and exec.

use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the shim and a VM's processes may have open: the soft limit is raised to so many, if the hard one allows it. A service manager's
/// usual soft limit, 1024, is enough for some 150 processes with streams. Not more: some programs walk through all descriptors.
const OPEN_FILES: u64 = 1 << 16;

/// RLIMIT_CORE without any core dump. A limit of 0 does not keep a dump from a program that `core_pattern` pipes it to
/// (core(5)); a limit of 1 does (`do_coredump` in the kernel's fs/coredump.c), and it is too small for a file.
const NO_CORE: u64 = 1;

/// The highest score (proc_pid_oom_score_adj(5)).
const HIGHEST_SCORE: i32 = 1000;

/// The limit of open files with which this process was started, where it has raised it.
static AT_START: OnceLock<Rlimit> = OnceLock::new();

/// A step that failed, and the error.
pub type Failed = (&'static [u8], Errno);

/// The score for the host's OOM killer (proc_pid_oom_score_adj(5)). Without CAP_SYS_RESOURCE nobody goes below what was inherited: then the
/// inherited score is what remains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Score {
    /// The caller's.
    #[default]
    Inherited,
    /// The caller's, but at least 0: a program that serves one container is not spared as containerd is.
    NotSpared,
    /// The caller's plus 1: it is killed before the caller.
    BeforeCaller,
    /// This score, from -1000 to 1000.
    Of(i32),
}

/// The limit of open files, RLIMIT_NOFILE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenFiles {
    /// That with which this process was started.
    #[default]
    AtStart,
    /// 65536, or the hard limit if that is lower.
    Many,
}

/// RLIMIT_CORE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CoreDumps {
    /// As the caller.
    #[default]
    Inherited,
    /// None, neither to a file nor to a program.
    Never,
}

/// How the host accounts for a program. By default it has what this process was started with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Its score for the host's OOM killer.
    pub score: Score,
    /// How many files it may have open.
    pub open_files: OpenFiles,
    /// Its limit for core dumps.
    pub core_dumps: CoreDumps,
}

impl Accounting {
    /// Makes ready what a child does: memory is allocated and files are read here, before the fork.
    ///
    /// # Errors
    /// This process's score cannot be read.
    pub fn prepare(self) -> io::Result<Prepared> {
        let score = match self.score {
            Score::Inherited => None,
            Score::NotSpared => Some(own_score()?).filter(|score| *score < 0).map(|_| 0),
            Score::BeforeCaller => Some(own_score()?.saturating_add(1).min(HIGHEST_SCORE)),
            Score::Of(score) => Some(score),
        };
        let files = match self.open_files {
            OpenFiles::AtStart => AT_START.get().copied(),
            OpenFiles::Many => Some(many(getrlimit(Resource::Nofile))),
        };
        let core = (self.core_dumps == CoreDumps::Never).then_some(Rlimit {
            current: Some(NO_CORE),
            maximum: Some(NO_CORE),
        });
        Ok(Prepared {
            score: score.map(|score| score.to_string()),
            limits: [(Resource::Nofile, files), (Resource::Core, core)],
        })
    }
}

/// What a child does to itself before it executes its program.
#[derive(Debug)]
pub struct Prepared {
    score: Option<String>,
    limits: [(Resource, Option<Rlimit>); 2],
}

impl Prepared {
    /// Does it to the calling process. It only makes system calls, as signal-safety(7) demands between fork and exec.
    ///
    /// # Errors
    /// The kernel refuses a limit or the score.
    pub fn apply(&self) -> Result<(), Failed> {
        if let Some(score) = &self.score {
            write_score(score).map_err(|errno| (&b"cannot set the score for the OOM killer"[..], errno))?;
        }
        for (resource, limit) in &self.limits {
            let Some(limit) = limit else { continue };
            setrlimit(*resource, *limit).map_err(|errno| (&b"cannot set a resource limit"[..], errno))?;
        }
        Ok(())
    }
}

/// Raises the calling process's soft limit of open files as far as the hard one allows, to 65536 at most. What it starts by a
/// [`super::Program`] has the limit from before.
///
/// # Errors
/// As setrlimit(2).
pub fn raise_open_files() -> rustix::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, many(limit))?;
    // Raised twice, the first is the one that it was started with.
    AT_START.get_or_init(|| limit);
    Ok(())
}

fn many(limit: Rlimit) -> Rlimit {
    let most = limit.maximum.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
    Rlimit {
        current: limit.current.map(|soft| soft.max(most)),
        maximum: limit.maximum,
    }
}

fn own_score() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim().parse().map_err(io::Error::other)
}

fn write_score(score: &str) -> Result<(), Errno> {
    let file = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match rustix::io::write(&file, score.as_bytes()) {
        Ok(_) | Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
