//! The sections about the guest's kernel and the host: devices, cgroups, hugepages, limits, the kernel's last messages.

use std::fmt::Write as _;
use std::path::Path;

use base::chain;

use super::page::Page;
use super::scope::Host;
use crate::{check::kernel as guest_kernel, config as own_config};

/// Lines of the kernel's log that are shown.
const MESSAGES: usize = 40;

pub(super) fn kernel(page: &Page, host: &Host) {
    let loaded = match config::load(&own_config::path(host.config.as_deref())) {
        Ok(loaded) => loaded,
        Err(error) => return page.missing(&chain(&error)),
    };
    let kernel = loaded.config.hypervisor.kernel;
    let Some(release) = guest_kernel::release_of(&kernel) else {
        return page.missing(&format!(
            "`{}` does not say its version, or cannot be read",
            kernel.display()
        ));
    };
    page.line(&format!(
        "Kernel `{}`: `{release}`. The fixes that the runtime depends on:",
        kernel.display()
    ));
    page.code("", &guest_kernel::table(&release));
}

pub(super) async fn state(page: &Page, host: &Host) {
    page.heading("Devices");
    let mut text = String::new();
    for device in [
        "/dev/kvm",
        "/dev/vhost-vsock",
        "/dev/vhost-net",
        "/dev/net/tun",
        "/dev/vfio/vfio",
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{device}: {}", usable(Path::new(device)));
    }
    page.code("", &text);
    page.heading("Kernel and cgroups");
    let uname = rustix::system::uname();
    let (release, version) = (uname.release().to_string_lossy(), uname.version().to_string_lossy());
    page.line(&format!("`{release} {version}`"));
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mounts = read("/proc/self/mounts");
    let cgroups: Vec<_> = mounts.lines().filter(|line| line.contains(" cgroup")).collect();
    page.code("", &cgroups.join("\n"));
    page.heading("Memory and hugepages");
    let meminfo = read("/proc/meminfo");
    let wanted = [
        "MemTotal",
        "MemFree",
        "MemAvailable",
        "Swap",
        "Huge",
        "Shmem:",
        "Mlocked",
    ];
    let lines: Vec<_> = meminfo
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
        .collect();
    page.code("", &lines.join("\n"));
    page.heading("Limits");
    page.code("", &read("/proc/self/limits"));
    let mut sysctls = String::new();
    for name in [
        "fs/inotify/max_user_instances",
        "fs/file-nr",
        "kernel/pid_max",
        "vm/overcommit_memory",
        "vm/max_map_count",
    ] {
        let _ = writeln!(sysctls, "{name}: {}", read(&format!("/proc/sys/{name}")).trim());
    }
    page.code("", &sysctls);
    page.heading("Kernel messages about QEMU, KVM and memory");
    messages(page, host).await;
}

fn usable(device: &Path) -> String {
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => "usable".to_owned(),
        Err(error) => error.to_string(),
    }
}

async fn messages(page: &Page, host: &Host) {
    const WORDS: [&str; 8] = [
        "qemu",
        "kvm",
        "vhost",
        "virtiofsd",
        "out of memory",
        "oom",
        "kata",
        "segfault",
    ];
    let Some(dmesg) = crate::command::find(Path::new("dmesg"), host.search.as_deref()) else {
        return page.line("No `dmesg`");
    };
    let printed = match crate::command::run(&dmesg, &[], super::page::COMMAND).await {
        Ok(printed) => printed,
        Err(error) => return page.missing(&format!("`dmesg` {}", chain(&error))),
    };
    if !printed.success {
        return page.missing(&format!("`dmesg`: {}", printed.all()));
    }
    let matching = printed.out.lines().filter(|line| {
        let line = line.to_lowercase();
        WORDS.iter().any(|word| line.contains(word))
    });
    let lines: Vec<_> = matching.collect();
    page.code("", &lines[lines.len().saturating_sub(MESSAGES)..].join("\n"));
}
