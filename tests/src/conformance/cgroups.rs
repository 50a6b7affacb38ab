//! Limits: as they are created, and as they are updated. The files are those of the version of cgroups that the container has.

use serde_json::json;

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Result, Spec};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "limits",
        cases: &[
            case(
                "limit-of-memory",
                "runtime-tools linux_cgroups_memory; youki cgroups memory; runc cgroups.bats",
            ),
            case(
                "limit-of-processes",
                "runtime-tools linux_cgroups_pids; youki cgroups pids; runc cgroups.bats",
            ),
            case(
                "cpu-quota-and-period",
                "runtime-tools linux_cgroups_cpus; youki cgroups cpu; runc cgroups.bats",
            ),
            case(
                "cpu-shares",
                "runtime-tools linux_cgroups_cpus; youki cgroups cpu; runc cgroups.bats",
            ),
            case("limit-of-memory-is-updated", "runc update.bats"),
            case("limit-of-processes-is-updated", "runc update.bats"),
            case("cpu-quota-alone-is-updated", "runc update.bats"),
            case("cpu-period-alone-is-updated", "runc update.bats"),
            case("cpu-quota-is-taken-off", "runc update.bats"),
            case(
                "what-is-not-updated-stays",
                "runc update.bats; runtime-tools config_updates_without_affect",
            ),
            case(
                "an-exec-is-in-the-containers-cgroup",
                "youki exec cgroup; runc exec.bats",
            ),
            case("the-cgroup-mount-shows-its-own", "runc cgroups.bats"),
        ],
        run: limits,
    },
    Group {
        name: "enforced",
        cases: &[
            case(
                "a-process-too-many-is-refused",
                "runtime-tools linux_cgroups_pids; runc cgroups.bats",
            ),
            case("memory-beyond-the-limit-is-killed-for", "runc events.bats"),
            case("cgroup-mount-read-only", "runc cgroups.bats"),
        ],
        run: enforced,
    },
];

/// Prints a limit: of v2, or of v1.
const READ: &str = "r() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2/$3; }; \
    c() { cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us) $(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us); }; \
    w() { cat /sys/fs/cgroup/cpu.weight 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.shares; };";

fn limits(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let name = bench.idle(|spec| {
        spec.own_cgroup()?.set(
            "/linux/resources",
            json!({ "memory": { "limit": 96 << 20 }, "pids": { "limit": 50 },
                "cpu": { "quota": 40_000, "period": 80_000, "shares": 2048 },
                "devices": [{ "allow": false, "access": "rwm" }] }),
        )
    })?;
    let read = |what: &str| bench.exec(&name, &format!("{READ} {what}"));
    let memory = "r memory.max memory memory.limit_in_bytes";
    let pids = "r pids.max pids pids.max";
    seen.same("limit-of-memory", read(memory)?, format!("{}\n", 96 << 20));
    seen.same("limit-of-processes", read(pids)?, "50\n");
    seen.same("cpu-quota-and-period", read("c")?, "40000 80000\n");
    let weight = read("w")?;
    // 2048 shares are a weight of 79 by runc's old formula, and of 174 by its new one.
    seen.holds(
        "cpu-shares",
        ["2048\n", "79\n", "174\n"].contains(&weight.as_str()),
        weight,
    );
    let update = |resources: serde_json::Value| bench.node().update(&name, &resources);
    update(json!({ "memory": { "limit": 64 << 20 } }))?;
    seen.same("limit-of-memory-is-updated", read(memory)?, format!("{}\n", 64 << 20));
    seen.same(
        "what-is-not-updated-stays",
        read(pids)? + &read("c")?,
        "50\n40000 80000\n",
    );
    update(json!({ "pids": { "limit": 60 } }))?;
    seen.same("limit-of-processes-is-updated", read(pids)?, "60\n");
    update(json!({ "cpu": { "quota": 50_000 } }))?;
    seen.same("cpu-quota-alone-is-updated", read("c")?, "50000 80000\n");
    update(json!({ "cpu": { "period": 100_000 } }))?;
    seen.same("cpu-period-alone-is-updated", read("c")?, "50000 100000\n");
    update(json!({ "cpu": { "quota": -1 } }))?;
    let none = read("c")?;
    seen.holds(
        "cpu-quota-is-taken-off",
        none.starts_with("max ") || none.starts_with("-1 "),
        none,
    );
    let paths = bench.exec(
        &name,
        "sed 's/.*://' /proc/self/cgroup | sort -u; sed 's/.*://' /proc/1/cgroup | sort -u",
    )?;
    let lines: Vec<_> = paths.lines().collect();
    seen.holds(
        "an-exec-is-in-the-containers-cgroup",
        lines.len() % 2 == 0 && lines[..lines.len() / 2] == lines[lines.len() / 2..],
        &paths,
    );
    let own = bench.exec(
        &name,
        "cat /sys/fs/cgroup/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/pids/cgroup.procs",
    )?;
    seen.holds(
        "the-cgroup-mount-shows-its-own",
        own.lines().any(|line| line == "1"),
        &own,
    );
    bench.node().remove(&name)
}

fn enforced(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let limited = |script: &str, resources: serde_json::Value| {
        bench.script(script, |spec: Spec| {
            spec.own_cgroup()?.set("/linux/resources", resources)
        })
    };
    let many = "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo end";
    let said = limited(many, json!({ "pids": { "limit": 10 } }))?;
    seen.holds(
        "a-process-too-many-is-refused",
        said.contains("Resource temporarily unavailable") || said.contains("can't fork"),
        &said,
    );
    let said = limited(
        "guest-probe touch-memory 100000000; echo $?",
        json!({ "memory": { "limit": 32 << 20, "swap": 32 << 20 } }),
    )?;
    seen.has("memory-beyond-the-limit-is-killed-for", &said, "137\n");
    let said = limited(
        "d=/sys/fs/cgroup; test ! -d $d/memory || d=$d/memory; mkdir $d/new",
        json!({}),
    )?;
    seen.has("cgroup-mount-read-only", &said, "Read-only file system");
    Ok(())
}
