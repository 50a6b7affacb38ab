//! Reads `/proc/thread-self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! `procfs-core` reads the file too, but its paths are text: one that is not UTF-8 fails the whole file, and here it is one mount among others.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the file, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// Its number: no other mount has it as long as this one is there. statx(2) knows it, too.
    pub id: u64,
    /// The number of the mount that it is mounted on.
    pub parent: u64,
    /// The file system: major and minor number of its device.
    pub device: (u32, u32),
    /// The directory or file of that file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The mount is read-only, whatever its file system is.
    pub read_only: bool,
    /// It is a slave: it gets what is mounted in its master.
    pub receives: bool,
    /// It is shared: it has peers, which get what is mounted in it.
    pub shared: bool,
    /// It is in no clone of what it is mounted in.
    pub unbindable: bool,
    /// Type of the file system.
    pub kind: String,
    /// Options of the file system: for cgroup v1 the controllers.
    pub super_options: String,
}

/// All mounts of the calling thread's mount namespace, in the order in which they were made.
pub(crate) fn read() -> io::Result<Vec<MountLine>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

/// All mounts of another process's mount namespace, their places as that process sees them.
pub(crate) fn of(process: i32) -> io::Result<Vec<MountLine>> {
    Ok(parse(&fs::read(format!("/proc/{process}/mountinfo"))?))
}

/// The mounts on and below a path, in the order in which they were made.
pub(crate) fn below(path: &Path) -> io::Result<Vec<MountLine>> {
    let mut lines = read()?;
    lines.retain(|line| line.mountpoint.starts_with(path));
    Ok(lines)
}

/// The lines of such a file; those that are none are left out.
pub(crate) fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (device.0.parse().ok()?, device.1.parse().ok()?);
    let root = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let read_only = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    // Optional fields, which follow the options, end with a lone dash.
    let tags: Vec<&[u8]> = fields.take_while(|field| *field != b"-").collect();
    let tagged = |tag: &[u8]| tags.iter().any(|field| field.starts_with(tag));
    let (receives, shared) = (tagged(b"master:"), tagged(b"shared:"));
    let unbindable = tagged(b"unbindable");
    let mut rest = line.split(|byte| *byte == b' ').skip_while(|field| *field != b"-");
    let kind = String::from_utf8(unescape(rest.nth(1)?)).ok()?;
    let super_options = String::from_utf8_lossy(rest.nth(1)?).into_owned();
    Some(MountLine {
        id,
        parent,
        device,
        root,
        mountpoint,
        read_only,
        receives,
        shared,
        unbindable,
        kind,
        super_options,
    })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        let digits = field
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(value) => {
                bytes.push(value);
                at += 4;
            }
            None => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_with_optional_fields_and_a_space_in_the_path() {
        let text =
            b"36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:2 - cgroup cgroup rw,cpu,cpuacct\nrubbish\n";
        let line = MountLine {
            id: 36,
            parent: 35,
            device: (98, 0),
            root: "/mnt1".into(),
            mountpoint: "/mnt two".into(),
            read_only: false,
            receives: true,
            shared: true,
            unbindable: false,
            kind: "cgroup".to_owned(),
            super_options: "rw,cpu,cpuacct".to_owned(),
        };
        assert_eq!(parse(text), [line]);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(read().unwrap().iter().any(|line| line.mountpoint == Path::new("/")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_skipped(bytes: Vec<u8>) {
            parse(&bytes);
        }
    }

    #[test]
    fn fuzz_mountinfo() {
        fuzz::run("mountinfo", |bytes| drop(parse(bytes)));
    }
}
