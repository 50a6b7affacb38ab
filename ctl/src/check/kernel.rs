//! Checks which of the required fixes the guest kernel has, by the version in its file.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use config::kernel::{self, Fix, Standing};

use super::finding::{Finding, render};
use crate::report::Report;

const WHAT: &str = "kernel fixes";
/// "HdrS" and its place in an x86 image (Documentation/arch/x86/boot.rst, "header").
const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
/// A u16 that says where the version is, counted from [`VERSION_BASE`] (ibid., "kernel_version").
const VERSION_POINTER_AT: usize = 0x20e;
const VERSION_BASE: usize = 0x200;
/// What an uncompressed image has somewhere (init/version-timestamp.c, `linux_banner`).
const BANNER: &[u8] = b"Linux version ";
/// Larger than any guest kernel.
const MAX_IMAGE: u64 = 128 << 20;
/// Longer than any release (include/linux/uts.h, __NEW_UTS_LEN).
const MAX_RELEASE: usize = 64;

pub(super) fn of_file(path: &Path) -> Vec<Finding> {
    // That it cannot be read is said of the file itself.
    let Ok(image) = read(path) else { return Vec::new() };
    match release(&image) {
        Some(release) => of_release(&release),
        None => vec![Finding::warn(
            WHAT,
            format!("{} does not say which version it is", path.display()),
            "it may have faults that the runtime cannot live with",
            "see what `uname -r` prints in a container, and give that to `kata-ctl check --kernel-version`",
        )],
    }
}

/// The release of the kernel in a file, as `uname -r` prints it in its guest; none where it cannot be told.
pub(crate) fn release_of(path: &Path) -> Option<String> {
    release(&read(path).ok()?)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut image = Vec::new();
    File::open(path)?.take(MAX_IMAGE).read_to_end(&mut image)?;
    Ok(image)
}

/// The whole table for a kernel, one line a fix.
pub(crate) fn table(release: &str) -> String {
    let judged = kernel::judge(release).into_iter();
    let lines = judged.map(|(fix, standing)| {
        let word = match standing {
            Standing::Has => "has    ",
            Standing::Lacks => "LACKS  ",
            Standing::Unknown => "unknown",
        };
        format!("{word} {}: {}\n", fix.id, fix.title)
    });
    lines.collect()
}

/// Judges a kernel by its release alone; what the user asked for has to be a version.
pub(crate) fn report(release: &str, colours: bool) -> Report {
    let findings = of_release(release);
    let lacking = kernel::judge(release)
        .iter()
        .any(|(_, standing)| *standing != Standing::Has);
    Report {
        good: !lacking,
        ..render(&findings, colours)
    }
}

fn of_release(release: &str) -> Vec<Finding> {
    let judged = kernel::judge(release);
    let mut findings: Vec<_> = judged
        .iter()
        .filter_map(|(fix, standing)| finding(release, fix, *standing))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(WHAT, format!("{release} has all {}", judged.len())));
    }
    findings
}

fn finding(release: &str, fix: &'static Fix, standing: Standing) -> Option<Finding> {
    let found = match standing {
        Standing::Has => return None,
        Standing::Lacks => format!("{release} lacks {}: {}", fix.id, fix.title),
        Standing::Unknown => format!("{release} does not tell whether it has {}: {}", fix.id, fix.title),
    };
    let remedy = if fix.is_upstream() {
        format!(
            "use the kernel that comes with Tatami, or one of {} or later",
            fix.fixed().join(", ")
        )
    } else {
        "use the kernel that comes with Tatami: no release of Linux has it".to_owned()
    };
    Some(Finding::warn(WHAT, found, &fix.symptom, remedy))
}

/// The release in a kernel image: from the header of a compressed one, or the banner in an uncompressed one.
fn release(image: &[u8]) -> Option<String> {
    let text = if image.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC) {
        let pointer = image.get(VERSION_POINTER_AT..VERSION_POINTER_AT + 2)?;
        let at = usize::from(u16::from_le_bytes(pointer.try_into().ok()?));
        image.get(VERSION_BASE + at..)?
    } else {
        // The word is also in texts about it, where no number follows.
        let at = image
            .windows(BANNER.len() + 1)
            .position(|window| window.starts_with(BANNER) && window[BANNER.len()].is_ascii_digit())?;
        &image[at + BANNER.len()..]
    };
    let end = text
        .iter()
        .take(MAX_RELEASE)
        .position(|byte| !byte.is_ascii_graphic())?;
    let release = String::from_utf8_lossy(&text[..end]).into_owned();
    (!release.is_empty()).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(version: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x3000];
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        image[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&0x2000_u16.to_le_bytes());
        image[0x2200..0x2200 + version.len()].copy_from_slice(version);
        image
    }

    fn text(findings: &[Finding]) -> String {
        render(findings, false).text
    }

    #[test]
    fn the_release_is_read_from_a_header_or_a_banner() {
        let image = bz_image(b"6.1.69 (someone@somewhere) #1 SMP\0");
        assert_eq!(release(&image).as_deref(), Some("6.1.69"));
        let image = b"\x7fELF..Linux version %s..Linux version 6.12.117-tatami.6 (tatami@tatami)..";
        assert_eq!(release(image).as_deref(), Some("6.12.117-tatami.6"));
    }

    #[test]
    fn an_image_that_lies_about_its_header_has_no_release() {
        let mut image = bz_image(b"6.1.69 \0");
        image[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(release(&image), None);
        assert_eq!(release(&bz_image(&[b'6'; 100])), None);
        assert_eq!(release(&bz_image(b"")), None);
        for length in [0, 1, MAGIC_AT + 4, VERSION_POINTER_AT + 1] {
            assert_eq!(release(&bz_image(b"6.1 ")[..length]), None);
        }
    }

    #[test]
    fn a_kernel_without_the_fuse_fix_is_a_warning_that_names_the_issue_and_what_will_happen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        std::fs::write(&path, bz_image(b"6.1.69 (a@b) #1\0")).unwrap();
        let said = text(&of_file(&path));
        for expected in [
            "warn  kernel fixes: 6.1.69 lacks fuse-8040",
            "issue 8040",
            "EBADF",
            "6.1.70",
        ] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
        assert!(!said.contains("perf-growth"), "{said}");
    }

    #[test]
    fn our_kernel_has_everything_and_any_other_lacks_what_no_release_has() {
        let count = kernel::fixes().len();
        let ours = report(&format!("6.12.117-tatami.{count}"), false);
        assert!(ours.good && ours.text.starts_with("ok"), "{}", ours.text);
        let other = report("7.0.1", false);
        assert!(!other.good && other.text.contains("perf-charged-mm"), "{}", other.text);
        assert!(!other.text.contains("fuse-8040"), "{}", other.text);
        let unknown = report("5.14.0-427.13.1.el9_4.x86_64", false);
        assert!(
            unknown.text.contains("does not tell whether it has fuse-8040"),
            "{}",
            unknown.text
        );
    }

    #[test]
    fn the_table_has_a_line_for_each_fix() {
        assert_eq!(table("6.12.117").lines().count(), kernel::fixes().len());
        assert!(table("4.19.1").contains("LACKS   fuse-8040"));
    }
}
