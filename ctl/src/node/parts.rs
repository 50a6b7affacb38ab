//! What is to change on a node, manager by manager: reads the node's files, and leaves what they are to say to
//! [`managers`](super::managers).

use std::path::{Component, Path, PathBuf};

use super::block;
use super::change::{self, Change, State};
use super::error::NodeError;
use super::managers::{self, BASE, Handler, Place};
use super::programs::{PATH, Program, below};
use super::target::{CONFIGURATION, Target};

const SHIM: &str = "containerd-shim-kata-v2";
const LINK: &str = "/usr/local/bin/containerd-shim-kata-v2";
const CRIO: &str = "/etc/crio";
const CRIO_FILE: &str = "/etc/crio/crio.conf.d/50-tatami.conf";
const DOCKER: &str = "/etc/docker/daemon.json";
/// Added to the name of a file for the copy of what it was.
const BACKUP: &str = ".before-tatami";

/// Distributions that make containerd's configuration from a template: their name, where it is, and their services.
const TEMPLATES: [(&str, &str, [&str; 2]); 2] = [
    ("k3s", "/var/lib/rancher/k3s/agent/etc/containerd", ["k3s", "k3s-agent"]),
    (
        "RKE2",
        "/var/lib/rancher/rke2/agent/etc/containerd",
        ["rke2-server", "rke2-agent"],
    ),
];

pub(crate) const INSTALLED: &str = "installed";

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) manager: &'static str,
    pub(crate) changes: Vec<Change>,
    /// What has to be restarted for them.
    pub(crate) service: Option<&'static str>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) manager: &'static str,
    pub(crate) state: &'static str,
    pub(crate) file: PathBuf,
}

fn backup(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(BACKUP);
    name.into()
}

/// The new text of a file; a file that was there is kept beside it.
fn rewritten(file: &Path, after: String) -> Result<Vec<Change>, NodeError> {
    let before = State::of_file(file)?;
    let copy = backup(file);
    let kept = State::of_file(&copy)?;
    let mut changes = Vec::new();
    if kept == State::Absent && before != State::Absent && before != State::Text(after.clone()) {
        changes.push(Change {
            path: copy,
            before: kept,
            after: before.clone(),
        });
    }
    changes.push(Change {
        path: file.to_owned(),
        before,
        after: State::Text(after),
    });
    Ok(changes)
}

/// The text of a file without our part. The copy goes if it says the same; a file that was made for our part goes, too.
fn restored(file: &Path, rest: &str, empty: &str) -> Result<Vec<Change>, NodeError> {
    let before = State::of_file(file)?;
    let copy = backup(file);
    let kept = State::of_file(&copy)?;
    let made = kept == State::Absent && rest == empty;
    let after = if made {
        State::Absent
    } else {
        State::Text(rest.to_owned())
    };
    let mut changes = vec![Change {
        path: file.to_owned(),
        before,
        after: after.clone(),
    }];
    if kept == after {
        changes.push(Change {
            path: copy,
            before: kept,
            after: State::Absent,
        });
    }
    Ok(changes)
}

/// A file that is ours as a whole: none of somebody else's is replaced.
fn own(file: PathBuf, after: String) -> Result<Change, NodeError> {
    let before = State::of_file(&file)?;
    match &before {
        State::Text(text) if !managers::is_own(text) => Err(NodeError::Configuration {
            path: file,
            why: "is there and was not written by this program: move it away".to_owned(),
        }),
        _ => Ok(Change {
            path: file,
            before,
            after: State::Text(after),
        }),
    }
}

/// A file of ours that goes; none if it is not there, or somebody else's.
fn gone(file: PathBuf) -> Result<Option<Change>, NodeError> {
    let before = State::of_file(&file)?;
    let ours = matches!(&before, State::Text(text) if managers::is_own(text));
    Ok(ours.then_some(Change {
        path: file,
        before,
        after: State::Absent,
    }))
}

/// The template of a distribution, and the version of what is made from it: with containerd 2 it has a name of its own.
fn template(directory: &Path) -> Result<(PathBuf, i64), NodeError> {
    let made = change::text(&directory.join("config.toml"))?.unwrap_or_default();
    Ok(match made.lines().any(|line| line.trim() == "version = 3") {
        true => (directory.join("config-v3.toml.tmpl"), 3),
        false => (directory.join("config.toml.tmpl"), 2),
    })
}

fn has_containerd(target: &Target) -> bool {
    below(&target.root, &target.containerd_config).exists() || Program::find(&target.root, "containerd").is_some()
}

/// What is added for the installation in `installed`, a path of the node.
pub(crate) fn added(
    target: &Target,
    installed: &Path,
    configuration: Option<&Path>,
    docker: bool,
) -> Result<Vec<Part>, NodeError> {
    let root = &target.root;
    let shim = installed.join("bin").join(SHIM);
    if !below(root, &shim).is_file() {
        return Err(NodeError::NoShim { path: shim });
    }
    let handler = Handler {
        name: target.handler.clone(),
        shim,
        configuration: configuration.map(Path::to_owned),
    };
    let mut parts = Vec::new();
    if has_containerd(target) {
        parts.push(containerd(target, &handler)?);
    }
    for (manager, directory, services) in TEMPLATES {
        let directory = below(root, Path::new(directory));
        if directory.is_dir() {
            let (file, version) = template(&directory)?;
            let text = managers::with_template(&file, change::text(&file)?.as_deref(), version, &handler)?;
            parts.push(Part {
                manager,
                changes: rewritten(&file, text)?,
                service: Some(service(root, services)),
                notes: Vec::new(),
            });
        }
    }
    if below(root, Path::new(CRIO)).is_dir() {
        parts.push(Part {
            manager: "CRI-O",
            changes: vec![own(below(root, Path::new(CRIO_FILE)), handler.crio())?],
            service: Some("crio"),
            notes: Vec::new(),
        });
    }
    if docker {
        let file = below(root, Path::new(DOCKER));
        let text = managers::with_docker(&file, change::text(&file)?.as_deref(), &handler)?;
        parts.push(Part {
            manager: "Docker",
            changes: rewritten(&file, text)?,
            service: Some("docker"),
            notes: Vec::new(),
        });
    }
    if parts.is_empty() {
        return Err(NodeError::NoManager { root: root.clone() });
    }
    parts.insert(0, runtime(root, installed, &handler.shim)?);
    Ok(parts)
}

/// Which of a distribution's services is on this node: a server has both roles.
fn service(root: &Path, services: [&'static str; 2]) -> &'static str {
    let unit = |service: &str| format!("{service}.service");
    let places = [
        "/etc/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    ];
    let is_there = |service: &&str| {
        let mut units = places.iter().map(|place| Path::new(place).join(unit(service)));
        units.any(|unit| below(root, &unit).exists())
    };
    services.into_iter().find(is_there).unwrap_or(services[0])
}

/// Whether a link to this may be replaced or removed: it leads to an installation of this runtime, or to nothing. Kata's own installer has a link of
/// the same name.
fn is_replaceable(root: &Path, link: &Path, shim: &Path) -> bool {
    let shim = &absolute(link, shim);
    let prefix = shim.ancestors().nth(2).unwrap_or(Path::new("/"));
    // `make install` makes the first, an archive and a build have the second.
    let ours = ["share/tatami", "etc/configuration.toml"];
    shim.file_name() == Some(SHIM.as_ref())
        && (ours.iter().any(|part| below(root, &prefix.join(part)).exists())
            || below(root, shim).symlink_metadata().is_err())
}

/// Where a link leads to, without its `..`.
fn absolute(link: &Path, target: &Path) -> PathBuf {
    let mut path = PathBuf::new();
    for part in link.parent().unwrap_or(Path::new("/")).join(target).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

fn is_in_path(shim: &Path) -> bool {
    let directory = shim.parent();
    PATH.iter().any(|path| Some(Path::new(path)) == directory)
}

/// What every manager needs: a configuration where the runtime looks for it, and the shim in the PATH for `ctr` and Docker.
fn runtime(root: &Path, installed: &Path, shim: &Path) -> Result<Part, NodeError> {
    let mut changes = Vec::new();
    let delivered = below(root, &installed.join("etc/configuration.toml"));
    let file = below(root, Path::new(CONFIGURATION));
    if let (Some(text), State::Absent) = (change::text(&delivered)?, State::of_file(&file)?) {
        changes.push(Change {
            path: file,
            before: State::Absent,
            after: State::Text(text),
        });
    }
    let mut notes = Vec::new();
    let link = Path::new(LINK);
    for place in PATH.iter().map(|directory| Path::new(directory).join(SHIM)) {
        if place == shim {
            break;
        }
        let there = below(root, &place);
        let state = State::of_link(&there)?;
        let is_free = match &state {
            State::Absent => true,
            State::Link(target) => target == shim || is_replaceable(root, &place, target),
            State::Text(_) => false,
        };
        if is_free && place == link && !is_in_path(shim) {
            changes.push(Change {
                path: there,
                before: state,
                after: State::Link(shim.to_owned()),
            });
            break;
        }
        if state != State::Absent {
            notes.push(format!(
                "{} is another program: `ctr` and Docker use that",
                there.display()
            ));
            break;
        }
    }
    Ok(Part {
        manager: "runtime",
        changes,
        service: None,
        notes,
    })
}

fn containerd(target: &Target, handler: &Handler) -> Result<Part, NodeError> {
    let file = below(&target.root, &target.containerd_config);
    let program = || {
        let program = Program::find(&target.root, "containerd");
        program.ok_or_else(|| NodeError::Configuration {
            path: file.clone(),
            why: "is there, and containerd is not in the usual places: name its version (--containerd-version)"
                .to_owned(),
        })
    };
    let release = target.containerd_version.map_or_else(|| program()?.release(), Ok)?;
    let text = change::text(&file)?;
    let mut notes = Vec::new();
    let changes = match managers::with_containerd(&target.containerd_config, text.as_deref(), release, handler)? {
        Place::Part(text) => rewritten(&file, text)?,
        Place::DropIn { file, text } => vec![own(below(&target.root, &file), text)?],
        Place::Without(why) => {
            notes.push(format!("nothing to add for Kubernetes: {why}"));
            Vec::new()
        }
    };
    Ok(Part {
        manager: "containerd",
        changes,
        service: Some("containerd"),
        notes,
    })
}

impl Part {
    /// Whether the manager reads what was written.
    pub(crate) fn check(&self, target: &Target) -> Result<(), NodeError> {
        match self.manager {
            "containerd" => {
                let Some(program) = Program::find(&target.root, "containerd") else {
                    return Ok(());
                };
                let file = target.containerd_config.to_string_lossy();
                let dump = program.run(&["--config", &file, "config", "dump"])?;
                let known = dump.lines().any(|line| {
                    let table = line.trim().trim_start_matches('[').trim_end_matches(']');
                    let name = table.rsplit_once(".containerd.runtimes.").map(|(_, name)| name);
                    name.is_some_and(|name| name.trim_matches(['"', '\'']) == target.handler)
                });
                match known {
                    true => Ok(()),
                    false => Err(NodeError::Program {
                        command: format!("containerd --config {file} config dump"),
                        why: format!(
                            "containerd reads the file and does not know the handler {}",
                            target.handler
                        ),
                    }),
                }
            }
            "Docker" => match Program::find(&target.root, "dockerd") {
                Some(program) => program.run(&["--validate", "--config-file", DOCKER]).map(drop),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// What is taken out again; `installed` is the installation, a path of the node.
pub(crate) fn removed(target: &Target, installed: Option<&Path>) -> Result<Vec<Part>, NodeError> {
    let root = &target.root;
    let mut parts = Vec::new();
    let mut push = |manager, changes: Vec<Change>, service| {
        if !changes.is_empty() {
            parts.push(Part {
                manager,
                changes,
                service: Some(service),
                notes: Vec::new(),
            });
        }
    };
    let file = below(root, &target.containerd_config);
    let mut changes = without_part(&file, "")?;
    // What is no TOML imports nothing that was written here.
    let known = change::text(&file)?.unwrap_or_default().parse().unwrap_or_default();
    for directory in managers::imported(&target.containerd_config, &known) {
        changes.extend(gone(below(root, &directory.join(managers::DROP_IN)))?);
    }
    push("containerd", changes, "containerd");
    for (manager, directory, services) in TEMPLATES {
        let directory = below(root, Path::new(directory));
        let mut changes = Vec::new();
        for name in ["config.toml.tmpl", "config-v3.toml.tmpl"] {
            changes.extend(without_part(&directory.join(name), BASE)?);
        }
        push(manager, changes, service(root, services));
    }
    push(
        "CRI-O",
        gone(below(root, Path::new(CRIO_FILE)))?.into_iter().collect(),
        "crio",
    );
    let file = below(root, Path::new(DOCKER));
    if let Some(text) = change::text(&file)? {
        let kept = change::text(&backup(&file))?;
        if let Some(rest) = managers::without_docker(&file, &text, kept.as_deref(), &target.handler)? {
            push("Docker", restored(&file, &rest, "")?, "docker");
        }
    }
    parts.insert(0, runtime_removed(root, installed)?);
    Ok(parts)
}

fn without_part(file: &Path, empty: &str) -> Result<Vec<Change>, NodeError> {
    let Some(text) = change::text(file)? else {
        return Ok(Vec::new());
    };
    let (rest, had) = block::without(&text).map_err(|error| NodeError::Configuration {
        path: file.to_owned(),
        why: error.to_string(),
    })?;
    if had {
        restored(file, &rest, empty)
    } else {
        Ok(Vec::new())
    }
}

/// The link, if it leads to a shim of ours or nowhere, and the configuration, if it is the one that was delivered.
fn runtime_removed(root: &Path, installed: Option<&Path>) -> Result<Part, NodeError> {
    let mut changes = Vec::new();
    let mut installations: Vec<PathBuf> = installed.map(Path::to_owned).into_iter().collect();
    let link = below(root, Path::new(LINK));
    if let State::Link(shim) = State::of_link(&link)?
        && is_replaceable(root, Path::new(LINK), &shim)
    {
        installations.extend(shim.ancestors().nth(2).map(Path::to_owned));
        changes.push(Change {
            path: link,
            before: State::Link(shim),
            after: State::Absent,
        });
    }
    let file = below(root, Path::new(CONFIGURATION));
    let before = State::of_file(&file)?;
    for installation in installations {
        let delivered = change::text(&below(root, &installation.join("etc/configuration.toml")))?;
        if delivered.is_some_and(|text| before == State::Text(text)) {
            changes.push(Change {
                path: file,
                before,
                after: State::Absent,
            });
            break;
        }
    }
    Ok(Part {
        manager: "runtime",
        changes,
        service: None,
        notes: Vec::new(),
    })
}

/// How each manager of the node stands: what it has of ours, beside what an installation of today would give it.
pub(crate) fn standing(target: &Target) -> Result<Vec<Standing>, NodeError> {
    let root = &target.root;
    let ours = removed(target, None)?;
    let has = |manager: &str| {
        ours.iter()
            .any(|part| part.manager == manager && !part.changes.is_empty())
    };
    let mut places: Vec<(&'static str, PathBuf)> = Vec::new();
    if has_containerd(target) {
        places.push(("containerd", below(root, &target.containerd_config)));
    }
    for (manager, directory, _) in TEMPLATES {
        let directory = below(root, Path::new(directory));
        if directory.is_dir() {
            places.push((manager, template(&directory)?.0));
        }
    }
    if below(root, Path::new(CRIO)).is_dir() {
        places.push(("CRI-O", below(root, Path::new(CRIO_FILE))));
    }
    // Docker is asked for by name: without the runtime nothing is missing.
    if has("Docker") {
        places.push(("Docker", below(root, Path::new(DOCKER))));
    }
    if places.is_empty() {
        return Err(NodeError::NoManager { root: root.clone() });
    }
    let standing = places.into_iter().map(|(manager, file)| Standing {
        manager,
        state: if has(manager) { INSTALLED } else { "not installed" },
        file,
    });
    Ok(standing.collect())
}
