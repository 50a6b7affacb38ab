//! Containers and execs that the launcher starts on this machine, as root: what their programs see.
// Clippy exempts test functions from these, but not the helpers that they share.
#![allow(clippy::panic, clippy::unwrap_used)]

mod bench;
mod hooks;
mod isolation;
mod oci;

use std::{fs::File, io::Read, os::fd::AsRawFd};

use oci_spec::runtime::Process;
use serde_json::json;
use tatami_agent::launch::{LaunchError, Stdio, Target};

use bench::{Bench, piped, process, wait, wait_for_init};

#[tokio::test]
async fn a_container_has_its_own_root_namespaces_and_directory() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script(
            "echo $$ $HOME; cat /proc/sys/kernel/hostname; pwd; ls /; exit 7",
            |_| (),
        )
        .await;
    assert_eq!(code, 7, "{text}");
    assert_eq!(text, "1 /\ntatami\n/made/here\nbin\ndev\nmade\nproc\nsys\n");
}

#[tokio::test]
async fn the_root_of_its_cgroup_namespace_is_its_cgroup() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script("grep ^0: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs", |_| ())
        .await;
    assert_eq!((text.lines().next(), code), (Some("0::/"), 0), "{text}");
    assert!(text.contains("\n1\n"), "{text}");
}

#[tokio::test]
async fn a_user_has_its_ids_groups_and_no_more_capabilities_than_asked_for() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script(
            "id -u; id -g; id -G; umask; grep -E 'Cap|NoNew' /proc/self/status",
            |spec| {
                spec["process"]["user"] = json!({ "uid": 1000, "gid": 100, "additionalGids": [5, 6], "umask": 0o27 });
                spec["process"]["noNewPrivileges"] = true.into();
            },
        )
        .await;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("1000\n100\n100 5 6\n0027\n"), "{text}");
    assert!(
        text.contains("CapEff:\t0000000000000000") && text.contains("CapBnd:\t0000000000000001"),
        "{text}"
    );
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
}

#[tokio::test]
async fn seccomp_holds_without_no_new_privs_and_for_a_user() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script("mkdir /tmp/x; grep -E 'Seccomp:|CapEff|NoNew' /proc/self/status", |spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 100 });
            spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat", "capset", "setuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }] });
        })
        .await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("Function not implemented") && text.contains("Seccomp:\t2"),
        "{text}"
    );
    assert!(
        text.contains("CapEff:\t0000000000000000") && text.contains("NoNewPrivs:\t0"),
        "{text}"
    );
}

#[tokio::test]
async fn a_missing_program_is_reported_before_the_gate() {
    let bench = Bench::new();
    let spec = bench.spec("", |spec| spec["process"]["args"] = json!(["no-such"]));
    let error = bench
        .run(Target::Container { spec, join: Vec::new() })
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LaunchError::Refused(text) if text == "exec: \"no-such\": executable file not found in $PATH"),
        "{error}"
    );
}

#[tokio::test]
async fn a_user_namespace_maps_its_root() {
    let bench = Bench::new();
    std::os::unix::fs::chown(bench.image.path().join("rootfs"), Some(100_000), Some(100_000)).unwrap();
    std::os::unix::fs::chown(bench.image.path(), Some(100_000), Some(100_000)).unwrap();
    let (text, code) = bench
        .run_script(
            "id -u; cat /proc/self/uid_map; echo x >/dev/null; cat /sys/fs/cgroup/cgroup.procs",
            |spec| {
                let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
                spec["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "type": "user" }));
                spec["linux"]["uidMappings"] = map.clone();
                spec["linux"]["gidMappings"] = map;
            },
        )
        .await;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("0\n") && text.contains("100000"), "{text}");
}

#[tokio::test]
async fn a_link_in_the_image_does_not_lead_a_mount_outside_and_read_only_holds() {
    let bench = Bench::new();
    let root = bench.image.path().join("rootfs");
    std::fs::create_dir(bench.image.path().join("data")).unwrap();
    std::fs::write(bench.image.path().join("data/file"), "here\n").unwrap();
    std::os::unix::fs::symlink("../../../../..", root.join("evil")).unwrap();
    let (text, code) = bench
        .run_script(
            "cat /inside/file; echo no >/inside/file; echo no >/file; exit 3",
            |spec| {
                spec["root"]["readonly"] = true.into();
                spec["mounts"].as_array_mut().unwrap().push(
                json!({ "destination": "/evil/inside", "type": "bind", "source": "data", "options": ["rbind", "ro"] }),
            );
            },
        )
        .await;
    assert_eq!(code, 3, "{text}");
    assert!(
        text.starts_with("here\n") && text.matches("Read-only file system").count() == 2,
        "{text}"
    );
}

#[tokio::test]
async fn an_exec_joins_its_container_and_ends_unopened_with_its_gate() {
    let bench = Bench::new();
    let spec = bench.spec("exec sleep 1000", |_| ());
    let (_output, stdio) = piped();
    let first = bench
        .launch(
            Target::Container {
                spec: spec.clone(),
                join: Vec::new(),
            },
            stdio,
        )
        .await
        .unwrap();
    first.gate.open().await.unwrap();
    let pidfd = || {
        let pid = rustix::process::Pid::from_raw(first.pid.as_raw()).unwrap();
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    };
    let exec = |script: &str| {
        let mut process = process(script);
        process["user"] = json!({ "uid": 1000, "gid": 1000 });
        let process: Process = serde_json::from_value(process).unwrap();
        Target::Exec {
            spec: spec.clone(),
            process: Box::new(process),
            init: pidfd(),
        }
    };
    let (text, code) = bench
        .run(exec("cat /proc/sys/kernel/hostname /proc/1/comm; id -u; pwd; exit 4"))
        .await
        .unwrap();
    assert_eq!((text.as_str(), code), ("tatami\nsleep\n1000\n/made/here\n", 4));

    let terminal = bench.launch(exec("tty"), Stdio::Terminal).await.unwrap();
    let mut master = File::from(terminal.terminal.unwrap());
    terminal.gate.open().await.unwrap();
    let mut bytes = [0; 64];
    let length = master.read(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes[..length]).trim_end(), "/dev/pts/0");
    assert_eq!(wait(terminal.pid), 0);

    let unopened = bench.launch(exec("true"), piped().1).await.unwrap();
    let pid = unopened.pid;
    drop(unopened);
    assert_eq!(wait(pid), 137);
    nix::sys::signal::kill(first.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(wait(first.pid), 137);
}

#[tokio::test]
async fn an_exec_in_a_directory_that_is_not_absolute_is_refused() {
    let bench = Bench::new();
    let spec = bench.spec("exec sleep 1000", |_| ());
    let container = Target::Container {
        spec: spec.clone(),
        join: Vec::new(),
    };
    let first = bench.launch(container, piped().1).await.unwrap();
    first.gate.open().await.unwrap();
    let pid = rustix::process::Pid::from_raw(first.pid.as_raw()).unwrap();
    let mut relative = process("true");
    relative["cwd"] = "bin".into();
    let exec = Target::Exec {
        spec,
        process: Box::new(serde_json::from_value(relative).unwrap()),
        init: rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap(),
    };
    let refused = bench.run(exec).await.unwrap_err();
    assert!(
        matches!(&refused, LaunchError::Refused(text) if text.contains("process.cwd") && text.contains("bin")),
        "{refused}"
    );
    nix::sys::signal::kill(first.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(wait_for_init(first.pid), 137);
}

#[tokio::test]
async fn nothing_of_the_agent_reaches_a_program() {
    let bench = Bench::new();
    let leak = File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    assert!(leak.as_raw_fd() > 2);
    let (text, code) = bench
        .run_script("", |spec| {
            spec["process"]["args"] = json!(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"])
        })
        .await;
    assert_eq!(
        (text.as_str(), code),
        ("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", 0)
    );
    let (text, code) = bench.run_script("ls /proc/self/fd", |_| ()).await;
    assert_eq!((text.as_str(), code), ("0\n1\n2\n3\n", 0));
}
