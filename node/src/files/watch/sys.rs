//! fanotify and file handles: system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::event::Handle;

/// Events for which a directory is watched.
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

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct Buffer {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; LONGEST_HANDLE],
}

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

/// Watches a directory and what is directly in it, or one file: what the descriptor stands for, by whatever name.
pub(super) fn mark(group: BorrowedFd<'_>, file: BorrowedFd<'_>, directory: bool) -> io::Result<()> {
    // A descriptor that was opened for its path alone has to be named (open(2), O_PATH).
    let path = CString::new(crate::host::openat_beneath::name_of(&file)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mask = if directory { DIRECTORY } else { FILE };
    let only = if directory { libc::FAN_MARK_ONLYDIR } else { 0 };
    let flags = libc::FAN_MARK_ADD | only;
    // SAFETY: `path` is a string that ends with a zero and lives as long as the call.
    match unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Watches it no longer. It is no error if it was not watched, or is gone.
pub(super) fn unmark(group: BorrowedFd<'_>, file: BorrowedFd<'_>, directory: bool) -> io::Result<()> {
    let path = CString::new(crate::host::openat_beneath::name_of(&file)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mask = if directory { DIRECTORY } else { FILE };
    // SAFETY: `path` is a string that ends with a zero and lives as long as the call.
    let result = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_REMOVE,
            mask,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        },
    }
}

/// Opens a file by its handle, for its path alone. `within` is any file of its file system, open for reading.
pub(super) fn open_by_handle(within: BorrowedFd<'_>, handle: &Handle) -> io::Result<OwnedFd> {
    let mut buffer = Buffer {
        bytes: u32::try_from(handle.bytes.len()).unwrap_or(u32::MAX),
        kind: handle.kind,
        handle: [0; LONGEST_HANDLE],
    };
    let room = buffer.handle.get_mut(..handle.bytes.len());
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&handle.bytes);
    // SAFETY: `buffer` begins as `struct file_handle` does and has behind it the bytes that it says; it is read during the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            within.as_raw_fd(),
            (&raw mut buffer).cast::<libc::file_handle>(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The handle by which events name a file.
pub(super) fn handle_of(file: BorrowedFd<'_>) -> io::Result<Handle> {
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
            file.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut buffer).cast::<libc::file_handle>(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(buffer.bytes).unwrap_or(LONGEST_HANDLE);
    Ok(Handle {
        file_system: file_system(file)?,
        kind: buffer.kind,
        bytes: buffer.handle[..length.min(LONGEST_HANDLE)].to_owned(),
    })
}

/// `f_fsid` of statfs(2), the bytes that fanotify puts into its records.
fn file_system(file: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    // SAFETY: statfs is plain data for which all zeroes is a valid value.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the answer is a valid, writable struct; both live as long as the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fsid_t is two 32-bit integers: eight bytes without padding, for which every value is valid.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, [u8; 8]>(answer.f_fsid) })
}
