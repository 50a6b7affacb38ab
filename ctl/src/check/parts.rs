//! Checks of what the configuration names: accelerator, programs, files, vsock.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use base::chain;
use base::meminfo::Meminfo;
use config::{Config, SharedFs, Vsock};
use hypervisor::{Accel, AccelError};

use super::finding::Finding;
use super::images;
use crate::command;

/// The kernel's vsock backend.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// The host's huge pages of 2 MiB (the kernel's hugetlbpage.rst).
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Timeout for a program to say its version.
const VERSION: Duration = Duration::from_secs(5);

/// The oldest versions that the runtime is known to work with, of QEMU and virtiofsd.
const QEMU: (u32, u32) = (8, 0);
const VIRTIOFSD: (u32, u32) = (1, 10);

pub(super) async fn parts(config: &Config, search: Option<&OsStr>) -> Vec<Finding> {
    let hypervisor = &config.hypervisor;
    let remedy = "install it, or set hypervisor.qemu.path";
    let qemu = program("QEMU", &hypervisor.path, search, remedy).await;
    let mut findings = vec![
        accelerator(hypervisor::accelerator(hypervisor.accelerator)),
        recent(qemu, QEMU),
        images::kernel(&config.guest_kernel()),
        images::initrd(&hypervisor.initrd),
    ];
    let guest_kernel = config.guest_kernel();
    let release = super::kernel::release_of(&guest_kernel);
    findings.extend(release.and_then(|release| images::modules(&config::modules_beside(&guest_kernel), &release)));
    if hypervisor.shared_fs == SharedFs::VirtioFs {
        let remedy = "install it, or set hypervisor.qemu.virtio_fs_daemon";
        let virtiofsd = program("virtiofsd", &hypervisor.virtio_fs_daemon, search, remedy).await;
        findings.push(recent(virtiofsd, VIRTIOFSD));
    }
    let channel = match vsock(hypervisor.vsock, usable(Path::new(VHOST_VSOCK))) {
        Some(finding) => finding,
        None => {
            let remedy = "load the module vhost_vsock, or install the daemon, or set hypervisor.qemu.vsock_daemon";
            patched(program("vsock", &hypervisor.vsock_daemon, search, remedy).await)
        }
    };
    findings.push(channel);
    findings.push(memory(
        u64::from(config.hypervisor.default_memory.0),
        base::meminfo::read().as_ref().map(Free::of),
    ));
    if hypervisor.enable_hugepages {
        findings.push(huge_pages(
            config.hypervisor.default_memory.0,
            free_pages(Path::new(HUGE_PAGES)),
        ));
    }
    if config.agent.debug_console_enabled {
        let programs = hypervisor.initrd.with_file_name("debug-console.img");
        findings.push(console(&programs));
    }
    findings
}

/// In MiB.
#[derive(Clone, Copy)]
struct Free {
    /// With swap.
    all: u64,
    available: Option<u64>,
}

impl Free {
    fn of(meminfo: &Meminfo) -> Self {
        Self {
            all: (meminfo.mem_total + meminfo.swap_total) >> 20,
            available: meminfo.mem_available.map(|bytes| bytes >> 20),
        }
    }
}

/// A guest that is larger than what is free is killed, or kills others, once it uses it: its memory is promised, not taken.
fn memory(wanted: u64, host: Option<Free>) -> Finding {
    if let Some(Free { all, .. }) = host
        && all < wanted
    {
        return Finding::warn(
            "memory",
            format!("this host has {all} MiB in all, swap included, and a VM has {wanted} MiB"),
            "a guest that uses its memory is killed, and one that is far too large does not boot in time",
            "lower hypervisor.qemu.default_memory",
        );
    }
    match host.and_then(|host| host.available) {
        Some(free) if free < wanted => Finding::warn(
            "memory",
            format!("{free} MiB are available, a VM has {wanted} MiB"),
            "the host's kernel may kill a VM for want of memory",
            "free some, or lower hypervisor.qemu.default_memory",
        ),
        Some(free) => Finding::ok("memory", format!("{free} MiB are available, a VM has {wanted} MiB")),
        None => Finding::warn(
            "memory",
            "/proc/meminfo does not tell what is available",
            "a VM may be killed for want of memory",
            "mount /proc",
        ),
    }
}

/// How many more huge pages of 2 MiB the host has for VMs.
fn free_pages(place: &Path) -> Option<u64> {
    let number = |file: &str| -> Option<u64> { std::fs::read_to_string(place.join(file)).ok()?.trim().parse().ok() };
    let free = number("free_hugepages")?.checked_sub(number("resv_hugepages")?)?;
    let surplus = number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?);
    Some(free + surplus)
}

/// A VM on huge pages takes all of its memory when it boots.
fn huge_pages(memory: u32, free: Option<u64>) -> Finding {
    let wanted = u64::from(memory.div_ceil(2));
    let (found, remedy) = match free {
        Some(free) if free >= wanted => {
            return Finding::ok("huge pages", format!("{free} of 2 MiB are free, a VM takes {wanted}"));
        }
        Some(free) => (
            format!("{free} of 2 MiB are free, a VM takes {wanted}"),
            format!(
                "add {} to the number in {HUGE_PAGES}/nr_hugepages, or set hypervisor.qemu.enable_hugepages to false",
                wanted - free
            ),
        ),
        None => (
            format!("{HUGE_PAGES} cannot be read"),
            String::from("use a kernel with CONFIG_HUGETLBFS, or set hypervisor.qemu.enable_hugepages to false"),
        ),
    };
    Finding::warn("huge pages", found, "no sandbox starts until there are enough", remedy)
}

fn console(programs: &Path) -> Finding {
    match File::open(programs) {
        Ok(_) => Finding::warn(
            "debug console",
            "it is enabled",
            "root on this host gets a shell in every guest",
            "set agent.kata.debug_console_enabled to false where it is not needed",
        ),
        Err(error) => Finding::warn(
            "debug console",
            unreadable(programs, &error),
            "it has no shell",
            "install it beside the initrd",
        ),
    }
}

/// Warns of a version that is older than what is known to work. One that cannot be told is left as it is.
fn recent(finding: Finding, oldest: (u32, u32)) -> Finding {
    let Some(version) = (!finding.failed()).then(|| numbers(&finding.found)).flatten() else {
        return finding;
    };
    if version >= oldest {
        return finding;
    }
    Finding::warn(
        finding.what,
        finding.found,
        "it is older than any that the runtime was tried with",
        format!("install {}.{} or newer", oldest.0, oldest.1),
    )
}

/// In the version of a vsock daemon with the patches of `hypervisor/patches`.
const PATCHED: &str = "+tatami";

/// Warns of a vsock daemon that was built without them.
fn patched(finding: Finding) -> Finding {
    if finding.failed() || finding.found.contains(PATCHED) {
        return finding;
    }
    Finding::warn(
        finding.what,
        finding.found,
        "it is not the runtime's own: a guest can make it grow until it ends, and its VM with it",
        "install the one that comes with the runtime",
    )
}

/// The first `N.N` behind a colon: the path before it may have digits of its own.
pub(super) fn numbers(text: &str) -> Option<(u32, u32)> {
    let (_, text) = text.split_once(": ")?;
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

/// QEMU's documentation ("Security", "Non-virtualization Use Case") gives no guarantee for what TCG runs.
const NO_BOUNDARY: &str = "guests are emulated: that is slow, and QEMU does not take its emulator TCG for a security boundary. What \
                           is left is the confinement of QEMU's process";

/// What runs the guest's instructions.
fn accelerator(chosen: Result<(Accel, Option<String>), AccelError>) -> Finding {
    match chosen {
        Ok((Accel::Kvm, _)) => Finding::ok("accelerator", "KVM"),
        Ok((Accel::Tcg, None)) => Finding::warn(
            "accelerator",
            "TCG, as configured",
            NO_BOUNDARY,
            "set hypervisor.qemu.accelerator to \"kvm\" where guests are not trusted",
        ),
        Ok((Accel::Tcg, Some(why))) => Finding::warn(
            "accelerator",
            format!("TCG: {why}"),
            NO_BOUNDARY,
            "use a host with hardware virtualization, or a VM with nested virtualization turned on, and set \
             hypervisor.qemu.accelerator to \"kvm\", which refuses to run guests otherwise",
        ),
        Err(error) => Finding::fail(
            "accelerator",
            chain(&error),
            "use such a host, or set hypervisor.qemu.accelerator to \"auto\"",
        ),
    }
}

/// The kernel's backend; none where the daemon stands in for it.
fn vsock(wanted: Vsock, device: Result<(), String>) -> Option<Finding> {
    match (wanted, device) {
        (Vsock::Auto | Vsock::Vhost, Ok(())) => Some(Finding::ok("vsock", VHOST_VSOCK)),
        (Vsock::Vhost, Err(why)) => Some(Finding::fail(
            "vsock",
            format!("{VHOST_VSOCK}: {why}"),
            "load the module vhost_vsock, or set hypervisor.qemu.vsock to \"auto\"",
        )),
        (Vsock::Auto | Vsock::VhostUser, _) => None,
    }
}

fn usable(device: &Path) -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map(drop)
        .map_err(|error| error.to_string())
}

pub(super) async fn program(
    what: &'static str,
    program: &Path,
    search: Option<&OsStr>,
    remedy: &'static str,
) -> Finding {
    let Some(path) = command::find(program, search) else {
        return Finding::fail(
            what,
            format!("{} is not an executable file in PATH", program.display()),
            remedy,
        );
    };
    match version(&path).await {
        Ok(version) => Finding::ok(what, format!("{}: {version}", path.display())),
        Err(why) => Finding::fail(what, format!("{} --version: {why}", path.display()), remedy),
    }
}

/// The first line that a program prints when asked for its version.
pub(crate) async fn version(path: &Path) -> Result<String, String> {
    let printed = command::run(path, &["--version"], VERSION).await;
    let printed = printed.map_err(|error| chain(&error))?;
    if !printed.success {
        return Err(printed.status);
    }
    let line = printed.out.lines().next().unwrap_or("no version");
    Ok(line.chars().take(120).collect())
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::check::finding::Verdict;

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_bare_name_is_found_in_the_search_path_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "tool", "echo tool 1.2; echo more");
        let search = std::env::join_paths([Path::new("/nonexistent"), directory.path()]).unwrap();
        let finding = program("tool", Path::new("tool"), Some(&search), "").await;
        assert_eq!(finding, Finding::ok("tool", format!("{}: tool 1.2", path.display())));
        let elsewhere = Some(OsStr::new("/nonexistent"));
        assert!(program("tool", Path::new("tool"), elsewhere, "").await.failed());
        assert!(program("tool", Path::new("tool"), None, "").await.failed());
    }

    #[test]
    fn a_file_of_that_name_that_cannot_be_executed_is_not_the_program() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tool"), "").unwrap();
        let search = Some(directory.path().as_os_str());
        assert_eq!(command::find(Path::new("tool"), search), None);
    }

    #[tokio::test]
    async fn a_program_that_fails_or_is_missing_is_reported_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "broken", "exit 3");
        let finding = program("tool", &path, None, "mend it").await;
        assert_eq!(finding.found, format!("{} --version: exit status: 3", path.display()));
        let missing = program("tool", Path::new("/nonexistent/tool"), None, "").await;
        assert!(missing.found.contains("No such file"), "{}", missing.found);
    }

    #[test]
    fn the_daemon_is_looked_at_only_where_the_device_does_not_do() {
        let gone = || Err(String::from("gone"));
        assert_eq!(vsock(Vsock::Auto, Ok(())).unwrap().found, VHOST_VSOCK);
        assert_eq!(vsock(Vsock::Auto, gone()), None);
        assert_eq!(vsock(Vsock::VhostUser, Ok(())), None);
        assert!(vsock(Vsock::Vhost, gone()).unwrap().failed());
    }

    #[test]
    fn an_emulated_guest_is_a_warning_that_says_that_it_is_behind_no_boundary() {
        assert_eq!(accelerator(Ok((Accel::Kvm, None))).verdict, Verdict::Ok);
        let asked_for = accelerator(Ok((Accel::Tcg, None)));
        let emulated = accelerator(Ok((Accel::Tcg, Some(String::from("no svm")))));
        assert!(emulated.found.contains("no svm"));
        for finding in [asked_for, emulated] {
            assert!(matches!(finding.verdict, Verdict::Warn(_)), "{finding:?}");
            assert!(finding.to_string().contains("security boundary"), "{finding}");
        }
    }

    #[tokio::test]
    async fn a_directory_without_virtio_fs_needs_no_virtiofsd() {
        let mut config = Config::default();
        let names = async |config: &Config| -> Vec<_> {
            let findings = parts(config, None).await;
            findings.into_iter().map(|finding| finding.what).collect()
        };
        assert_eq!(
            names(&config).await,
            [
                "accelerator",
                "QEMU",
                "kernel",
                "initrd",
                "virtiofsd",
                "vsock",
                "memory"
            ]
        );
        config.hypervisor.shared_fs = SharedFs::None;
        assert_eq!(
            names(&config).await,
            ["accelerator", "QEMU", "kernel", "initrd", "vsock", "memory"]
        );
    }

    #[test]
    fn a_vsock_daemon_that_is_not_ours_is_a_warning() {
        let found = |text: &str| patched(Finding::ok("vsock", text));
        assert_eq!(found("/opt/v: vhost-device-vsock 0.3.0+tatami.1").verdict, Verdict::Ok);
        let foreign = found("/opt/v: vhost-device-vsock 0.3.0");
        assert!(matches!(foreign.verdict, Verdict::Warn(_)), "{foreign:?}");
    }

    #[test]
    fn an_old_version_is_a_warning_and_digits_of_the_path_are_none() {
        let found = |text: &str| recent(Finding::ok("QEMU", text), (8, 0));
        assert_eq!(
            found("/opt/7.2/qemu: QEMU emulator version 10.0.2 (Debian)").verdict,
            Verdict::Ok
        );
        assert!(matches!(
            found("/opt/qemu: QEMU emulator version 7.2.1").verdict,
            Verdict::Warn(_)
        ));
        assert_eq!(found("/opt/qemu: no version").verdict, Verdict::Ok);
    }

    #[test]
    fn a_vm_that_is_larger_than_what_is_free_is_a_warning() {
        let host = Free {
            all: 5120,
            available: Some(1024),
        };
        assert_eq!(memory(256, Some(host)).verdict, Verdict::Ok);
        for (wanted, said) in [(2048, "1024 MiB are available"), (5121, "has 5120 MiB in all")] {
            let found = memory(wanted, Some(host));
            assert!(
                matches!(found.verdict, Verdict::Warn(_)) && found.found.contains(said),
                "{found}"
            );
        }
        assert!(matches!(memory(1, None).verdict, Verdict::Warn(_)));
    }

    #[test]
    fn a_host_without_the_huge_pages_of_a_vm_is_a_warning_with_their_number() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(free_pages(place.path()), None);
        for (file, number) in [
            ("free_hugepages", "100\n"),
            ("resv_hugepages", "30\n"),
            ("nr_overcommit_hugepages", "8\n"),
            ("surplus_hugepages", "2\n"),
        ] {
            std::fs::write(place.path().join(file), number).unwrap();
        }
        assert_eq!(free_pages(place.path()), Some(76));
        assert_eq!(huge_pages(151, Some(76)).verdict, Verdict::Ok);
        let found = huge_pages(153, Some(76));
        assert!(
            found.to_string().contains("add 1 to the number in") && matches!(found.verdict, Verdict::Warn(_)),
            "{found}"
        );
        assert!(matches!(huge_pages(2, None).verdict, Verdict::Warn(_)));
    }
}
