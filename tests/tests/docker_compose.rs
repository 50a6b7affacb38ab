//! Services that Docker Compose starts find each other by the names that its file gives them.

use std::fs;

use framework::{Docker, Result, docker::IMAGE};
use serde_json::json;

/// Each serves a page with its name, and waits until it has got the other one's.
fn service(docker: &Docker, name: &str, other: &str) -> serde_json::Value {
    let script = format!(
        "mkdir -p /www; echo {name} > /www/index.html; httpd -p 8000 -h /www; \
         until wget -q -O /got http://{other}:8000/; do sleep 1; done; echo {name} got $$(cat /got); exec sleep 100000"
    );
    json!({
        "image": IMAGE, "runtime": docker.runtime().name(), "command": ["sh", "-c", script], "stop_grace_period": "0s",
    })
}

#[test]
fn two_services_find_each_other_by_name() -> Result<()> {
    let docker = Docker::start()?;
    let file = docker.dir().join("compose.json");
    let services = json!({ "web": service(&docker, "web", "backend"), "backend": service(&docker, "backend", "web") });
    fs::write(&file, json!({ "version": "3.8", "services": services }).to_string())?;
    let compose = |args: &[&str]| Ok::<_, framework::Error>(docker.compose("pair", &file)?.args(args));
    compose(&["up", "-d"])?.ok()?;
    let ids = compose(&["ps", "-q"])?.ok()?;
    assert_eq!(ids.lines().count(), 2, "{ids}");
    for (name, other) in [("web", "backend"), ("backend", "web")] {
        let log = docker.docker(&["logs", "-f", &format!("pair_{name}_1")]).spawn()?;
        log.shows(&format!("{name} got {other}\n"))?;
        drop(log);
        // And by the name of the container, from a program that is started later.
        let url = format!("http://pair_{other}_1:8000/");
        let got = compose(&["exec", "-T", name, "wget", "-q", "-O", "-", &url])?.ok()?;
        assert_eq!(got, format!("{other}\n"));
    }
    compose(&["restart", "-t", "0", "web"])?.ok()?;
    let got = compose(&[
        "exec",
        "-T",
        "backend",
        "sh",
        "-c",
        "until wget -q -O - http://web:8000/; do sleep 1; done",
    ])?;
    assert_eq!(got.ok()?, "web\n");
    compose(&["down", "-t", "0"])?.ok()?;
    ids.lines().try_for_each(|id| docker.nothing_left(id))
}
