//! `docker run` as its users know it.

use std::{
    fs::Permissions,
    io::Write,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

use framework::{Docker, Result, cri::node::eventually, docker::REMAPPED, netns::joined};

/// Flags of `docker run`, and what the program sees of each.
const FLAGS: &[(&[&str], &str, &str)] = &[
    (
        &["--device", "/dev/zero:/dev/xyz:r"],
        "head -c 3 /dev/xyz | wc -c",
        "3\n",
    ),
    (
        &["--device-cgroup-rule", "c 1:5 rw"],
        "mknod /dev/mine c 1 5 && head -c 1 /dev/mine | wc -c",
        "1\n",
    ),
    (&["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn", "100\n200\n"),
    (&["--ulimit", "core=-1"], "ulimit -c", "unlimited\n"),
    (
        &["--sysctl", "net.core.somaxconn=77"],
        "cat /proc/sys/net/core/somaxconn",
        "77\n",
    ),
    (&["--init"], "readlink /proc/1/exe", "/sbin/docker-init\n"),
    (&["--read-only"], "touch /x 2>&1 | grep -c Read-only", "1\n"),
    (
        &["--tmpfs", "/scratch:size=1m"],
        "df -k /scratch | tail -n 1 | awk '{ print $2 }'",
        "1024\n",
    ),
    (
        &["--mount", "type=tmpfs,dst=/mode,tmpfs-mode=0700"],
        "stat -c %a /mode",
        "700\n",
    ),
    (&["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj", "500\n"),
    (
        &["--shm-size", "2m"],
        "df -k /dev/shm | tail -n 1 | awk '{ print $2 }'",
        "2048\n",
    ),
    (&["--group-add", "7", "--group-add", "extra"], "id -G", "0 7 2000\n"),
    (&["--workdir", "/a b/ü"], "pwd", "/a b/ü\n"),
    (
        &["--hostname", "höst", "--domainname", "domain"],
        "hostname; cat /proc/sys/kernel/domainname",
        "höst\ndomain\n",
    ),
    (
        &[
            "--cap-drop",
            "ALL",
            "--cap-add",
            "MKNOD",
            "--cap-add",
            "DAC_OVERRIDE",
            "--cap-add",
            "CHOWN",
        ],
        "grep CapEff /proc/self/status | cut -f 2",
        "0000000008000003\n",
    ),
    (
        &["--security-opt", "no-new-privileges"],
        "grep -c '^NoNewPrivs:.1' /proc/self/status",
        "1\n",
    ),
    (
        &["--mac-address", "02:42:aa:bb:cc:dd"],
        "cat /sys/class/net/eth0/address",
        "02:42:aa:bb:cc:dd\n",
    ),
    (
        &["--dns", "9.9.9.9", "--dns-search", "ex.am", "--dns-option", "ndots:3"],
        "grep -cE '^(nameserver 9.9.9.9|search ex.am|options ndots:3)$' /etc/resolv.conf",
        "3\n",
    ),
    (
        &["--volume", "/anonymous"],
        "grep -c ' /anonymous ' /proc/self/mountinfo",
        "1\n",
    ),
    (&["--volume", "named:/etc/copied"], "ls -d /etc/copied", "/etc/copied\n"),
    (
        &["--label", "a=b", "--annotation", "x.y=z", "--pull", "never"],
        "echo ran",
        "ran\n",
    ),
];

#[test]
fn the_flags_of_docker_run_have_their_effects() -> Result<()> {
    let docker = Docker::start()?;
    let flags = FLAGS.iter().flat_map(|(flags, ..)| flags.iter().copied());
    let script: String = FLAGS
        .iter()
        .map(|(_, script, _)| format!("{script}; echo --\n"))
        .collect();
    let said = docker.run("flags").args(flags).sh(&script).ok()?;
    let said: Vec<_> = said.split("--\n").collect();
    for ((flags, _, wanted), found) in FLAGS.iter().zip(said) {
        assert_eq!(found, *wanted, "{flags:?}");
    }
    Ok(())
}

#[test]
fn a_container_of_dockers_is_copied_from_and_to_committed_exported_and_restarted() -> Result<()> {
    let docker = Docker::start()?;
    let run = docker.run("life").args(["-d", "--stop-signal", "SIGUSR1"]);
    let healthy = ["--health-cmd", "test -e /tmp/ok", "--health-interval", "1s"];
    run.args(healthy)
        .sh("trap 'echo told; exit 7' USR1; touch /tmp/ok; while :; do sleep 0.1; done")
        .ok()?;
    let inspect = |name: &str, format: &str| docker.docker(&["inspect", "--format", format, name]).ok();
    eventually("the container is healthy", || {
        Ok((inspect("life", "{{.State.Health.Status}}")? == "healthy\n").then_some(()))
    })?;
    let file = docker.dir().join("file");
    std::fs::write(&file, "from the host\n")?;
    docker.docker(&["cp"]).arg(&file).arg("life:/tmp/copied").ok()?;
    assert_eq!(
        docker.docker(&["exec", "life", "cat", "/tmp/copied"]).ok()?,
        "from the host\n"
    );
    docker
        .docker(&["exec", "life", "sh", "-c", "echo new > /new; rm /etc/group"])
        .ok()?;
    docker.docker(&["cp", "life:/new"]).arg(&file).ok()?;
    assert_eq!(std::fs::read_to_string(&file)?, "new\n");
    let changes = docker.docker(&["diff", "life"]).ok()?;
    for change in ["A /new\n", "A /tmp/copied\n", "D /etc/group\n"] {
        assert!(changes.contains(change), "{changes}");
    }
    docker.docker(&["rename", "life", "renamed"]).ok()?;
    docker.docker(&["commit", "renamed", "committed:1"]).ok()?;
    docker.docker(&["export", "renamed", "-o"]).arg(&file).ok()?;
    assert!(std::fs::metadata(&file)?.len() > 1 << 20);
    let committed = [
        "run",
        "--rm",
        "--runtime",
        docker.runtime().name(),
        "committed:1",
        "cat",
        "/new",
    ];
    assert_eq!(docker.docker(&committed).ok()?, "new\n");
    docker.docker(&["pause", "renamed"]).ok()?;
    assert_eq!(inspect("renamed", "{{.State.Status}}")?, "paused\n");
    docker.docker(&["unpause", "renamed"]).ok()?;
    docker.docker(&["stop", "renamed"]).ok()?;
    assert_eq!(docker.docker(&["wait", "renamed"]).ok()?, "7\n");
    assert_eq!(docker.docker(&["logs", "renamed"]).ok()?, "told\n");
    // Of a container that does not run.
    docker.docker(&["cp", "renamed:/new", "-"]).ok()?;

    docker
        .run("again")
        .args(["-d", "--restart", "on-failure:1"])
        .sh("echo run; exit 5")
        .ok()?;
    eventually("the container has been restarted", || {
        let state = inspect("again", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}")?;
        Ok((state == "exited 1 5\n").then_some(()))
    })?;
    assert_eq!(docker.docker(&["logs", "again"]).ok()?, "run\nrun\n");
    Ok(())
}

/// A device of CDI's, with the hooks of NVIDIA's: a link in the root, and what ldconfig(8) finds among the libraries that are mounted.
fn uses_a_device_of_cdi(device: &str, start: impl FnOnce(serde_json::Value) -> Result<Docker>) -> Result<()> {
    let places = tempfile::tempdir()?;
    let place = |name: &str| places.path().join(name);
    std::fs::create_dir(place("cdi"))?;
    let settings = serde_json::json!({ "features": { "cdi": true }, "cdi-spec-dirs": [place("cdi")] });
    std::fs::write(place("library"), "a library\n")?;
    // It looks its root up in its bundle, as they do.
    let script = "cd \"$(tr , '\\n' | sed -n 's/.*\"bundle\": *\"\\([^\"]*\\).*/\\1/p')\" && \
                  cd \"$(tr , '\\n' < config.json | sed -n 's/.*\"root\": *{ *\"path\": *\"\\([^\"]*\\).*/\\1/p')\" && \
                  ln -s lib.so.1 opt/lib.so && cat opt/lib.so.1 > etc/found";
    let hook = serde_json::json!({ "hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] });
    let edits = serde_json::json!({
        "env": ["OF_CDI=yes"],
        "deviceNodes": [{ "path": device, "hostPath": "/dev/zero" }],
        "mounts": [{ "hostPath": place("library"), "containerPath": "/opt/lib.so.1", "options": ["ro", "nosuid", "nodev", "bind"] }],
        "hooks": [hook],
    });
    let cdi = serde_json::json!({ "cdiVersion": "0.5.0", "kind": "vendor.test/class", "devices": [{ "name": "one", "containerEdits": edits }] });
    std::fs::write(place("cdi/vendor.json"), cdi.to_string())?;
    let docker = start(settings)?;
    let run = docker.run("cdi").args(["--rm", "--device", "vendor.test/class=one"]);
    let look = format!(
        "echo $OF_CDI; head -c 2 {device} | wc -c; readlink /opt/lib.so; cat /opt/lib.so /etc/found; stat -c %u /etc/found"
    );
    assert_eq!(run.sh(&look).ok()?, "yes\n2\nlib.so.1\na library\na library\n0\n");
    Ok(())
}

#[test]
fn a_device_of_cdi_has_its_files_variables_and_hooks() -> Result<()> {
    uses_a_device_of_cdi("/dev/of-cdi", |settings| {
        Docker::start_with_settings(&settings.to_string())
    })
}

#[test]
fn a_device_of_cdi_has_its_hooks_in_a_remapped_docker() -> Result<()> {
    // In a user namespace runc has the host's device of that name.
    uses_a_device_of_cdi("/dev/zero", Docker::start_remapped_with)
}

mod kata_only {
    use super::*;

    #[test]
    fn a_container_of_dockers_has_its_network_limits_volumes_and_devices() -> Result<()> {
        let docker = Docker::start()?;
        std::fs::write(docker.dir().join("file"), "from the host\n")?;
        let listener = docker.namespace().inside(|| Ok(TcpListener::bind("10.95.0.1:80")?))?;
        let server = std::thread::spawn(move || Ok(listener.accept()?.0.write_all(b"by the bridge\n")?));
        let script = "ip addr show dev eth0 | grep -o 'inet [0-9./]*'; ip route | grep -o 'default via [0-9.]*'; \
                      nc 10.95.0.1 80 < /dev/null; cat /mnt/file; hostname; grep -c host-of-hosts /etc/hosts; \
                      cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max; ls /dev/zero2; \
                      grep ^nameserver /etc/resolv.conf";
        let volume = format!("{}:/mnt/file", docker.dir().join("file").display());
        let output = docker
            .run("box")
            .args([
                "--cpus=1",
                "-m",
                "2g",
                "-v",
                &volume,
                "--hostname",
                "h",
                "--dns",
                "10.95.0.1",
            ])
            .args([
                "--add-host",
                "host-of-hosts:10.95.0.1",
                "--device",
                "/dev/zero:/dev/zero2",
            ])
            .sh(script)
            .ok()?;
        joined(server)?;
        let wanted = "inet 10.95.0.2/24\ndefault via 10.95.0.1\nby the bridge\nfrom the host\nh\n1\n100000 100000\n\
                      2147483648\n/dev/zero2\nnameserver 10.95.0.1\n";
        assert_eq!(output, wanted);
        let id = docker.docker(&["inspect", "--format", "{{.Id}}", "box"]).ok()?;
        docker.docker(&["rm", "box"]).ok()?;
        docker.nothing_left(id.trim())
    }

    #[test]
    fn exec_top_stats_stop_and_a_network_that_is_connected_later() -> Result<()> {
        let docker = Docker::start()?;
        let id = docker.run("box").arg("-d").program(["sleep", "1000"]).ok()?;
        let id = id.trim();
        assert_eq!(docker.docker(&["exec", "box", "echo", "exec"]).ok()?, "exec\n");

        // The process that stands for the container on the host: no stranger is shown.
        let top = docker.docker(&["top", "box", "-o", "pid,args"]).ok()?;
        let processes: Vec<_> = top.lines().skip(1).collect();
        assert!(
            matches!(processes[..], [one] if one.trim_end().ends_with(&format!("tatami-container {id}"))),
            "{top}"
        );

        let stats = docker
            .docker(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "box"])
            .ok()?;
        assert!(!stats.starts_with("0B") && stats.trim_end().ends_with(" 1"), "{stats}");

        let network = |args: &[&str]| docker.docker(&[&["network"], args].concat()).ok();
        network(&["create", "later"])?;
        network(&["connect", "later", "box"])?;
        // Docker answers when the host's side is made; the guest's follows. busybox has nothing that waits for it.
        let wait = "until ip addr show dev eth1 2>/dev/null | grep -o 'inet [0-9.]*'; do sleep 0.1; done; \
                    until ping -c 1 10.96.0.1; do sleep 0.1; done";
        let seen = docker.docker(&["exec", "box", "sh", "-c", wait]).ok()?;
        assert!(seen.starts_with("inet 10.96.0.2\n"), "{seen}");
        network(&["disconnect", "bridge", "box"])?;
        let wait = "while ip addr show dev eth0 >/dev/null 2>&1; do sleep 0.1; done; ls /sys/class/net | grep ^eth";
        assert_eq!(docker.docker(&["exec", "box", "sh", "-c", wait]).ok()?, "eth1\n");

        docker.docker(&["stop", "-t", "1", "box"]).ok()?;
        let code = docker
            .docker(&["inspect", "--format", "{{.State.ExitCode}}", "box"])
            .ok()?;
        assert_eq!(code, "137\n");
        docker.nothing_left(id)?;
        docker.docker(&["start", "box"]).ok()?;
        assert_eq!(docker.docker(&["exec", "box", "echo", "again"]).ok()?, "again\n");
        docker.docker(&["rm", "-f", "box"]).ok()?;
        docker.nothing_left(id)
    }

    /// What the guest's cgroup says: memory, CPU time, processes; then the VM's memory in MiB.
    fn limits(docker: &Docker) -> Result<(String, u64)> {
        let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cpu.weight; \
                      awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo";
        let said = docker.docker(&["exec", "box", "sh", "-c", script]).ok()?;
        let (limits, total) = said.trim_end().rsplit_once('\n').unwrap_or_default();
        Ok((limits.replace('\n', ", "), total.parse().unwrap_or(0)))
    }

    #[test]
    fn an_update_changes_the_limits_in_the_guest_the_vm_and_what_the_host_allows_it() -> Result<()> {
        let docker = Docker::start()?;
        let started = [
            "-d",
            "-m",
            "128m",
            "--cpus=0.5",
            "--pids-limit",
            "50",
            "--cpu-shares",
            "512",
            "--cpuset-cpus",
            "0",
        ];
        let id = docker.run("box").args(started).program(["sleep", "1000"]).ok()?;
        let id = id.trim();
        let (before, small) = limits(&docker)?;
        assert_eq!(before, "134217728, 50000 100000, 50, 59");
        let host = docker.host_memory(id)?;
        let allowed = host.limit()?.unwrap_or(0);
        assert!(allowed > (256 + 128) << 20, "{allowed}");

        let update = |memory: &str, more: &[&str]| {
            let memory = ["--memory", memory, "--memory-swap", memory];
            let update = docker.docker(&["update"]).args(memory).args(more);
            update.arg("box").ok().map(drop)
        };
        let shares = || docker.host_limit(id, &["cpu.shares", "cpu.weight"]);
        assert!(["512", "59"].contains(&shares()?.as_str()), "{}", shares()?);
        assert_eq!(docker.host_limit(id, &["cpuset.cpus"])?, "0");
        update("512m", &["--cpus=1", "--pids-limit", "20", "--cpu-shares", "256"])?;
        assert!(["256", "35"].contains(&shares()?.as_str()), "{}", shares()?);
        let (after, big) = limits(&docker)?;
        assert_eq!(after, "536870912, 100000 100000, 20, 35");
        assert!((small + 384..=small + 396).contains(&big), "{small} MiB became {big}");
        // The VM's 390 MiB more, and an eighth of them.
        let more = host.limit()?.unwrap_or(0);
        assert!(
            (allowed + (430 << 20)..allowed + (450 << 20)).contains(&more),
            "{allowed} became {more}"
        );
        // Nothing has used it: the guest can give back all of it. Of what was used it may keep some, and then the host's limit stays.
        update("128m", &[])?;
        eventually("the host allows what it did", || {
            Ok((host.limit()? == Some(allowed)).then_some(()))
        })?;

        update("512m", &[])?;
        let use_it = ["exec", "box", "guest-probe", "touch-memory", "500000000"];
        docker.docker(&use_it).ok()?;
        assert_eq!(host.oom_kills()?, 0);
        docker.docker(&["rm", "-f", "box"]).ok()?;
        docker.nothing_left(id)
    }

    /// Says which networks a container has, once it has these.
    fn has_networks(docker: &Docker, subnets: &[usize]) -> Result<()> {
        let wanted = subnets.iter().map(|subnet| format!("10.96.{subnet}.2/24\n"));
        let wanted: String = wanted.collect();
        let gateways = subnets.iter().map(|subnet| format!("10.96.{subnet}.1 "));
        let gateways: String = gateways.collect();
        let script = format!(
            "while [ \"$(ip addr | grep -o '10.96.*/24' | sort)\" != '{}' ]; do sleep 0.1; done; \
             for gateway in {gateways}; do until ping -c 1 $gateway >/dev/null 2>&1; do sleep 0.1; done; done; \
             ip addr | grep -o '10.96.*/24' | sort",
            wanted.trim_end()
        );
        assert_eq!(docker.docker(&["exec", "box", "sh", "-c", &script]).ok()?, wanted);
        Ok(())
    }

    #[test]
    fn a_container_has_as_many_networks_as_it_is_connected_to() -> Result<()> {
        let docker = Docker::start()?;
        let network = |args: &[&str]| docker.docker(&[&["network"], args].concat()).ok();
        let names = ["n0", "n1", "n2", "n3", "n4"];
        for name in names {
            network(&["create", name])?;
        }
        // Three from the beginning: they are there before the program starts.
        let script = "ip addr | grep -o '10.96.*/24' | sort; echo up; exec sleep 1000";
        let program = ["sh", "-c", script];
        let id = docker.create("box").args(["--network", "n0"]).program(program).ok()?;
        let id = id.trim();
        network(&["connect", "n1", "box"])?;
        network(&["connect", "n2", "box"])?;
        docker.docker(&["start", "box"]).ok()?;
        has_networks(&docker, &[0, 1, 2])?;
        let logged = eventually("the program has told its networks", || {
            let logged = docker.docker(&["logs", "box"]).ok()?;
            Ok(logged.ends_with("up\n").then_some(logged))
        })?;
        assert_eq!(logged, "10.96.0.2/24\n10.96.1.2/24\n10.96.2.2/24\nup\n");
        // More while it runs, others go, and one comes back.
        network(&["connect", "n3", "box"])?;
        network(&["connect", "n4", "box"])?;
        has_networks(&docker, &[0, 1, 2, 3, 4])?;
        network(&["disconnect", "n0", "box"])?;
        network(&["disconnect", "n3", "box"])?;
        has_networks(&docker, &[1, 2, 4])?;
        // A device that was plugged in goes with its network; the one that the VM booted with is kept for the next, if it was
        // one of these two networks'. Docker makes interfaces in any order.
        let pid = docker.docker(&["inspect", "--format", "{{.State.Pid}}", "box"]).ok()?;
        let interfaces = format!("/proc/{}/net/dev", pid.trim());
        eventually("the VM has three or four network devices", || {
            let taps = std::fs::read_to_string(&interfaces)?.matches("_kata:").count();
            Ok((3..=4).contains(&taps).then_some(()))
        })?;
        network(&["connect", "n3", "box"])?;
        has_networks(&docker, &[1, 2, 3, 4])?;
        docker.docker(&["rm", "-f", "box"]).ok()?;
        docker.nothing_left(id)
    }

    #[test]
    fn a_drop_of_ipc_lock_binds_a_privileged_exec_and_a_ulimit_comes_before_an_annotation() -> Result<()> {
        let docker = Docker::start()?;
        let annotations = [
            "--annotation=io.katacontainers.container.cap_ipc_lock=drop",
            "--annotation=io.katacontainers.container.resource.memlock=64MiB",
        ];
        let run = docker
            .run("box")
            .args(["-d", "--privileged", "--ulimit", "memlock=2097152:4194304"]);
        let id = run.args(annotations).program(["sleep", "1000"]).ok()?;
        let script = "grep locked /proc/$0/limits; grep -E 'Cap(Eff|Bnd)' /proc/$0/status";
        let of = |process: &str| {
            docker
                .docker(&["exec", "--privileged", "box", "sh", "-c", script, process])
                .ok()
        };
        for process in ["1", "self"] {
            let told = of(process)?;
            let words: Vec<_> = told.split_whitespace().collect();
            assert_eq!(
                words.get(..5),
                Some(&["Max", "locked", "memory", "2097152", "4194304"][..]),
                "{told}"
            );
            for set in ["CapEff:", "CapBnd:"] {
                let mask = words.iter().skip_while(|word| **word != set).nth(1);
                let mask = mask
                    .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                    .unwrap_or_default();
                // CAP_SYS_ADMIN and CAP_IPC_LOCK (include/uapi/linux/capability.h).
                assert_eq!((mask >> 21 & 1, mask >> 14 & 1), (1, 0), "{process} {set} {told}");
            }
        }
        docker.docker(&["rm", "-f", "box"]).ok()?;
        docker.nothing_left(id.trim())
    }

    #[test]
    fn the_users_of_a_remapped_docker_are_others_on_the_host() -> Result<()> {
        let docker = Docker::start_remapped()?;
        let shared = docker.dir().join("shared");
        std::fs::create_dir(&shared)?;
        chown(&shared, Some(REMAPPED), Some(REMAPPED))?;
        std::fs::write(shared.join("of-the-host"), "secret\n")?;
        std::fs::set_permissions(shared.join("of-the-host"), Permissions::from_mode(0o600))?;
        let script = "id -u; cat /proc/self/uid_map; stat -c %u:%g /bin/busybox /shared /shared/of-the-host; \
                      cat /shared/of-the-host || echo refused; echo a > /shared/of-root; echo b > /shared/of-user; \
                      chown 1000:1001 /shared/of-user; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo ready; exec sleep 1000";
        let volume = format!("{}:/shared", shared.display());
        let run = docker.run("box").args(["-d", "-v", &volume, "--tmpfs", "/scratch"]);
        let id = run.program(["sh", "-c", script]).ok()?;
        let said = eventually("the container has said all", || {
            let said = docker.docker(&["logs", "box"]).ok()?;
            Ok(said.ends_with("ready\n").then_some(said))
        })?;
        let words: Vec<_> = said.split_whitespace().collect();
        let first = REMAPPED.to_string();
        // In the guest the namespace's users are the same ones of its kernel.
        let wanted = [
            "0",
            "0",
            &first,
            "65536",
            "0:0",
            "0:0",
            "65534:65534",
            "refused",
            "0",
            "ready",
        ];
        assert_eq!(words, wanted, "{said}");
        let owner =
            |name: &str| std::fs::metadata(shared.join(name)).map(|of| (of.uid() - REMAPPED, of.gid() - REMAPPED));
        assert_eq!((owner("of-root")?, owner("of-user")?), ((0, 0), (1000, 1001)));

        let exec = |user: &str, script: &str| docker.docker(&["exec", "-u", user, "box", "sh", "-c", script]).ok();
        assert_eq!(exec("0", "id -u; touch /etc/made; stat -c %u /etc/made")?, "0\n0\n");
        assert_eq!(
            exec(
                "1000:1001",
                "id -u; cat /shared/of-user; echo c >> /shared/of-user; touch /scratch/a; id -g"
            )?,
            "1000\nb\n1001\n"
        );
        docker
            .docker(&["cp", "-q"])
            .arg(shared.join("of-root"))
            .arg("box:/etc/copied")
            .ok()?;
        assert_eq!(exec("0", "cat /etc/copied")?, "a\n");
        docker.docker(&["rm", "-f", "box"]).ok()?;
        docker.nothing_left(id.trim())
    }

    #[test]
    fn a_terminal_of_dockers_has_its_size_and_echoes() -> Result<()> {
        let docker = Docker::start()?;
        let mut terminal = docker
            .run("box")
            .args(["--rm", "-it"])
            .program(["sh"])
            .terminal(33, 99)?;
        terminal.types("while [ \"$(stty size)\" != '33 99' ]; do sleep 0.1; done; echo size-$((6 * 7))\n")?;
        terminal.shows("size-42")?;
        terminal.types("exit 3\n")?;
        assert_eq!(terminal.wait()?, Some(3));
        Ok(())
    }
}
