//! The names of the guest kernel's functions: System.map, as the kernel's build writes it (nm(1)).
//!
//! The kernel moves itself at boot (KASLR). The displacement follows from one function whose address is known: the
//! handler of exception 0, divide error. The kernel moves in steps of at least 2 MiB; any other displacement means a map
//! of another kernel.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest map that is read, in bytes: one of a distribution's kernel has 9 MB.
const MAX: u64 = 64 << 20;

/// What handles exception 0 (arch/x86/include/asm/idtentry.h in the kernel).
const FIRST_HANDLER: &str = "asm_exc_divide_error";

/// The kernel moves by multiples of this (CONFIG_PHYSICAL_ALIGN).
const STEP: u64 = 2 << 20;

/// Functions are not longer than this: what is farther from the last name is not in the kernel.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("the names of the guest kernel's functions cannot be read from {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is no map, or one without functions.
    #[error("{} is not the System.map of a kernel: it has no {FIRST_HANDLER}", path.display())]
    NoMap { path: PathBuf },
    #[error("{} belongs to another kernel than the guest's: its {FIRST_HANDLER} does not fit", path.display())]
    OtherKernel { path: PathBuf },
}

/// The functions of a kernel, by address.
#[derive(Debug)]
pub(crate) struct SystemMap {
    path: PathBuf,
    functions: Vec<(u64, String)>,
    first_handler: u64,
}

impl SystemMap {
    /// Reads the map that belongs to a kernel: the file `System.map` beside it.
    pub(crate) fn beside(kernel: &Path) -> Result<Self, MapError> {
        let path = kernel.with_file_name("System.map");
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(MAX).read_to_string(&mut text));
        match read {
            Ok(_) => Self::parse(path, &text),
            Err(source) => Err(MapError::Read { path, source }),
        }
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, MapError> {
        let functions = text.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
            // Text symbols, global and local (nm(1)).
            let function = matches!(kind, "t" | "T" | "w" | "W");
            function.then_some((u64::from_str_radix(address, 16).ok()?, name.to_owned()))
        });
        let mut functions: Vec<_> = functions.collect();
        // Stable: of several names of one address the first is kept, which is the one that the source defines.
        functions.sort_by_key(|(address, _)| *address);
        functions.dedup_by_key(|(address, _)| *address);
        let handler = functions.iter().find(|(_, name)| name == FIRST_HANDLER);
        match handler.map(|(address, _)| *address) {
            Some(first_handler) => Ok(Self {
                path,
                functions,
                first_handler,
            }),
            None => Err(MapError::NoMap { path }),
        }
    }

    /// By how much the kernel has moved, as an addend.
    pub(crate) fn offset(&self, first_handler: u64) -> Result<u64, MapError> {
        let offset = first_handler.wrapping_sub(self.first_handler);
        if offset.is_multiple_of(STEP) {
            Ok(offset)
        } else {
            Err(MapError::OtherKernel {
                path: self.path.clone(),
            })
        }
    }

    /// The function that an address is in, for a kernel that has moved by `offset`.
    pub(crate) fn function(&self, address: u64, offset: u64) -> Option<&str> {
        let address = address.wrapping_sub(offset);
        let after = self.functions.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.functions.get(after.checked_sub(1)?)?;
        let within = address - start < LONGEST;
        within.then_some(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAP: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _text\nffffffff81000000 T startup_64\nffffffff81001000 t spin\nffffffff81001080 D data\n\
        ffffffff81001100 W weak\nffffffff81a008b0 T asm_exc_divide_error\n";

    fn map() -> SystemMap {
        SystemMap::parse("/share/System.map".into(), MAP).unwrap()
    }

    #[test]
    fn an_address_has_the_name_of_the_function_that_it_is_in_wherever_the_kernel_is() {
        let map = map();
        for moved in [0, 0x2500_0000, 0u64.wrapping_sub(0x20_0000)] {
            let offset = map.offset(0xffff_ffff_81a0_08b0_u64.wrapping_add(moved)).unwrap();
            let name = |address: u64| map.function(address.wrapping_add(moved), offset);
            assert_eq!(name(0xffff_ffff_8100_1000), Some("spin"));
            assert_eq!(name(0xffff_ffff_8100_10ff), Some("spin"));
            assert_eq!(name(0xffff_ffff_8100_1100), Some("weak"));
            assert_eq!(name(0xffff_ffff_8100_0004), Some("_text"));
            assert_eq!(name(0xffff_ffff_80ff_ffff), None);
            assert_eq!(name(0xffff_ffff_c000_0000), None);
        }
    }

    #[test]
    fn a_map_of_another_kernel_shows_itself() {
        assert!(matches!(
            map().offset(0xffff_ffff_81a0_08c0),
            Err(MapError::OtherKernel { .. })
        ));
        let no_map = SystemMap::parse("/x".into(), "hello\n");
        assert!(matches!(no_map, Err(MapError::NoMap { .. })));
    }

    proptest! {
        #[test]
        fn no_map_and_no_address_make_it_panic(text in "([0-9a-f]{0,17} [tTD] [a-z]{1,4}\n)*", address: u64, moved: u64) {
            let text = format!("{text}ffffffff81a008b0 T asm_exc_divide_error\n");
            let map = SystemMap::parse("/x".into(), &text).unwrap();
            let _ = (map.function(address, moved), map.offset(address));
        }
    }
}
