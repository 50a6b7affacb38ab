//! Mappings: memory that a device reads and writes, a device's registers, a file's content.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Whether the kernel moves locked pages: 0 or 1.
const COMPACTION: &str = "/proc/sys/vm/compact_unevictable_allowed";

/// A mapping that something else changes as well. It is never unmapped: the probe ends with it.
pub(crate) struct Shared {
    start: NonNull<u8>,
    length: usize,
}

/// An unsigned number of the machine, little-endian here as everywhere in virtio 1.
pub(crate) trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl Shared {
    /// One page of memory that stays where it is, and its address as devices know it (needs CAP_SYS_ADMIN).
    pub(crate) fn page() -> io::Result<(Self, u64)> {
        // A locked page is not swapped out, and may be moved all the same: compaction would give its frame to somebody else, and the device
        // would write there (Documentation/admin-guide/sysctl/vm.rst).
        fs::write(COMPACTION, "0")?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_LOCKED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start = unsafe { mmap_anonymous(None, LENGTH, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        let memory = Self {
            start: start.cast(),
            length: PAGE,
        };
        memory.write(0, 1_u8);
        // Documentation/admin-guide/mm/pagemap.rst: 64 bits a page, the frame in the lower 55.
        let mut pagemap = File::open("/proc/self/pagemap")?;
        let page = memory.start.as_ptr() as usize / PAGE;
        pagemap.seek(SeekFrom::Start(page as u64 * 8))?;
        let mut entry = [0; 8];
        pagemap.read_exact(&mut entry)?;
        let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
        if frame == 0 {
            return Err(io::Error::other("the page's frame is not told"));
        }
        Ok((memory, frame * PAGE as u64))
    }

    /// Memory in pages of 2 MiB, of no file.
    pub(crate) fn huge(length: usize) -> io::Result<Self> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB;
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// A file's content, or a device's registers. What is written there goes to the file, or, where it is `private`, to nobody.
    pub(crate) fn file(file: &File, private: bool) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let kind = if private {
            MapFlags::MAP_PRIVATE
        } else {
            MapFlags::MAP_SHARED
        };
        // SAFETY: as above.
        let start = unsafe { mmap(None, size, access, kind, file.as_fd(), 0) }?;
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    fn at<T: Word>(&self, offset: usize) -> *mut T {
        let end = offset + size_of::<T>();
        assert!(
            end <= self.length && offset.is_multiple_of(size_of::<T>()),
            "{offset} is not in the mapping"
        );
        // SAFETY: the offset is inside the mapping, as was just checked.
        unsafe { self.start.as_ptr().add(offset) }.cast()
    }

    pub(crate) fn read<T: Word>(&self, offset: usize) -> T {
        // SAFETY: `at` gives an aligned address inside the mapping, and every bit pattern is a number.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    pub(crate) fn write<T: Word>(&self, offset: usize, value: T) {
        // SAFETY: as for `read`.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    pub(crate) fn read_bytes(&self, offset: usize, count: usize) -> Vec<u8> {
        (offset..offset + count).map(|at| self.read(at)).collect()
    }

    pub(crate) fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        bytes.iter().zip(offset..).for_each(|(byte, at)| self.write(at, *byte));
    }
}

const LENGTH: NonZeroUsize = NonZeroUsize::new(PAGE).unwrap();
