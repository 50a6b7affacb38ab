//! The ioctls that enlarge a mounted file system.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;

use nix::Result;

/// `struct xfs_fsop_geom_v1` (fs/xfs/libxfs/xfs_fs.h): only the share of inodes matters here.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    sizes: [u32; 7],
    inode_percent: u32,
    blocks: [u64; 4],
    uuid: [u8; 16],
    rest: [u32; 7],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    inode_percent: u32,
}

// EXT4_IOC_RESIZE_FS (include/uapi/linux/ext4.h).
nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);
// XFS_IOC_FSGEOMETRY_V1 and XFS_IOC_FSGROWFSDATA.
nix::ioctl_read!(xfs_geometry, b'X', 100, XfsGeometry);
nix::ioctl_write_ptr!(xfs_grow, b'X', 110, XfsGrow);

/// Gives ext2, ext3 or ext4 so many blocks.
pub(super) fn grow_ext4(root: &File, blocks: u64) -> Result<()> {
    // SAFETY: the request reads one u64, which is valid for the call; another file system refuses it.
    unsafe { ext4_resize(root.as_raw_fd(), &raw const blocks) }.map(drop)
}

/// Gives xfs so many blocks; the share of them that inodes may have stays as it is.
pub(super) fn grow_xfs(root: &File, blocks: u64) -> Result<()> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: the request writes a struct of exactly this size, for which any bytes are valid.
    unsafe { xfs_geometry(root.as_raw_fd(), &raw mut geometry) }?;
    let grow = XfsGrow {
        blocks,
        inode_percent: geometry.inode_percent,
    };
    // SAFETY: the request reads a struct of this size, which is valid for the call.
    unsafe { xfs_grow(root.as_raw_fd(), &raw const grow) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_have_the_sizes_of_the_kernels() {
        assert_eq!((size_of::<XfsGeometry>(), size_of::<XfsGrow>()), (112, 16));
    }

    #[test]
    fn a_file_system_of_another_kind_refuses() {
        let proc = File::open("/proc").unwrap();
        assert!(grow_ext4(&proc, 1).is_err());
        assert!(grow_xfs(&proc, 1).is_err());
    }
}
