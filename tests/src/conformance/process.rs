//! What a process is started with: arguments, environment, ids, limits, capabilities, descriptors.

use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Report, Result};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "process",
        cases: &[
            case(
                "process-args",
                "runtime-tools process; youki process; runc start_hello.bats",
            ),
            case("process-env-is-what-is-given", "runtime-tools process; runc env.bats"),
            case("process-env-empty-value", "runc env.bats"),
            case("process-cwd", "runtime-tools process; youki process; runc cwd.bats"),
            case(
                "process-uid-and-gid",
                "runtime-tools process_user; youki process_user; runc start_hello.bats",
            ),
            case(
                "process-additional-groups",
                "runtime-tools process_user; youki process_user",
            ),
            case("process-umask", "runc umask.bats; youki process_user"),
            case(
                "process-oom-score-adj",
                "runtime-tools process_oom_score_adj; youki process_oom_score_adj",
            ),
            case(
                "process-rlimit-nofile",
                "runtime-tools process_rlimits; youki process_rlimits; runc rlimits.bats",
            ),
            case(
                "process-rlimit-core",
                "runtime-tools process_rlimits; youki process_rlimits",
            ),
            case(
                "process-rlimit-cpu",
                "runtime-tools process_rlimits; youki process_rlimits",
            ),
            case(
                "process-rlimit-fsize",
                "runtime-tools process_rlimits; youki process_rlimits",
            ),
            case(
                "process-rlimit-as",
                "runtime-tools process_rlimits; youki process_rlimits",
            ),
            case("process-rlimit-memlock-twice", "runc rlimits.bats"),
            case(
                "process-rlimit-nproc",
                "runtime-tools process_rlimits; youki process_rlimits",
            ),
            case(
                "process-is-the-first-of-its-pid-namespace",
                "runc ps.bats; runtime-tools linux_ns_nopath",
            ),
            case("process-no-new-privileges", "ours alone"),
            case("process-no-descriptor-leaks", "youki fd_control; runc run.bats"),
            case("process-signals-are-not-blocked", "ours alone"),
            case("process-signals-are-not-ignored", "ours alone"),
            case("hostname", "runtime-tools hostname; youki hostname; runc run.bats"),
            case("domainname", "youki domainname; runc run.bats"),
        ],
        run: fields,
    },
    Group {
        name: "home",
        cases: &[
            case("home-of-the-user-where-env-has-none", "runc run.bats; runc env.bats"),
            case("home-is-root-for-who-is-nobody", "runc env.bats"),
            case("process-without-no-new-privileges", "ours alone"),
            case(
                "process-root-without-capabilities",
                "runc capabilities.bats; youki process_capabilities",
            ),
            case("process-oom-score-adj-not-given", "runtime-tools process_oom_score_adj"),
        ],
        run: defaults,
    },
    Group {
        name: "capabilities",
        cases: &[
            case(
                "capabilities-bounding",
                "runtime-tools process_capabilities; youki process_capabilities_bounding; runc capabilities.bats",
            ),
            case(
                "capabilities-effective",
                "runtime-tools process_capabilities; youki process_capabilities; runc capabilities.bats",
            ),
            case(
                "capabilities-permitted",
                "runtime-tools process_capabilities; youki process_capabilities",
            ),
            case(
                "capabilities-inheritable",
                "runtime-tools process_capabilities; youki process_capabilities; runc capabilities.bats",
            ),
            case(
                "capabilities-ambient-for-a-user",
                "runtime-tools process_capabilities; runc capabilities.bats",
            ),
            case(
                "capabilities-unknown-is-left-out",
                "youki process_capabilities_fail; runc capabilities.bats",
            ),
        ],
        run: capabilities,
    },
    Group {
        name: "scheduling",
        cases: &[
            case("scheduler-policy-and-nice", "runc scheduler.bats; youki scheduler"),
            case("io-priority", "runc ioprio.bats; youki io_priority"),
            case("personality-linux32", "runc personality.bats; youki personality"),
            case("personality-linux", "runc personality.bats; youki personality"),
        ],
        run: scheduling,
    },
];

fn fields(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let limits = [
        ("NOFILE", 400, 500),
        ("CORE", 0, 4096),
        ("CPU", 1000, 2000),
        ("FSIZE", 1 << 30, 1 << 31),
        ("AS", 1_u64 << 32, 1_u64 << 33),
        ("NPROC", 700, 800),
    ];
    let rlimits: Vec<Value> = limits
        .iter()
        .map(|(kind, soft, hard)| json!({ "type": format!("RLIMIT_{kind}"), "soft": soft, "hard": hard }))
        .collect();
    let report = bench.report(|spec| {
        spec.push("/process/args", "kernel.ostype")?
            .set(
                "/process/env",
                json!(["PATH=/bin", "WORD=two words", "EMPTY=", "HOME=/h"]),
            )?
            .set("/process/cwd", "/usr/bin")?
            .set(
                "/process/user",
                json!({ "uid": 1000, "gid": 1001, "umask": 0o37, "additionalGids": [7, 1001, 2000] }),
            )?
            .set("/process/oomScoreAdj", 700)?
            .set("/process/rlimits", json!(rlimits))?
            .set("/process/noNewPrivileges", true)?
            .set("/hostname", "a-name")?
            .set("/domainname", "a.domain")
    })?;
    seen.same(
        "process-args",
        report.fact("/args"),
        &json!(["guest-probe", "report", "kernel.ostype"]),
    );
    let env = json!({ "PATH": "/bin", "WORD": "two words", "EMPTY": "", "HOME": "/h" });
    seen.same("process-env-is-what-is-given", report.fact("/env"), &env);
    seen.same("process-env-empty-value", report.fact("/env/EMPTY"), "");
    seen.same("process-cwd", report.fact("/cwd"), "/usr/bin");
    seen.same(
        "process-uid-and-gid",
        (report.fact("/uid"), report.fact("/gid")),
        (&json!(1000), &json!(1001)),
    );
    seen.same(
        "process-additional-groups",
        report.fact("/groups"),
        &json!([7, 1001, 2000]),
    );
    seen.same("process-umask", report.status("Umask")?, "0037");
    seen.same("process-oom-score-adj", report.fact("/oom_score_adj"), "700");
    for (kind, soft, hard) in limits {
        let name = format!("process-rlimit-{}", kind.to_lowercase());
        seen.same(&name, report.fact(&format!("/rlimits/{kind}")), &json!([soft, hard]));
    }
    let twice = json!([
        { "type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 65536 }, { "type": "RLIMIT_MEMLOCK", "soft": 8192, "hard": 65536 },
    ]);
    let locked = bench.report(|spec| spec.set("/process/rlimits", twice))?;
    seen.same(
        "process-rlimit-memlock-twice",
        locked.fact("/rlimits/MEMLOCK"),
        &json!([8192, 65536]),
    );
    seen.same("process-is-the-first-of-its-pid-namespace", report.fact("/pid"), 1);
    seen.same("process-no-new-privileges", report.status("NoNewPrivs")?, "1");
    let fds: Vec<_> = report
        .fact("/fds")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(fd, _)| fd.clone())
        .collect();
    seen.same("process-no-descriptor-leaks", fds, vec!["0", "1", "2"]);
    seen.same(
        "process-signals-are-not-blocked",
        report.status("SigBlk")?,
        "0000000000000000",
    );
    // Rust's own start-up ignores SIGPIPE, which is 13.
    seen.same(
        "process-signals-are-not-ignored",
        report.status("SigIgn")?,
        "0000000000001000",
    );
    seen.same("hostname", report.fact("/hostname"), "a-name");
    seen.same("domainname", report.fact("/domainname"), "a.domain");
    Ok(())
}

fn defaults(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let home = |uid: u32| {
        bench.script("echo $HOME", |spec| {
            spec.set("/process/user", json!({ "uid": uid, "gid": uid }))
        })
    };
    seen.same("home-of-the-user-where-env-has-none", home(1000)?, "/home\n");
    seen.same("home-is-root-for-who-is-nobody", home(4242)?, "/\n");
    let report = bench.report(|spec| {
        spec.set("/process/noNewPrivileges", false)?
            .set("/process/capabilities", json!({}))
    })?;
    seen.same("process-without-no-new-privileges", report.status("NoNewPrivs")?, "0");
    seen.same("process-root-without-capabilities", report.capabilities("CapEff")?, 0);
    seen.holds(
        "process-oom-score-adj-not-given",
        report.text("/oom_score_adj")?.parse::<i32>().is_ok(),
        report.fact("/oom_score_adj"),
    );
    Ok(())
}

/// The capability numbers of include/uapi/linux/capability.h.
const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;
const SYSLOG: u64 = 1 << 34;

fn capabilities(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYSLOG"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    let run = |uid: u32, sets: &Value| -> Result<Report> {
        bench.report(|spec| {
            spec.set("/process/user", json!({ "uid": uid, "gid": uid }))?
                .set("/process/noNewPrivileges", true)?
                .set("/process/capabilities", sets.clone())
        })
    };
    let root = run(0, &sets)?;
    seen.same(
        "capabilities-bounding",
        root.capabilities("CapBnd")?,
        CHOWN | KILL | NET_BIND_SERVICE | SYSLOG,
    );
    seen.same(
        "capabilities-permitted",
        root.capabilities("CapPrm")?,
        CHOWN | KILL | NET_BIND_SERVICE,
    );
    seen.same(
        "capabilities-inheritable",
        root.capabilities("CapInh")?,
        KILL | NET_BIND_SERVICE,
    );
    // execve(2) raises for root what is permitted.
    seen.same(
        "capabilities-effective",
        root.capabilities("CapEff")?,
        CHOWN | KILL | NET_BIND_SERVICE,
    );
    let user = run(1000, &sets)?;
    let ambient = ["CapAmb", "CapEff", "CapPrm"].map(|set| user.capabilities(set).unwrap_or_default());
    seen.same("capabilities-ambient-for-a-user", ambient, [NET_BIND_SERVICE; 3]);
    let unknown = json!({ "bounding": ["CAP_KILL", "CAP_OF_TOMORROW"], "permitted": ["CAP_KILL", "CAP_OF_TOMORROW"] });
    seen.same(
        "capabilities-unknown-is-left-out",
        run(0, &unknown)?.capabilities("CapBnd")?,
        KILL,
    );
    Ok(())
}

fn scheduling(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let stat = bench.script("cat /proc/self/stat", |spec| {
        spec.set("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 5 }))
    })?;
    // proc_pid_stat(5): after the name come nice, the 17th field, and policy, the 39th.
    let fields: Vec<_> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    seen.same(
        "scheduler-policy-and-nice",
        (fields.get(16), fields.get(38)),
        (Some(&"5"), Some(&"3")),
    );
    let said = bench.script("ionice -p $$", |spec| {
        spec.set(
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }),
        )
    })?;
    seen.has("io-priority", &said, "best-effort: prio 6");
    let machine = |domain: &str| {
        bench.script("uname -m", |spec| {
            spec.set("/linux/personality", json!({ "domain": domain }))
        })
    };
    seen.same("personality-linux32", machine("LINUX32")?, "i686\n");
    seen.same("personality-linux", machine("LINUX")?, "x86_64\n");
    Ok(())
}
