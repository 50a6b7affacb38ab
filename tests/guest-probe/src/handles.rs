//! Files opened by handles that nobody was given (open_by_handle_at(2)), with every right that a guest's root has.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags, openat};
use serde_json::json;

use crate::sys::open_by_handle;

/// Nodes that are guessed.
const GUESSES: u64 = 2048;
/// `FILEID_INO64_GEN`: what FUSE makes of a node's number and its generation (fs/fuse/inode.c).
const KIND: i32 = 0x81;

/// Prints how many files were opened, and whether any of them is `secret`, a path of the host, or leads to it.
pub(crate) fn report(directory: &str, secret: &str) -> crate::error::Result<()> {
    let mount = File::open(directory)?;
    let (mut opened, mut found) = (0, 0);
    for node in (1..GUESSES).chain([1 << 32, 1 << 63, u64::MAX]) {
        for generation in [0_u32, 1] {
            let (high, low) = ((node >> 32) as u32, node as u32);
            let Ok(file) = open_by_handle(&mount, KIND, [high, low, generation]) else {
                continue;
            };
            opened += 1;
            found += u32::from(leads_to(&file, secret));
        }
    }
    println!("{}", json!({ "some were opened": opened > 0, "the secret": found }));
    Ok(())
}

fn leads_to(file: &OwnedFd, secret: &str) -> bool {
    let up = "../".repeat(12);
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    let above = openat(file, format!("{up}{}", &secret[1..]), OFlags::RDONLY, Mode::empty());
    let mut content = String::new();
    let read = |mut file: File, content: &mut String| file.read_to_string(content).is_ok() && content == "of the host";
    File::open(itself).is_ok_and(|file| read(file, &mut content))
        || above.is_ok_and(|file| read(file.into(), &mut content))
}
