//! POSIX access lists (acl(5)): set, inherited, changed by chmod, and what they let two users do.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::{
    fs::{Mode, XattrFlags},
    io::Errno,
};
use serde_json::{Value, json};

use crate::child::child;

/// Users who own nothing.
const USERS: [u32; 2] = [1000, 1001];
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
/// `ACL_UNDEFINED_ID` of entries that are nobody's in particular.
const NOBODY: u32 = u32::MAX;
/// Tags of entries (linux/posix_acl.h): the owner, a user, the group, the mask, the others.
const TAGS: [(u16, &str); 5] = [(1, "owner"), (2, "user"), (4, "group"), (16, "mask"), (32, "other")];

/// A list that lets the first of the users read, and nobody else.
const ONE_READS: [(u16, u16, u32); 5] = [
    (1, 6, NOBODY),
    (2, 4, USERS[0]),
    (4, 0, NOBODY),
    (16, 4, NOBODY),
    (32, 0, NOBODY),
];

/// Tries lists in a directory that may be written to, in which the host has put a file `hosted` with a list of its own.
pub(crate) fn report(directory: &str) -> crate::error::Result<()> {
    let directory = Path::new(directory);
    let read = on_a_file(directory)?;
    let listed = directory.join("listed");
    // What chmod gives the group is the mask of the list.
    fs::set_permissions(&listed, fs::Permissions::from_mode(0o600))?;
    let masked = json!([list(&listed, ACCESS), both(&listed)?]);
    // A directory's default list stands in for the mask of the process.
    let parent = directory.join("parent");
    fs::create_dir(&parent)?;
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
    rustix::fs::setxattr(&parent, DEFAULT, &encoded(&ONE_READS), XattrFlags::empty())?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o077));
    let (inside, below) = (parent.join("inside"), parent.join("below"));
    make(&inside, 0o666)?.write_all(b"inherited")?;
    fs::DirBuilder::new().mode(0o777).create(&below)?;
    rustix::process::umask(Mode::from_raw_mode(0o027));
    make(&directory.join("plain"), 0o666)?;
    rustix::process::umask(before);
    println!(
        "{}",
        json!({
            "read": read,
            "after chmod 600": masked,
            "inherited": list(&inside, ACCESS),
            "read what inherited": both(&inside)?,
            "inherited by a directory": list(&below, DEFAULT),
            "mode without a list": mode(&directory.join("plain"))?,
            "list without a list": list(&directory.join("plain"), ACCESS),
            "read the host's": both(&directory.join("hosted"))?,
            "the host's list": list(&directory.join("hosted"), ACCESS),
        })
    );
    Ok(())
}

/// A list that lets one user read a file, and what two users get; or the errno where there are no lists.
pub(crate) fn on_a_file(directory: &Path) -> crate::error::Result<Value> {
    let path = directory.join("listed");
    let mut file = File::create(&path)?;
    file.write_all(b"listed")?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600))?;
    match rustix::fs::setxattr(&path, ACCESS, &encoded(&ONE_READS), XattrFlags::empty()) {
        Err(errno) => Ok(json!(errno.raw_os_error())),
        Ok(()) => both(&path),
    }
}

fn both(path: &Path) -> crate::error::Result<Value> {
    Ok(json!([
        child(Some(USERS[0]), "read", path)?,
        child(Some(USERS[1]), "read", path)?
    ]))
}

fn make(path: &Path, mode: u32) -> std::io::Result<File> {
    File::options().write(true).create_new(true).mode(mode).open(path)
}

fn mode(path: &Path) -> std::io::Result<String> {
    Ok(format!("{:o}", fs::metadata(path)?.permissions().mode() & 0o7777))
}

/// linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry.
fn encoded(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// A list as text, or the errno.
fn list(path: &Path, name: &str) -> Value {
    let mut bytes = [0; 256];
    match rustix::fs::getxattr(path, name, &mut bytes) {
        Ok(length) => json!(decoded(&bytes[4.min(length)..length])),
        Err(Errno::NODATA) => json!("none"),
        Err(errno) => json!(errno.raw_os_error()),
    }
}

fn decoded(entries: &[u8]) -> String {
    let mut text = String::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let name = TAGS
            .iter()
            .find(|(number, _)| *number == tag)
            .map_or("?", |(_, name)| name);
        let who = if tag == 2 { id.to_string() } else { String::new() };
        // Writing to a string does not fail.
        let _ = write!(text, "{name}{who}={} ", entry[2]);
    }
    text.trim_end().to_owned()
}
