//! Binds of directories in which a kernel shows itself, and binds on them.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::Result;

pub(super) const GROUPS: &[Group] = &[Group {
    name: "kernel-binds",
    cases: &[
        case("bind-of-a-directory-on-dev-shm", "runc mounts.bats"),
        case("bind-on-dev-shm-is-read-only", "runc mounts.bats"),
        case("bind-of-a-part-of-the-cgroups", "runc cgroups.bats"),
        case("bind-of-proc-on-proc", "runc mounts.bats"),
        case("bind-of-a-directory-on-proc", "runc mounts.bats"),
        case("tmpfs-on-proc", "runc mounts.bats"),
        case("mount-of-fusectl", "runc mounts.bats"),
        case("mount-of-devtmpfs", "runc mounts.bats"),
    ],
    run: binds,
}];

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

/// One hierarchy of the machine's cgroups, or one slice.
fn part_of_the_cgroups() -> Result<std::path::PathBuf> {
    let mut parts = Vec::new();
    for entry in fs::read_dir("/sys/fs/cgroup")? {
        let path = entry?.path();
        if path.join("cgroup.procs").exists() {
            parts.push(path);
        }
    }
    parts.sort();
    Ok(parts.into_iter().next().unwrap_or_else(|| "/sys/fs/cgroup".into()))
}

fn binds(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let data = bench.node().dir().join("shm");
    fs::create_dir_all(&data)?;
    fs::write(data.join("file"), "content\n")?;
    let script = "cat /dev/shm/file; touch /dev/shm/new 2>&1; ls /part/cgroup.procs; ls /proc/self/status /proc/1/status; \
        grep -E ' /devtmpfs ' /proc/self/mountinfo; echo end";
    let said = bench.script(script, |spec| {
        spec.push("/mounts", bind(&data, "/dev/shm", &["rbind", "ro"]))?
            .push("/mounts", bind(&part_of_the_cgroups()?, "/part", &["rbind", "ro"]))?
            .push("/mounts", bind(Path::new("/proc"), "/proc", &["rbind"]))?
            .push(
                "/mounts",
                json!({ "destination": "/devtmpfs", "type": "devtmpfs", "source": "devtmpfs" }),
            )
    })?;
    seen.has("bind-of-a-directory-on-dev-shm", &said, "content\n");
    seen.has(
        "bind-on-dev-shm-is-read-only",
        &said,
        "/dev/shm/new: Read-only file system",
    );
    seen.has("bind-of-a-part-of-the-cgroups", &said, "/part/cgroup.procs\n");
    seen.has("bind-of-proc-on-proc", &said, "/proc/1/status\n/proc/self/status\n");
    seen.has("mount-of-devtmpfs", &said, " - devtmpfs devtmpfs ");
    let said = bench.script("grep ' /fusectl ' /proc/self/mountinfo", |spec| {
        spec.push(
            "/mounts",
            json!({ "destination": "/fusectl", "type": "fusectl", "source": "fusectl" }),
        )
    })?;
    seen.has("mount-of-fusectl", &said, " - fusectl fusectl ");
    let said = bench.refusal(|spec| spec.push("/mounts", bind(&data, "/proc", &["rbind"])))?;
    seen.has("bind-of-a-directory-on-proc", &said, "not of type proc");
    let tmpfs = json!({ "destination": "/proc/", "type": "tmpfs", "source": "tmpfs" });
    let said = bench.refusal(|spec| spec.push("/mounts", tmpfs))?;
    // In other words on runc 1.1.
    seen.has("tmpfs-on-proc", &said, "proc");
    Ok(())
}
