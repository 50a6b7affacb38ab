//! The memory of this kernel (proc_meminfo(5)), in bytes.

use std::fs::File;
use std::io::BufReader;

use procfs_core::FromBufRead;
pub use procfs_core::Meminfo;

/// What the kernel tells now; none where it cannot be read. All sizes are in bytes.
#[must_use]
pub fn read() -> Option<Meminfo> {
    parse(BufReader::new(File::open("/proc/meminfo").ok()?))
}

fn parse(text: impl std::io::BufRead) -> Option<Meminfo> {
    Meminfo::from_buf_read(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_bytes() {
        let read = read().unwrap();
        assert!(read.mem_total > 64 << 20, "{read:?}");
        assert!(read.mem_available.is_some_and(|available| available <= read.mem_total));
        assert!(read.mem_free <= read.mem_total);
        assert!(parse(&b"rubbish"[..]).is_none());
    }
}
