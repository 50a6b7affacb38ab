//! Hooks: all six, what they are told, in which order, and what a failure of each does.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::{Result, wait};

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "hooks",
        cases: &[
            case(
                "hooks-in-their-order",
                "runtime-tools hooks; youki hooks; runc hooks.bats",
            ),
            case("hook-prestart", "runtime-tools prestart; youki prestart"),
            case("hook-create-runtime", "youki create_runtime; runc hooks.bats"),
            case("hook-create-container", "youki hooks; runc hooks.bats"),
            case("hook-start-container", "youki hooks; runc hooks.bats"),
            case("hook-poststart", "runtime-tools poststart; youki poststart"),
            case("hook-poststop", "runtime-tools poststop; youki poststop"),
            case("hook-is-told-the-id", "runtime-tools hooks_stdin; runc hooks.bats"),
            case("hook-is-told-the-bundle", "runtime-tools hooks_stdin"),
            case("hook-is-told-a-pid", "runtime-tools hooks_stdin; runc hooks.bats"),
            case("hook-is-told-the-version", "runtime-tools hooks_stdin"),
            case("hook-is-told-the-annotations", "runtime-tools hooks_stdin"),
            case("hook-poststop-is-told-stopped", "runtime-tools hooks_stdin"),
            case(
                "hook-environment-is-what-is-given",
                "youki hooks start_container_env; runc hooks.bats",
            ),
            case("hook-arguments", "runtime-tools hooks"),
            case("start-container-is-told-the-bundle", "runtime-tools hooks_stdin"),
            case(
                "start-container-has-the-programs-environment",
                "youki hooks start_container_env",
            ),
        ],
        run: told,
    },
    Group {
        name: "failing-hooks",
        cases: &[
            case(
                "prestart-that-fails",
                "runtime-tools prestart_fail; youki prestart_fail; runc hooks.bats",
            ),
            case(
                "create-runtime-that-fails",
                "youki create_runtime_fail; runc hooks.bats",
            ),
            case("create-container-that-fails", "runc hooks.bats"),
            case("start-container-that-fails", "runc hooks.bats"),
            case(
                "poststart-that-fails",
                "runtime-tools poststart_fail; youki poststart_fail; runc hooks.bats",
            ),
            case("poststop-after-a-create-that-failed", "runc hooks.bats"),
            case("hook-that-takes-too-long", "youki hooks; runc hooks.bats"),
            case("hook-that-is-not-there", "runc hooks.bats"),
        ],
        run: failing,
    },
    Group {
        name: "create-container-hooks",
        cases: &[
            case("create-container-begins-in-the-root", "runc hooks_so.bats"),
            case("create-container-sees-what-is-mounted", "runc hooks_so.bats"),
            case("create-container-changes-the-root", "runc hooks_so.bats"),
            case("create-container-has-namespaces-of-its-own", "runc hooks.bats"),
        ],
        run: of_the_container,
    },
    Group {
        name: "create-container-hooks-in-a-user-namespace",
        cases: &[
            case(
                "create-container-is-root-of-the-user-namespace",
                "runc userns.bats; runc hooks.bats",
            ),
            case("create-container-is-nobody-to-the-host", "runc userns.bats"),
            case(
                "create-container-changes-the-root-of-a-user-namespace",
                "runc userns.bats; runc hooks_so.bats",
            ),
            case("mount-points-are-of-the-user-namespace", "runc userns.bats"),
        ],
        run: of_a_user_namespace,
    },
    // By itself: runc 1.1 does not come to an end of it.
    Group {
        name: "failing-poststop",
        cases: &[case(
            "poststop-that-fails-and-the-next-runs",
            "runtime-tools poststop_fail; youki poststop_fail",
        )],
        run: failing_poststop,
    },
];

/// A hook of the host that notes its name, and writes down what it is told and its environment.
fn note(dir: &Path, name: &str) -> Value {
    let dir = dir.display();
    let script = format!(
        "echo {name} >> {dir}/order; cat > {dir}/{name}; echo $0 > {dir}/{name}.args; /usr/bin/env | sort > {dir}/{name}.env"
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script, "an argument"], "env": ["PATH=/usr/bin:/bin", "OF=hook"] })
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default()
}

fn told(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let dir = bench.node().dir().join("told");
    fs::create_dir(&dir)?;
    let name = bench.name();
    let shared = json!({ "destination": "/told", "type": "bind", "source": dir, "options": ["rbind", "rw"] });
    let inside = json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo startContainer >> /told/order; cat > /told/startContainer; env > /told/inside"] });
    let spec = bench
        .spec(&name, &["sh", "-c", "echo program >> /told/order; sleep 1"])?
        .push("/mounts", shared)?
        .annotation("org.tatami.case", "a value")?
        .set("/process/env", json!(["PATH=/bin", "OF=program"]))?
        .push("/hooks/prestart", note(&dir, "prestart"))?
        .push("/hooks/createRuntime", note(&dir, "createRuntime"))?
        .push("/hooks/createContainer", note(&dir, "createContainer"))?
        .push("/hooks/startContainer", inside)?
        .push("/hooks/poststart", note(&dir, "poststart"))?
        .push("/hooks/poststop", note(&dir, "poststop"))?;
    bench.output(&name, &spec)?.success()?;
    let order = wait::content(&dir, "order", Duration::from_secs(30), |text| {
        text.contains("poststop\n")
    })?;
    let lines: Vec<_> = order.lines().collect();
    // The program and poststart run side by side.
    let fixed: Vec<_> = lines.iter().filter(|line| **line != "poststart").copied().collect();
    let right = fixed
        == [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "program",
            "poststop",
        ];
    seen.holds("hooks-in-their-order", right && lines.len() == 7, &order);
    for (case, hook) in [
        ("hook-prestart", "prestart"),
        ("hook-create-runtime", "createRuntime"),
        ("hook-create-container", "createContainer"),
        ("hook-start-container", "startContainer"),
        ("hook-poststart", "poststart"),
        ("hook-poststop", "poststop"),
    ] {
        seen.holds(case, lines.iter().filter(|line| **line == hook).count() == 1, &order);
    }
    let state = |hook: &str| serde_json::from_str::<Value>(&read(&dir, hook)).unwrap_or_default();
    seen.same(
        "start-container-is-told-the-bundle",
        &state("startContainer")["bundle"],
        &state("prestart")["bundle"],
    );
    // It names none: what the program has is its own.
    seen.has(
        "start-container-has-the-programs-environment",
        &read(&dir, "inside"),
        "OF=program\n",
    );
    for hook in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        let text = read(&dir, hook);
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        seen.same("hook-is-told-the-id", &state["id"], &json!(bench.node().id(&name)));
        let bundle = state["bundle"].as_str().unwrap_or_default();
        seen.holds("hook-is-told-the-bundle", bundle.starts_with('/'), &text);
        seen.holds("hook-is-told-the-version", state["ociVersion"].is_string(), &text);
        seen.same(
            "hook-is-told-the-annotations",
            &state["annotations"]["org.tatami.case"],
            "a value",
        );
        if hook == "poststop" {
            seen.same("hook-poststop-is-told-stopped", &state["status"], "stopped");
        } else {
            seen.holds(
                "hook-is-told-a-pid",
                state["pid"].as_u64().is_some_and(|pid| pid > 0),
                &text,
            );
        }
        seen.same("hook-arguments", read(&dir, &format!("{hook}.args")), "an argument\n");
        let env = read(&dir, &format!("{hook}.env"));
        // The shell adds its own.
        let own: Vec<_> = env
            .lines()
            .filter(|line| {
                !["PWD=", "SHLVL=", "_=", "OLDPWD="]
                    .iter()
                    .any(|key| line.starts_with(key))
            })
            .collect();
        seen.same(
            "hook-environment-is-what-is-given",
            own,
            vec!["OF=hook", "PATH=/usr/bin:/bin"],
        );
    }
    Ok(())
}

/// What it sees of the container, as those of CDI do: they make links, and have ldconfig(8) read libraries that are mounted.
fn of_the_container(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let dir = bench.node().dir().join("inside");
    fs::create_dir_all(dir.join("source"))?;
    fs::write(dir.join("source/library"), "a library\n")?;
    let name = bench.name();
    let spec = bench.spec(&name, &["sh", "-c", "readlink /etc/link; cat /made"])?;
    let script = format!(
        "exec >{dir}/seen; pwd; cat opt/of/library; readlink /proc/self/ns/uts /proc/self/ns/ipc /proc/self/ns/net; \
         ln -s target etc/link && echo a file >made",
        dir = dir.display()
    );
    let shown =
        json!({ "destination": "/opt/of", "type": "bind", "source": dir.join("source"), "options": ["rbind", "ro"] });
    let root = spec.root();
    let spec = spec.push("/mounts", shown)?.set("/root/readonly", true)?.push(
        "/hooks/createContainer",
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }),
    )?;
    let printed = bench.output(&name, &spec)?;
    let text = read(&dir, "seen");
    let lines: Vec<_> = text.lines().collect();
    let line = |number: usize| lines.get(number).copied().unwrap_or_default();
    seen.same("create-container-begins-in-the-root", Path::new(line(0)), root);
    seen.same("create-container-sees-what-is-mounted", line(1), "a library");
    let own = ["uts", "ipc", "net"].iter().zip(2..).all(|(kind, number)| {
        let hosts = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
        line(number).starts_with(kind) && Path::new(line(number)) != hosts
    });
    seen.holds("create-container-has-namespaces-of-its-own", own, &text);
    // The root becomes read-only after it.
    seen.same(
        "create-container-changes-the-root",
        printed.stdout() + &printed.stderr(),
        "target\na file\n",
    );
    Ok(())
}

fn of_a_user_namespace(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let dir = bench.node().dir().join("users");
    fs::create_dir_all(dir.join("source"))?;
    fs::write(dir.join("seen"), "")?;
    fs::write(dir.join("of-root"), "of root\n")?;
    for (name, mode) in [("seen", 0o666), ("of-root", 0o600)] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
    }
    let name = bench.name();
    let script = "stat -c '%u %g' /etc/link-to /made /opt/new; cat /made";
    let spec = bench.spec(&name, &["sh", "-c", script])?;
    let hook = format!(
        "echo to the runtime >/dev/stderr && opened=again; exec >{dir}/seen 2>&1; echo $(id -u) $(id -g); echo $(cat /proc/self/uid_map); \
         grep CapEff /proc/self/status; echo $opened; cat {dir}/of-root || echo refused; ln -s target etc/link-to && echo a file >made",
        dir = dir.display()
    );
    let shown = json!({ "destination": "/opt/new", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] });
    let below = json!({ "destination": "/fresh/below", "type": "bind", "source": dir.join("source"), "options": ["rbind", "ro"] });
    let root = spec.root();
    let ranges = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let spec = super::namespaces::mapped(spec, &ranges)?
        .push("/mounts", shown)?
        .push("/mounts", below)?
        .push(
            "/hooks/createContainer",
            json!({ "path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/usr/bin:/bin"] }),
        )?;
    let printed = bench.output(&name, &spec)?;
    let text = read(&dir, "seen");
    let every_capability = text
        .lines()
        .any(|line| line.starts_with("CapEff:\t0") && line.ends_with("fffffffff"));
    seen.holds(
        "create-container-is-root-of-the-user-namespace",
        text.starts_with("0 0\n0 100000 65536\n") && every_capability && text.contains("again\n"),
        &text,
    );
    seen.holds(
        "create-container-is-nobody-to-the-host",
        text.contains("refused") && !text.contains("of root"),
        &text,
    );
    seen.same(
        "create-container-changes-the-root-of-a-user-namespace",
        printed.stdout() + &printed.stderr(),
        "0 0\n0 0\n0 0\na file\n",
    );
    let owner = |path: &str| fs::metadata(root.join(path)).map(|file| (file.uid(), file.gid())).ok();
    seen.same(
        "mount-points-are-of-the-user-namespace",
        [owner("fresh"), owner("fresh/below")],
        [Some((100_000, 100_000)); 2],
    );
    Ok(())
}

fn fails() -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo the reason >&2; exit 3"], "env": ["PATH=/bin"] })
}

fn failing(bench: &Bench, seen: &mut Seen) -> Result<()> {
    for (case, point) in [
        ("prestart-that-fails", "prestart"),
        ("create-runtime-that-fails", "createRuntime"),
        ("create-container-that-fails", "createContainer"),
        ("start-container-that-fails", "startContainer"),
    ] {
        let said = bench.refusal(|spec| spec.push(&format!("/hooks/{point}"), fails()))?;
        seen.has(case, &said, "hook");
    }
    let name = bench.name();
    let spec = bench
        .spec(&name, &["sleep", "10000"])?
        .push("/hooks/poststart", fails())?;
    let output = bench.node().run_spec(&name, &spec)?.arg("-d").output()?;
    seen.holds("poststart-that-fails", output.code != Some(0), "it was started");
    if bench.node().status(&name)?.is_some() {
        if output.code == Some(0) {
            bench.node().task("kill", &name).args(["--signal", "9"]).ok()?;
        }
        bench.node().await_stopped(&name)?;
        bench.node().forget(&name)?;
    }
    bench.node().discard(&name)?;

    let dir = bench.node().dir().join("failing");
    fs::create_dir(&dir)?;
    let said = bench.refusal(|spec| {
        spec.push("/hooks/createRuntime", note(&dir, "made"))?
            .push("/hooks/createRuntime", fails())?
            .push("/hooks/poststop", note(&dir, "undone"))
    })?;
    let order = read(&dir, "order");
    seen.holds(
        "poststop-after-a-create-that-failed",
        order.ends_with("made\nundone\n"),
        order + &said,
    );
    let slow = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 100"], "env": ["PATH=/bin"], "timeout": 1 });
    let said = bench.refusal(|spec| spec.push("/hooks/createRuntime", slow))?;
    seen.has("hook-that-takes-too-long", &said, "hook");
    let said = bench.refusal(|spec| spec.push("/hooks/createRuntime", json!({ "path": "/no/such/hook" })))?;
    seen.has("hook-that-is-not-there", &said, "no such file");
    Ok(())
}

fn failing_poststop(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let dir = bench.node().dir().join("poststop");
    fs::create_dir(&dir)?;
    let name = bench.name();
    let spec = bench
        .spec(&name, &["true"])?
        .push("/hooks/poststop", fails())?
        .push("/hooks/poststop", note(&dir, "second"))?;
    let output = bench.output(&name, &spec)?;
    let order = read(&dir, "order");
    seen.holds(
        "poststop-that-fails-and-the-next-runs",
        output.code == Some(0) && order == "second\n",
        order + &output.stderr(),
    );
    Ok(())
}
