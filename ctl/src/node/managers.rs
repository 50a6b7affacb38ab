//! What each container manager's configuration has to say for a handler of ours. Pure: text in, text out.
//!
//! containerd 1 replaces a plugin's whole section by that of an imported file, containerd 2 merges them (both tried with
//! `containerd config dump`), so only containerd 2 gets a file of its own.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::block;
use super::error::NodeError;
use super::programs::Release;
use super::target::CONFIGURATION;

/// The runtime's name for containerd.
const RUNTIME: &str = "io.containerd.kata.v2";
/// The CRI plugin's names: in files of version 2, and of version 3.
const PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
pub(crate) const DROP_IN: &str = "tatami.toml";

/// A handler, as a RuntimeClass names it.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    pub(crate) name: String,
    /// The shim, where the manager finds it.
    pub(crate) shim: PathBuf,
    /// A configuration that is not the default one.
    pub(crate) configuration: Option<PathBuf>,
}

/// A quoted TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// What tells containerd where the shim is.
#[derive(Debug, Clone, Copy)]
enum Finds {
    /// The key `runtime_path`.
    RuntimePath,
    /// `runtime_type`, which may be a path instead of a name in every containerd. Only this one is read by 1.6, which would look up a name in
    /// its PATH, where there may be a shim of another runtime.
    RuntimeType,
}

impl Handler {
    /// The tables for containerd, in a file of this version, for a containerd that takes the shim from there.
    fn containerd(&self, version: i64, by: Finds) -> String {
        let plugin = if version < 3 { PLUGINS[0] } else { PLUGINS[1] };
        let runtime_type = match by {
            Finds::RuntimePath => quoted(RUNTIME),
            Finds::RuntimeType => path(&self.shim),
        };
        let table = format!("plugins.{}.containerd.runtimes.{}", quoted(plugin), quoted(&self.name));
        let mut text = format!(
            "[{table}]\nruntime_type = {runtime_type}\nruntime_path = {}\nprivileged_without_host_devices = true\n\
             privileged_without_host_devices_all_devices_allowed = true\n\
             pod_annotations = [\"io.katacontainers.*\"]\ncontainer_annotations = [\"io.katacontainers.*\"]\n",
            path(&self.shim)
        );
        if let Some(configuration) = &self.configuration {
            text.push_str(&format!("[{table}.options]\nConfigPath = {}\n", path(configuration)));
        }
        text
    }

    /// The file for CRI-O: a runtime of type `vm` is a shim of containerd's.
    pub(crate) fn crio(&self) -> String {
        let configuration = self.configuration.as_deref();
        let configuration = configuration.unwrap_or(Path::new(CONFIGURATION));
        format!(
            "{OWN}[crio.runtime.runtimes.{}]\nruntime_path = {}\nruntime_type = \"vm\"\nruntime_root = \"/run/vc\"\n\
             runtime_config_path = {}\nprivileged_without_host_devices = true\n",
            quoted(&self.name),
            path(&self.shim),
            path(configuration)
        )
    }
}

/// How a file of ours begins.
const OWN: &str = "# Written by `kata-ctl node install`, removed by `kata-ctl node uninstall`.\n";

/// Whether a file is one that this program wrote.
pub(crate) fn is_own(text: &str) -> bool {
    text.starts_with(OWN)
}

/// Where containerd's configuration gets the handler.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// As a part of the file, whose new text this is.
    Part(String),
    /// As a file of its own, which the configuration imports.
    DropIn { file: PathBuf, text: String },
    /// Nowhere: containerd does not serve Kubernetes here, for this reason.
    Without(&'static str),
}

fn refused(file: &Path, why: String) -> NodeError {
    NodeError::Configuration {
        path: file.to_owned(),
        why,
    }
}

/// Adds the handler to the configuration of containerd in `file`, whose text is that.
pub(crate) fn with_containerd(
    file: &Path,
    text: Option<&str>,
    release: Release,
    handler: &Handler,
) -> Result<Place, NodeError> {
    let newest = if release.major < 2 { 2 } else { 3 };
    let (rest, _) = block::without(text.unwrap_or_default()).map_err(|error| refused(file, error.to_string()))?;
    let known: toml::Table = rest
        .parse()
        .map_err(|error: toml::de::Error| refused(file, format!("is no TOML: {}", error.message())))?;
    let disabled = known.get("disabled_plugins").and_then(toml::Value::as_array);
    let is_cri = |name: &toml::Value| {
        matches!(name.as_str(), Some("cri")) || name.as_str().is_some_and(|name| PLUGINS.contains(&name))
    };
    if disabled.is_some_and(|names| names.iter().any(is_cri)) {
        return Ok(Place::Without("its CRI plugin is disabled (disabled_plugins)"));
    }
    let version = match known.get("version").and_then(toml::Value::as_integer) {
        Some(version) if version >= 2 => version,
        None if known.is_empty() => newest,
        _ => {
            let why = "is of version 1 (it has no `version = 2`), which has no place for this: convert it (`containerd config migrate`)";
            return Err(refused(file, why.to_owned()));
        }
    };
    for plugin in PLUGINS {
        let runtimes = ["plugins", plugin, "containerd", "runtimes", &handler.name];
        let mut at = runtimes
            .iter()
            .try_fold(toml::Value::Table(known.clone()), |at, key| at.get(key).cloned());
        if at.take().is_some() {
            let why = format!(
                "has a runtime {} already: remove it, or choose another name (--handler)",
                handler.name
            );
            return Err(refused(file, why));
        }
    }
    if release.major >= 2
        && let Some(directory) = imported(file, &known).first()
    {
        let text = format!("{OWN}version = 3\n{}", handler.containerd(3, Finds::RuntimePath));
        let file = directory.join(DROP_IN);
        return Ok(Place::DropIn { file, text });
    }
    let by = match release.reads_runtime_path() {
        true => Finds::RuntimePath,
        false => Finds::RuntimeType,
    };
    let mut part = handler.containerd(version, by);
    if known.is_empty() {
        part.insert_str(0, &format!("version = {version}\n"));
    }
    let text = block::with(&rest, &part).map_err(|error| refused(file, error.to_string()))?;
    if let Err(error) = text.parse::<toml::Table>() {
        return Err(refused(
            file,
            format!("leaves no place for another table: {}", error.message()),
        ));
    }
    Ok(Place::Part(text))
}

/// The directories of which the configuration in `file` imports every `*.toml`.
pub(crate) fn imported(file: &Path, known: &toml::Table) -> Vec<PathBuf> {
    let imports = known.get("imports").and_then(toml::Value::as_array);
    let directories = imports
        .into_iter()
        .flatten()
        .filter_map(|import| import.as_str()?.strip_suffix("/*.toml"));
    let plain = directories.filter(|directory| !directory.contains(['*', '?', '[']));
    let base = file.parent().unwrap_or(Path::new("/"));
    plain.map(|directory| base.join(directory)).collect()
}

/// A template of k3s and RKE2, from which they make containerd's configuration at each start.
pub(crate) fn with_template(
    file: &Path,
    text: Option<&str>,
    version: i64,
    handler: &Handler,
) -> Result<String, NodeError> {
    let text = text.unwrap_or(BASE);
    // Version 2 is that of containerd 1.6, too, which k3s and RKE2 had up to Kubernetes 1.26; 1.7 takes a path as well.
    let by = if version < 3 {
        Finds::RuntimeType
    } else {
        Finds::RuntimePath
    };
    block::with(text, &handler.containerd(version, by)).map_err(|error| refused(file, error.to_string()))
}

/// The template that is used where there is none (docs.k3s.io, Advanced, Configuring containerd).
pub(crate) const BASE: &str = "{{ template \"base\" . }}\n";

fn docker(file: &Path, text: &str) -> Result<Map<String, Value>, NodeError> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|error| refused(file, format!("is no JSON object: {error}")))
}

fn pretty(object: &Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(object.clone()))
}

/// Adds the handler to Docker's daemon.json.
pub(crate) fn with_docker(file: &Path, text: Option<&str>, handler: &Handler) -> Result<String, NodeError> {
    let text = text.unwrap_or_default();
    let mut object = docker(file, text)?;
    let runtimes = object.entry("runtimes").or_insert_with(|| json!({}));
    let Some(runtimes) = runtimes.as_object_mut() else {
        return Err(refused(file, "has `runtimes` that is no object".to_owned()));
    };
    let mut wanted = json!({ "runtimeType": handler.shim });
    if let Some(configuration) = &handler.configuration {
        wanted["options"] = json!({ "TypeUrl": "runtimeoptions.v1.Options", "ConfigPath": configuration });
    }
    match runtimes.get(&handler.name) {
        Some(there) if *there == wanted => return Ok(text.to_owned()),
        Some(there) if !is_ours(there) => {
            let why = format!(
                "has a runtime {} already: remove it, or choose another name (--handler)",
                handler.name
            );
            return Err(refused(file, why));
        }
        _ => {}
    }
    runtimes.insert(handler.name.clone(), wanted);
    Ok(pretty(&object))
}

fn is_ours(runtime: &Value) -> bool {
    let name = runtime["runtimeType"].as_str().unwrap_or_default();
    name == RUNTIME || name.ends_with("/containerd-shim-kata-v2")
}

/// Takes the handler out of Docker's daemon.json; none if it is not in it. If nothing else has changed since, what comes out
/// is `backup`, the file as it was before, byte for byte.
pub(crate) fn without_docker(
    file: &Path,
    text: &str,
    backup: Option<&str>,
    name: &str,
) -> Result<Option<String>, NodeError> {
    let mut object = docker(file, text)?;
    let Some(runtimes) = object.get_mut("runtimes").and_then(Value::as_object_mut) else {
        return Ok(None);
    };
    if !runtimes.get(name).is_some_and(is_ours) {
        return Ok(None);
    }
    runtimes.remove(name);
    if runtimes.is_empty()
        && backup.is_none_or(|backup| docker(file, backup).is_ok_and(|was| !was.contains_key("runtimes")))
    {
        object.remove("runtimes");
    }
    Ok(Some(match backup {
        Some(backup) if docker(file, backup).is_ok_and(|was| was == object) => backup.to_owned(),
        None if object.is_empty() => String::new(),
        _ => pretty(&object),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler() -> Handler {
        Handler {
            name: "kata".to_owned(),
            shim: "/usr/bin/containerd-shim-kata-v2".into(),
            configuration: None,
        }
    }

    fn placed(text: Option<&str>, major: u32) -> Result<Place, NodeError> {
        // 1.7 or 2.7.
        with_containerd(
            Path::new("/etc/containerd/config.toml"),
            text,
            Release { major, minor: 7 },
            &handler(),
        )
    }

    fn part(text: Option<&str>, major: u32) -> String {
        match placed(text, major).unwrap() {
            Place::Part(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_tables_are_those_of_the_files_version() {
        let own = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"p\"\n";
        for major in [1, 2] {
            let text = part(Some(own), major);
            assert!(text.starts_with(own), "{text}");
            let table: toml::Table = text.parse().unwrap();
            let runtime = &table["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["kata"];
            assert_eq!(runtime["runtime_type"].as_str(), Some(RUNTIME));
            // Twice is once.
            assert_eq!(part(Some(&text), major), text);
        }
        assert!(part(None, 1).contains("\nversion = 2\n") && part(None, 2).contains("\nversion = 3\n"));
        assert!(part(Some("version = 3\n"), 2).contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd"));
    }

    #[test]
    fn containerd_1_6_is_told_the_shim_by_the_runtimes_type() {
        let release = Release { major: 1, minor: 6 };
        let placed = with_containerd(Path::new("config.toml"), Some("version = 2\n"), release, &handler()).unwrap();
        let Place::Part(text) = placed else {
            panic!("{placed:?}")
        };
        assert!(
            text.contains("\nruntime_type = \"/usr/bin/containerd-shim-kata-v2\"\n"),
            "{text}"
        );
    }

    #[test]
    fn containerd_2_gets_a_file_of_its_own_where_it_imports_a_directory() {
        let text = "version = 2\nimports = [\"conf.d/*.toml\"]\n";
        assert!(matches!(placed(Some(text), 1), Ok(Place::Part(_))));
        let Ok(Place::DropIn { file, text }) = placed(Some(text), 2) else {
            panic!("no drop-in")
        };
        assert_eq!(file, Path::new("/etc/containerd/conf.d/tatami.toml"));
        assert!(is_own(&text) && text.parse::<toml::Table>().is_ok());
        assert!(matches!(
            placed(Some("version = 3\nimports = [\"/a/b.toml\"]\n"), 2),
            Ok(Place::Part(_))
        ));
    }

    #[test]
    fn what_cannot_be_added_to_is_refused_with_the_reason() {
        for (text, why) in [
            ("version = [", "is no TOML"),
            ("root = \"/r\"\n", "is of version 1"),
            (
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n",
                "has a runtime kata already",
            ),
            ("version = 2\nplugins = {}\n", "leaves no place for another table"),
        ] {
            let error = placed(Some(text), 1).unwrap_err().to_string();
            assert!(
                error.contains("/etc/containerd/config.toml") && error.contains(why),
                "{error}"
            );
        }
        let docker = "disabled_plugins = [\"cri\"]\n";
        assert!(matches!(placed(Some(docker), 1), Ok(Place::Without(_))));
    }

    #[test]
    fn dockers_file_keeps_what_is_in_it_and_comes_back_as_it_was() {
        let file = Path::new("/etc/docker/daemon.json");
        for before in [
            "",
            "{}",
            "{ \"debug\":true }\n",
            "{\"runtimes\": {\"x\": {\"path\": \"/x\"}}}",
            "{\"runtimes\":{}}",
        ] {
            let added = with_docker(file, Some(before), &handler()).unwrap();
            let object: Value = serde_json::from_str(&added).unwrap();
            assert_eq!(
                object["runtimes"]["kata"]["runtimeType"],
                "/usr/bin/containerd-shim-kata-v2"
            );
            assert_eq!(with_docker(file, Some(&added), &handler()).unwrap(), added);
            assert_eq!(
                without_docker(file, &added, Some(before), "kata").unwrap().as_deref(),
                Some(before)
            );
        }
        // What was added since stays.
        let edited = "{\"debug\":true,\"runtimes\":{\"kata\":{\"runtimeType\":\"io.containerd.kata.v2\"}}}";
        let rest = without_docker(file, edited, Some("{}"), "kata").unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&rest).unwrap(), json!({"debug": true}));
        let others = "{\"runtimes\":{\"kata\":{\"path\":\"/usr/bin/kata-runtime\"}}}";
        assert_eq!(without_docker(file, others, None, "kata").unwrap(), None);
        assert!(with_docker(file, Some(others), &handler()).is_err());
        assert!(with_docker(file, Some("[]"), &handler()).is_err());
    }
}
