//! Objects of Kubernetes, compared with the schemas of its releases as a strict API server compares them: no unknown field, no value of
//! another type.
//!
//! The schemas are those of the Python package kubernetes-validate (`scripts/tool`), which have few of JSON Schema's keywords. One
//! that is not known here is an error.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Map, Value};

use crate::{Error, Result, locate};

/// Keywords that say nothing about what an object may be.
const DESCRIBE: [&str; 4] = ["description", "format", "$schema", "$id"];

/// The schemas of one release.
pub struct Release {
    directory: PathBuf,
    definitions: Value,
}

impl Release {
    /// The oldest and the newest release that the package has.
    pub fn all() -> Result<Vec<Self>> {
        let tool = Command::new(locate::workspace().join("scripts/tool"))
            .arg("kubernetes-validate")
            .output()?;
        if !tool.status.success() {
            return Err(Error::unexpected(String::from_utf8_lossy(&tool.stderr).into_owned()));
        }
        let place = String::from_utf8_lossy(&tool.stdout).trim().to_owned();
        let mut releases = Vec::new();
        for entry in fs::read_dir(place)? {
            let directory = entry?.path();
            let definitions = read(&directory.join("_definitions.json"))?;
            releases.push(Self { directory, definitions });
        }
        Ok(releases)
    }

    /// `v1.37.0-local-strict`.
    pub fn name(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What is wrong with an object: nothing, or a line for each place.
    pub fn mistakes(&self, object: &Value) -> Result<Vec<String>> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_lowercase();
        // apps/v1 is apps-v1, node.k8s.io/v1 is node-v1, and v1 is v1.
        let version = text("apiVersion");
        let version = match version.split_once('/') {
            Some((group, version)) => format!("{}-{version}", group.split('.').next().unwrap_or_default()),
            None => version,
        };
        let file = format!("{}-{version}.json", text("kind"));
        let schema = match read(&self.directory.join(&file)) {
            Ok(schema) => schema,
            Err(_) => return Ok(vec![format!("there is no {file}")]),
        };
        let mut mistakes = Vec::new();
        self.compare(&schema, object, &text("kind"), &mut mistakes)?;
        Ok(mistakes)
    }

    fn compare(&self, schema: &Value, value: &Value, place: &str, mistakes: &mut Vec<String>) -> Result<()> {
        let empty = Map::new();
        let schema = schema.as_object().unwrap_or(&empty);
        for (keyword, says) in schema {
            match keyword.as_str() {
                "$ref" => {
                    let name = says.as_str().and_then(|reference| reference.rsplit('/').next());
                    let definition = &self.definitions["$defs"][name.unwrap_or_default()];
                    if definition.is_null() {
                        return Err(Error::unexpected(format!("{place}: no definition {says}")));
                    }
                    self.compare(definition, value, place, mistakes)?;
                }
                "type" if !types(says).any(|name| is(value, name)) => {
                    mistakes.push(format!("{place} is {value} and has to be {says}"));
                }
                "enum" if !says.as_array().is_some_and(|all| all.contains(value)) => {
                    mistakes.push(format!("{place} is {value} and has to be one of {says}"));
                }
                "required" => {
                    for name in types(says).filter(|name| value.is_object() && value[*name].is_null()) {
                        mistakes.push(format!("{place} has no {name}"));
                    }
                }
                "properties" | "additionalProperties" => {}
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.compare(says, item, &format!("{place}[{index}]"), mistakes)?;
                    }
                }
                "oneOf" => {
                    let mut ways = Vec::new();
                    for schema in says.as_array().into_iter().flatten() {
                        let mut found = Vec::new();
                        self.compare(schema, value, place, &mut found)?;
                        ways.push(found);
                    }
                    if ways.iter().all(|found| !found.is_empty()) {
                        mistakes.push(format!("{place} is {value} and fits none of {says}"));
                    }
                }
                "type" | "enum" => {}
                other if DESCRIBE.contains(&other) || other.starts_with("x-kubernetes-") => {}
                other => return Err(Error::unexpected(format!("{place}: the keyword {other} is not known"))),
            }
        }
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        for (name, inner) in value.as_object().into_iter().flatten() {
            let place = format!("{place}.{name}");
            match (known.get(name), schema.get("additionalProperties")) {
                (Some(schema), _) => self.compare(schema, inner, &place, mistakes)?,
                (None, Some(Value::Bool(false))) => mistakes.push(format!("{place} is unknown")),
                (None, Some(others)) => self.compare(others, inner, &place, mistakes)?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// A name, or a list of names.
fn types(says: &Value) -> impl Iterator<Item = &str> {
    let all = says.as_array().map_or(std::slice::from_ref(says), Vec::as_slice);
    all.iter().filter_map(Value::as_str)
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn read(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).map_err(|error| Error::unexpected(format!("{}: {error}", path.display())))
}
