//! QEMU's arguments as a pure function of the VM's specification.
//!
//! There is one function per device, so that each can be compared with its page in QEMU's manual.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::hotplug;
use crate::machine::accel::Accel;
use crate::machine::spec::{Beginning, NicDevice, VirtioFs, VmSpec, VsockDevice};

/// The set of descriptors that has `/dev/kvm`: the last that QEMU takes; those of disks count from the first.
const KVM_SET: i32 = i32::MAX;

/// The arguments, without the program's own name.
pub(crate) fn render(spec: &VmSpec) -> Vec<OsString> {
    let mut argv = Argv::default();
    argv.flag("-no-user-config");
    argv.flag("-nodefaults");
    argv.flag("-no-reboot");
    if spec.waits_at_end {
        argv.option("-action", "shutdown=pause");
    }
    argv.option("-name", &spec.name.replace(',', ",,"));
    argv.option("-display", "none");
    if let Some(seccomp) = &spec.seccomp {
        argv.option("-sandbox", seccomp);
    }
    machine(&mut argv, spec);
    beginning(&mut argv, &spec.beginning);
    socket(&mut argv, "monitor", spec.monitor);
    argv.option("-mon", "chardev=monitor,mode=control");
    socket(&mut argv, "console", spec.console);
    argv.option("-serial", "chardev:console");
    argv.option("-device", "virtio-rng-pci");
    if spec.reports_free {
        argv.option("-device", "virtio-balloon-pci,free-page-reporting=on");
    }
    if let Some(share) = &spec.share {
        virtio_fs(&mut argv, share);
    }
    if let Some(device) = &spec.vsock {
        vsock(&mut argv, device);
    }
    argv.option("-device", hotplug::slots::BRIDGE);
    if let Some(iothread) = spec.iothread {
        argv.option("-object", &format!("iothread,id={iothread}"));
    }
    if let Some(rates) = spec.disk_rates {
        argv.option("-object", &rates.object());
    }
    for (number, device) in spec.nics.iter().enumerate() {
        nic(&mut argv, number, device);
    }
    argv.0
}

/// A VM that is given a saved one's memory has the kernel in it.
fn beginning(argv: &mut Argv, beginning: &Beginning) {
    match beginning {
        Beginning::Kernel {
            kernel,
            initrd,
            command_line,
        } => {
            argv.option("-kernel", kernel);
            argv.option("-initrd", initrd);
            argv.option("-append", command_line);
        }
        Beginning::Saved => {
            argv.flag("-S");
            argv.option("-incoming", "defer");
        }
    }
}

fn machine(argv: &mut Argv, spec: &VmSpec) {
    let VmSpec {
        machine_type,
        arch,
        size,
        largest,
        ..
    } = spec;
    argv.option(
        "-machine",
        &format!("{machine_type},{},memory-backend=memory", arch.machine_options),
    );
    accelerator(argv, spec);
    let cpu = arch.cpu(spec.accel);
    let cpu = match spec.cpu_features.as_str() {
        "" => cpu.to_owned(),
        features => format!("{cpu},{features}"),
    };
    argv.option("-cpu", &cpu);
    let (vcpus, most_vcpus) = (size.vcpus, largest.vcpus);
    let smp = if most_vcpus > vcpus {
        // Each in a socket of its own: a kernel that takes the machine for a real one has no place for CPUs that come later to
        // a socket that is there.
        format!("{vcpus},sockets={most_vcpus},cores=1,threads=1,maxcpus={most_vcpus}")
    } else {
        vcpus.to_string()
    };
    argv.option("-smp", &smp);
    let (memory, most_memory) = (size.memory.0, largest.memory.0);
    let memory_and_room = if most_memory > memory {
        format!("{memory}M,maxmem={most_memory}M")
    } else {
        format!("{memory}M")
    };
    argv.option("-m", &memory_and_room);
    // The daemons map the guest's memory, so it has to be shareable.
    let mut backend = format!("memory-backend-memfd,id=memory,size={memory}M,share=on");
    if spec.backing.huge {
        backend += ",hugetlb=on,hugetlbsize=2M";
    }
    if spec.backing.prealloc {
        backend += ",prealloc=on";
    }
    argv.option("-object", &backend);
}

fn accelerator(argv: &mut Argv, spec: &VmSpec) {
    match (spec.accel, spec.kvm) {
        (Accel::Kvm, Some(device)) => {
            argv.option("-add-fd", &format!("fd={device},set={KVM_SET}"));
            argv.option("-accel", &format!("kvm,device=/dev/fdset/{KVM_SET}"));
        }
        (Accel::Kvm, None) => argv.option("-accel", "kvm"),
        (Accel::Tcg, _) => argv.option("-accel", "tcg,thread=multi"),
    }
}

fn virtio_fs(argv: &mut Argv, share: &VirtioFs) {
    socket(argv, "share", share.socket);
    argv.option(
        "-device",
        &format!(
            "vhost-user-fs-pci,id=share,chardev=share,tag={},queue-size={}",
            share.tag.replace(',', ",,"),
            share.queue_size
        ),
    );
}

fn vsock(argv: &mut Argv, device: &VsockDevice) {
    match device {
        VsockDevice::Vhost { device, cid } => {
            argv.option(
                "-device",
                &format!("vhost-vsock-pci,id=vsock,guest-cid={cid},vhostfd={device}"),
            );
        }
        VsockDevice::VhostUser { socket: fd } => {
            socket(argv, "vsock", *fd);
            argv.option("-device", "vhost-user-vsock-pci,id=vsock,chardev=vsock");
        }
    }
}

/// Without an option ROM: nobody boots from it. Each queue has a vector for each direction, and the device two more for its
/// configuration and its control queue (qemu(1), and the virtio specification, "5.1.2 Virtqueues").
fn nic(argv: &mut Argv, number: usize, device: &NicDevice) {
    let list = |fds: &[RawFd]| fds.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
    let plural = if device.taps.len() > 1 { "s" } else { "" };
    let mut netdev = format!("tap,id=net{number},fd{plural}={}", list(&device.taps));
    if !device.vhost.is_empty() {
        netdev += &format!(",vhost=on,vhostfd{plural}={}", list(&device.vhost));
    }
    argv.option("-netdev", &netdev);
    let mut front = format!(
        "virtio-net-pci,id=nic{number},netdev=net{number},mac={},romfile=",
        device.mac
    );
    if device.taps.len() > 1 {
        front += &format!(",mq=on,vectors={}", 2 * device.taps.len() + 2);
    }
    argv.option("-device", &front);
}

/// A character device on a connected socket that QEMU inherits.
fn socket(argv: &mut Argv, id: &str, fd: i32) {
    argv.option("-chardev", &format!("socket,id={id},fd={fd}"));
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: &(impl AsRef<OsStr> + ?Sized)) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }
}

/// One line per option, for logs.
pub(crate) fn readable(argv: &[OsString]) -> String {
    let words: Vec<Vec<u8>> = argv.iter().map(|word| word.as_bytes().to_owned()).collect();
    OsString::from_vec(words.join(&b' ')).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use config::Mebibytes;

    use super::*;
    use crate::machine::mac_address::MacAddress;
    use crate::machine::size::Size;
    use crate::machine::spec::Backing;
    use crate::machine::vsock::Cid;

    fn size(vcpus: u32, memory: u32) -> Size {
        Size {
            vcpus: NonZeroU32::new(vcpus).unwrap(),
            memory: Mebibytes(memory),
        }
    }

    fn spec() -> VmSpec {
        VmSpec {
            name: String::from("a,b"),
            arch: crate::machine::arch::HOST,
            machine_type: "q35",
            accel: Accel::Tcg,
            kvm: None,
            size: size(2, 256),
            largest: size(2, 256),
            beginning: Beginning::Kernel {
                kernel: "/k/vmlinuz".into(),
                initrd: "/k/initrd.img".into(),
                command_line: String::from("console=ttyS0 quiet"),
            },
            seccomp: Some(String::from("on,spawn=deny")),
            monitor: 10,
            console: 11,
            share: Some(VirtioFs {
                tag: String::from("share"),
                queue_size: 1024,
                socket: 12,
            }),
            vsock: Some(VsockDevice::VhostUser { socket: 13 }),
            reports_free: true,
            iothread: None,
            waits_at_end: false,
            disk_rates: None,
            cpu_features: String::new(),
            backing: Backing::default(),
            nics: vec![NicDevice {
                mac: MacAddress([2, 0, 0, 0, 0, 0x1a]),
                taps: vec![14],
                vhost: Vec::new(),
            }],
        }
    }

    /// As in the golden files: a line per option, its value beside it.
    fn lines(spec: &VmSpec) -> String {
        let mut text = String::new();
        for word in render(spec) {
            let word = word.to_str().unwrap();
            text.push_str(if text.is_empty() {
                ""
            } else if word.starts_with('-') {
                "\n"
            } else {
                " "
            });
            text.push_str(word);
        }
        text + "\n"
    }

    #[test]
    fn a_vm_on_tcg_with_daemons_has_these_arguments() {
        assert_eq!(lines(&spec()), include_str!("../../tests/golden/tcg-vhost-user.txt"));
    }

    #[test]
    fn a_vm_on_kvm_with_the_kernels_vsock_has_these_arguments() {
        let spec = VmSpec {
            accel: Accel::Kvm,
            size: size(1, 256),
            largest: size(4, 8192),
            seccomp: None,
            share: None,
            reports_free: false,
            vsock: Some(VsockDevice::Vhost {
                device: 13,
                cid: Cid::new(77).unwrap(),
            }),
            iothread: Some("disks"),
            nics: vec![NicDevice {
                mac: MacAddress([2, 0, 0, 0, 0, 0x1b]),
                taps: vec![14, 15],
                vhost: vec![16, 17],
            }],
            ..spec()
        };
        assert_eq!(lines(&spec), include_str!("../../tests/golden/kvm-vhost.txt"));
    }

    #[test]
    fn memory_and_cpu_are_as_the_operator_says() {
        let told = lines(&VmSpec {
            cpu_features: String::from("pmu=off,vmx=off"),
            backing: Backing {
                huge: true,
                prealloc: true,
            },
            ..spec()
        });
        let memory = "memory-backend-memfd,id=memory,size=256M,share=on,hugetlb=on,hugetlbsize=2M,prealloc=on";
        assert!(told.contains(&format!("\n-object {memory}\n")), "{told}");
        assert!(told.contains("\n-cpu max,-erms,-fsrm,pmu=off,vmx=off\n"), "{told}");
    }

    #[test]
    fn a_guest_whose_memory_is_dumped_stays_when_it_has_ended() {
        let told = lines(&VmSpec {
            waits_at_end: true,
            ..spec()
        });
        assert!(told.contains("\n-no-reboot\n-action shutdown=pause\n"), "{told}");
        assert!(!lines(&spec()).contains("-action"));
    }

    #[test]
    fn a_copy_waits_for_a_saved_vm_and_is_like_it_but_for_its_kernel() {
        let bare = VmSpec {
            share: None,
            vsock: None,
            nics: Vec::new(),
            ..spec()
        };
        let copy = lines(&VmSpec {
            beginning: Beginning::Saved,
            ..bare.clone()
        });
        let kernel = "-kernel /k/vmlinuz\n-initrd /k/initrd.img\n-append console=ttyS0 quiet\n";
        assert_eq!(copy, lines(&bare).replace(kernel, "-S\n-incoming defer\n"));
    }

    #[test]
    fn a_kvm_that_is_inherited_is_opened_by_its_descriptor() {
        let spec = VmSpec {
            accel: Accel::Kvm,
            kvm: Some(18),
            ..spec()
        };
        let told = lines(&spec);
        assert!(
            told.contains("\n-add-fd fd=18,set=2147483647\n-accel kvm,device=/dev/fdset/2147483647\n"),
            "{told}"
        );
    }
}
