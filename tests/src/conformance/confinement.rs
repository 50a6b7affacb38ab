//! What a process may not do: seccomp, device nodes, masked and read-only paths.

use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Result, Spec};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "seccomp",
        cases: &[
            case(
                "seccomp-errno-is-eperm-unless-said",
                "runtime-tools linux_seccomp; youki seccomp; runc seccomp.bats",
            ),
            case("seccomp-errno-as-said", "runc seccomp.bats"),
            case("seccomp-by-an-argument", "runc seccomp.bats"),
            case("seccomp-kill-process", "runc seccomp.bats"),
            case(
                "seccomp-default-action-and-an-allow-list",
                "runc seccomp.bats; runtime-tools linux_seccomp",
            ),
            case("seccomp-default-errno", "runc seccomp.bats"),
            case("seccomp-unknown-system-call-is-passed-over", "runc seccomp.bats"),
            case("seccomp-holds-without-no-new-privileges", "runc seccomp.bats"),
            case("seccomp-none", "runc seccomp.bats"),
            case("seccomp-for-an-exec", "youki exec seccomp; runc exec.bats"),
        ],
        run: seccomp,
    },
    Group {
        name: "devices",
        cases: &[
            case("default-devices", "runtime-tools default; runc dev.bats; youki devices"),
            case("default-device-modes", "runtime-tools default; runc dev.bats"),
            case("default-links", "youki default symlinks; runtime-tools default"),
            case(
                "device-node",
                "runtime-tools linux_devices; youki devices; runc dev.bats",
            ),
            case(
                "device-mode-and-owner",
                "runtime-tools linux_devices; youki devices; runc dev.bats",
            ),
            case("device-in-a-new-directory", "runc dev.bats; youki devices"),
            case(
                "device-that-no-rule-allows",
                "runtime-tools linux_cgroups_devices; youki cgroups devices; runc dev.bats",
            ),
            case(
                "device-by-an-exact-rule",
                "runtime-tools linux_cgroups_devices; runc dev.bats",
            ),
            case("dev-can-be-written-to", "runc dev.bats"),
        ],
        run: devices,
    },
    Group {
        name: "paths",
        cases: &[
            case(
                "masked-file",
                "runtime-tools linux_masked_paths; youki linux_masked_paths; runc mask.bats",
            ),
            case(
                "masked-directory",
                "runtime-tools linux_masked_paths; youki linux_masked_paths; runc mask.bats",
            ),
            case(
                "masked-path-that-is-not-there",
                "youki linux_masked_paths; runc mask.bats",
            ),
            case(
                "masked-link-is-what-it-leads-to",
                "runtime-tools linux_masked_paths; youki linux_masked_paths",
            ),
            case(
                "read-only-file",
                "runtime-tools linux_readonly_paths; youki readonly_paths",
            ),
            case(
                "read-only-directory",
                "runtime-tools linux_readonly_paths; youki readonly_paths",
            ),
            case("read-only-path-that-is-not-there", "youki readonly_paths"),
            case("read-only-path-can-be-read", "runtime-tools linux_readonly_paths"),
        ],
        run: paths,
    },
];

fn filter(default: &str, rules: &[Value]) -> Value {
    json!({ "defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules })
}

fn seccomp(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let under = |script: &str, filter: Value| bench.script(script, |spec| spec.set("/linux/seccomp", filter));
    let mkdir = |more: Value| {
        let mut rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" });
        if let (Some(rule), Some(more)) = (rule.as_object_mut(), more.as_object()) {
            rule.extend(more.clone());
        }
        filter("SCMP_ACT_ALLOW", &[rule])
    };
    seen.has(
        "seccomp-errno-is-eperm-unless-said",
        &under("mkdir /tmp/x", mkdir(json!({})))?,
        "Operation not permitted",
    );
    // ENOSYS is 38.
    let said = under("mkdir /tmp/x", mkdir(json!({ "errnoRet": 38 })))?;
    seen.has("seccomp-errno-as-said", &said, "not implemented");
    // kill(pid, SIGUSR1), and no other signal.
    let argument = json!({ "names": ["kill"], "action": "SCMP_ACT_ERRNO",
        "args": [{ "index": 1, "value": 10, "op": "SCMP_CMP_EQ" }] });
    let said = under(
        "kill -10 $$; kill -0 $$ && echo other",
        filter("SCMP_ACT_ALLOW", &[argument]),
    )?;
    seen.holds(
        "seccomp-by-an-argument",
        said.contains("not permitted") && said.starts_with("other\n"),
        &said,
    );
    // A shell's word for a child that SIGSYS, 31, has ended.
    let kill = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" });
    let said = under("(mkdir /tmp/x); echo $?", filter("SCMP_ACT_ALLOW", &[kill]))?;
    seen.has("seccomp-kill-process", &said, "159\n");
    let allow_rest = |default: Value| {
        let mut made = filter(
            "SCMP_ACT_ERRNO",
            &[json!({ "names": everyday(), "action": "SCMP_ACT_ALLOW" })],
        );
        made["defaultErrnoRet"] = default;
        made
    };
    let said = under("echo runs; mkdir /tmp/x", allow_rest(Value::Null))?;
    seen.holds(
        "seccomp-default-action-and-an-allow-list",
        said.starts_with("runs\n") && said.contains("not permitted"),
        &said,
    );
    let said = under("echo runs; mkdir /tmp/x", allow_rest(json!(38)))?;
    seen.holds(
        "seccomp-default-errno",
        said.starts_with("runs\n") && said.contains("not implemented"),
        &said,
    );
    let unknown = json!({ "names": ["no_such_call", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" });
    let said = under("mkdir /tmp/x", filter("SCMP_ACT_ALLOW", &[unknown]))?;
    seen.has(
        "seccomp-unknown-system-call-is-passed-over",
        &said,
        "Operation not permitted",
    );
    let script = "mkdir /tmp/x; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let said = bench.script(script, |spec| {
        spec.set("/linux/seccomp", mkdir(json!({})))?
            .set("/process/noNewPrivileges", false)?
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
    })?;
    let holds = said.contains("NoNewPrivs:\t0") && said.contains("Seccomp:\t2") && said.contains("not permitted");
    seen.holds("seccomp-holds-without-no-new-privileges", holds, &said);
    seen.has(
        "seccomp-none",
        &bench.script("grep Seccomp: /proc/self/status", Ok)?,
        "Seccomp:\t0",
    );
    let name = bench.idle(|spec| spec.set("/linux/seccomp", mkdir(json!({}))))?;
    seen.has(
        "seccomp-for-an-exec",
        &bench.exec(&name, "mkdir /tmp/x")?,
        "Operation not permitted",
    );
    bench.node().remove(&name)
}

/// Enough for the start of a shell and for its `echo`, by runc, too, which starts it under the filter.
fn everyday() -> Vec<&'static str> {
    vec![
        "access",
        "arch_prctl",
        "brk",
        "capget",
        "capset",
        "chdir",
        "clone",
        "clone3",
        "close",
        "close_range",
        "dup",
        "dup2",
        "dup3",
        "epoll_create1",
        "epoll_ctl",
        "epoll_pwait",
        "execve",
        "exit",
        "exit_group",
        "faccessat",
        "faccessat2",
        "fchdir",
        "fcntl",
        "fork",
        "fstat",
        "fstatfs",
        "futex",
        "getcwd",
        "getdents64",
        "getegid",
        "geteuid",
        "getgid",
        "getpgrp",
        "getpid",
        "getppid",
        "getrandom",
        "gettid",
        "getuid",
        "ioctl",
        "lseek",
        "lstat",
        "madvise",
        "mmap",
        "mprotect",
        "mremap",
        "munmap",
        "nanosleep",
        "newfstatat",
        "open",
        "openat",
        "openat2",
        "pipe",
        "pipe2",
        "poll",
        "ppoll",
        "prctl",
        "pread64",
        "prlimit64",
        "read",
        "readlink",
        "readlinkat",
        "readv",
        "rseq",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "rt_sigsuspend",
        "sched_getaffinity",
        "sched_yield",
        "sendmsg",
        "set_robust_list",
        "set_tid_address",
        "setgid",
        "setgroups",
        "setpgid",
        "setresgid",
        "setresuid",
        "setsid",
        "setuid",
        "sigaltstack",
        "stat",
        "statfs",
        "statx",
        "tgkill",
        "umask",
        "uname",
        "vfork",
        "wait4",
        "write",
        "writev",
    ]
}

fn devices(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let device = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 5, "fileMode": 0o620, "uid": 1000, "gid": 2000 });
    let script = "for f in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$f; done; \
        for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done; \
        stat -c '%t:%T %a %u:%g' /dev/mine /dev/deep/mine; touch /dev/new && echo writable";
    let said = bench.script(script, |spec| {
        spec.push("/linux/devices", device("/dev/mine"))?
            .push("/linux/devices", device("/dev/deep/mine"))
    })?;
    let wanted = [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
    ];
    for (name, number) in wanted {
        seen.has("default-devices", &said, &format!("/dev/{name} {number} "));
        seen.has("default-device-modes", &said, &format!("/dev/{name} {number} 666\n"));
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        seen.has(
            "default-links",
            &said.replace(" /dev/pts", " pts"),
            &format!("{name} {target}\n"),
        );
    }
    let nodes: Vec<_> = said.lines().filter(|line| line.starts_with("1:5 ")).collect();
    seen.holds("device-node", !nodes.is_empty(), &said);
    seen.has("device-mode-and-owner", &said, "1:5 620 1000:2000\n");
    seen.same("device-in-a-new-directory", nodes.len(), 2);
    seen.has("dev-can-be-written-to", &said, "writable\n");
    let script = "mknod /tmp/mem c 1 1 && { cat /tmp/mem 2>&1 | head -c 100; }; mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero | wc -c";
    let rules = json!([
        { "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "r" },
    ]);
    let said = bench.script(script, |spec| spec.set("/linux/resources/devices", rules))?;
    seen.has("device-that-no-rule-allows", &said, "Operation not permitted");
    seen.has("device-by-an-exact-rule", &said, "1\n");
    Ok(())
}

fn paths(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let name = bench.name();
    let script = "echo file=$(cat /data/file); ls -A /data/dir | wc -l; echo behind=$(cat /data/behind); \
        cat /data/read; echo x 2>&1 >> /data/read; touch /data/kept/new; ls /data/kept; echo done";
    let spec: Spec = bench.spec(&name, &["sh", "-c", script])?;
    let data = spec.root().join("data");
    for dir in ["dir", "kept"] {
        std::fs::create_dir_all(data.join(dir))?;
        std::fs::write(data.join(dir).join("inside"), "")?;
    }
    for file in ["file", "behind", "read"] {
        std::fs::write(data.join(file), format!("content of {file}\n"))?;
    }
    std::os::unix::fs::symlink("behind", data.join("link"))?;
    let spec = spec
        .set(
            "/linux/maskedPaths",
            json!(["/data/file", "/data/dir", "/data/link", "/data/none"]),
        )?
        .set(
            "/linux/readonlyPaths",
            json!(["/data/read", "/data/kept", "/data/nothing"]),
        )?;
    let output = bench.output(&name, &spec)?;
    let said = output.stdout() + &output.stderr();
    seen.has("masked-file", &said, "file=\n");
    seen.has("masked-directory", &said, "file=\n0\n");
    seen.has("masked-link-is-what-it-leads-to", &said, "behind=\n");
    seen.has("masked-path-that-is-not-there", &said, "done\n");
    seen.has("read-only-path-can-be-read", &said, "content of read\n");
    seen.has("read-only-file", &said, "/data/read: Read-only file system");
    seen.has("read-only-directory", &said, "/data/kept/new: Read-only file system");
    seen.has("read-only-path-that-is-not-there", &said, "inside\ndone\n");
    Ok(())
}
