//! What a container shares, what it has for itself, and what it may not reach.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use serde_json::json;
use tatami_agent::launch::{Launched, Stdio, Target};

use crate::bench::{Bench, piped, process, wait};

/// A container that runs until it is killed, and says when it does.
async fn running(bench: &Bench, spec: Box<Spec>) -> nix::unistd::Pid {
    let (output, stdio) = piped();
    let first = bench
        .launch(Target::Container { spec, join: Vec::new() }, stdio)
        .await
        .unwrap();
    first.gate.open().await.unwrap();
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    first.pid
}

const UP: &str = "echo up; exec sleep 1000";

fn kill(pid: nix::unistd::Pid) {
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(wait(pid), 137);
}

#[tokio::test]
async fn a_container_joins_the_namespaces_of_another() {
    let bench = Bench::new();
    let first = running(&bench, bench.spec(UP, |_| ())).await;
    let namespace = |name: &str| OwnedFd::from(File::open(format!("/proc/{first}/ns/{name}")).unwrap());
    let spec = bench.spec(
        "cat /proc/1/comm /proc/sys/kernel/hostname; readlink /proc/self/ns/ipc",
        |spec| {
            // The joined name is not the joiner's to change.
            spec["hostname"] = "other".into();
        },
    );
    let join = vec![
        (LinuxNamespaceType::Pid, namespace("pid")),
        (LinuxNamespaceType::Ipc, namespace("ipc")),
        (LinuxNamespaceType::Uts, namespace("uts")),
    ];
    let (text, code) = bench.run(Target::Container { spec, join }).await.unwrap();
    let ipc = std::fs::read_link(format!("/proc/{first}/ns/ipc")).unwrap();
    assert_eq!(code, 0, "{text}");
    assert_eq!(text, format!("sleep\ntatami\n{}\n", ipc.display()));
    kill(first);
}

#[tokio::test]
async fn an_exec_into_a_user_namespace_has_its_ids() {
    let bench = Bench::new();
    for directory in ["", "rootfs"] {
        let path = bench.image.path().join(directory);
        std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    let spec = bench.spec(UP, |spec| {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["mounts"].as_array_mut().unwrap().push(
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
        );
    });
    let first = running(&bench, spec.clone()).await;
    let init = rustix::process::Pid::from_raw(first.as_raw()).unwrap();
    let init = rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty()).unwrap();
    let mut exec = process("id -u; id -g; cat /proc/self/uid_map; ls /sys/class");
    exec["user"] = json!({ "uid": 33, "gid": 34 });
    let exec: Process = serde_json::from_value(exec).unwrap();
    let target = Target::Exec {
        spec,
        process: Box::new(exec),
        init,
    };
    let (text, code) = bench.run(target).await.unwrap();
    assert_eq!(code, 0, "{text}");
    assert!(
        text.starts_with("33\n34\n") && text.contains("100000") && text.contains("net"),
        "{text}"
    );
    kill(first);
}

#[tokio::test]
async fn the_first_process_has_its_terminal_as_the_console() {
    let bench = Bench::new();
    let spec = bench.spec(
        "tty; stat -c %t /dev/console; test -t 0 -a -t 1 -a -t 2; echo $?; echo x >/dev/console",
        |_| (),
    );
    let Launched { pid, terminal, gate } = bench
        .launch(Target::Container { spec, join: Vec::new() }, Stdio::Terminal)
        .await
        .unwrap();
    gate.open().await.unwrap();
    let mut text = Vec::new();
    // EIO is how a terminal ends.
    let _ = File::from(terminal.unwrap()).read_to_end(&mut text);
    assert_eq!(wait(pid), 0);
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n88\r\n0\r\nx\r\n");
}

#[tokio::test]
async fn masked_paths_are_empty_and_read_only_ones_refuse() {
    let bench = Bench::new();
    std::fs::create_dir(bench.image.path().join("rootfs/secret")).unwrap();
    std::fs::write(bench.image.path().join("rootfs/secret/key"), "key").unwrap();
    let script = "wc -c </proc/version; ls /secret; echo no >/secret/x; echo no >/proc/sys/kernel/hostname; cat /proc/sys/kernel/hostname";
    let (text, code) = bench
        .run_script(script, |spec| {
            spec["linux"]["maskedPaths"] = json!(["/proc/version", "/secret", "/no/such"]);
            spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/no/such"]);
        })
        .await;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("0\n") && text.ends_with("tatami\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(!text.contains("key"), "{text}");
}

#[tokio::test]
async fn a_tmpfs_can_begin_with_what_it_covers() {
    let bench = Bench::new();
    let etc = bench.image.path().join("rootfs/etc/deep");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("file"), "kept\n").unwrap();
    std::os::unix::fs::symlink("deep/file", bench.image.path().join("rootfs/etc/link")).unwrap();
    let (text, code) = bench
        .run_script("cat /etc/link; echo new >/etc/deep/file; cat /etc/link", |spec| {
            spec["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
        })
        .await;
    assert_eq!((text.as_str(), code), ("kept\nnew\n", 0));
    assert_eq!(std::fs::read_to_string(etc.join("file")).unwrap(), "kept\n");
}

#[tokio::test]
async fn a_remount_changes_what_the_specification_mounted_before() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script("echo no >/data/x; grep -E ' /(data|proc) ' /proc/self/mounts", |spec| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"] }));
            mounts.push(json!({ "destination": "/data", "type": "bind", "source": "none", "options": ["remount", "bind", "ro", "nosuid"] }));
            mounts.push(json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["remount", "rw"] }));
        })
        .await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("Read-only file system") && text.contains("/data tmpfs ro,nosuid"),
        "{text}"
    );
}

#[tokio::test]
async fn the_oom_score_and_the_root_s_propagation_are_as_asked_for() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script(
            "cat /proc/self/oom_score_adj; grep ' / / ' /proc/self/mountinfo || cat /proc/self/mountinfo",
            |spec| {
                spec["process"]["oomScoreAdj"] = 500.into();
                spec["linux"]["rootfsPropagation"] = "shared".into();
            },
        )
        .await;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("500\n") && text.contains("shared:"), "{text}");
}

#[tokio::test]
async fn calls_that_a_profile_does_not_know_do_not_exist() {
    let bench = Bench::new();
    let profile = |names: &[&str]| {
        json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] })
    };
    let all = [
        "read",
        "write",
        "open",
        "close",
        "stat",
        "fstat",
        "lstat",
        "poll",
        "lseek",
        "mmap",
        "mprotect",
        "munmap",
        "brk",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "ioctl",
        "access",
        "pipe",
        "dup",
        "dup2",
        "getpid",
        "clone",
        "fork",
        "vfork",
        "execve",
        "exit",
        "wait4",
        "uname",
        "fcntl",
        "getcwd",
        "readlink",
        "umask",
        "getuid",
        "getgid",
        "geteuid",
        "getegid",
        "getppid",
        "getpgrp",
        "setpgid",
        "arch_prctl",
        "set_tid_address",
        "openat",
        "newfstatat",
        "exit_group",
        "set_robust_list",
        "prlimit64",
        "getrandom",
        "rseq",
        "sendfile",
        "prctl",
        "gettid",
        "tgkill",
    ];
    // mkdir is below the highest number that is named: its author forbids it.
    let (text, code) = bench
        .run_script("mkdir /x", |spec| spec["linux"]["seccomp"] = profile(&all))
        .await;
    assert_ne!(code, 0);
    assert!(text.contains("Operation not permitted"), "{text}");
    // Without rseq the highest number is that of getrandom, below statx: the program falls back to an older call.
    let old: Vec<_> = all.into_iter().filter(|name| *name != "rseq").collect();
    let (text, _) = bench
        .run_script("exec stat -c %n /", |spec| spec["linux"]["seccomp"] = profile(&old))
        .await;
    assert_eq!(text, "/\n");
}
