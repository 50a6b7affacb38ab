//! Checks of the host that do not depend on the configuration: processor, KVM, cgroups, containerd.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::finding::Finding;
use super::parts;
use crate::command;

/// The oldest containerd that the runtime was tried with.
const CONTAINERD: (u32, u32) = (1, 6);

/// Timeout for containerd to print its configuration.
const DUMP: Duration = Duration::from_secs(10);

/// The name of the runtime in containerd's configuration.
const RUNTIME: &str = "io.containerd.kata.v2";

/// The shim's name. `kata-ctl node install` gives containerd 1.6 its path for a runtime's type.
const SHIM: &str = "containerd-shim-kata-v2";

/// Whether the processor can run guests: vmx or svm among its flags (the kernel's Documentation/arch/x86/cpuinfo.rst).
pub(super) fn virtualization(cpuinfo: &str, arch: &str) -> Finding {
    const WHAT: &str = "virtualization";
    if arch == "aarch64" {
        return Finding::ok(WHAT, "arm64: /dev/kvm tells");
    }
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    let mut flags = flags.unwrap_or_default().split_ascii_whitespace();
    match flags.find(|flag| matches!(*flag, "vmx" | "svm")) {
        Some(flag) => Finding::ok(WHAT, format!("the processor has {flag}")),
        None => Finding::warn(
            WHAT,
            "the processor has neither vmx nor svm",
            "KVM cannot run an ordinary guest here: guests are emulated, which is slow",
            "turn virtualization on in the firmware, or nested virtualization in the host of this VM",
        ),
    }
}

/// KVM's device, and whether it is of the ordinary kind: one without the processor's help accepts VMs and runs none.
pub(super) fn kvm(device: &Path, virtualization: bool) -> Finding {
    const WHAT: &str = "/dev/kvm";
    let emulated = "guests are emulated, which is slow";
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(device);
    match opened {
        Ok(_) if virtualization => Finding::ok(WHAT, "usable"),
        Ok(_) => Finding::warn(
            WHAT,
            "it opens, but without vmx or svm it cannot run an ordinary guest (a pagetable-based KVM)",
            emulated,
            "leave hypervisor.qemu.accelerator at \"auto\" or \"tcg\": with \"kvm\" a guest spins for ever",
        ),
        Err(error) => Finding::warn(
            WHAT,
            error.to_string(),
            emulated,
            "load kvm_intel or kvm_amd; as another user than root, join the device's group",
        ),
    }
}

pub(super) async fn containerd(search: Option<&OsStr>) -> Finding {
    let Some(path) = command::find(Path::new("containerd"), search) else {
        return Finding::warn(
            "containerd",
            "it is not in PATH",
            "nothing here starts sandboxes, unless it is elsewhere",
            format!("install containerd {}.{} or newer", CONTAINERD.0, CONTAINERD.1),
        );
    };
    match parts::version(&path).await {
        Ok(version) => {
            let found = format!("{}: {version}", path.display());
            match parts::numbers(&found) {
                Some(numbers) if numbers < CONTAINERD => Finding::warn(
                    "containerd",
                    found,
                    "it is older than any that the runtime was tried with",
                    format!("install {}.{} or newer", CONTAINERD.0, CONTAINERD.1),
                ),
                _ => Finding::ok("containerd", found),
            }
        }
        Err(why) => Finding::warn(
            "containerd",
            format!("{} --version: {why}", path.display()),
            "it may not run",
            "see what `containerd --version` prints",
        ),
    }
}

/// Whether CRI can name the runtime: only Kubernetes needs it.
pub(super) async fn runtime_class(search: Option<&OsStr>) -> Option<Finding> {
    let path = command::find(Path::new("containerd"), search)?;
    let printed = command::run(&path, &["config", "dump"], DUMP).await.ok()?;
    let mut lines = printed.out.lines().map(str::trim);
    let known = lines.any(|line| line.starts_with("runtime_type") && (line.contains(RUNTIME) || line.contains(SHIM)));
    Some(if known {
        Finding::ok(
            "containerd's configuration",
            format!("it has a runtime of type {RUNTIME}"),
        )
    } else {
        Finding::warn(
            "containerd's configuration",
            format!("no runtime of type {RUNTIME}"),
            "Kubernetes cannot use it; `ctr run --runtime` and `docker run --runtime` need no entry",
            "run `kata-ctl node install`, or add [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata] with that runtime_type",
        )
    })
}

/// Whether containerd can find the shim by its name.
pub(super) fn shim(search: Option<&OsStr>) -> Finding {
    match command::find(Path::new(SHIM), search) {
        Some(path) => Finding::ok("shim", path.display().to_string()),
        None => Finding::warn(
            "shim",
            format!("{SHIM} is not in this PATH"),
            "containerd cannot start sandboxes unless it is in containerd's own",
            "install it, or add its directory to the PATH of containerd's service",
        ),
    }
}

/// Which cgroups this host has, from proc(5)'s `mounts`.
pub(super) fn cgroups(mounts: &str) -> Finding {
    let mounted = |kind: &str, below: &str| {
        let mut fields = mounts.lines().map(|line| line.split(' ').skip(1));
        fields.any(|mut fields| fields.next().is_some_and(|at| at.starts_with(below)) && fields.next() == Some(kind))
    };
    match (
        mounted("cgroup", "/sys/fs/cgroup"),
        mounted("cgroup2", "/sys/fs/cgroup"),
    ) {
        (false, true) => Finding::ok("cgroups", "version 2"),
        (true, false) => Finding::ok("cgroups", "version 1"),
        (true, true) => Finding::ok("cgroups", "version 1, with version 2 beside it"),
        (false, false) => Finding::warn(
            "cgroups",
            "none below /sys/fs/cgroup",
            "the limits of a pod do not apply to its VM",
            "mount cgroup2 on /sys/fs/cgroup",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::check::finding::Verdict;

    fn warned(finding: &Finding) -> bool {
        matches!(finding.verdict, Verdict::Warn(_))
    }

    #[test]
    fn a_processor_without_virtualization_makes_kvm_of_no_use() {
        assert_eq!(
            virtualization("flags\t\t: fpu svm sse\n", "x86_64").verdict,
            Verdict::Ok
        );
        assert!(warned(&virtualization("flags\t\t: fpu sse\n", "x86_64")));
        let device = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(kvm(device.path(), true).verdict, Verdict::Ok);
        assert!(warned(&kvm(device.path(), false)));
        assert!(warned(&kvm(Path::new("/nonexistent/kvm"), true)));
    }

    #[tokio::test]
    async fn containerd_is_judged_by_its_version_and_its_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let search = Some(directory.path().as_os_str());
        assert!(warned(&containerd(search).await));
        assert_eq!(runtime_class(search).await, None);
        let path = directory.path().join("containerd");
        let write = |script: &str| {
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        write(
            "case $1 in config) echo 'runtime_type = \"io.containerd.kata.v2\"';; *) echo containerd x v1.7.2 abc;; esac",
        );
        assert_eq!(containerd(search).await.verdict, Verdict::Ok);
        assert_eq!(runtime_class(search).await.unwrap().verdict, Verdict::Ok);
        write("echo 'runtime_type = \"/opt/tatami/bin/containerd-shim-kata-v2\"'");
        assert_eq!(runtime_class(search).await.unwrap().verdict, Verdict::Ok);
        write("echo containerd x 1.4.13");
        assert!(warned(&containerd(search).await));
        assert!(warned(&runtime_class(search).await.unwrap()));
    }

    #[test]
    fn cgroups_are_told_apart_by_their_mounts() {
        let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n";
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(cgroups(v2).found, "version 2");
        assert_eq!(cgroups(v1).found, "version 1");
        assert_eq!(
            cgroups(&format!("{v1}{v2}")).found,
            "version 1, with version 2 beside it"
        );
        assert!(warned(&cgroups("cgroup2 /elsewhere cgroup2 rw 0 0\n")));
    }
}
