//! A root file system that has nothing but what it is given, in a mount namespace of its own.
//!
//! Described before the fork ([`RootBuilder`]), made by the child ([`Root::enter`]) with system calls alone. Everything in it is
//! read-only. Knows no program.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use rustix::process::{chdir, umask};

use super::namespaces::{Failed, change_root, leave_namespaces};

/// Flags of a device in the root.
const DEVICE: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);
/// Flags of everything else.
const FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV);

/// What the root has, with names that are relative to it.
#[derive(Debug)]
enum Item {
    /// A file of the host, or a directory with all in it.
    Bind {
        source: CString,
        name: CString,
        directory: bool,
        flags: MountFlags,
    },
    /// A file with the bytes of another.
    Copy {
        source: File,
        length: u64,
        name: CString,
    },
    Link {
        name: CString,
        target: CString,
    },
}

#[derive(Debug)]
pub(crate) struct RootBuilder {
    mount_point: CString,
    /// Relative to the root. A directory comes before those in it.
    directories: BTreeSet<PathBuf>,
    items: Vec<Item>,
}

/// A root that has been described.
#[derive(Debug)]
pub(crate) struct Root {
    mount_point: CString,
    directories: Vec<CString>,
    items: Vec<Item>,
}

impl RootBuilder {
    /// Of a root that will be mounted on this directory, which has to be there.
    pub(crate) fn new(mount_point: &Path) -> io::Result<Self> {
        Ok(Self {
            mount_point: text(mount_point)?,
            directories: BTreeSet::new(),
            items: Vec::new(),
        })
    }

    /// Adds a file of the host. `name` is where it is found: absolute, and without links, `.` or `..` on the way.
    pub(crate) fn bind(&mut self, file: &Path, name: &Path) -> io::Result<()> {
        self.add_bind(file, name, false, FLAGS)
    }

    /// Adds a device of the host, which its permissions alone protect.
    pub(crate) fn bind_device(&mut self, device: &Path, name: &Path) -> io::Result<()> {
        self.add_bind(device, name, false, DEVICE)
    }

    /// Adds a directory of the host with all in it.
    pub(crate) fn bind_directory(&mut self, directory: &Path, name: &Path) -> io::Result<()> {
        self.add_bind(directory, name, true, FLAGS)
    }

    fn add_bind(&mut self, source: &Path, name: &Path, directory: bool, flags: MountFlags) -> io::Result<()> {
        let item = Item::Bind {
            source: text(&std::path::absolute(source)?)?,
            name: self.place(name)?,
            directory,
            flags,
        };
        self.items.push(item);
        Ok(())
    }

    /// Adds a file that all may read, with the bytes of one that is open.
    pub(crate) fn copy(&mut self, source: File, name: &Path) -> io::Result<()> {
        let item = Item::Copy {
            length: source.metadata()?.len(),
            source,
            name: self.place(name)?,
        };
        self.items.push(item);
        Ok(())
    }

    pub(crate) fn link(&mut self, name: &Path, target: &Path) -> io::Result<()> {
        let item = Item::Link {
            name: self.place(name)?,
            target: text(target)?,
        };
        self.items.push(item);
        Ok(())
    }

    /// The name relative to the root. The directories on the way become part of the root.
    fn place(&mut self, name: &Path) -> io::Result<CString> {
        let relative = name.strip_prefix("/").map_err(io::Error::other)?;
        let above = relative.ancestors().skip(1);
        self.directories
            .extend(above.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned));
        text(relative)
    }

    /// Describes it completely.
    pub(crate) fn finish(self) -> io::Result<Root> {
        let directories = self.directories.iter().map(|path| text(path));
        Ok(Root {
            mount_point: self.mount_point,
            directories: directories.collect::<io::Result<_>>()?,
            items: self.items,
        })
    }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

impl Root {
    /// Gives the calling process, which has one thread, a new mount namespace, and makes this its root.
    pub(super) fn enter(&self) -> Result<(), Failed> {
        const STEP: &[u8] = b"cannot make the root directory";
        leave_namespaces(libc::CLONE_NEWNS)?;
        umask(Mode::from_raw_mode(0o022));
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"tmpfs", self.mount_point.as_c_str(), c"tmpfs", flags, c"mode=0755")
            .and_then(|()| chdir(self.mount_point.as_c_str()))
            .map_err(|errno| (STEP, errno))?;
        for name in &self.directories {
            match rustix::fs::mkdir(name.as_c_str(), Mode::from_raw_mode(0o755)) {
                Err(Errno::EXIST) => {}
                made => made.map_err(|errno| named(name, errno))?,
            }
        }
        for item in &self.items {
            item.make().map_err(|errno| named(item.name(), errno))?;
        }
        change_root()
            .and_then(|()| mount_remount(c"/", flags | MountFlags::RDONLY | MountFlags::BIND, c""))
            .map_err(|errno| (STEP, errno))
    }
}

/// The step that failed. The name is written where it will be read.
fn named(name: &CString, errno: Errno) -> Failed {
    let _ = rustix::io::write(io::stderr(), name.as_bytes());
    (b": cannot put it into the root directory", errno)
}

impl Item {
    fn name(&self) -> &CString {
        match self {
            Item::Bind { name, .. } | Item::Copy { name, .. } | Item::Link { name, .. } => name,
        }
    }

    fn make(&self) -> rustix::io::Result<()> {
        match self {
            Item::Bind {
                source,
                name,
                directory,
                flags,
            } => {
                if *directory {
                    match rustix::fs::mkdir(name.as_c_str(), Mode::from_raw_mode(0o755)) {
                        Err(Errno::EXIST) => {}
                        made => made?,
                    }
                } else {
                    create(name)?;
                }
                mount_bind(source.as_c_str(), name.as_c_str())?;
                mount_remount(name.as_c_str(), *flags | MountFlags::BIND, c"")
            }
            Item::Copy { source, length, name } => {
                let target = create(name)?;
                let mut offset = 0;
                while offset < *length {
                    let rest = usize::try_from(*length - offset).unwrap_or(usize::MAX);
                    if rustix::fs::sendfile(&target, source, Some(&mut offset), rest)? == 0 {
                        // It has become shorter.
                        return Err(Errno::IO);
                    }
                }
                Ok(())
            }
            Item::Link { name, target } => rustix::fs::symlink(target.as_c_str(), name.as_c_str()),
        }
    }
}

fn create(name: &CString) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(name.as_c_str(), flags, Mode::from_raw_mode(0o444))
}
