//! What `kata-ctl memlock` recommends is taken at its word: each line that it prints is set as it is printed, by itself,
//! and the buffers that were refused are granted then.

use framework::{Error, Node, Output, Result, Spec};
use serde_json::{Value, json};

const MEMLOCK: &str = "io.katacontainers.container.resource.memlock";
const CAP_IPC_LOCK: &str = "io.katacontainers.container.cap_ipc_lock";

/// More than allowance (516 KiB) and limit (8 MiB) give together, on one CPU: 16 MiB and a header.
const PAGES: &str = "4096";

/// A container that sleeps, as this user.
fn sleeping(node: &Node, name: &str, uid: u32) -> Result<Spec> {
    node.spec(name, &["sleep", "1000"])?
        .set("/process/user", json!({ "uid": uid, "gid": uid }))
}

/// Runs `kata-ctl memlock` for a container of the node.
fn kata_ctl(node: &Node, name: &str, flags: &[&str]) -> Result<Output> {
    let id = node.id(name);
    let mut words = vec!["memlock", id.as_str()];
    words.extend(flags);
    node.kata_ctl(&words)
}

/// Starts the container, and gives what is said of the probe.
fn asked(node: &Node, name: &str, spec: &Spec) -> Result<(i32, Value)> {
    node.run_spec(name, spec)?.arg("-d").ok()?;
    let output = kata_ctl(node, name, &["--pages", PAGES, "--json"])?;
    let told = output.json()?;
    node.remove(name)?;
    Ok((output.code.unwrap_or(-1), told["probe"].clone()))
}

/// The lines that a remedy says are to be set, in words.
fn lines(probe: &Value, remedy: &str) -> Vec<String> {
    let remedies = probe["remedies"].as_array().into_iter().flatten();
    let lines = remedies
        .filter(|one| one["name"] == remedy)
        .flat_map(|one| one["set"].as_array().cloned().unwrap_or_default());
    lines.filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

fn quoted(line: &str) -> Result<(&str, &str)> {
    let parts: Vec<_> = line.split(" = ").collect();
    match parts[..] {
        [key, value] => Ok((key, value.trim_matches('"'))),
        _ => Err(Error::unexpected(format!("no key and value: {line}"))),
    }
}

/// The container with what a line says of the container itself, or the configuration that the line is.
enum Set {
    Container(Box<Spec>),
    Configuration(String),
}

fn set(line: &str, spec: Spec) -> Result<Set> {
    if let Some(annotation) = line.strip_prefix("annotation ") {
        let (key, value) = quoted(annotation)?;
        return Ok(Set::Container(Box::new(spec.annotation(key, value)?)));
    }
    if let Some(table) = line.strip_prefix('[') {
        let (table, keys) = table.split_once("] ").unwrap_or_default();
        return Ok(Set::Configuration(format!(
            "[{table}]\n{}\n",
            keys.replace(" and ", "\n")
        )));
    }
    let (_, rest) = line.split_once("RLIMIT_MEMLOCK = ").unwrap_or_default();
    let bytes: u64 = rest
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .map_err(|_| Error::unexpected(line))?;
    let limit = json!([{ "type": "RLIMIT_MEMLOCK", "soft": bytes, "hard": bytes }]);
    Ok(Set::Container(Box::new(spec.set("/process/rlimits", limit)?)))
}

fn granted((code, probe): (i32, Value)) -> bool {
    code == 0 && probe["granted"] == true
}

/// What only this runtime has.
mod kata_only {
    use super::*;

    #[test]
    fn every_line_about_a_container_helps_by_itself() -> Result<()> {
        let node = Node::start()?;
        let (code, refused) = asked(&node, "poor", &sleeping(&node, "poor", 1000)?)?;
        assert_eq!((code, &refused["granted"]), (1, &json!(false)), "{refused}");
        let mut tried = 0;
        for remedy in ["limit", "capability"] {
            for line in lines(&refused, remedy) {
                let name = format!("{remedy}-{tried}");
                if let Set::Container(spec) = set(&line, sleeping(&node, &name, 1000)?)? {
                    assert!(granted(asked(&node, &name, &spec)?), "{line}");
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, 3, "an annotation each, and the specification: {refused}");
        // The limit that is said to be needed is the least that helps: 4097 pages less the user's 129.
        let needed = 3968 * 4096;
        for (name, bytes, helps) in [("least", needed, true), ("less", needed - 1, false)] {
            let spec = sleeping(&node, name, 1000)?.annotation(MEMLOCK, &bytes.to_string())?;
            let (code, probe) = asked(&node, name, &spec)?;
            assert_eq!(granted((code, probe.clone())), helps, "{bytes}: {probe}");
        }
        node.nothing_left()
    }

    #[test]
    fn every_line_about_the_configuration_helps_by_itself() -> Result<()> {
        let node = Node::start()?;
        let (_, refused) = asked(&node, "poor", &sleeping(&node, "poor", 1000)?)?;
        node.nothing_left()?;
        let mut tried = 0;
        for remedy in ["limit", "capability", "sysctl"] {
            for line in lines(&refused, remedy) {
                if let Set::Configuration(dropin) = set(&line, sleeping(&node, "any", 1000)?)? {
                    let node = Node::start_configured(&dropin)?;
                    assert!(
                        granted(asked(&node, "rich", &sleeping(&node, "rich", 1000)?)?),
                        "{dropin}"
                    );
                    node.nothing_left()?;
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, 3, "a line of the configuration for each: {refused}");
        Ok(())
    }

    #[test]
    fn a_line_that_another_place_would_overrule_is_not_printed() -> Result<()> {
        let node = Node::start()?;
        let limit = json!([{ "type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 65536 }]);
        for (name, spec, remedy, expected) in [
            (
                "annotated",
                sleeping(&node, "annotated", 1000)?.annotation(MEMLOCK, "64KiB")?,
                "limit",
                2,
            ),
            (
                "specified",
                sleeping(&node, "specified", 1000)?.set("/process/rlimits", limit)?,
                "limit",
                1,
            ),
            (
                "dropped",
                sleeping(&node, "dropped", 1000)?.annotation(CAP_IPC_LOCK, "drop")?,
                "capability",
                1,
            ),
        ] {
            let (_, refused) = asked(&node, name, &spec)?;
            let lines = lines(&refused, remedy);
            assert_eq!(lines.len(), expected, "{name}: {lines:?}");
            assert!(lines.iter().all(|line| !line.starts_with('[')), "{name}: {lines:?}");
            let Set::Container(mended) = set(&lines[0], spec)? else {
                return Err(Error::unexpected(lines[0].clone()));
            };
            assert!(granted(asked(&node, name, &mended)?), "{name}: {}", lines[0]);
        }
        node.nothing_left()
    }

    #[test]
    fn it_answers_for_any_process_of_a_paused_container_and_for_no_other() -> Result<()> {
        let node = Node::start()?;
        node.run_spec("app", &sleeping(&node, "app", 1000)?)?.arg("-d").ok()?;
        let other = node.exec("app", "other").args(["--user", "2000"]);
        let other = other.sh("echo up; exec sleep 1000").spawn()?;
        other.shows("up\n")?;

        let listed = node.exec("app", "ps").program(["ps", "-o", "pid,comm"]).ok()?;
        let sleeps = listed.lines().filter(|line| line.contains("sleep"));
        let pids: Vec<String> = sleeps
            .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
            .collect();
        let told_of = |pid: &str| {
            kata_ctl(&node, "app", &["--pid", pid, "--pages", "1", "--json"])?
                .code(0)?
                .json()
        };
        node.task("pause", "app").ok()?;
        let mut uids = Vec::new();
        for pid in &pids {
            let told = told_of(pid)?;
            assert_eq!(
                (told["pid"].to_string(), &told["probe"]["granted"]),
                (pid.clone(), &json!(true)),
                "{told}"
            );
            uids.push(told["uid"].clone());
        }
        uids.sort_by_key(ToString::to_string);
        assert_eq!(uids, [json!(1000), json!(2000)], "{listed}");
        // Without one it is the first process; without pages nothing is tried.
        let told = kata_ctl(&node, "app", &["--pages", "0", "--json"])?.code(0)?.json()?;
        assert_eq!((&told["uid"], &told["probe"]), (&json!(1000), &Value::Null));
        node.task("resume", "app").ok()?;

        for (flags, code, says) in [
            (&["--pid", "999"][..], 1, "process 999 is none of the container's"),
            (
                &["--pid", "4294967295"],
                1,
                "process 4294967295 is none of the container's",
            ),
            (&["--pages", "3"], 2, "must be a power of two, or 0"),
            (&["--pages=-1"], 2, "must be a power of two, or 0"),
            (&["--pages", "2147483648"], 1, "half of the guest's free memory"),
            (&["--namespace", "nobodys"], 1, "no container"),
        ] {
            let said = kata_ctl(&node, "app", flags)?.code(code)?.stderr();
            assert!(said.contains(says), "{flags:?}: {said}");
        }
        node.task("kill", "app").args(["--signal", "9"]).ok()?;
        other.wait()?.code(137)?;
        node.await_stopped("app")?;
        let said = kata_ctl(&node, "app", &[])?.code(1)?.stderr();
        assert!(said.contains("has exited"), "{said}");
        node.forget("app")?;
        node.nothing_left()
    }

    #[test]
    fn in_a_user_namespace_the_capability_is_known_to_be_of_no_use() -> Result<()> {
        let node = Node::start()?;
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let sets = json!(["CAP_IPC_LOCK"]);
        let spec = sleeping(&node, "mapped", 0)?
            .push("/linux/namespaces", json!({ "type": "user" }))?
            .set("/linux/uidMappings", mapping.clone())?
            .set("/linux/gidMappings", mapping)?
            .set("/process/capabilities/bounding", sets.clone())?
            .set("/process/capabilities/permitted", sets.clone())?
            .set("/process/capabilities/effective", sets)?;
        node.run_spec("mapped", &spec)?.arg("-d").ok()?;
        let told = kata_ctl(&node, "mapped", &["--pages", PAGES, "--json"])?
            .code(1)?
            .json()?;
        assert_eq!(
            (&told["uid"], &told["user_namespace"]),
            (&json!(100_000), &json!(true)),
            "{told}"
        );
        let lifts = &told["cap_ipc_lock"];
        assert_eq!(lifts["lifts_the_limit"], false, "{lifts}");
        assert!(
            lifts["sets"]
                .as_array()
                .is_some_and(|sets| sets.contains(&json!("effective"))),
            "{lifts}"
        );
        let helps = told["probe"]["remedies"].as_array().into_iter().flatten();
        let helps: Vec<_> = helps
            .map(|remedy| (remedy["name"].as_str(), remedy["helps"].as_bool()))
            .collect();
        let expected = [("limit", true), ("capability", false), ("sysctl", true)];
        assert_eq!(helps, expected.map(|(name, helps)| (Some(name), Some(helps))), "{told}");
        node.remove("mapped")?;
        node.nothing_left()
    }
}
