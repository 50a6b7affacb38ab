//! Cases that need more than an ordinary container and a script: a privileged one, or one that is driven from outside.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    case::Case,
    container::{Container, steps},
    table::Step,
};
use crate::{Error, Result, Spec};

/// The highest capability, CAP_CHECKPOINT_RESTORE (include/uapi/linux/capability.h).
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE \
                            NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN \
                            SYS_BOOT SYS_NICE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE \
                            MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";
/// What the machine may refuse to give: runc fails on a capability that containerd itself has not.
const MAYBE: &str = "SYS_RESOURCE";

/// The specification as `--privileged` makes it.
fn with_all_rights(spec: Spec) -> Result<Spec> {
    let of_host = fs::read_to_string("/proc/self/status").map_err(Error::io("reading /proc/self/status"))?;
    let bounding = of_host.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // CAP_SYS_RESOURCE is number 24.
    let more = bounding.filter(|mask| mask >> 24 & 1 == 1).map(|_| MAYBE);
    let words = CAPABILITIES.split_whitespace().chain(more);
    let all: Vec<String> = words.map(|name| format!("CAP_{name}")).collect();
    let mut spec = spec
        .set(
            "/process/capabilities",
            json!({ "bounding": all, "effective": all, "permitted": all }),
        )?
        .set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))?;
    let mounts = spec.get("/mounts").as_array().cloned().unwrap_or_default();
    for (number, mount) in mounts.iter().enumerate() {
        if ["sysfs", "cgroup"].contains(&mount["type"].as_str().unwrap_or_default()) {
            let options = json!(["nosuid", "noexec", "nodev", "rw"]);
            spec = spec.set(&format!("/mounts/{number}/options"), options)?;
        }
    }
    Ok(spec)
}

/// Docker in a container with all rights: the daemon is the first process, its client comes by exec.
pub(super) fn docker(container: &Container<'_>, case: &Case) -> Result<Vec<Step>> {
    let script = "bash /workloads/dockerd.sh";
    container.start(&with_all_rights(
        container.spec(case.memory, &["bash", "/workloads/dockerd.sh", "serve"])?,
    )?)?;
    let done = container.exec(&format!("{script} use")).limit(case.limit).output()?;
    let found = steps(done)?;
    // Its containers are asked to end first.
    container.end("SIGTERM")?;
    Ok(found)
}

fn measured<T>(name: &str, steps: &mut Vec<Step>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let done = work()?;
    steps.push(Step {
        name: name.to_owned(),
        seconds: begun.elapsed().as_secs_f64(),
    });
    Ok(done)
}

fn same(what: &str, got: &str, wanted: &str) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::unexpected(format!("{what}: {got:?} is not {wanted:?}")))
}

/// PostgreSQL, whose container gets SIGKILL in the middle of commits: another container finds each row that was acknowledged.
pub(super) fn killed_database(container: &Container<'_>, case: &Case) -> Result<Vec<Step>> {
    let script = "/workloads/postgres-kill.sh";
    let mut steps = Vec::new();
    measured("start, to 30 commits", &mut steps, || {
        container.start(&container.spec(case.memory, &["bash", script, "commit"])?)?;
        // Seldom: an emulated guest has little time for who asks.
        let wait = "until grep -qx 30 /data/acknowledged 2>/dev/null; do sleep 2; done";
        container.exec(wait).limit(Duration::from_secs(400)).ok()
    })?;
    container.end("9")?;
    let acknowledged = fs::read_to_string(container.data().join("acknowledged"))
        .map_err(Error::io("reading what was acknowledged"))?;
    let last = acknowledged.split_inclusive('\n').rfind(|line| line.ends_with('\n'));
    let last = last.unwrap_or_default().trim().to_owned();
    let said = measured("recovery by another container", &mut steps, || {
        container.run(
            case.limit,
            &container.spec(case.memory, &["bash", script, "count", &last])?,
        )
    })?;
    same("the acknowledged rows", said.success()?.stdout().trim(), &last)?;
    Ok(steps)
}

/// systemd as the first process: it boots, is looked at by exec, keeps logs, and stops in order by its own signal.
pub(super) fn systemd(container: &Container<'_>, case: &Case) -> Result<Vec<Step>> {
    let unit = "[Unit]\nDescription=work\n[Service]\nExecStart=/bin/sh -c 'echo a line of work; exec sleep 1000'\n\
                ExecStop=/bin/sh -c 'echo stopped >/data/stopped'\n[Install]\nWantedBy=multi-user.target\n";
    let etc = container.root().join("etc/systemd/system");
    fs::write(etc.join("work.service"), unit).map_err(Error::io("writing work.service"))?;
    std::os::unix::fs::symlink(
        "/etc/systemd/system/work.service",
        etc.join("multi-user.target.wants/work.service"),
    )
    .map_err(Error::io("enabling work.service"))?;
    // Docker has a case of its own; apt's timers want the network.
    for name in [
        "docker.service",
        "docker.socket",
        "containerd.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
    ] {
        let _ = fs::remove_file(etc.join(name));
        std::os::unix::fs::symlink("/dev/null", etc.join(name)).map_err(Error::io(format!("masking {name}")))?;
    }
    let tmpfs = |destination: &str| json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755"] });
    let spec = with_all_rights(container.spec(case.memory, &["/sbin/init"])?)?
        .push("/process/env", "container=docker")?
        .push("/mounts", tmpfs("/run"))?
        .push("/mounts", tmpfs("/run/lock"))?;
    let mut steps = Vec::new();
    let state = measured("boot", &mut steps, || {
        container.start(&spec)?;
        let script = "until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait || true; \
                      systemctl --failed --no-legend --plain | cut -d' ' -f1";
        container.exec(script).limit(Duration::from_secs(240)).ok()
    })?;
    same("is-system-running, and the failed units", state.trim(), "running")?;
    let units = container
        .exec("systemctl is-active work cron nginx redis-server rsyslog")
        .ok()?;
    same("the services", &units, &"active\n".repeat(5))?;
    let line = measured("exec of journalctl", &mut steps, || {
        container
            .exec("journalctl -u work -o cat --no-pager | grep -x 'a line of work'")
            .ok()
    })?;
    same("its log", &line, "a line of work\n")?;
    let transient = container.exec("systemd-run --quiet --wait --pipe -p MemoryMax=64M sh /workloads/own-limit.sh");
    same("the limit of a transient unit", &transient.ok()?, "67108864\n")?;
    measured("stop by SIGRTMIN+3", &mut steps, || container.end("SIGRTMIN+3"))?;
    let stopped = fs::read_to_string(container.data().join("stopped"))
        .map_err(Error::io("reading what the unit wrote when it stopped"))?;
    same("the end of the unit", &stopped, "stopped\n")?;
    Ok(steps)
}
