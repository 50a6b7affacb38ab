//! Bind mounts: what of the host is where, with which attributes, and those of what is mounted below.

use std::{fs, path::Path};

use rustix::mount::MountFlags;
use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{HostMount, Result};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "binds",
        cases: &[
            case(
                "bind-read-only",
                "runc mounts.bats; runtime-tools mounts; youki mounts_recursive",
            ),
            case("bind-writable", "runc mounts.bats; runtime-tools mounts"),
            case("bind-of-a-file", "runc mounts.bats"),
            case("bind-makes-its-mount-point", "runc mounts.bats"),
            case("bind-on-a-link-stays-inside", "runc mounts.bats; runc root.bats"),
            case(
                "bind-on-a-relative-destination",
                "runtime-tools mounts; runc mounts.bats",
            ),
            case("bind-of-a-relative-source", "runc mounts.bats"),
            case("bind-of-a-source-with-dots", "runc mounts.bats"),
            case("bind-nosuid-nodev-noexec", "runc mounts.bats; youki mounts_recursive"),
            case("bind-noexec-holds", "youki mounts_recursive"),
            case("bind-nosuid-holds", "youki mounts_recursive"),
            case("bind-noatime", "youki mounts_recursive"),
            case("bind-twice-of-one-source", "runc mounts.bats"),
            case("bind-without-what-is-mounted-below", "runc mounts.bats"),
            case("bind-of-nothing", "runc mounts.bats"),
            case("bind-over-proc", "runc mounts.bats"),
            case("bind-remount-of-a-mount", "runc mounts.bats"),
            case("mount-of-an-overlay", "runc mounts.bats"),
        ],
        run: binds,
    },
    Group {
        name: "recursive",
        cases: &[
            case(
                "rro-covers-what-is-mounted-below",
                "youki mounts_recursive; runc mounts_recursive.bats",
            ),
            case(
                "ro-leaves-what-is-mounted-below",
                "runc mounts_recursive.bats; youki mounts_recursive",
            ),
            case(
                "rnosuid-covers-what-is-mounted-below",
                "youki mounts_recursive; runc mounts_recursive.bats",
            ),
            case("rnoexec-covers-what-is-mounted-below", "youki mounts_recursive"),
            case("noexec-leaves-what-is-mounted-below", "runc mounts_recursive.bats"),
            case("rnodev-covers-what-is-mounted-below", "youki mounts_recursive"),
            case("nosuid-leaves-what-is-mounted-below", "runc mounts_recursive.bats"),
            case("rro-wins-over-rw", "youki mounts_recursive"),
        ],
        run: recursive,
    },
    Group {
        name: "idmap",
        cases: &[
            case("idmap-owner", "runc idmap.bats; youki idmap"),
            case("idmap-of-what-is-made", "runc idmap.bats"),
            case("idmap-of-a-file", "runc idmap.bats"),
            case("idmap-two-mappings-of-one-source", "runc idmap.bats"),
            case("idmap-beside-an-unmapped-one", "runc idmap.bats"),
            case(
                "idmap-in-a-user-namespace",
                "runc idmap-with-userns.bats; runc idmap.bats",
            ),
            case("idmap-of-nobody", "runc idmap.bats"),
            case("idmap-does-not-reach-below", "runc idmap.bats"),
            case("ridmap-reaches-below", "runc idmap.bats"),
            case("idmap-of-a-tmpfs-is-refused", "runc idmap.bats"),
            case("idmap-without-mappings-is-refused", "runc idmap.bats"),
        ],
        run: id_maps,
    },
];

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

fn binds(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let data = bench.node().dir().join("binds");
    fs::create_dir_all(data.join("below"))?;
    fs::write(data.join("file"), "content\n")?;
    fs::copy("/bin/busybox", data.join("busybox"))?;
    fs::set_permissions(
        data.join("busybox"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4755),
    )?;
    let below = HostMount::new(&data.join("below"), MountFlags::empty())?;
    fs::write(data.join("below/hidden"), "")?;
    let script = "cat /ro/file; touch /ro/new 2>&1; touch /rw/made && echo made; cat /etc/one; ls -d /deep/er/rw; ls /elsewhere/file; ls /relative/file; head -c 1 /bundle.json; echo; ls /dots/file; \
        grep ' /plain ' /proc/self/mountinfo; grep ' /late ' /proc/self/mountinfo; /plain/busybox true 2>&1; /suid/busybox id -u; \
        echo twice > /rw/twice; cat /deep/er/rw/twice; ls -A /flat/below | wc -l; touch /again/new 2>&1; echo end";
    let name = bench.name();
    let spec = bench.spec(&name, &["sh", "-c", script])?;
    std::os::unix::fs::symlink("../../../../elsewhere", spec.root().join("link"))?;
    let mut spec = spec;
    for mount in [
        bind(&data, "/ro", &["rbind", "ro"]),
        bind(&data, "/rw", &["rbind", "rw"]),
        bind(&data.join("file"), "/etc/one", &["bind", "ro"]),
        bind(&data, "/deep/er/rw", &["rbind"]),
        bind(&data, "/link", &["rbind", "ro"]),
        bind(&data, "relative", &["rbind", "ro"]),
        bind(Path::new("config.json"), "/bundle.json", &["bind", "ro"]),
        bind(&data.join("below/../../binds"), "/dots", &["rbind", "ro"]),
        bind(&data, "/plain", &["rbind", "nosuid", "nodev", "noexec"]),
        bind(&data, "/suid", &["rbind", "nosuid"]),
        bind(&data, "/late", &["rbind", "noatime"]),
        bind(&data, "/flat", &["bind"]),
        bind(&data, "/again", &["rbind", "rw"]),
        json!({ "destination": "/again", "type": "bind", "source": data, "options": ["remount", "bind", "ro"] }),
    ] {
        spec = spec.push("/mounts", mount)?;
    }
    let output = bench.output(&name, &spec)?;
    let said = output.stdout() + &output.stderr();
    seen.holds(
        "bind-read-only",
        said.starts_with("content\n") && said.contains("/ro/new: Read-only file system"),
        &said,
    );
    seen.has("bind-writable", &said, "made\n");
    seen.holds("bind-of-a-file", said.matches("content\n").count() == 2, &said);
    seen.has("bind-makes-its-mount-point", &said, "/deep/er/rw\n");
    seen.has("bind-on-a-link-stays-inside", &said, "/elsewhere/file\n");
    seen.has("bind-on-a-relative-destination", &said, "/relative/file\n");
    seen.has("bind-of-a-relative-source", &said, "\n{\n");
    seen.has("bind-of-a-source-with-dots", &said, "/dots/file\n");
    seen.has("bind-nosuid-nodev-noexec", &said, " /plain rw,nosuid,nodev,noexec");
    seen.has("bind-noexec-holds", &said, "/plain/busybox: Permission denied");
    seen.has("bind-noatime", &said, " /late rw,noatime");
    seen.has("bind-twice-of-one-source", &said, "twice\n");
    seen.has("bind-without-what-is-mounted-below", &said, "twice\n0\n");
    seen.has("bind-remount-of-a-mount", &said, "/again/new: Read-only file system");
    let effective = |options: &[&str]| -> Result<String> {
        let report = bench.report(|spec| {
            fs::copy(spec.root().join("bin/guest-probe"), data.join("probe"))?;
            fs::set_permissions(data.join("probe"), std::os::unix::fs::PermissionsExt::from_mode(0o4755))?;
            spec.push("/mounts", bind(&data, "/set", options))?
                .set("/process/args/0", "/set/probe")?
                .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?
                .set("/process/noNewPrivileges", false)
        })?;
        // Of the real, effective, saved and file system's id (proc_pid_status(5)).
        Ok(report
            .status("Uid")?
            .split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned())
    };
    seen.same(
        "bind-nosuid-holds",
        (effective(&["rbind", "nosuid"])?, effective(&["rbind"])?),
        ("1000".to_owned(), "0".to_owned()),
    );
    let layer = |name: &str| -> Result<std::path::PathBuf> {
        let path = bench.node().dir().join("layers").join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let (lower, upper, work) = (layer("lower")?, layer("upper")?, layer("work")?);
    fs::write(lower.join("file"), "of below\n")?;
    let options = [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)];
    let options = options.map(|(name, path)| format!("{name}={}", path.display()));
    let said = bench.script("cat /over/file; echo x > /over/new && echo made", |spec| {
        let overlay = json!({ "destination": "/over", "type": "overlay", "source": "overlay", "options": options });
        spec.push("/mounts", overlay)
    })?;
    seen.holds(
        "mount-of-an-overlay",
        said == "of below\nmade\n" && upper.join("new").exists() && !lower.join("new").exists(),
        &said,
    );
    let none = bench.refusal(|spec| spec.push("/mounts", bind(Path::new("/no/such/source"), "/x", &["rbind"])))?;
    seen.has("bind-of-nothing", &none, "no such file");
    let over = bench.refusal(|spec| spec.push("/mounts", bind(&data, "/proc/sys", &["rbind"])))?;
    seen.has("bind-over-proc", &over, "inside /proc");
    below.unmount()
}

fn recursive(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let data = bench.node().dir().join("recursive");
    fs::create_dir_all(&data)?;
    let outer = HostMount::new(&data, MountFlags::empty())?;
    let sub = HostMount::new(&data.join("sub"), MountFlags::empty())?;
    for dir in [&data, &data.join("sub")] {
        fs::copy("/bin/busybox", dir.join("busybox"))?;
        fs::set_permissions(
            dir.join("busybox"),
            std::os::unix::fs::PermissionsExt::from_mode(0o4755),
        )?;
    }
    let run = |options: &[&str], script: &str| {
        bench.script(script, |spec| {
            let spec = spec.push("/mounts", bind(&data, "/r", &[&["rbind"], options].concat()))?;
            spec.set("/process/noNewPrivileges", false)
        })
    };
    let write =
        "touch /r/new 2>/dev/null; echo $?; touch /r/sub/new 2>/dev/null; echo $?; rm -f /r/new /r/sub/new 2>/dev/null";
    let execute = "/r/busybox true 2>/dev/null; echo $?; /r/sub/busybox true 2>/dev/null; echo $?";
    let attributes = "ls /r/sub >/dev/null; grep ' /r/sub ' /proc/self/mountinfo";
    seen.same("rro-covers-what-is-mounted-below", run(&["rro"], write)?, "1\n1\n");
    seen.same("ro-leaves-what-is-mounted-below", run(&["ro"], write)?, "1\n0\n");
    seen.same("rro-wins-over-rw", run(&["rro", "rw"], write)?, "1\n1\n");
    seen.same(
        "rnoexec-covers-what-is-mounted-below",
        run(&["rnoexec"], execute)?,
        "126\n126\n",
    );
    seen.same(
        "noexec-leaves-what-is-mounted-below",
        run(&["noexec"], execute)?,
        "126\n0\n",
    );
    seen.has(
        "rnosuid-covers-what-is-mounted-below",
        &run(&["rnosuid"], attributes)?,
        "nosuid",
    );
    let lines = run(&["nosuid"], attributes)?;
    seen.holds(
        "nosuid-leaves-what-is-mounted-below",
        lines.contains("/r/sub") && !lines.contains("nosuid"),
        &lines,
    );
    seen.has(
        "rnodev-covers-what-is-mounted-below",
        &run(&["rnodev"], attributes)?,
        "nodev",
    );
    sub.unmount()?;
    outer.unmount()
}

/// A mount whose files belong to others: who is 0 on the host is `outside` there.
fn mapped(source: &Path, destination: &str, options: &[&str], outside: u32) -> Value {
    let map = json!([{ "containerID": 0, "hostID": outside, "size": 100 }]);
    json!({ "destination": destination, "type": "bind", "source": source, "options": options,
        "uidMappings": map, "gidMappings": map })
}

fn id_maps(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let data = bench.node().dir().join("mapped");
    fs::create_dir_all(data.join("below"))?;
    let below = HostMount::new(&data.join("below"), MountFlags::empty())?;
    fs::write(data.join("below/file"), "")?;
    for (name, owner) in [("root", 0), ("user", 7), ("far", 5000)] {
        fs::write(data.join(name), "")?;
        std::os::unix::fs::chown(data.join(name), Some(owner), Some(owner))?;
    }
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let script = "stat -c '%n %u:%g' /a/root /a/user /a/far /b/user /c/user /file /a/below/file /r/below/file; touch /a/new; stat -c '%n %u' /a/new";
    let said = bench.script(script, |spec| {
        spec.push("/mounts", mapped(&data, "/a", &["rbind", "idmap"], 1000))?
            .push("/mounts", mapped(&data, "/b", &["rbind", "idmap"], 2000))?
            .push("/mounts", bind(&data, "/c", &["rbind"]))?
            .push("/mounts", mapped(&data.join("user"), "/file", &["bind"], 3000))?
            .push("/mounts", mapped(&data, "/r", &["rbind", "ridmap"], 4000))?
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
    })?;
    seen.has("idmap-owner", &said, "/a/root 1000:1000\n/a/user 1007:1007\n");
    seen.has("idmap-two-mappings-of-one-source", &said, "/b/user 2007:2007\n");
    seen.has("idmap-beside-an-unmapped-one", &said, "/c/user 7:7\n");
    seen.has("idmap-of-a-file", &said, "/file 3007:3007\n");
    seen.has("idmap-of-nobody", &said, "/a/far 65534:65534\n");
    seen.has("idmap-does-not-reach-below", &said, "/a/below/file 0:0\n");
    seen.has("ridmap-reaches-below", &said, "/r/below/file 4000:4000\n");
    let made = fs::metadata(data.join("new")).map(|made| std::os::unix::fs::MetadataExt::uid(&made));
    seen.holds(
        "idmap-of-what-is-made",
        said.contains("/a/new 1000\n") && made.as_ref().is_ok_and(|uid| *uid == 0),
        format!("{made:?} {said}"),
    );
    let said = bench.script(
        "stat -c '%n %u:%g' /a/root; touch /a/inside && stat -c %u /a/inside",
        |spec| {
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            super::namespaces::mapped(spec, &map)?.push("/mounts", mapped(&data, "/a", &["rbind", "idmap"], 100_000))
        },
    )?;
    seen.same("idmap-in-a-user-namespace", said, "/a/root 0:0\n0\n");
    let tmpfs = json!({ "destination": "/x", "type": "tmpfs", "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }],
        "gidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }] });
    let said = bench.refusal(|spec| spec.push("/mounts", tmpfs))?;
    seen.has("idmap-of-a-tmpfs-is-refused", &said, "mount");
    let said = bench.refusal(|spec| spec.push("/mounts", bind(&data, "/x", &["rbind", "idmap"])))?;
    seen.has("idmap-without-mappings-is-refused", &said, "idmap");
    below.unmount()
}
