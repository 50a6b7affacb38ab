//! Mounts on the host the rootfs that containerd describes: overlays, and any other file system that the host's kernel or
//! one of its FUSE helpers supports.
//!
//! mount(2) takes at most one page of options. An image with many layers needs more. Then, as in containerd's own mounts,
//! the lower directories are written relative to their common directory, and the mount is made from there.

use std::ffi::{CString, OsStr};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base::spawn::{Accounting, Program, RunError, Score};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// Timeout for a helper to mount: it may have to reach a server first. It is the time that Kata's configuration gives the creation of a container.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of what a helper says an error shows, in characters.
const SAID: usize = 400;

/// What the kernel takes, the terminating zero included (mount(2): a page).
const OPTIONS_MAX: usize = 4096;

/// Types whose mounting is a program's work, as containerd names them: the program is `mount.` and the part before the dot, and
/// what is behind it is the type that it is told.
const HELPERS: [&str; 2] = ["fuse", "fuse3"];

/// Mounts a file system of any type. Blocks.
pub(crate) fn mount(kind: &str, source: &str, options: &[String], target: &Path) -> io::Result<()> {
    if kind == "overlay" {
        return overlay(options, target);
    }
    if let Some((helper, kind)) = kind.split_once('.').filter(|(helper, _)| HELPERS.contains(helper)) {
        return by_helper(&format!("mount.{helper}"), kind, source, options, target);
    }
    let (flags, data) = split(options);
    if options.iter().any(|option| option == "loop") {
        let why = "the host mounts no image by a loop device here; one of ext4, xfs, erofs or squashfs becomes a disk of the guest";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    rustix::mount::mount(source, target, kind, flags, CString::new(data)?.as_c_str()).map_err(|errno| match errno {
        Errno::NODEV => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the host's kernel has no file system {kind:?} (/proc/filesystems)"),
        ),
        errno => errno.into(),
    })
}

fn by_helper(program: &str, kind: &str, source: &str, options: &[String], target: &Path) -> io::Result<()> {
    let options = options.join(",");
    let mut arguments = vec![
        OsStr::new(source),
        target.as_os_str(),
        OsStr::new("-t"),
        OsStr::new(kind),
    ];
    if !options.is_empty() {
        arguments.extend([OsStr::new("-o"), OsStr::new(&options)]);
    }
    // It serves one container's root: it is not spared for that. It starts the file system's own program, which it looks for.
    let helper = Program::new(program)
        .args(arguments)
        .inherit_envs(&["PATH"])
        .accounting(Accounting {
            score: Score::NotSpared,
            ..Accounting::default()
        });
    let finished = helper.run(HELPER_TIMEOUT).map_err(|error| match error {
        RunError::Start(error) => io::Error::new(error.kind(), format!("cannot run {program}: {error}")),
        error @ RunError::TimedOut { .. } => io::Error::new(io::ErrorKind::TimedOut, format!("{program} {error}")),
    })?;
    if finished.status.success() {
        return Ok(());
    }
    let said: String = finished.stderr.chars().take(SAID).collect();
    Err(io::Error::other(format!(
        "{program} ended with {}: {said}",
        finished.status
    )))
}

fn overlay(options: &[String], target: &Path) -> io::Result<()> {
    let (flags, data) = split(options);
    let (directory, data) = match data.len() < OPTIONS_MAX {
        true => (None, data),
        false => relative(&data).map_or((None, data), |(directory, data)| (Some(directory), data)),
    };
    if data.len() >= OPTIONS_MAX {
        let why = format!(
            "{} bytes of options, mount(2) takes less than {OPTIONS_MAX}",
            data.len()
        );
        return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, why));
    }
    let data = CString::new(data)?;
    let call = move |target: &Path| rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str());
    let Some(directory) = directory else {
        return Ok(call(target)?);
    };
    // A thread of its own, because the working directory is to change for it alone.
    let target = target.to_owned();
    thread::scope(|scope| {
        scope
            .spawn(move || {
                crate::host::sys::unshare_working_directory()?;
                std::env::set_current_dir(&directory)?;
                Ok(call(&target)?)
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

/// What mount(2) wants as flags, and the rest.
fn split(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "rw" | "suid" | "dev" | "exec" | "" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// The directory that all lower directories have in common, and the options relative to it.
///
/// None where there is nothing in common, or a path has an escaped character: then a colon need not be a separator.
fn relative(data: &str) -> Option<(PathBuf, String)> {
    let lower = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    if data.contains('\\') {
        return None;
    }
    let mut common: Option<&Path> = None;
    for path in lower.split(':').map(Path::new) {
        let parent = path.parent()?;
        let mut candidate = common.unwrap_or(parent);
        while !parent.starts_with(candidate) {
            candidate = candidate.parent()?;
        }
        common = Some(candidate);
    }
    let common = common.filter(|path| path.is_absolute())?.to_owned();
    let shorter: Option<Vec<&str>> = lower
        .split(':')
        .map(|path| Path::new(path).strip_prefix(&common).ok()?.to_str())
        .collect();
    Some((common, data.replace(lower, &shorter?.join(":"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = ["ro", "index=off", "lowerdir=/a:/b"].map(str::to_owned);
        assert_eq!(
            split(&options),
            (MountFlags::RDONLY, "index=off,lowerdir=/a:/b".to_owned())
        );
    }

    #[test]
    fn a_type_that_the_host_has_not_is_named_and_so_is_a_helper_that_is_not_there() {
        let target = tempfile::tempdir().unwrap();
        let said =
            |kind: &str, options: &[String]| mount(kind, "source", options, target.path()).unwrap_err().to_string();
        assert!(said("nosuchfs", &[]).contains("\"nosuchfs\" (/proc/filesystems)"));
        assert!(said("btrfs", &["loop".to_owned()]).contains("loop device"));
        // Either it is not there, or it knows no such type.
        assert!(said("fuse.no-such-file-system", &[]).contains("mount.fuse"));
    }

    #[test]
    fn a_helper_has_the_path_alone_and_is_not_spared_by_the_oom_killer() {
        let directory = tempfile::tempdir().unwrap();
        let helper = directory.path().join("helper");
        let script =
            "#!/bin/sh\n(echo $*; tr '\\0' '\\n' </proc/$$/environ; cat /proc/self/oom_score_adj) >&2\nexit 1\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = by_helper(
            helper.to_str().unwrap(),
            "kind",
            "source",
            &["a".to_owned()],
            Path::new("/target"),
        );
        let said = error.unwrap_err().to_string();
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let score: i32 = score.trim().parse().unwrap();
        let path = std::env::var("PATH").unwrap();
        let told = format!("source /target -t kind -o a\nPATH={path}\n{}", score.max(0));
        assert!(said.ends_with(&told) || path.len() > SAID / 2, "{said}");
    }

    #[test]
    fn lower_directories_become_relative_to_what_they_share() {
        let (directory, data) = relative("workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/2/fs:/s/1/fs").unwrap();
        assert_eq!(directory, Path::new("/s"));
        assert_eq!(data, "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=2/fs:1/fs");
    }
}
