//! What a program's ELF header says of the loader that it needs (elf(5), 64 bits, little-endian).

use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

const PT_INTERP: u32 = 3;
/// Bytes of program headers that are looked at.
const LONGEST_TABLE: u64 = 64 << 10;
/// PATH_MAX.
const LONGEST_PATH: u64 = 4096;

/// The loader that the program names; none if it is linked statically.
///
/// # Errors
/// It is no such program, or it cannot be read.
pub(crate) fn interpreter(program: &mut (impl Read + Seek)) -> io::Result<Option<PathBuf>> {
    let mut header = [0; 64];
    program.read_exact(&mut header)?;
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (size, count) = (word(54), word(56));
    if header[..5] != *b"\x7fELF\x02" || size < 56 {
        return Err(invalid("it is no 64-bit ELF program"));
    }
    program.seek(SeekFrom::Start(long(&header, 32)))?;
    let mut table = Vec::new();
    let length = LONGEST_TABLE.min((size * count) as u64);
    program.by_ref().take(length).read_to_end(&mut table)?;
    let entry = table
        .chunks_exact(size)
        .find(|entry| entry[..4] == PT_INTERP.to_le_bytes());
    let Some(entry) = entry else {
        return Ok(None);
    };
    let (offset, length) = (long(entry, 8), long(entry, 32));
    program.seek(SeekFrom::Start(offset))?;
    let mut path = Vec::new();
    program.take(length.min(LONGEST_PATH)).read_to_end(&mut path)?;
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    if path.first() != Some(&b'/') {
        return Err(invalid("the loader that it names has no absolute path"));
    }
    Ok(Some(PathBuf::from(OsStr::from_bytes(path))))
}

/// Eight bytes that are there: callers ask within a header of known size.
fn long(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        // The tests are linked as the machine's programs are.
        let mut own = File::open("/proc/self/exe").unwrap();
        let loader = interpreter(&mut own).unwrap().unwrap();
        assert!(loader.exists(), "{loader:?}");
        let mut elf = vec![0; 64 + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert_eq!(interpreter(&mut io::Cursor::new(&elf)).unwrap(), None);
        elf[64] = 3;
        assert!(
            interpreter(&mut io::Cursor::new(&elf)).is_err(),
            "a loader without a name"
        );
        assert!(interpreter(&mut io::Cursor::new(b"#!/bin/sh\n".repeat(10))).is_err());
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut elf = b"\x7fELF\x02".to_vec();
            elf.extend(bytes);
            let _ = interpreter(&mut io::Cursor::new(&elf));
        }
    }
}
