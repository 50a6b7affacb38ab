//! Programs of the host that are run in the guest: unpacked from an archive into the shared directory, when they are needed for
//! the first time.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, statat, symlinkat};

use super::attach::io_error;
use super::{ShareError, SharedTree};
use crate::host::openat_beneath::name_of;
use crate::host::path_error::PathError;
use crate::host::remove;

/// Largest archive, in bytes: that of iptables has 5 MB.
const ARCHIVE_MAX: u64 = 32 << 20;

/// What an entry begins with (cpio(5), "New ASCII Format").
const MAGIC: &[u8] = b"070701";

/// Size of an entry's header in bytes (newc, cpio(5)).
const HEAD: usize = 110;

/// The name of the entry that is the last.
const TRAILER: &str = "TRAILER!!!";

impl SharedTree {
    /// Unpacks the programs into a directory of the shared one, which the guest cannot write to, once. They are removed with the sandbox. One
    /// caller at a time; one that fails may try again.
    ///
    /// # Errors
    /// The archive cannot be read, or there is no room.
    pub fn unpack_programs(&self, archive: &Path, name: &str) -> Result<(), ShareError> {
        let failed = |operation| move |source| ShareError::from(PathError::new(operation, archive, source));
        let mut bytes = Vec::new();
        let file = File::open(archive).map_err(failed("open"))?;
        file.take(ARCHIVE_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("read"))?;
        if bytes.len() as u64 > ARCHIVE_MAX {
            return Err(failed("read")(io::ErrorKind::FileTooLarge.into()));
        }
        if statat(&self.backing, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(());
        }
        // By another name until it is whole; what an earlier attempt left goes.
        let unfinished = format!("{name}.new");
        let place = Path::new(&name_of(&self.backing)).join(&unfinished);
        let remove = || remove::directory(&place).map_err(failed("remove what was unpacked before of"));
        remove()?;
        self.make_directory(Path::new(&unfinished), true)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory = openat(&self.backing, &unfinished, flags, Mode::empty());
        let directory = directory.map_err(|errno| io_error("open", &self.root.join(&unfinished), errno))?;
        let unpacked = unpack(&bytes, &directory).map_err(failed("unpack"));
        if unpacked.is_err() {
            remove()?;
        }
        unpacked?;
        renameat(&self.backing, &unfinished, &self.backing, name)
            .map_err(|errno| io_error("rename", &self.root.join(unfinished), errno))
    }
}

fn unpack(mut archive: &[u8], directory: &OwnedFd) -> io::Result<()> {
    while let Some(entry) = Entry::take(&mut archive)? {
        entry.write(directory)?;
    }
    Ok(())
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    content: &'a [u8],
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not an archive of programs: {what}"),
    )
}

impl<'a> Entry<'a> {
    /// Takes the next one; None: it was the last.
    fn take(archive: &mut &'a [u8]) -> io::Result<Option<Self>> {
        let head = archive.get(..HEAD).ok_or_else(|| invalid("it ends early"))?;
        if !head.starts_with(MAGIC) {
            return Err(invalid("an entry without a head"));
        }
        // Thirteen numbers of eight hex digits each.
        let number = |place: usize| {
            let digits = std::str::from_utf8(&head[6 + 8 * place..14 + 8 * place]).ok();
            let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
            number.ok_or_else(|| invalid("a number that is none"))
        };
        let (mode, size, name_size) = (number(1)?, number(6)? as usize, number(11)? as usize);
        // Name and content each end at a multiple of four.
        let content_at = (HEAD + name_size).next_multiple_of(4);
        let end = content_at + size;
        let name = archive.get(HEAD..(HEAD + name_size).saturating_sub(1));
        let (Some(name), Some(content)) = (name, archive.get(content_at..end)) else {
            return Err(invalid("it ends early"));
        };
        let name = std::str::from_utf8(name).map_err(|_| invalid("a name that is no text"))?;
        *archive = archive.get(end.next_multiple_of(4)..).unwrap_or_default();
        Ok((name != TRAILER).then_some(Self { name, mode, content }))
    }

    /// Makes it below a directory.
    fn write(&self, directory: &OwnedFd) -> io::Result<()> {
        let name = self.name.trim_start_matches("./");
        if name.is_empty() || name == "." {
            return Ok(());
        }
        let plain = |part| matches!(part, Component::Normal(_));
        if !Path::new(name).components().all(plain) {
            return Err(invalid("a name that leads out of it"));
        }
        let mode = Mode::from_raw_mode(self.mode & 0o755);
        match self.mode & libc::S_IFMT {
            libc::S_IFDIR => Ok(mkdirat(directory, name, mode)?),
            libc::S_IFLNK => {
                let target = std::str::from_utf8(self.content).map_err(|_| invalid("a link that is no text"))?;
                Ok(symlinkat(target, directory, name)?)
            }
            libc::S_IFREG => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let mut file = File::from(openat(directory, name, flags, mode)?);
                file.write_all(self.content)
            }
            _ => Err(invalid("an entry of another kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::super::tests::in_namespace;
    use super::*;

    /// The archive that cpio(1) makes of a directory.
    fn packed(root: &Path) -> Vec<u8> {
        let script = "find . | sort | cpio --quiet -H newc -o";
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn what_cpio_has_packed_is_unpacked_and_the_guest_cannot_write_to_it() {
        in_namespace(|tree, directory| {
            let root = directory.join("root");
            fs::create_dir_all(root.join("usr/sbin")).unwrap();
            fs::write(root.join("usr/sbin/multi"), "a program of odd length").unwrap();
            std::os::unix::fs::symlink("usr/sbin", root.join("sbin")).unwrap();
            let archive = directory.join("programs.img");
            let whole = packed(&root);
            // One that is cut is no reason to refuse the whole one later.
            fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
            assert!(tree.unpack_programs(&archive, ".programs").is_err());
            assert_eq!(fs::read_dir(tree.root()).unwrap().count(), 1, "the volumes alone");
            fs::write(&archive, &whole).unwrap();
            tree.unpack_programs(&archive, ".programs").unwrap();
            let shared = tree.root().join(".programs");
            assert_eq!(
                fs::read_to_string(shared.join("sbin/multi")).unwrap(),
                "a program of odd length"
            );
            let refused = fs::write(shared.join("mine"), "x").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            tree.unpack_programs(&archive, ".programs").unwrap();
            assert_eq!(fs::read_dir(tree.root()).unwrap().count(), 2);
        });
    }

    #[test]
    fn an_archive_that_is_cut_or_leads_out_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("zzzz"), "x").unwrap();
        let archive = packed(&root);
        let into = |name: &str, bytes: &[u8]| {
            let into = directory.path().join(name);
            fs::create_dir(&into).unwrap();
            unpack(bytes, &OwnedFd::from(File::open(into).unwrap()))
        };
        into("whole", &archive).unwrap();
        assert!(into("cut", &archive[..HEAD + 20]).is_err());
        let out = String::from_utf8_lossy(&archive).replace("zzzz", "../z");
        assert!(
            into("out", out.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("leads out")
        );
        assert!(!directory.path().join("z").exists());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_archive_or_not(bytes: Vec<u8>) {
            let archive = [MAGIC, &bytes].concat();
            let mut rest = archive.as_slice();
            while let Ok(Some(_)) = Entry::take(&mut rest) {}
        }
    }
}
