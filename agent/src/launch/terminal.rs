//! The terminal of a process: a pair from the container's own devpts.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::Process;
use rustix::{
    fs::{FileType, Mode, OFlags},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{
    fault::{Context, Fault, Result},
    tree::{self, Root},
};

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) master: OwnedFd,
    pub(super) terminal: OwnedFd,
}

/// Opens a new pair, of the size that the process asks for.
pub(super) fn open(process: &Process) -> Result<Pair> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .or_refuse(|| "cannot open a terminal: /dev/pts/ptmx of the container")?;
    // The container may have put something else there: the master goes to the agent.
    let stat = rustix::fs::fstat(&master).or_fail(|| "cannot examine the terminal")?;
    let genuine = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (5, 2)
        && tree::magic(&master).or_fail(|| "cannot examine the terminal")? == DEVPTS_SUPER_MAGIC;
    if !genuine {
        return Err(Fault::Refused(
            "/dev/pts/ptmx of the container makes no terminals".to_owned(),
        ));
    }
    unlockpt(&master).or_refuse(|| "cannot unlock the terminal")?;
    let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&master, open).or_refuse(|| "cannot open the terminal")?;
    if let Some(size) = process.console_size() {
        let clamp = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: clamp(size.height()),
            ws_col: clamp(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size).or_refuse(|| "cannot set the size of the terminal")?;
    }
    Ok(Pair { master, terminal })
}

/// Shows the terminal of a container's first process as /dev/console.
pub(super) fn show_as_console(pair: &Pair) -> Result<()> {
    let what = || "cannot make /dev/console";
    let slash =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).or_fail(what)?;
    let console = Root::new(slash.as_fd())
        .file(Path::new("/dev/console"))
        .or_refuse(what)?;
    let mount = tree::clone_fd(&pair.terminal, false).or_refuse(what)?;
    tree::attach(&mount, &console).or_refuse(what)
}

/// Makes it the controlling terminal of the session that the process leads.
pub(super) fn control(terminal: &OwnedFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal).or_refuse(|| "cannot make the terminal the controlling one")
}
