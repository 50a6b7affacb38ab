//! Namespaces: new ones, their users, clocks and parameters.

use serde_json::json;

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Result, Spec};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "namespaces",
        cases: &[
            case("namespace-pid", "runtime-tools linux_ns_nopath; youki linux_ns_itype"),
            case("namespace-ipc", "runtime-tools linux_ns_nopath; youki linux_ns_itype"),
            case("namespace-uts", "runtime-tools linux_ns_nopath; youki linux_ns_itype"),
            case(
                "namespace-mount",
                "runtime-tools linux_ns_nopath; youki linux_ns_itype; runc host-mntns.bats",
            ),
            case(
                "namespace-network",
                "runtime-tools linux_ns_nopath; youki linux_ns_itype",
            ),
            case("namespace-cgroup", "runtime-tools linux_ns_nopath; runc cgroups.bats"),
            case(
                "namespace-of-another-container",
                "runtime-tools linux_ns_itype; runc run.bats",
            ),
            case("loopback-is-up", "ours alone"),
        ],
        run: new,
    },
    Group {
        name: "userns",
        cases: &[
            case(
                "userns-uid-map",
                "runtime-tools linux_uid_mappings; youki uid_mappings; runc userns.bats",
            ),
            case(
                "userns-gid-map",
                "runtime-tools linux_uid_mappings; youki uid_mappings; runc userns.bats",
            ),
            case("userns-root-inside", "runc userns.bats"),
            case("userns-devices-can-be-used", "runc userns.bats"),
            case("userns-several-ranges", "runc userns.bats"),
            case("userns-sysctl-of-the-network", "runc userns.bats"),
            case("userns-exec", "runc userns.bats; runc exec.bats"),
        ],
        run: users,
    },
    Group {
        name: "timens",
        cases: &[
            case("timens-boot-time", "runc timens.bats"),
            case("timens-monotonic", "runc timens.bats"),
            case("timens-without-offsets", "runc timens.bats"),
        ],
        run: times,
    },
    Group {
        name: "sysctl",
        cases: &[
            case("sysctl-of-the-network", "runtime-tools linux_sysctl; youki sysctl"),
            case("sysctl-of-ipc", "runtime-tools linux_sysctl; youki sysctl"),
            case("sysctl-by-slashes", "ours alone"),
            case("sysctl-that-is-not-there", "youki sysctl"),
        ],
        run: sysctls,
    },
];

fn new(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let script = "for k in pid ipc uts mnt net cgroup; do echo $k $(readlink /proc/self/ns/$k); done; cat /sys/class/net/lo/flags";
    let with_cgroup = |spec: Spec| spec.push("/linux/namespaces", json!({ "type": "cgroup" }));
    let first = bench.script(script, with_cgroup)?;
    for (kind, name) in [
        ("pid", "pid"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("mnt", "mount"),
        ("net", "network"),
        ("cgroup", "cgroup"),
    ] {
        let inside = Bench::line(&first, kind)?;
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
        seen.holds(
            &format!("namespace-{name}"),
            outside.as_os_str() != inside && inside.contains(":["),
            inside,
        );
    }
    // Two that run at once, for the number of a namespace that has gone is free again. The network is the pod's.
    let name = bench.idle(with_cgroup)?;
    let (other, now) = (bench.exec(&name, script)?, bench.script(script, with_cgroup)?);
    let differ = ["pid", "ipc", "uts", "mnt"]
        .iter()
        .all(|kind| Bench::line(&other, kind).ok() != Bench::line(&now, kind).ok());
    bench.node().remove(&name)?;
    seen.holds("namespace-of-another-container", differ, format!("{other} {now}"));
    // IFF_UP is 1.
    let flags = first.lines().last().unwrap_or_default().trim_start_matches("0x");
    let up = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    seen.holds("loopback-is-up", up, &first);
    Ok(())
}

/// A user namespace whose ids begin at 100000; the files of the root are its root's.
pub(super) fn mapped(spec: Spec, ranges: &serde_json::Value) -> Result<Spec> {
    chown(&spec.root())?;
    spec.push("/linux/namespaces", json!({ "type": "user" }))?
        .set("/linux/uidMappings", ranges.clone())?
        .set("/linux/gidMappings", ranges.clone())
}

fn chown(root: &std::path::Path) -> Result<()> {
    // The directory that leads to it has to let others through.
    if let Some(above) = root.parent() {
        std::fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    }
    let mut command = std::process::Command::new("chown");
    command.args(["-hR", "100000:100000"]).arg(root);
    command.status()?;
    Ok(())
}

fn users(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let one = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let script = "echo uid $(cat /proc/self/uid_map); echo gid $(cat /proc/self/gid_map); echo id $(id -u) $(stat -c %u /bin); \
        echo x > /dev/null && head -c 1 /dev/zero | wc -c";
    let said = bench.script(script, |spec| mapped(spec, &one))?;
    seen.has("userns-uid-map", &said, "uid 0 100000 65536\n");
    seen.has("userns-gid-map", &said, "gid 0 100000 65536\n");
    seen.has("userns-root-inside", &said, "id 0 0\n");
    seen.has("userns-devices-can-be-used", &said, "1\n");
    let two = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }, { "containerID": 10, "hostID": 200_000, "size": 20 }]);
    let said = bench.script("echo $(cat /proc/self/uid_map)", |spec| mapped(spec, &two))?;
    seen.same("userns-several-ranges", said, "0 100000 10 10 200000 20\n");
    let said = bench.script("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", |spec| {
        mapped(spec, &one)?.set("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "0" }))
    })?;
    seen.same("userns-sysctl-of-the-network", said, "0\n");
    let name = bench.idle(|spec| mapped(spec, &one))?;
    let said = bench.exec(&name, "id -u; cat /proc/self/uid_map")?;
    seen.holds("userns-exec", said.starts_with("0\n") && said.contains("100000"), &said);
    bench.node().remove(&name)
}

fn times(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let offsets = json!({ "boottime": { "secs": 1_337_000, "nanosecs": 0 }, "monotonic": { "secs": 7_881, "nanosecs": 2_718_281 } });
    let script = "cat /proc/uptime; cat /proc/self/timens_offsets";
    let with = |offsets: serde_json::Value| {
        bench.script(script, |spec| {
            spec.push("/linux/namespaces", json!({ "type": "time" }))?
                .set("/linux/timeOffsets", offsets)
        })
    };
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = words(&with(offsets)?);
    seen.has("timens-boot-time", &said, "boottime 1337000 0");
    seen.has("timens-monotonic", &said, "monotonic 7881 2718281");
    seen.has(
        "timens-without-offsets",
        &words(&with(serde_json::Value::Null)?),
        "boottime 0 0",
    );
    Ok(())
}

fn sysctls(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let script = "cd /proc/sys; cat net/ipv4/ip_default_ttl kernel/shm_rmid_forced kernel/msgmax";
    let said = bench.script(script, |spec| {
        spec.set(
            "/linux/sysctl",
            json!({ "net.ipv4.ip_default_ttl": "77", "kernel.shm_rmid_forced": "1", "kernel/msgmax": "9999" }),
        )
    })?;
    let mut lines = said.lines();
    seen.same("sysctl-of-the-network", lines.next(), Some("77"));
    seen.same("sysctl-of-ipc", lines.next(), Some("1"));
    seen.same("sysctl-by-slashes", lines.next(), Some("9999"));
    let said = bench.refusal(|spec| spec.set("/linux/sysctl", json!({ "net.ipv4.no_such": "1" })))?;
    seen.has("sysctl-that-is-not-there", &said, "no_such");
    Ok(())
}
