//! Annotations of a container or pod that change the configuration of its sandbox.
//!
//! Anybody who may create a pod can write them, so they apply only as far as the configuration allows. The name of an
//! annotation for the hypervisor has to match `enable_annotations`, as in Kata. A path has to match the list for its
//! kind. None may weaken the isolation that the configuration sets. A refused annotation is an error: no sandbox is
//! created that differs from the request.

use std::collections::BTreeMap;
use std::path::Path;

use crate::codec::LONGEST_KERNEL_PARAMS;
use crate::load::{AGENT_ALONE, conflict, shortened};
use crate::model::Config;
use crate::raw::Raw;
use crate::settings::{Access, SETTINGS, Setting, Table};
use crate::unsupported::{self, Other};
use crate::value::PathPattern;
use crate::warning::{Place, Reason, Warning};

/// Why a sandbox is not created as its annotations ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum AnnotationError {
    #[error(
        "annotation {annotation} is not allowed: no entry of hypervisor.qemu.enable_annotations matches \"{name}\""
    )]
    NotEnabled {
        annotation: String,
        /// Its last part, which is what has to match.
        name: String,
    },
    /// The configuration does not allow this path.
    #[error(
        "annotation {annotation}: the path \"{path}\" is not allowed: no entry of hypervisor.qemu.{key} matches it"
    )]
    PathNotAllowed {
        annotation: String,
        path: String,
        /// The list that has to allow it.
        key: &'static str,
    },
    /// The value would take away from the isolation that the configuration gives.
    #[error(
        "annotation {annotation} = \"{value}\" is not allowed: it would weaken the isolation of the pod; where all pods may \
         have that, set {key} = {value} in the configuration"
    )]
    Weakens {
        annotation: String,
        value: bool,
        /// The key of the configuration that would allow it.
        key: String,
    },
    /// The value names what the configuration does not list.
    #[error(
        "annotation {annotation}: \"{entry}\" is not allowed: it is neither an entry of {key} nor a path that one of them matches"
    )]
    NotListed {
        annotation: String,
        /// The path or pattern, as it was written.
        entry: String,
        /// The list that has to have it.
        key: String,
    },
    /// What they and the configuration ask for exclude each other.
    #[error("the annotations of the pod are not allowed: {0}")]
    Conflict(String),
    /// The value has the wrong type or is out of range, or asks for what cannot be done.
    #[error("annotation {annotation} = \"{value}\": must be {allowed}")]
    Value {
        annotation: String,
        /// The value, as it was written; the beginning of it if it is long.
        value: String,
        allowed: String,
    },
}

/// Changes the configuration as the annotations `io.katacontainers.config.*` ask. All others are left alone.
///
/// Nothing is changed if one of them is refused. A path in an annotation is compared with the patterns as it is
/// written; a pattern should match a directory in which only the administrator can write.
///
/// # Errors
/// An annotation is not allowed, or its value is not.
pub fn apply(config: &mut Config, annotations: &BTreeMap<String, String>) -> Result<Vec<Warning>, AnnotationError> {
    let mut changed = config.clone();
    let mut warnings = Vec::new();
    for (annotation, value) in annotations {
        let refused = |allowed| AnnotationError::Value {
            annotation: annotation.clone(),
            value: shortened(value),
            allowed,
        };
        let Some((table, name)) = split(annotation) else {
            match unsupported::other(annotation) {
                Some(Other::Refused(why)) => return Err(refused(why.to_owned())),
                Some(Other::Warned(warning)) => warnings.push(warning),
                None => {}
            }
            continue;
        };
        // What the file says decides, whatever other annotations have changed.
        if table == Table::Hypervisor
            && !config
                .hypervisor
                .enable_annotations
                .iter()
                .any(|pattern| pattern.matches(name))
        {
            return Err(AnnotationError::NotEnabled {
                annotation: annotation.clone(),
                name: name.to_owned(),
            });
        }
        match SETTINGS
            .iter()
            .find(|setting| setting.table == table && setting.annotation() == Some(name))
        {
            Some(setting) => set(config, &mut changed, setting, annotation, value)?,
            None => {
                if let Some(allowed) = unsupported::refused_annotation(table, name, value) {
                    return Err(refused(allowed));
                }
                warnings.extend(unsupported::annotation(annotation, table, name, value));
            }
        }
    }
    if let Some(reason) = conflict(&changed) {
        return Err(AnnotationError::Conflict(reason));
    }
    if changed.agent.enable_tracing && !config.agent.enable_tracing && !changed.runtime.enable_tracing {
        warnings.push(Warning {
            place: Place::Annotation,
            key: String::from("io.katacontainers.config.agent.enable_tracing"),
            reason: Reason::Differs(AGENT_ALONE),
        });
    }
    *config = changed;
    Ok(warnings)
}

/// The table that an annotation is about, and the last part of its name.
fn split(annotation: &str) -> Option<(Table, &str)> {
    Table::ALL
        .into_iter()
        .find_map(|table| Some((table, annotation.strip_prefix(table.annotation_prefix()?)?)))
}

fn set(
    allowed: &Config,
    changed: &mut Config,
    setting: &Setting,
    annotation: &str,
    value: &str,
) -> Result<(), AnnotationError> {
    let refuse = |allowed| AnnotationError::Value {
        annotation: annotation.to_owned(),
        value: shortened(value),
        allowed,
    };
    if let Access::Path(_, list) = setting.access
        && !list
            .patterns(allowed)
            .iter()
            .any(|pattern| pattern.matches(Path::new(value)))
    {
        return Err(AnnotationError::PathNotAllowed {
            annotation: annotation.to_owned(),
            path: shortened(value),
            key: list.key(),
        });
    }
    let before = (setting.show)(allowed).as_bool();
    (setting.set)(changed, Raw::Annotation(value)).map_err(|refusal| refuse(refusal.0))?;
    if let Access::Guarded(_, weak) = setting.access
        && (setting.show)(changed).as_bool() == Some(weak)
        && before != Some(weak)
    {
        return Err(AnnotationError::Weakens {
            annotation: annotation.to_owned(),
            value: weak,
            key: format!("{}.{}", setting.table.name(), setting.key),
        });
    }
    if let Access::Choose(_) = setting.access {
        let listed = |entry: &PathPattern| {
            let allowed = &allowed.runtime.share_host_sockets;
            allowed.contains(entry)
                || entry.is_literal() && allowed.iter().any(|one| one.matches(Path::new(entry.as_str())))
        };
        if let Some(entry) = changed.runtime.share_host_sockets.iter().find(|entry| !listed(entry)) {
            return Err(AnnotationError::NotListed {
                annotation: annotation.to_owned(),
                entry: shortened(entry.as_str()),
                key: format!("{}.{}", setting.table.name(), setting.key),
            });
        }
    }
    if let Access::Append(_) = setting.access {
        let params = [&allowed.hypervisor.kernel_params, &changed.hypervisor.kernel_params];
        let joined = params.map(String::as_str).join(" ").trim().to_owned();
        if joined.len() > LONGEST_KERNEL_PARAMS {
            return Err(refuse(format!(
                "at most {LONGEST_KERNEL_PARAMS} bytes with what the configuration says"
            )));
        }
        changed.hypervisor.kernel_params = joined;
    }
    Ok(())
}
