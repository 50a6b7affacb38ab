//! fanotify and file handles: system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::event::Handle;

/// What a directory is watched for.
const DIRECTORY: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_RENAME
    | libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ONDIR
    | libc::FAN_EVENT_ON_CHILD;

/// What a file by itself is watched for.
const FILE: u64 = libc::FAN_MODIFY | libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE;

/// Longest file handle: MAX_HANDLE_SZ of `linux/exportfs.h`.
const LONGEST_HANDLE: usize = 128;

/// A notification group that tells names and file handles (fanotify_init(2)).
pub(super) fn group() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_UNLIMITED_MARKS
        | libc::FAN_REPORT_FID
        | libc::FAN_REPORT_DFID_NAME;
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC).unsigned_abs()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Watches a directory and what is directly in it, or one file. The path's last component is not followed.
pub(super) fn mark(group: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<()> {
    let path = c_path(path)?;
    let mask = if directory { DIRECTORY } else { FILE };
    let only = if directory { libc::FAN_MARK_ONLYDIR } else { 0 };
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_DONT_FOLLOW | only;
    // SAFETY: `path` is a string that ends with a zero and lives as long as the call.
    match unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handle by which events name a file. The path's last component is not followed.
pub(super) fn handle_of(path: &Path) -> io::Result<Handle> {
    #[repr(C)]
    struct Buffer {
        bytes: libc::c_uint,
        kind: libc::c_int,
        handle: [u8; LONGEST_HANDLE],
    }
    let c_path = c_path(path)?;
    let mut buffer = Buffer {
        bytes: 128,
        kind: 0,
        handle: [0; LONGEST_HANDLE],
    };
    let mut mount_id = 0;
    // SAFETY: `buffer` begins as `struct file_handle` does and has the room behind it that `bytes` says; all pointers
    // are valid for the call.
    let result = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            c_path.as_ptr(),
            (&raw mut buffer).cast::<libc::file_handle>(),
            &raw mut mount_id,
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(buffer.bytes).unwrap_or(LONGEST_HANDLE);
    Ok(Handle {
        file_system: file_system(&c_path)?,
        kind: buffer.kind,
        bytes: buffer.handle[..length.min(LONGEST_HANDLE)].to_owned(),
    })
}

/// `f_fsid` of statfs(2), the bytes that fanotify puts into its records.
fn file_system(path: &CString) -> io::Result<[u8; 8]> {
    // SAFETY: statfs is plain data for which all zeroes is a valid value.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and the answer is a valid, writable struct; both live as long as the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fsid_t is two 32-bit integers: eight bytes without padding, for which every value is valid.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, [u8; 8]>(answer.f_fsid) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
