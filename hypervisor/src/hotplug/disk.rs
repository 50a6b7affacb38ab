//! One disk: the caller's description, and its form for QEMU. Pure.

use std::os::fd::OwnedFd;

use config::{BlockAio, Hypervisor};
use serde_json::{Value, json};

use super::slots::{BUS, Slot};
use super::transaction::{Command, Name, Part};
use crate::machine::disk_rates::DiskRates;

/// What holds a disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// A block device of the host.
    BlockDevice,
    /// A regular file: a raw image.
    File,
}

/// What becomes a disk of the guest.
#[derive(Debug)]
pub struct Disk {
    /// The opened device or image; for reading alone if `read_only`, for both otherwise: QEMU takes a descriptor only for
    /// what it was opened for.
    pub file: OwnedFd,
    /// Decides the block driver: `host_device` or `file`.
    pub kind: DiskKind,
    /// The guest cannot write to it: QEMU does not.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`), which the file has to be able to.
    pub direct: bool,
    /// Its sectors; an image has none, and is a disk with sectors of 512 bytes. QEMU does not ask a disk for them.
    pub sectors: Option<Sectors>,
}

/// Sizes of a disk's sectors, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// The smallest unit that can be addressed.
    pub logical: u32,
    /// The unit that it writes at once.
    pub physical: u32,
}

/// How QEMU serves all disks of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskOptions {
    /// QEMU's name of the thread that serves them, if they have one.
    pub(crate) iothread: Option<&'static str>,
    aio: BlockAio,
    /// Through the host's page cache, also where the file could do without.
    cached: bool,
    no_flush: bool,
    throttled: bool,
}

impl DiskOptions {
    pub(crate) fn of(config: &Hypervisor) -> Self {
        let set = config.block_device_cache_set;
        Self {
            iothread: config.enable_iothreads.then_some("disks"),
            aio: config.block_device_aio,
            cached: set && !config.block_device_cache_direct,
            no_flush: set && config.block_device_cache_noflush,
            throttled: DiskRates::of(config).is_some(),
        }
    }

    /// Whether QEMU or the host's kernel may refuse a disk for it, and the same with threads.
    pub(super) fn without_io_uring(self) -> Option<Self> {
        let aio = BlockAio::Threads;
        (self.aio == BlockAio::IoUring).then_some(Self { aio, ..self })
    }
}

/// One disk's names in QEMU. The number is never used again in a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) number: u32,
}

impl Names {
    /// Of the device and of the block node.
    pub(super) fn id(self) -> String {
        format!("disk-{}", self.number)
    }

    pub(super) fn said(self) -> String {
        format!("disk {}", self.serial())
    }

    /// By which the guest finds it: at most 20 bytes (virtio 1.2, 5.2.6.1 `VIRTIO_BLK_T_GET_ID`).
    pub(super) fn serial(self) -> String {
        format!("tatami-{}", self.number)
    }

    fn file(self) -> String {
        format!("/dev/fdset/{}", self.number)
    }

    /// Of the block node of the file, if another node is before it.
    fn file_node(self) -> String {
        format!("file-{}", self.number)
    }

    /// The disk in QEMU, part by part.
    pub(super) fn parts(self, slot: Slot, disk: Disk, options: DiskOptions) -> Vec<Part> {
        let open = |options| Command::new("open", "blockdev-add", self.blockdev_add(&disk, options));
        let node = Part::new(Name::Node(self.id()), open(options)).or(
            options.without_io_uring().map(open),
            "QEMU cannot open a disk with block_device_aio = \"io_uring\": it has threads",
        );
        let device = self.device_add(slot, options.iothread, disk.sectors);
        let device = Part::new(Name::Device(self.id()), Command::new("plug in", "device_add", device));
        let set = json!({ "fdset-id": self.number });
        let file = Command::with_file("hand over the file of", "add-fd", set, disk.file);
        vec![Part::new(Name::Files(self.number), file), node, device]
    }

    /// What the guest discards is given back to the host.
    pub(super) fn blockdev_add(self, disk: &Disk, options: DiskOptions) -> Value {
        let direct = disk.direct && !options.cached;
        let aio = match options.aio {
            // QEMU refuses it for a file that is not past the host's cache.
            BlockAio::Native if !direct => BlockAio::Threads,
            aio => aio,
        };
        let file = json!({
            "driver": match disk.kind {
                DiskKind::BlockDevice => "host_device",
                DiskKind::File => "file",
            },
            "node-name": if options.throttled { self.file_node() } else { self.id() },
            "filename": self.file(),
            "read-only": disk.read_only,
            "discard": "unmap",
            "aio": aio.as_str(),
            "cache": { "direct": direct, "no-flush": options.no_flush },
        });
        if !options.throttled {
            return file;
        }
        // A node takes no option of the one behind it.
        json!({
            "driver": "throttle",
            "node-name": self.id(),
            "throttle-group": DiskRates::GROUP,
            "read-only": disk.read_only,
            "discard": "unmap",
            "file": file,
        })
    }

    pub(super) fn device_add(self, slot: Slot, iothread: Option<&str>, sectors: Option<Sectors>) -> Value {
        let mut device = json!({
            "driver": "virtio-blk-pci",
            "id": self.id(),
            "bus": BUS,
            "addr": slot.address(),
            "drive": self.id(),
            "serial": self.serial(),
            // The guest's kernel speaks virtio 1 alone; a legacy device would want I/O ports.
            "disable-legacy": "on",
        });
        if let Some(iothread) = iothread {
            device["iothread"] = json!(iothread);
        }
        if let Some(sectors) = sectors {
            device["logical_block_size"] = json!(sectors.logical);
            device["physical_block_size"] = json!(sectors.physical);
        }
        device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(kind: DiskKind, read_only: bool, direct: bool) -> Disk {
        let file = std::fs::File::open("/dev/null").unwrap().into();
        Disk {
            file,
            kind,
            read_only,
            direct,
            sectors: None,
        }
    }

    fn options() -> DiskOptions {
        DiskOptions::of(&Hypervisor::default())
    }

    #[test]
    fn a_block_device_bypasses_the_hosts_cache_and_is_flushed() {
        let names = Names { number: 7 };
        assert_eq!(
            names.blockdev_add(&disk(DiskKind::BlockDevice, false, true), options()),
            json!({
                "driver": "host_device", "node-name": "disk-7", "filename": "/dev/fdset/7", "read-only": false,
                "discard": "unmap", "aio": "threads", "cache": { "direct": true, "no-flush": false },
            })
        );
    }

    #[test]
    fn a_read_only_image_is_read_only_in_qemu() {
        let node = Names { number: 1 }.blockdev_add(&disk(DiskKind::File, true, false), options());
        assert_eq!(node["read-only"], true);
        assert_eq!(node["driver"], "file");
        assert_eq!(node["cache"]["direct"], false);
    }

    #[test]
    fn the_operators_words_about_all_disks_hold() {
        let config = Hypervisor {
            block_device_aio: BlockAio::Native,
            block_device_cache_direct: true,
            block_device_cache_noflush: true,
            ..Hypervisor::default()
        };
        let node = |config: &Hypervisor, direct| {
            let node = Names { number: 1 }.blockdev_add(&disk(DiskKind::File, false, direct), DiskOptions::of(config));
            [&node["aio"], &node["cache"]["direct"], &node["cache"]["no-flush"]].map(Value::clone)
        };
        // Without cache_set nothing is said of the cache.
        assert_eq!(node(&config, true), [json!("native"), json!(true), json!(false)]);
        assert_eq!(node(&config, false), [json!("threads"), json!(false), json!(false)]);
        let set = Hypervisor {
            block_device_cache_set: true,
            ..config.clone()
        };
        assert_eq!(node(&set, true), [json!("native"), json!(true), json!(true)]);
        let cached = Hypervisor {
            block_device_aio: BlockAio::IoUring,
            block_device_cache_direct: false,
            ..set
        };
        assert_eq!(node(&cached, true), [json!("io_uring"), json!(false), json!(true)]);
        let threads = DiskOptions::of(&cached).without_io_uring().unwrap();
        assert_eq!((threads.aio, threads.no_flush), (BlockAio::Threads, true));
        assert_eq!(threads.without_io_uring(), None);
    }

    #[test]
    fn rates_are_a_group_that_every_disk_is_in() {
        let config = Hypervisor {
            disk_rate_limiter_bw_max_rate: 8_000_001,
            disk_rate_limiter_ops_max_rate: 100,
            ..Hypervisor::default()
        };
        assert_eq!(DiskRates::of(&Hypervisor::default()), None);
        assert_eq!(
            DiskRates::of(&config).unwrap().object(),
            "throttle-group,id=disk-rates,x-bps-total=1000001,x-iops-total=100"
        );
        let node = Names { number: 2 }.blockdev_add(&disk(DiskKind::File, true, false), DiskOptions::of(&config));
        assert_eq!(
            node,
            json!({
                "driver": "throttle", "node-name": "disk-2", "throttle-group": "disk-rates", "read-only": true,
                "discard": "unmap",
                "file": {
                    "driver": "file", "node-name": "file-2", "filename": "/dev/fdset/2", "read-only": true,
                    "discard": "unmap", "aio": "threads", "cache": { "direct": false, "no-flush": false },
                },
            })
        );
    }

    #[test]
    fn the_device_sits_on_the_bridge_and_has_a_serial() {
        let slot = super::super::slots::Slots::default().take().unwrap();
        let names = Names { number: 4_294_967_295 };
        assert_eq!(
            names.device_add(slot, Some("disks"), None),
            json!({
                "driver": "virtio-blk-pci", "id": "disk-4294967295", "bus": "hotplug", "addr": "0x1",
                "drive": "disk-4294967295", "serial": "tatami-4294967295", "disable-legacy": "on", "iothread": "disks",
            })
        );
        assert!(names.serial().len() <= 20);
        let sectors = Sectors {
            logical: 4096,
            physical: 8192,
        };
        let device = names.device_add(slot, None, Some(sectors));
        assert_eq!(
            (&device["logical_block_size"], &device["physical_block_size"]),
            (&json!(4096), &json!(8192))
        );
    }
}
