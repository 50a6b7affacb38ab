//! Changes names in a directory as fast as it can, while somebody else works below it.

use std::{fs, path::Path};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::Result;

/// `guest-probe rename-storm DIRECTORY`: exchanges `way`, a directory, and `link`; moves `deep` out of `way` and back; tries to move and to
/// remove the directories that others mount on (`mounts/*`). Prints `begun`, and does not end.
pub(crate) fn rename(directory: &str) -> Result<()> {
    let directory = Path::new(directory);
    let at = |name: &str| directory.join(name);
    let (way, link, deep) = (at("way"), at("link"), at("deep"));
    let exchange = |one: &Path, other: &Path| renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
    exchange(&way, &link)?;
    println!("begun");
    // What fails was in somebody's use, or not where it was a moment ago.
    loop {
        let _ = exchange(&way, &link);
        let _ = fs::rename(way.join("deep"), &deep);
        let _ = fs::rename(&deep, way.join("deep"));
        for mountpoint in fs::read_dir(at("mounts"))?.flatten() {
            let path = mountpoint.path();
            let _ = fs::rename(&path, at("mounts/other"));
            let _ = fs::remove_dir(&path);
        }
    }
}
