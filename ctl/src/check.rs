//! `kata-ctl check`: whether this host can run sandboxes, one line for each thing that is needed.
//!
//! Only what is wrong has a consequence and a remedy. Nothing is changed, and no VM is started.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use config::{Config, SharedFs, Vsock};
use hypervisor::{Accel, AccelError};

use crate::{Report, chain};

/// The kernel's vsock backend.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// One thing that is needed.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: &'static str,
    found: String,
    verdict: Verdict,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It works, but not as it should.
    Warn(Advice),
    /// It does not work.
    Fail(Advice),
}

#[derive(Debug, PartialEq, Eq)]
struct Advice {
    consequence: &'static str,
    remedy: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            verdict: Verdict::Ok,
        }
    }

    fn warn(
        what: &'static str,
        found: impl Into<String>,
        consequence: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        let advice = Advice {
            consequence,
            remedy: remedy.into(),
        };
        Self {
            what,
            found: found.into(),
            verdict: Verdict::Warn(advice),
        }
    }

    fn fail(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let advice = Advice {
            consequence: "no sandbox can start",
            remedy: remedy.into(),
        };
        Self {
            what,
            found: found.into(),
            verdict: Verdict::Fail(advice),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Ok => write!(f, "ok    {}: {}", self.what, self.found),
            Verdict::Warn(advice) => write!(f, "warn  {}: {}; {advice}", self.what, self.found),
            Verdict::Fail(advice) => write!(f, "fail  {}: {}; {advice}", self.what, self.found),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.consequence, self.remedy)
    }
}

/// Checks everything. Without a configuration only what does not depend on it.
pub(crate) fn report(named: Option<&Path>) -> Report {
    let path = crate::config::path(named);
    let mut findings = Vec::new();
    match config::load(&path) {
        Ok(loaded) => {
            findings.push(configuration(&path, loaded.warnings.len()));
            findings.extend(parts(&loaded.config, std::env::var_os("PATH").as_deref()));
        }
        Err(error) => findings.push(Finding::fail(
            "configuration",
            chain(&error),
            "correct the file, or name another in KATA_CONF_FILE or the runtime's options",
        )),
    }
    findings.push(cgroups(
        &std::fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
    ));
    render(&findings)
}

fn render(findings: &[Finding]) -> Report {
    let mut text = String::new();
    for finding in findings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{finding}");
    }
    let good = !findings
        .iter()
        .any(|finding| matches!(finding.verdict, Verdict::Fail(_)));
    Report { text, good }
}

fn configuration(path: &Path, warnings: usize) -> Finding {
    let found = path.display().to_string();
    if warnings == 0 {
        return Finding::ok("configuration", found);
    }
    let settings = if warnings == 1 { "setting" } else { "settings" };
    let found = format!("{found} has {warnings} {settings} without effect");
    Finding::warn(
        "configuration",
        found,
        "sandboxes are not as it says",
        "`kata-ctl config` names them",
    )
}

/// What the configuration names.
fn parts(config: &Config, search: Option<&OsStr>) -> Vec<Finding> {
    let hypervisor = &config.hypervisor;
    let mut findings = vec![
        accelerator(hypervisor::accelerator(hypervisor.accelerator)),
        program(
            "QEMU",
            &hypervisor.path,
            search,
            "install it, or set hypervisor.qemu.path",
        ),
        file(
            "kernel",
            &hypervisor.kernel,
            "install it, or set hypervisor.qemu.kernel",
        ),
        file(
            "initrd",
            &hypervisor.initrd,
            "install it, or set hypervisor.qemu.initrd",
        ),
    ];
    if hypervisor.shared_fs == SharedFs::VirtioFs {
        let remedy = "install it, or set hypervisor.qemu.virtio_fs_daemon";
        findings.push(program("virtiofsd", &hypervisor.virtio_fs_daemon, search, remedy));
    }
    findings.push(vsock(hypervisor.vsock, usable(Path::new(VHOST_VSOCK)), || {
        let remedy = "load the module vhost_vsock, or install the daemon, or set hypervisor.qemu.vsock_daemon";
        program("vsock", &hypervisor.vsock_daemon, search, remedy)
    }));
    findings
}

/// What runs the guest's instructions.
fn accelerator(chosen: Result<(Accel, Option<String>), AccelError>) -> Finding {
    match chosen {
        Ok((Accel::Kvm, _)) => Finding::ok("accelerator", "KVM"),
        Ok((Accel::Tcg, None)) => Finding::ok("accelerator", "TCG, as configured"),
        Ok((Accel::Tcg, Some(why))) => Finding::warn(
            "accelerator",
            format!("TCG: {why}"),
            "guests are emulated, which is slow",
            "use a host with hardware virtualization, or a VM with nested virtualization turned on",
        ),
        Err(error) => Finding::fail(
            "accelerator",
            chain(&error),
            "use such a host, or set hypervisor.qemu.accelerator to \"auto\"",
        ),
    }
}

/// The kernel's backend, or the daemon that stands in for it.
fn vsock(wanted: Vsock, device: Result<(), String>, daemon: impl FnOnce() -> Finding) -> Finding {
    match (wanted, device) {
        (Vsock::Auto | Vsock::Vhost, Ok(())) => Finding::ok("vsock", VHOST_VSOCK),
        (Vsock::Vhost, Err(why)) => Finding::fail(
            "vsock",
            format!("{VHOST_VSOCK}: {why}"),
            "load the module vhost_vsock, or set hypervisor.qemu.vsock to \"auto\"",
        ),
        (Vsock::Auto | Vsock::VhostUser, _) => daemon(),
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

/// A program that says its version.
fn program(what: &'static str, program: &Path, search: Option<&OsStr>, remedy: &'static str) -> Finding {
    let Some(path) = find(program, search) else {
        return Finding::fail(
            what,
            format!("{} is not an executable file in PATH", program.display()),
            remedy,
        );
    };
    match version(&path) {
        Ok(version) => Finding::ok(what, format!("{}: {version}", path.display())),
        Err(why) => Finding::fail(what, format!("{} --version: {why}", path.display()), remedy),
    }
}

/// Where a program is: a path as it is, a bare name where execvp(3) would find it.
fn find(program: &Path, search: Option<&OsStr>) -> Option<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return Some(program.to_owned());
    }
    let executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(search?)
        .map(|directory| directory.join(program))
        .find(executable)
}

/// The first line that a program prints when asked for its version.
fn version(path: &Path) -> Result<String, String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .next()
        .unwrap_or("no version")
        .chars()
        .filter(|c| !c.is_control())
        .take(120)
        .collect())
}

/// A regular file that can be read.
fn file(what: &'static str, path: &Path, remedy: &'static str) -> Finding {
    let readable = File::open(path).and_then(|file| file.metadata());
    match readable {
        Ok(metadata) if metadata.is_file() => Finding::ok(what, path.display().to_string()),
        Ok(_) => Finding::fail(what, format!("{} is not a regular file", path.display()), remedy),
        Err(error) => Finding::fail(what, unreadable(path, &error), remedy),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

/// Which cgroups this host has, from proc(5)'s `mounts`.
fn cgroups(mounts: &str) -> Finding {
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
    use super::*;

    fn failed(finding: &Finding) -> bool {
        matches!(finding.verdict, Verdict::Fail(_))
    }

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_line_says_what_follows_and_what_to_do_only_if_something_is_wrong() {
        let findings = [
            Finding::ok("a", "here"),
            Finding::warn("b", "half", "it is slow", "buy another"),
            Finding::fail("c", "gone", "find it"),
        ];
        let report = render(&findings);
        assert_eq!(
            report.text,
            "ok    a: here\nwarn  b: half; it is slow; buy another\nfail  c: gone; no sandbox can start; find it\n"
        );
        assert!(!report.good);
        assert!(render(&findings[..2]).good);
    }

    #[test]
    fn a_bare_name_is_found_in_the_search_path_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "tool", "echo tool 1.2; echo more");
        let search = std::env::join_paths([Path::new("/nonexistent"), directory.path()]).unwrap();
        let finding = program("tool", Path::new("tool"), Some(&search), "");
        assert_eq!(finding, Finding::ok("tool", format!("{}: tool 1.2", path.display())));
        assert!(failed(&program(
            "tool",
            Path::new("tool"),
            Some(OsStr::new("/nonexistent")),
            ""
        )));
        assert!(failed(&program("tool", Path::new("tool"), None, "")));
    }

    #[test]
    fn a_file_of_that_name_that_cannot_be_executed_is_not_the_program() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tool"), "").unwrap();
        assert_eq!(find(Path::new("tool"), Some(directory.path().as_os_str())), None);
    }

    #[test]
    fn a_program_that_fails_or_is_missing_is_reported_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "broken", "exit 3");
        let finding = program("tool", &path, None, "mend it");
        assert_eq!(finding.found, format!("{} --version: exit status: 3", path.display()));
        let missing = program("tool", Path::new("/nonexistent/tool"), None, "");
        assert!(missing.found.contains("No such file"), "{}", missing.found);
    }

    #[test]
    fn a_kernel_is_a_regular_file_that_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        std::fs::write(&path, "").unwrap();
        assert!(!failed(&file("kernel", &path, "")));
        assert!(failed(&file("kernel", directory.path(), "")));
        assert!(failed(&file("kernel", &directory.path().join("other"), "")));
    }

    #[test]
    fn the_daemon_is_looked_at_only_where_the_device_does_not_do() {
        let daemon = || Finding::ok("vsock", "daemon");
        let gone = || Err(String::from("gone"));
        assert_eq!(vsock(Vsock::Auto, Ok(()), || panic!("looked")).found, VHOST_VSOCK);
        assert_eq!(vsock(Vsock::Auto, gone(), daemon).found, "daemon");
        assert_eq!(vsock(Vsock::VhostUser, Ok(()), daemon).found, "daemon");
        assert!(failed(&vsock(Vsock::Vhost, gone(), || panic!("looked"))));
    }

    #[test]
    fn an_emulated_guest_is_a_warning_only_where_it_was_not_asked_for() {
        assert_eq!(accelerator(Ok((Accel::Kvm, None))).verdict, Verdict::Ok);
        assert_eq!(accelerator(Ok((Accel::Tcg, None))).verdict, Verdict::Ok);
        let emulated = accelerator(Ok((Accel::Tcg, Some(String::from("no svm")))));
        assert!(matches!(emulated.verdict, Verdict::Warn(_)) && emulated.found.contains("no svm"));
    }

    #[test]
    fn a_directory_without_virtio_fs_needs_no_virtiofsd() {
        let mut config = Config::default();
        let names = |config: &Config| {
            parts(config, None)
                .into_iter()
                .map(|finding| finding.what)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(&config),
            ["accelerator", "QEMU", "kernel", "initrd", "virtiofsd", "vsock"]
        );
        config.hypervisor.shared_fs = SharedFs::None;
        assert_eq!(names(&config), ["accelerator", "QEMU", "kernel", "initrd", "vsock"]);
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
        assert!(matches!(
            cgroups("cgroup2 /elsewhere cgroup2 rw 0 0\n").verdict,
            Verdict::Warn(_)
        ));
    }
}
