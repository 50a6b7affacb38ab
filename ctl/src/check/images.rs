//! Recognizes a kernel or an initrd by its first bytes, so that exchanged files are reported before a guest fails to
//! boot.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::finding::Finding;

/// Bytes that tell: the last of them are those of the x86 header.
const HEAD: u64 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    /// A cpio archive, as it is (Documentation/driver-api/early-userspace/buffer-format.rst).
    Archive,
    /// Compressed: what is in it cannot be seen.
    Compressed,
    Empty,
    Other,
}

pub(super) fn kernel(path: &Path) -> Finding {
    let remedy = "install it, or set hypervisor.qemu.kernel";
    let wrong =
        |what: &str, remedy: &'static str| Finding::fail("kernel", format!("{} {what}", path.display()), remedy);
    match kind_of(path) {
        Err(reason) => Finding::fail("kernel", reason, remedy),
        Ok(Kind::Kernel) => Finding::ok("kernel", path.display().to_string()),
        // On arm64 QEMU takes a kernel that is compressed by gzip.
        Ok(Kind::Compressed) if std::env::consts::ARCH == "aarch64" => {
            Finding::ok("kernel", path.display().to_string())
        }
        Ok(Kind::Archive | Kind::Compressed) => wrong(
            "is an archive such as an initrd, not a kernel",
            "if kernel and initrd are exchanged in [hypervisor.qemu], exchange them back; else set hypervisor.qemu.kernel",
        ),
        Ok(Kind::Empty) => wrong("is empty", remedy),
        Ok(Kind::Other) => wrong("is not the image of a kernel", remedy),
    }
}

pub(super) fn initrd(path: &Path) -> Finding {
    let remedy = "install it, or set hypervisor.qemu.initrd";
    let wrong =
        |what: &str, remedy: &'static str| Finding::fail("initrd", format!("{} {what}", path.display()), remedy);
    match kind_of(path) {
        Err(reason) => Finding::fail("initrd", reason, remedy),
        Ok(Kind::Archive | Kind::Compressed) => Finding::ok("initrd", path.display().to_string()),
        Ok(Kind::Kernel) => wrong(
            "is a kernel, not an initrd",
            "if kernel and initrd are exchanged in [hypervisor.qemu], exchange them back; else set hypervisor.qemu.initrd",
        ),
        Ok(Kind::Empty) => wrong("is empty", remedy),
        Ok(Kind::Other) => wrong("is not an archive for a guest to boot from", remedy),
    }
}

/// The file of the modules of a kernel with this release. None: the kernel is not ours, and need not have one.
pub(super) fn modules(path: &Path, release: &str) -> Option<Finding> {
    /// Longer than any release.
    const LINE: u64 = 100;
    const WHAT: &str = "kernel modules";
    let read = || -> io::Result<String> {
        let mut head = Vec::new();
        File::open(path)?.take(LINE).read_to_end(&mut head)?;
        Ok(String::from_utf8_lossy(&head).into_owned())
    };
    let warn = |found: String| {
        let risk = "what the kernel has as a module cannot be used in a container: NFS, SCTP, xfs and others";
        Some(Finding::warn(
            WHAT,
            found,
            risk,
            "install the file that comes with the kernel beside it",
        ))
    };
    match read() {
        Ok(head) => match head.lines().next().and_then(|line| line.strip_prefix("release ")) {
            Some(of) if of == release => Some(Finding::ok(WHAT, path.display().to_string())),
            Some(of) => warn(format!(
                "{} is of the kernel {of}, and the kernel is {release}",
                path.display()
            )),
            None => warn(format!("{} has no modules in it", path.display())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && !release.contains(OURS) => None,
        Err(error) => warn(format!("{} cannot be read: {error}", path.display())),
    }
}

/// In the release of a kernel that was built with modules (guest-kernel/build).
const OURS: &str = "-tatami.";

/// Why not, as a sentence with the path in it.
fn kind_of(path: &Path) -> Result<Kind, String> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        // Of a pipe or a device the first bytes might be waited for for ever.
        if !path.metadata()?.is_file() {
            return Ok(None);
        }
        let mut head = Vec::new();
        File::open(path)?.take(HEAD).read_to_end(&mut head)?;
        Ok(Some(head))
    };
    match read() {
        Ok(Some(head)) => Ok(kind(&head)),
        Ok(None) => Err(format!("{} is not a regular file", path.display())),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

fn kind(head: &[u8]) -> Kind {
    /// What the kernel's own decompressors go by (lib/decompress.c).
    const COMPRESSED: [&[u8]; 7] = [
        b"\x1f\x8b",
        b"BZh",
        b"\x5d\x00\x00",
        b"\xfd7zXZ",
        b"\x89LZO",
        b"\x02\x21\x4c\x18",
        b"\x28\xb5\x2f\xfd",
    ];
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // Of x86 (boot.rst), an uncompressed one, of arm64 (booting.rst), one for EFI.
    let kernel = at(0x202, b"HdrS") || at(0, b"\x7fELF") || at(56, b"ARM\x64") || at(0, b"MZ");
    match head {
        [] => Kind::Empty,
        _ if kernel => Kind::Kernel,
        _ if at(0, b"070701") || at(0, b"070702") => Kind::Archive,
        _ if COMPRESSED.iter().any(|magic| at(0, magic)) => Kind::Compressed,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_and_an_archive_are_told_apart_and_from_anything_else() {
        let mut bz_image = vec![0; 0x400];
        bz_image[0x202..0x206].copy_from_slice(b"HdrS");
        for (bytes, expected) in [
            (&bz_image[..], Kind::Kernel),
            (b"\x7fELF...", Kind::Kernel),
            (b"070701000", Kind::Archive),
            (b"\x1f\x8b\x08", Kind::Compressed),
            (b"", Kind::Empty),
            (b"root:x:0:0", Kind::Other),
            (&bz_image[..0x204], Kind::Other),
        ] {
            assert_eq!(kind(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn the_modules_have_to_be_those_of_the_kernel_and_only_ours_has_to_have_some() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("modules.img");
        let said = |release: &str| modules(&path, release).map(|finding| finding.to_string());
        assert_eq!(said("6.12.1"), None);
        assert!(said("6.12.1-tatami.9").unwrap().contains("cannot be read"));
        std::fs::write(&path, "release 6.12.1-tatami.9\nmodule a 0 1 -\n\n").unwrap();
        assert!(!said("6.12.1-tatami.9").unwrap().contains("6.12.1"));
        assert!(
            said("6.12.2-tatami.9")
                .unwrap()
                .contains("is of the kernel 6.12.1-tatami.9")
        );
        std::fs::write(&path, "text").unwrap();
        assert!(said("6.12.1").unwrap().contains("has no modules"));
    }

    #[test]
    fn one_in_place_of_the_other_is_said_with_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (elf, cpio) = (file("vmlinux", b"\x7fELF"), file("initrd", b"070701"));
        assert!(!kernel(&elf).failed() && !initrd(&cpio).failed());
        let exchanged = [kernel(&cpio).to_string(), initrd(&elf).to_string()];
        assert!(exchanged.iter().all(|line| line.contains("exchanged")), "{exchanged:?}");
        assert!(kernel(&file("empty", b"")).found.ends_with("is empty"));
        assert!(initrd(&file("text", b"hello")).failed());
        assert!(kernel(directory.path()).found.ends_with("is not a regular file"));
        assert!(
            initrd(Path::new("/nonexistent"))
                .found
                .contains("cannot be read: No such file")
        );
    }
}
