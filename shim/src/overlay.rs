//! Mounts an overlay from the options that containerd sends.
//!
//! mount(2) takes at most one page of options. An image of many layers needs more: then, as containerd does for its
//! own mounts, the lower directories are written relative to the directory that they have in common, and the mount is
//! made from there.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::mount::MountFlags;

/// What the kernel takes, the terminating zero included (mount(2): a page).
const OPTIONS_MAX: usize = 4096;

/// Mounts the overlay. Blocks.
pub(crate) fn mount(options: &[String], target: &Path) -> io::Result<()> {
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
                crate::sys::unshare_working_directory()?;
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
    fn lower_directories_become_relative_to_what_they_share() {
        let (directory, data) = relative("workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/2/fs:/s/1/fs").unwrap();
        assert_eq!(directory, Path::new("/s"));
        assert_eq!(data, "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=2/fs:1/fs");
    }
}
