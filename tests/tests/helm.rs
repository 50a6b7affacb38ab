//! The Helm chart, checked and rendered by Helm's own library: it says what the manifests in `deploy/` say, which the image is run by.

use std::{fs, process::Command};

use framework::{Error, Result, kubernetes::Release, locate};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// The objects of a YAML text.
fn objects(text: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let parsed: std::result::Result<Vec<_>, _> = documents.map(Value::deserialize).collect();
    let parsed = parsed.map_err(|error| Error::unexpected(format!("{error}: {text}")))?;
    Ok(parsed.into_iter().filter(|object| !object.is_null()).collect())
}

/// What the chart is with these values; or why it is nothing.
fn render(values: &Value) -> Result<std::result::Result<Vec<Value>, String>> {
    let top = locate::workspace();
    let output = Command::new(top.join("scripts/helm"))
        .arg(top.join("deploy/helm/tatami"))
        .args(["tatami", &values.to_string()])
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => objects(&text(&output.stdout)).map(Ok),
        false => Ok(Err(text(&output.stderr))),
    }
}

fn rendered(values: &Value) -> Result<Vec<Value>> {
    render(values)?.map_err(Error::unexpected)
}

fn of<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.ok_or_else(|| Error::unexpected(format!("no {kind} in {objects:?}")))
}

/// A manifest of `deploy/`.
fn manifest(name: &str) -> Result<Vec<Value>> {
    objects(&fs::read_to_string(locate::workspace().join("deploy").join(name))?)
}

/// The pod of a DaemonSet.
fn pod(objects: &[Value]) -> Result<Value> {
    Ok(of(objects, "DaemonSet")?["spec"]["template"]["spec"].clone())
}

#[test]
fn names_that_look_like_numbers_or_booleans_stay_names() -> Result<()> {
    let values = json!({ "imagePullSecrets": ["123", "true"], "runtimeClass": { "name": "1e3" } });
    let chart = rendered(&values)?;
    assert_eq!(
        pod(&chart)?["imagePullSecrets"],
        json!([{ "name": "123" }, { "name": "true" }])
    );
    assert_eq!(of(&chart, "RuntimeClass")?["metadata"]["name"], "1e3");
    Ok(())
}

#[test]
fn with_its_own_values_the_chart_is_the_manifest_that_installs() -> Result<()> {
    let (chart, manifest) = (rendered(&json!({}))?, manifest("install.yaml")?);
    assert_eq!(pod(&chart)?, pod(&manifest)?);
    let (class, other) = (of(&chart, "RuntimeClass")?, of(&manifest, "RuntimeClass")?);
    for part in ["handler", "overhead"] {
        assert_eq!(class[part], other[part]);
    }
    assert_eq!(class["metadata"]["name"], other["metadata"]["name"]);
    // It also asks for the architecture of the image.
    assert_eq!(class["scheduling"]["nodeSelector"], pod(&chart)?["nodeSelector"]);
    Ok(())
}

#[test]
fn one_value_makes_it_the_manifest_that_takes_the_runtime_out() -> Result<()> {
    let (chart, manifest) = (rendered(&json!({ "uninstall": true }))?, manifest("uninstall.yaml")?);
    let arguments = |pod: Value| pod["containers"][0]["args"].clone();
    assert_eq!(arguments(pod(&chart)?), arguments(pod(&manifest)?));
    assert!(of(&chart, "RuntimeClass").is_err());
    Ok(())
}

#[test]
fn values_have_their_effect_and_wrong_ones_are_refused_by_name() -> Result<()> {
    let chart = rendered(&json!({
        "image": { "repository": "registry.example/tatami", "tag": "7" },
        "imagePullSecrets": ["one"],
        "restart": false,
        "directory": "/usr/local/tatami",
        "nodeSelector": { "pool": "vms" },
        "runtimeClass": { "name": "kata-qemu", "overhead": { "memory": "512Mi" } },
    }))?;
    let spec = &of(&chart, "DaemonSet")?["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "registry.example/tatami:7");
    assert_eq!(
        container["args"],
        json!(["install", "--root", "/host", "--copy-to", "/usr/local/tatami", "--wait"])
    );
    assert_eq!(spec["imagePullSecrets"], json!([{ "name": "one" }]));
    assert_eq!(spec["nodeSelector"]["pool"], "vms");
    let class = of(&chart, "RuntimeClass")?;
    assert_eq!(class["metadata"]["name"], "kata-qemu");
    assert_eq!(class["overhead"]["podFixed"]["memory"], "512Mi");
    for (values, key) in [
        (json!({ "directory": "relative" }), "/directory"),
        (json!({ "remove": true }), "remove"),
        (json!({ "nodeSelector": { "pool": 1 } }), "nodeSelector"),
        (json!({ "image": { "pullPolicy": "Sometimes" } }), "pullPolicy"),
    ] {
        match render(&values)? {
            Ok(objects) => panic!("{values} is {objects:?}"),
            Err(error) => assert!(error.contains(key), "{key}: {error}"),
        }
    }
    Ok(())
}

/// The objects of a document's examples.
fn examples(name: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(locate::workspace().join(name))?;
    let blocks = text
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let all: Result<Vec<_>> = blocks.map(objects).collect();
    Ok(all?.concat())
}

#[test]
fn kubernetes_knows_every_field_of_the_manifests_of_the_chart_and_of_the_examples() -> Result<()> {
    let sets = [
        ("install.yaml", manifest("install.yaml")?, 3),
        ("uninstall.yaml", manifest("uninstall.yaml")?, 1),
        ("the chart", rendered(&json!({}))?, 2),
        ("the chart that takes out", rendered(&json!({ "uninstall": true }))?, 1),
        (
            "the chart with values",
            rendered(&json!({ "imagePullSecrets": ["one"], "restart": false }))?,
            2,
        ),
        ("docs/kubernetes.md", examples("docs/kubernetes.md")?, 2),
        ("README.md", examples("README.md")?, 2),
    ];
    let releases = Release::all()?;
    assert_eq!(releases.len(), 2);
    for release in &releases {
        for (name, objects, count) in &sets {
            assert_eq!(objects.len(), *count, "{name}");
            for object in objects {
                assert_eq!(release.mistakes(object)?, [""; 0], "{name}, {}", release.name());
                // What the API server refuses beside that: a selector that does not select its own pods.
                let labels = &object["spec"]["template"]["metadata"]["labels"];
                for (label, value) in object["spec"]["selector"]["matchLabels"]
                    .as_object()
                    .into_iter()
                    .flatten()
                {
                    assert_eq!(labels[label], *value, "{name}");
                }
            }
        }
        // It sees what is wrong.
        let wrong = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": 1 }, "overheads": {} });
        let mistakes = release.mistakes(&wrong)?.join("\n");
        for part in ["has no handler", "metadata.name is 1", "overheads is unknown"] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
    }
    Ok(())
}
