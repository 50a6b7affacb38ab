//! The section about the sandboxes that run, or should run: their parts, and whether they answer.

use std::fmt::Write as _;

use base::chain;

use super::page::{Page, read};
use super::scope::Host;
use crate::place;
use crate::sandboxes::{self, Found, Process, Shim, State};

/// Sandboxes that are shown with all their parts.
const SHOWN: usize = 50;

/// Lines of mounts that are shown.
const MOUNTS: usize = 60;

pub(super) async fn sandboxes(page: &Page, host: &Host) {
    let found = match sandboxes::all(&host.run) {
        Ok(found) => found,
        Err(error) => return page.missing(&chain(&error)),
    };
    page.line(&format!("{} below `{}`.", found.len(), host.run.display()));
    for sandbox in found.iter().take(SHOWN) {
        page.heading(&format!("Sandbox `{}`", sandbox.id()));
        one(page, sandbox).await;
    }
    if found.len() > SHOWN {
        page.line(&format!("{} more are left out.", found.len() - SHOWN));
    }
}

async fn one(page: &Page, found: &Found) {
    page.line(&format!("Directory: `{}`", found.directory.display()));
    match &found.state {
        Ok(state) => known(page, state),
        Err(error) => page.missing(&format!("what it is made of: {error}")),
    }
    files(page, found);
    match Shim::connect(found).await {
        Ok(shim) => health(page, &shim).await,
        Err(error) => page.missing(&format!("its health: {}", chain(&error))),
    }
}

fn known(page: &Page, state: &State) {
    page.line(&format!("Namespace: `{}`", state.namespace));
    let mut text = String::from("PID STATE AGE RSS_KIB PSS_KIB COMMAND\n");
    for process in state.shim.iter().chain(&state.vm) {
        text.push_str(&line_of(process));
    }
    page.code("", &text);
    for process in &state.vm {
        let path = format!("/proc/{}/cmdline", process.pid);
        if let Some(line) = process.lives().then(|| std::fs::read(path).ok()).flatten() {
            let words: Vec<_> = line.split(|byte| *byte == 0).map(crate::command::harmless).collect();
            page.code("", words.join(" ").trim());
        }
    }
    for cgroup in &state.cgroups {
        let mut text = String::new();
        for file in [
            "cgroup.procs",
            // v2: where the processes are.
            "vm/cgroup.procs",
            "memory.max",
            "memory.limit_in_bytes",
            "memory.current",
            "memory.usage_in_bytes",
            "memory.events",
            "cpu.max",
            "cpu.cfs_quota_us",
            "cpu.weight",
            "cpu.shares",
            "cpuset.cpus",
            "cpuset.mems",
            "pids.max",
        ] {
            if let Ok(value) = read(&cgroup.join(file)) {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{file}: {}", value.trim().replace('\n', " "));
            }
        }
        page.line(&format!("Cgroup: `{}`", cgroup.display()));
        page.code("", &text);
    }
    if let Some(shim) = state.shim.filter(Process::lives) {
        mounts(page, shim);
    }
}

fn line_of(process: &Process) -> String {
    if !process.lives() {
        return format!("{} dead\n", process.pid);
    }
    let usage = process.usage();
    let kibibytes = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| (bytes / 1024).to_string());
    let age = process
        .age()
        .map_or("?".to_owned(), |age| age.to_string().replace(' ', ""));
    format!(
        "{} {} {age} {} {} {}\n",
        process.pid,
        usage.state,
        kibibytes(usage.resident),
        kibibytes(usage.proportional),
        usage.command
    )
}

/// The shim has a mount namespace of its own: what it shares with the guest is seen only there.
fn mounts(page: &Page, shim: Process) {
    let path = format!("/proc/{}/mountinfo", shim.pid);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let ours: Vec<_> = text.lines().filter(|line| line.contains("/run/tatami")).collect();
            page.line(&format!(
                "Mounts below the run directory, in the shim's namespace ({}):",
                ours.len()
            ));
            page.code("", &ours[..ours.len().min(MOUNTS)].join("\n"));
        }
        Err(error) => page.missing(&format!("its mounts: {path}: {error}")),
    }
}

fn files(page: &Page, found: &Found) {
    let entries = match std::fs::read_dir(&found.directory) {
        Ok(entries) => entries,
        Err(error) => return page.missing(&format!("its files: {error}")),
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| {
            use std::os::unix::fs::FileTypeExt;
            let kind = match entry.file_type() {
                Ok(kind) if kind.is_socket() => "socket",
                Ok(kind) if kind.is_dir() => "directory",
                Ok(kind) if kind.is_fifo() => "fifo",
                _ => "file",
            };
            format!("{} ({kind})", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let vsock = match found.state.as_ref().map(|state| state.vsock.as_deref()) {
        Ok(Some("vhost")) => "vhost (the kernel's)",
        Ok(Some("vhost-user")) => "vhost-user (vhost-device-vsock)",
        Ok(Some(other)) => other,
        Ok(None) => "not yet there",
        Err(_) => "unknown",
    };
    page.line(&format!("vsock: {vsock}. Files:"));
    page.code("", &names.join("\n"));
}

async fn health(page: &Page, shim: &Shim) {
    match shim.health().await {
        Ok(health) => {
            let or = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text.to_owned()
                }
            };
            let mut text = format!("VM: {}", health.vm_state);
            if !health.reason.is_empty() {
                let _ = write!(text, ": {}", health.reason);
            }
            let vmm = if health.vmm_error.is_empty() {
                &health.vmm_status
            } else {
                &health.vmm_error
            };
            let agent = if health.agent_answers {
                "answers"
            } else {
                &health.agent_error
            };
            let _ = write!(
                text,
                "\nQMP status: {}\nagent: {}\nagent version: {}\nguest kernel: {}\ndebug console: {}\n",
                or(vmm),
                or(agent),
                or(&health.agent_version),
                or(&health.kernel_release),
                if health.debug_console { "enabled" } else { "off" },
            );
            for container in &health.containers {
                let _ = writeln!(text, "container {}: {}", container.container_id, container.state);
            }
            page.code("", &text);
        }
        Err(error) => page.missing(&format!("its health: {}", chain(&error))),
    }
    match place::sample(shim).await {
        Ok(text) => page.code("", &text),
        Err(error) => page.missing(&format!("where its vCPUs are: {}", chain(&error))),
    }
}
