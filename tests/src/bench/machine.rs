//! The options of a bare guest's QEMU, made from a sandbox's.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// What a bare guest is made of.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// Added to the kernel's command line.
    pub(crate) parameters: String,
    pub(crate) share: Option<Share>,
    /// Whether the guest can dial the host.
    pub(crate) vsock: bool,
}

/// What a bare guest sees of the host's files.
#[derive(Default, Clone)]
pub(crate) struct Share {
    pub(crate) dir: PathBuf,
    /// Replaces the runtime's `--cache`.
    pub(crate) cache: Option<&'static str>,
    pub(crate) queue_size: Option<u32>,
    pub(crate) more: Vec<String>,
}

/// QEMU's options with other kernel, initrd and sockets. Devices that need what the shim opened (its monitor, block
/// devices, network interfaces) are left out.
pub(crate) fn options(args: &[OsString], plan: &Plan, sockets: &[(&str, PathBuf)]) -> Vec<OsString> {
    const WITH_VALUE: [&str; 9] = [
        "-chardev",
        "-mon",
        "-serial",
        "-netdev",
        "-blockdev",
        "-drive",
        "-add-fd",
        "-name",
        "-pidfile",
    ];
    let mut result: Vec<OsString> = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let option = word.to_str().unwrap_or_default();
        if WITH_VALUE.contains(&option) {
            words.next();
            continue;
        }
        let value = match option {
            "-kernel" => words.next().map(|_| plan.kernel.clone().into_os_string()),
            "-initrd" => words.next().map(|_| plan.initrd.clone().into_os_string()),
            "-append" => words.next().map(|line| {
                let line = line.to_string_lossy();
                OsString::from(format!("{line} {}", plan.parameters))
            }),
            "-device" => match words.next().and_then(|device| device_for(device, plan)) {
                Some(device) => Some(device),
                None => continue,
            },
            _ => None,
        };
        result.push(word.clone());
        result.extend(value);
    }
    for (id, path) in sockets {
        let path = path.display();
        result.extend(["-chardev".into(), format!("socket,id={id},path={path}").into()]);
    }
    if plan.vsock {
        result.extend(["-device".into(), "vhost-user-vsock-pci,chardev=vsock".into()]);
    }
    result.extend(["-serial".into(), "stdio".into()]);
    result
}

/// A device of the sandbox as the bare guest gets it, if it does.
fn device_for(device: &OsStr, plan: &Plan) -> Option<OsString> {
    let text = device.to_str()?;
    if text.starts_with("vhost-user-fs") {
        let share = plan.share.as_ref()?;
        let Some(size) = share.queue_size else {
            return Some(text.into());
        };
        let words = text.split(',').filter(|word| !word.starts_with("queue-size="));
        let words: Vec<&str> = words.collect();
        return Some(format!("{},queue-size={size}", words.join(",")).into());
    }
    let foreign = ["vhost-", "netdev=", "drive=", "chardev=", "fd="];
    (!foreign.iter().any(|mark| text.contains(mark))).then(|| text.into())
}

pub(crate) fn command_line(qemu: &[OsString]) -> Option<&str> {
    qemu.iter().skip_while(|word| *word != "-append").nth(1)?.to_str()
}

/// Options by which the guest's clock counts the instructions that it executes, one a nanosecond, instead of time. Of the
/// emulator alone, and only with one thread for all vCPUs.
pub(crate) fn counted(mut options: Vec<OsString>) -> Vec<OsString> {
    if let Some(at) = options.iter().position(|word| word == "-accel")
        && let Some(accel) = options.get_mut(at + 1)
    {
        *accel = "tcg,thread=single".into();
    }
    options.extend(["-icount".into(), "shift=0,sleep=off".into()]);
    options
}

/// Whether a QEMU with these options emulates the guest's CPUs.
pub(crate) fn is_emulated(qemu: &[OsString]) -> bool {
    let accel = qemu.iter().skip_while(|word| *word != "-accel").nth(1);
    accel.is_some_and(|accel| accel.to_string_lossy().starts_with("tcg"))
}

pub(crate) fn share_tag(qemu: &[OsString]) -> Option<&str> {
    let device = qemu
        .iter()
        .find_map(|word| word.to_str()?.strip_prefix("vhost-user-fs"))?;
    device.split(',').find_map(|word| word.strip_prefix("tag="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_machine_stays_and_what_the_shim_opened_goes() {
        let sandbox = words(
            "-nodefaults -machine q35 -accel tcg,thread=multi -kernel /k -initrd /i -append A -chardev socket,id=monitor,fd=9 -mon \
             chardev=monitor -serial chardev:console -device virtio-rng-pci -chardev socket,id=share,fd=10 -device \
             vhost-user-fs-pci,id=share,chardev=share,tag=t,queue-size=1024 -device virtio-net-pci,netdev=n",
        );
        let plan = Plan {
            kernel: "/K".into(),
            initrd: "/I".into(),
            parameters: String::from("-- x"),
            share: Some(Share {
                queue_size: Some(128),
                ..Share::default()
            }),
            vsock: false,
        };
        let options = options(&sandbox, &plan, &[("share", "/s".into())]);
        let mut expected = words("-nodefaults -machine q35 -accel tcg,thread=multi -kernel /K -initrd /I -append");
        expected.push("A -- x".into());
        expected.extend(words(
            "-device virtio-rng-pci -device vhost-user-fs-pci,id=share,chardev=share,tag=t,queue-size=128 -chardev \
             socket,id=share,path=/s -serial stdio",
        ));
        assert_eq!(options, expected);
        assert_eq!(share_tag(&sandbox), Some("t"));
        assert_eq!(
            counted(words("-accel tcg,thread=multi -smp 1")),
            words("-accel tcg,thread=single -smp 1 -icount shift=0,sleep=off")
        );
        assert!(is_emulated(&sandbox));
        assert!(!is_emulated(&words("-accel kvm")));
    }
}
