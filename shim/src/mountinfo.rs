//! Reads `/proc/thread-self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the file, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Type of the file system.
    pub(crate) kind: String,
    /// Options of the file system: for cgroup v1 the controllers.
    pub(crate) super_options: String,
}

/// All mounts of the calling thread's mount namespace, in the order in which they were made.
pub(crate) fn read() -> io::Result<Vec<MountLine>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

/// The mounts on and below a path, in the order in which they were made.
pub(crate) fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(read()?
        .into_iter()
        .map(|line| line.mountpoint)
        .filter(|mountpoint| mountpoint.starts_with(path))
        .collect())
}

fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(4)?)));
    // Optional fields end with a lone dash.
    let mut rest = fields.skip_while(|field| *field != b"-");
    let kind = String::from_utf8(unescape(rest.nth(1)?)).ok()?;
    let super_options = String::from_utf8_lossy(rest.nth(1)?).into_owned();
    Some(MountLine {
        mountpoint,
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
            mountpoint: "/mnt two".into(),
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
}
