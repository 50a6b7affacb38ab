//! System calls that these tests alone need: what is in the page cache, and directories as a 32-bit program reads them.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::fd::AsRawFd as _,
    ptr,
};

use nix::libc;

use crate::sys::PAGE;

/// The number of getdents64(2) in the table for 32-bit programs (arch/x86/entry/syscalls/syscall_32.tbl).
#[cfg(target_arch = "x86_64")]
const GETDENTS64_OF_I386: usize = 220;
/// Bytes for entries of one call: a few dozen names, so that a listing takes several calls.
const ROOM: usize = 1024;
/// Where the position, the length and the name are in `struct linux_dirent64` (getdents(2)).
const POSITION: usize = 8;
const LENGTH: usize = 16;
const NAME: usize = 19;

#[derive(Debug, Clone, Copy)]
pub(super) enum Caller {
    /// A program of this architecture.
    Wide,
    /// One that the kernel takes for a 32-bit program.
    Narrow,
}

/// A mapping that nothing but these calls writes to, unmapped when dropped.
#[derive(Debug)]
struct Mapped {
    at: *mut c_void,
    length: usize,
}

impl Mapped {
    fn new(length: usize, protection: i32, flags: i32, fd: i32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing that exists is touched.
        let at = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at, length })
    }

    fn byte(&self, index: usize) -> u8 {
        assert!(index < self.length);
        // SAFETY: the mapping is readable, and the byte is in it.
        unsafe { self.at.cast::<u8>().add(index).read_volatile() }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and no reference into it is ever given out.
        let _ = unsafe { libc::munmap(self.at, self.length) };
    }
}

/// The first page of a file.
#[derive(Debug)]
pub(super) struct MappedPage(Mapped);

impl MappedPage {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        Mapped::new(PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd()).map(Self)
    }

    /// Reads from it, so that it is in the page cache.
    pub(super) fn first_byte(&self) -> u8 {
        self.0.byte(0)
    }

    /// Whether it is in the page cache (mincore(2)).
    pub(super) fn resident(&self) -> io::Result<bool> {
        let mut state = 0_u8;
        // SAFETY: the mapping is one page long, so one byte is written.
        if unsafe { libc::mincore(self.0.at, PAGE, &raw mut state) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(state & 1 == 1)
    }
}

/// The names from a position on, each with the position after it.
pub(super) fn directory(mut dir: &File, caller: Caller, from: u64) -> io::Result<Vec<(String, u64)>> {
    dir.seek(SeekFrom::Start(from))?;
    let mut entries = Vec::new();
    loop {
        // A 32-bit program has no address beyond 4 GiB.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | low();
        let room = Mapped::new(ROOM, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
        let length = match caller {
            Caller::Wide => wide(dir, &room)?,
            Caller::Narrow => narrow(dir, &room)?,
        };
        if length == 0 {
            return Ok(entries);
        }
        let bytes: Vec<u8> = (0..length).map(|index| room.byte(index)).collect();
        parse(&bytes, &mut entries)?;
    }
}

fn parse(mut bytes: &[u8], entries: &mut Vec<(String, u64)>) -> io::Result<()> {
    while !bytes.is_empty() {
        let short = || io::Error::other("an entry that is too short");
        let position = bytes.get(POSITION..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
        let length = bytes.get(LENGTH..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
        let (entry, rest) = bytes
            .split_at_checked(usize::from(u16::from_ne_bytes(*length)))
            .ok_or_else(short)?;
        let name = entry.get(NAME..).ok_or_else(short)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        entries.push((
            String::from_utf8_lossy(name).into_owned(),
            u64::from_ne_bytes(*position),
        ));
        bytes = rest;
    }
    Ok(())
}

fn wide(dir: &File, room: &Mapped) -> io::Result<usize> {
    // SAFETY: the kernel writes at most as much as there is room for.
    let length = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), room.at, room.length) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

#[cfg(target_arch = "x86_64")]
fn low() -> i32 {
    libc::MAP_32BIT
}

#[cfg(target_arch = "x86_64")]
fn narrow(dir: &File, room: &Mapped) -> io::Result<usize> {
    let fd = usize::try_from(dir.as_raw_fd()).map_err(io::Error::other)?;
    let result: usize;
    // SAFETY: the interrupt makes a system call of a 32-bit program, which writes at most as much as there is room for, at an
    // address that has 32 bits. It may clear r8 to r11; rbx, which the compiler keeps for itself, has its value afterwards.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {fd}",
            "int 0x80",
            "xchg rbx, {fd}",
            fd = inout(reg) fd => _,
            inlateout("rax") GETDENTS64_OF_I386 => result,
            in("rcx") room.at,
            in("rdx") room.length,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
    // An error is a small negative number of 32 bits.
    let [a, b, c, d, ..] = result.to_le_bytes();
    let result = i32::from_le_bytes([a, b, c, d]);
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

#[cfg(not(target_arch = "x86_64"))]
fn low() -> i32 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn narrow(_dir: &File, _room: &Mapped) -> io::Result<usize> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
