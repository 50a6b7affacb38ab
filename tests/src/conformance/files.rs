//! The root file system and the mounts of the guest's own making.

use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Report, Result};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "root",
        cases: &[
            case(
                "root-read-only",
                "runtime-tools root_readonly_true; youki root_readonly_true; runc root.bats",
            ),
            case("root-writable", "runtime-tools root_readonly_false"),
            case(
                "root-propagation-private",
                "runtime-tools linux_rootfs_propagation; youki rootfs_propagation",
            ),
            case(
                "root-propagation-slave",
                "runtime-tools linux_rootfs_propagation; youki rootfs_propagation",
            ),
            case(
                "root-propagation-shared",
                "runtime-tools linux_rootfs_propagation; youki rootfs_propagation; runc mounts_propagation.bats",
            ),
            case(
                "root-propagation-unbindable",
                "runtime-tools linux_rootfs_propagation; youki rootfs_propagation",
            ),
            case("root-cwd-is-made", "runc cwd.bats"),
            case("root-has-nothing-above", "runc root.bats"),
        ],
        run: root,
    },
    Group {
        name: "default-mounts",
        cases: &[
            case(
                "mount-proc",
                "runtime-tools default; runtime-tools mounts; youki mounts",
            ),
            case("mount-sys-read-only", "runtime-tools default; runtime-tools mounts"),
            case("mount-dev", "runtime-tools default; runtime-tools mounts"),
            case("mount-devpts", "runtime-tools default; runtime-tools mounts"),
            case("mount-shm", "runtime-tools default; runtime-tools mounts"),
            case("mount-mqueue", "runtime-tools default; runtime-tools mounts"),
            case("mount-options-of-each", "runtime-tools mounts"),
            case("mount-order", "runtime-tools mounts; runc mounts.bats"),
            case("mount-over-a-mount", "runc mounts.bats"),
        ],
        run: defaults,
    },
    Group {
        name: "tmpfs",
        cases: &[
            case("tmpfs-size", "runc mounts.bats; runtime-tools mounts"),
            case("tmpfs-mode", "runc run.bats; runc mounts.bats"),
            case("tmpfs-mode-of-what-it-covers", "runc run.bats"),
            case("tmpfs-on-nothing-is-everybodys", "runc run.bats"),
            case("tmpfs-owner", "runc mounts.bats"),
            case("tmpfs-nosuid-nodev-noexec", "runc mounts.bats; youki mounts_recursive"),
            case("tmpfs-read-only", "runc mounts.bats"),
            case("tmpfs-copies-up", "ours alone"),
            case("tmpfs-noatime", "youki mounts_recursive; runc mounts.bats"),
            case("tmpfs-unknown-parameter", "runc mounts.bats"),
            case("tmpfs-sync", "runc mounts.bats"),
            case("tmpfs-dirsync", "runc mounts.bats"),
            case("tmpfs-lazytime", "runc mounts.bats"),
            case("tmpfs-acl-and-iversion", "runc mounts.bats"),
            case("tmpfs-memory-policy-with-commas", "runc mounts.bats"),
        ],
        run: tmpfs,
    },
];

fn root(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let touch = |read_only: bool| bench.script("touch /new && echo made", |spec| spec.set("/root/readonly", read_only));
    seen.has("root-read-only", &touch(true)?, "Read-only file system");
    seen.has("root-writable", &touch(false)?, "made");
    let script = "grep -E '^[0-9]+ [0-9]+ [^ ]+ [^ ]+ / ' /proc/self/mountinfo";
    for (propagation, tag) in [
        ("private", ""),
        ("slave", ""),
        ("shared", "shared:"),
        ("unbindable", "unbindable"),
    ] {
        let line = bench.script(script, |spec| spec.set("/linux/rootfsPropagation", propagation))?;
        // proc_pid_mountinfo(5): the tags are between the options and the dash.
        let tags = line
            .split(" - ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .skip(6)
            .collect::<Vec<_>>()
            .join(" ");
        let right = match tag {
            "" => !tags.contains("shared:") && !line.is_empty() && !tags.contains("unbindable"),
            tag => tags.contains(tag),
        };
        seen.holds(&format!("root-propagation-{propagation}"), right, format!("{line:?}"));
    }
    let said = bench.script("pwd; ls -d /made/on/the/way", |spec| {
        spec.set("/process/cwd", "/made/on/the/way")
    })?;
    seen.same("root-cwd-is-made", said, "/made/on/the/way\n/made/on/the/way\n");
    let said = bench.script("cd /; cd ../../..; pwd; ls -d bin", Ok)?;
    seen.same("root-has-nothing-above", said, "/\nbin\n");
    Ok(())
}

fn mount(destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options })
}

/// Whether a mount is of a type and has all of these options.
fn has(report: &Report, point: &str, kind: &str, options: &[&str]) -> bool {
    let Ok(mount) = report.mount(point) else { return false };
    let listed: Vec<_> = mount["options"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    mount["type"] == kind && options.iter().all(|option| listed.contains(option))
}

fn defaults(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let report = bench.report(|spec| {
        spec.push("/mounts", mount("/mnt", &["nosuid"]))?
            .push("/mounts", mount("/mnt/below", &["nodev"]))?
            .push("/mounts", mount("/tmp", &["size=64k"]))?
            .push("/mounts", mount("/tmp", &["size=128k"]))
    })?;
    let all = report.fact("/mounts").to_string();
    for (case, point, kind, options) in [
        ("mount-proc", "/proc", "proc", &["nosuid", "noexec", "nodev"] as &[_]),
        (
            "mount-sys-read-only",
            "/sys",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        ("mount-dev", "/dev", "tmpfs", &["nosuid"]),
        ("mount-devpts", "/dev/pts", "devpts", &["nosuid", "noexec"]),
        ("mount-shm", "/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev"]),
        ("mount-mqueue", "/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ] {
        seen.holds(case, has(&report, point, kind, &[]), &all);
        seen.holds(
            "mount-options-of-each",
            has(&report, point, kind, options),
            format!("{point} {all}"),
        );
    }
    let points: Vec<_> = report
        .fact("/mounts")
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mount| mount["point"].as_str())
        .collect();
    let place = |point: &str| points.iter().position(|other| *other == point);
    seen.holds(
        "mount-order",
        place("/mnt").is_some() && place("/mnt") < place("/mnt/below"),
        &all,
    );
    seen.same("mount-over-a-mount", report.fact("/sizes/~1tmp"), &json!(128 << 10));
    Ok(())
}

fn tmpfs(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let name = bench.name();
    let script = "stat -c '%n %a %u:%g' /mode /scratch /covered /owned; df -k /sized | tail -n 1; grep -E ' /(plain|ro|late|sync|dirsync|lazy|acl|policy) ' /proc/self/mountinfo; \
        touch /ro/new; ls /copied; echo end";
    let spec = bench.spec(&name, &["sh", "-c", script])?;
    for dir in ["covered", "copied"] {
        std::fs::create_dir(spec.root().join(dir))?;
    }
    std::fs::set_permissions(
        spec.root().join("covered"),
        std::os::unix::fs::PermissionsExt::from_mode(0o751),
    )?;
    std::fs::write(spec.root().join("copied/of-the-image"), "")?;
    let mut spec = spec;
    for (destination, options) in [
        ("/mode", &["mode=0710"] as &[_]),
        ("/scratch", &[]),
        ("/covered", &[]),
        ("/owned", &["uid=1000", "gid=2000", "mode=700"]),
        ("/sized", &["size=256k"]),
        ("/plain", &["nosuid", "nodev", "noexec"]),
        ("/ro", &["ro"]),
        ("/late", &["noatime"]),
        ("/copied", &["tmpcopyup"]),
        ("/sync", &["sync"]),
        ("/dirsync", &["async", "dirsync"]),
        ("/lazy", &["lazytime"]),
        ("/acl", &["acl", "noacl", "iversion"]),
        ("/policy", &["mpol=bind:0,0"]),
    ] {
        spec = spec.push("/mounts", mount(destination, options))?;
    }
    let output = bench.output(&name, &spec)?;
    let said = output.stdout() + &output.stderr();
    seen.has("tmpfs-mode", &said, "/mode 710 0:0\n");
    seen.has("tmpfs-on-nothing-is-everybodys", &said, "/scratch 1777 0:0\n");
    seen.has("tmpfs-mode-of-what-it-covers", &said, "/covered 751 0:0\n");
    seen.has("tmpfs-owner", &said, "/owned 700 1000:2000\n");
    seen.has("tmpfs-size", &said, " 256 ");
    seen.has("tmpfs-nosuid-nodev-noexec", &said, " /plain rw,nosuid,nodev,noexec");
    seen.has("tmpfs-read-only", &said, "Read-only file system");
    seen.has("tmpfs-noatime", &said, " /late rw,noatime");
    seen.has("tmpfs-copies-up", &said, "of-the-image\n");
    let line = |point: &str| {
        let found = said.lines().find(|line| line.contains(&format!(" {point} ")));
        found.unwrap_or_default().to_owned()
    };
    seen.has("tmpfs-sync", &line("/sync"), " - tmpfs tmpfs rw,sync");
    seen.has("tmpfs-dirsync", &line("/dirsync"), " - tmpfs tmpfs rw,dirsync");
    seen.has("tmpfs-lazytime", &line("/lazy"), " - tmpfs tmpfs rw,lazytime");
    seen.has("tmpfs-acl-and-iversion", &line("/acl"), " - tmpfs tmpfs rw");
    seen.has("tmpfs-memory-policy-with-commas", &line("/policy"), "mpol=bind:0");
    let refused = bench.refusal(|spec| spec.push("/mounts", mount("/x", &["no-such-parameter=1"])))?;
    seen.has("tmpfs-unknown-parameter", &refused, "/x");
    Ok(())
}
