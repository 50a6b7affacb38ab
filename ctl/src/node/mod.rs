//! `kata-ctl node`: makes the container managers of a node know the runtime, forgets it again, and says how it stands.
//!
//! What is to be in a file is decided by [`managers`] from what is in it now, so that nothing has to be remembered between
//! installation and removal, and each can be run twice, or after one that was interrupted. [`change`] writes.

mod block;
mod change;
mod copy;
mod error;
mod lock;
mod managers;
mod parts;
mod programs;
mod target;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::report::Report;
use change::Change;
use error::NodeError;
use parts::Part;
use programs::{Program, below};

use target::Target;

pub(crate) use programs::exec_in;

/// What is done with the node.
#[derive(Subcommand)]
pub(crate) enum NodeCommand {
    /// Add the runtime to the container managers that are there
    Install(Install),
    /// Take out what `install` added
    Uninstall {
        #[command(flatten)]
        target: Target,
        /// Restart the managers whose configuration changes
        #[arg(long)]
        restart: bool,
        /// Only print what would change
        #[arg(long)]
        dry_run: bool,
        /// Remove the copy that `install --copy-to` has made of the installation, too, if no sandbox runs
        #[arg(long, value_name = "DIRECTORY", value_parser = target::absolute)]
        remove_copy: Option<PathBuf>,
        /// Stay until SIGTERM, as a DaemonSet's container has to
        #[arg(long)]
        wait: bool,
    },
    /// Say which managers know the runtime: fails if one does not
    Status {
        #[command(flatten)]
        target: Target,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// How the runtime is added.
#[derive(Args)]
pub(crate) struct Install {
    #[command(flatten)]
    target: Target,
    /// Name this configuration file to the managers (containerd's ConfigPath) instead of leaving the runtime its default
    #[arg(long, value_name = "FILE", value_parser = target::absolute)]
    config: Option<PathBuf>,
    /// Add it to Docker's daemon.json, too
    #[arg(long)]
    docker: bool,
    /// Copy the installation that this program belongs to into this directory of the node first
    #[arg(long, value_name = "DIRECTORY", value_parser = target::absolute)]
    copy_to: Option<PathBuf>,
    /// Restart the managers whose configuration changes
    #[arg(long)]
    restart: bool,
    /// Only print what would change
    #[arg(long, conflicts_with = "copy_to")]
    dry_run: bool,
    /// Stay until SIGTERM, as a DaemonSet's container has to
    #[arg(long)]
    wait: bool,
}

impl NodeCommand {
    /// Whether it goes on when all is done.
    pub(crate) fn stays(&self) -> bool {
        match self {
            Self::Install(Install { wait, .. }) | Self::Uninstall { wait, .. } => *wait,
            Self::Status { .. } => false,
        }
    }
}

pub(crate) fn report(command: &NodeCommand) -> Result<Report, NodeError> {
    match command {
        NodeCommand::Install(options) => install(options),
        NodeCommand::Uninstall {
            target,
            restart,
            dry_run,
            remove_copy,
            ..
        } => {
            let _alone = lock::unless(*dry_run, &target.root)?;
            let installed = remove_copy.clone().map_or_else(prefix, Ok)?;
            let parts = parts::removed(target, Some(&installed))?;
            let mut report = carry_out(target, &parts, *dry_run, *restart, false)?;
            if let Some(directory) = remove_copy {
                let said = copy::removed(&target.root, directory, *dry_run)?;
                report.text.push_str(&said);
            }
            Ok(report)
        }
        NodeCommand::Status { target, json } => status(target, *json),
    }
}

/// The directory that this program was installed in: `bin/kata-ctl` is below it.
fn prefix() -> Result<PathBuf, NodeError> {
    let program = std::env::current_exe().and_then(std::fs::canonicalize);
    let program = program.map_err(|source| NodeError::Io {
        operation: "find",
        path: "/proc/self/exe".into(),
        source,
    })?;
    Ok(program.ancestors().nth(2).unwrap_or(Path::new("/")).to_owned())
}

fn install(options: &Install) -> Result<Report, NodeError> {
    let target = &options.target;
    let _alone = lock::unless(options.dry_run, &target.root)?;
    let from = prefix()?;
    let installed = match &options.copy_to {
        Some(directory) => {
            copy::tree(&from, &below(&target.root, directory))?;
            directory.clone()
        }
        None => from,
    };
    let parts = parts::added(target, &installed, options.config.as_deref(), options.docker)?;
    carry_out(target, &parts, options.dry_run, options.restart, true)
}

/// Makes the changes, or only shows them.
fn carry_out(target: &Target, parts: &[Part], dry_run: bool, restart: bool, adds: bool) -> Result<Report, NodeError> {
    let changes: Vec<Change> = parts.iter().flat_map(|part| part.changes.iter().cloned()).collect();
    let changed = |part: &&Part| part.changes.iter().any(Change::is_needed);
    let services: Vec<&str> = parts.iter().filter(changed).filter_map(|part| part.service).collect();
    let mut text: String = changes
        .iter()
        .filter(|change| change.is_needed())
        .map(Change::shown)
        .collect();
    if text.is_empty() {
        text.push_str("nothing to change\n");
    }
    for part in parts {
        for note in &part.notes {
            text.push_str(&format!("note    {}: {note}\n", part.manager));
        }
    }
    if !dry_run {
        change::apply(&changes, || {
            if adds {
                parts.iter().filter(changed).try_for_each(|part| part.check(target))?;
            }
            match restart {
                true => services.iter().try_for_each(|service| restarted(&target.root, service)),
                false => Ok(()),
            }
        })?;
    }
    if restart && !dry_run {
        if services.is_empty() {
            text.push_str("note    no manager was restarted, because no file of it has changed\n");
        }
        return Ok(Report { text, good: true });
    }
    for service in services {
        text.push_str(&format!("to do   systemctl restart {service}\n"));
    }
    Ok(Report { text, good: true })
}

fn restarted(root: &Path, service: &str) -> Result<(), NodeError> {
    let systemctl = Program::find(root, "systemctl").ok_or_else(|| NodeError::Program {
        command: format!("systemctl restart {service}"),
        why: "there is no systemctl on this node: restart it yourself, without --restart".to_owned(),
    })?;
    systemctl.run(&["restart", service])?;
    systemctl.run(&["is-active", "--quiet", service]).map(drop)
}

fn status(target: &Target, as_json: bool) -> Result<Report, NodeError> {
    let standing = parts::standing(target)?;
    let good = standing.iter().all(|one| one.state == parts::INSTALLED);
    let text = match as_json {
        true => {
            let managers: Vec<_> = standing
                .iter()
                .map(|one| json!({"manager": one.manager, "file": one.file, "state": one.state}))
                .collect();
            format!("{:#}\n", json!({"handler": target.handler, "managers": managers}))
        }
        false => standing
            .iter()
            .map(|one| format!("{:<11} {:<14} {}\n", one.manager, one.state, one.file.display()))
            .collect(),
    };
    Ok(Report { text, good })
}

#[cfg(test)]
mod tests;
