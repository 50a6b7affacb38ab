//! Mounts that a test makes on the host, and takes away at its end.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};

use crate::{Error, Result, wait};

/// A mount of the host: of a tmpfs, but for [`HostMount::bind`] and [`Silent`].
#[derive(Debug)]
pub struct HostMount(Option<PathBuf>);

impl HostMount {
    /// Mounts one on a directory, which is made if it is not there.
    pub fn new(path: &Path, flags: MountFlags) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        mount("tmpfs", path, "tmpfs", flags, None)
            .map_err(|errno| Error::io(format!("mounting {}", path.display()))(errno.into()))?;
        Ok(Self(Some(path.to_owned())))
    }

    /// Mounts a directory once more in another place, as the kubelet does for a `subPath`.
    pub fn bind(source: &Path, path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        mount_bind(source, path).map_err(|errno| Error::io(format!("binding {}", path.display()))(errno.into()))?;
        Ok(Self(Some(path.to_owned())))
    }

    /// Has it pass on what is mounted below it, as `/` does on a host with systemd.
    pub fn shared(self) -> Result<Self> {
        if let Some(path) = &self.0 {
            mount_change(path, MountPropagationFlags::SHARED)
                .map_err(|errno| Error::io(format!("sharing {}", path.display()))(errno.into()))?;
        }
        Ok(self)
    }

    /// Unmounts it as umount(8) does: that fails if it is in use.
    pub fn unmount(mut self) -> Result<()> {
        match self.0.take() {
            Some(path) => unmount(&path, UnmountFlags::empty())
                .map_err(|errno| Error::io(format!("unmounting {}", path.display()))(errno.into())),
            None => Ok(()),
        }
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // After a test that failed; what is left is found by its name.
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

/// A file system that answers nothing, as one whose server is gone: who looks below it waits until it is dropped.
///
/// It is FUSE without a daemon. The protocol is that of the kernel's include/uapi/linux/fuse.h.
#[derive(Debug)]
pub struct Silent {
    mount: HostMount,
    device: File,
}

impl Silent {
    /// Mounts one on a directory, which is made if it is not there.
    pub fn new(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let mut device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).map_err(std::io::Error::other)?;
        mount("silent", path, "fuse", MountFlags::empty(), &*options)
            .map_err(|errno| Error::io(format!("mounting {}", path.display()))(errno.into()))?;
        let mount = HostMount(Some(path.to_owned()));
        // fuse_init_out after its header: the length, no error, the request's number; version 7.31, all else zero. Before
        // that the kernel sends nothing that one could wait for.
        let mut answer = [0_u8; 80];
        answer[..4].copy_from_slice(&80_u32.to_ne_bytes());
        answer[8..16].copy_from_slice(&request(&mut device)?);
        answer[16..20].copy_from_slice(&7_u32.to_ne_bytes());
        answer[20..24].copy_from_slice(&31_u32.to_ne_bytes());
        device.write_all(&answer)?;
        Ok(Self { mount, device })
    }

    /// Waits until somebody asks something, and so waits for ever. The request stays unread: so the asker can be killed, as one that
    /// waits for NFS can (`request_wait_answer` in fs/fuse/dev.c).
    pub fn asked(&self) -> Result<()> {
        if wait::readable(&self.device, wait::patience(Duration::from_secs(60)))? {
            return Ok(());
        }
        Err(Error::unexpected(
            "nobody looked into the file system that does not answer",
        ))
    }

    /// Unmounts it, as `umount --lazy` does. Who waits is told that there is nobody.
    pub fn end(self) {
        drop(self.mount);
    }
}

/// Reads a request; the answer is its number (fuse_in_header, `unique`).
fn request(device: &mut File) -> Result<[u8; 8]> {
    // The least that the kernel wants (FUSE_MIN_READ_BUFFER).
    let mut bytes = [0_u8; 8192];
    let length = device.read(&mut bytes).map_err(Error::io("reading /dev/fuse"))?;
    bytes[..length]
        .get(8..16)
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| Error::unexpected("a request of FUSE without a header"))
}
