//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::{logs, memlock, time};

/// The name under which this program is `kata-ctl collect-data`: that of Kata's script.
const COLLECT_DATA: &str = "kata-collect-data.sh";

#[derive(Parser)]
#[command(
    name = "kata-ctl",
    version,
    about = "Diagnostics for sandboxes of io.containerd.kata.v2"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What is asked for.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the version
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration that holds, and the files that it comes from
    Config {
        /// Read this file instead of the one that the runtime would read
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
        /// Print JSON instead of TOML
        #[arg(long)]
        json: bool,
        /// Only list all keys of Kata's files, and what becomes of each
        #[arg(long, conflicts_with_all = ["path", "json"])]
        keys: bool,
    },
    /// Check that this host can run sandboxes
    Check {
        /// Read this file instead of the one that the runtime would read
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
        /// Only say which of the fixes that the runtime depends on a guest kernel has that calls itself so (`uname -r`)
        #[arg(long, value_name = "RELEASE", conflicts_with = "path")]
        kernel_version: Option<String>,
    },
    /// Print the environment in Kata's tables and keys
    Env {
        /// Read this file instead of the one that the runtime would read
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
        /// Print JSON instead of TOML
        #[arg(long)]
        json: bool,
    },
    /// Write a report for a bug, in Markdown, without secrets
    CollectData(CollectOptions),
    /// Run a program, or a shell, in a guest: needs debug_console_enabled in [agent.kata]
    Exec {
        /// Its id, or a beginning of it
        sandbox: String,
        /// No terminal, also where this one is one
        #[arg(long, short = 'T')]
        no_terminal: bool,
        /// The program and its arguments; /bin/sh if there is none
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Print the figures of a sandbox, or of all, as Prometheus text
    Metrics {
        /// Its id, or a beginning of it
        sandbox: Option<String>,
    },
    /// Serve the figures of all sandboxes over HTTP
    Monitor {
        /// A loopback address and a port
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8090")]
        listen: SocketAddr,
    },
    /// Say how much memory a container's process may lock, whether perf buffers would be granted to it, and what to
    /// change if not
    Memlock(memlock::Question),
    /// Say what a guest is doing: a histogram of the kernel functions that its vCPUs are in
    Where {
        /// Its id, or a beginning of it
        sandbox: String,
        /// How long to look, in seconds
        #[arg(long, value_name = "N", default_value_t = 2.0, value_parser = seconds)]
        seconds: f64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the lines of several logs into one, sorted by time
    LogParser(LogOptions),
    /// Tell the runtime of block devices for volumes of pods
    DirectVolume {
        /// What to do
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Say why there is no VM factory here (Kata's `factory init|status|destroy`)
    Factory {
        /// Taken, and without effect
        #[arg(hide = true, num_args = 0..)]
        words: Vec<String>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages, one for each command
    #[command(hide = true)]
    Man {
        /// Into this directory
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

/// What is done with a volume.
#[derive(Subcommand)]
pub(crate) enum VolumeCommand {
    /// Add or replace a volume
    Add {
        /// Where the pod's volume is on the host
        #[arg(long)]
        volume_path: String,
        /// JSON: {"volume-type", "device", "fstype", "metadata", "options"}
        #[arg(long)]
        mount_info: String,
    },
    /// Forget a volume
    Remove {
        /// Where the pod's volume is on the host
        #[arg(long)]
        volume_path: String,
    },
    /// Show how full a volume is inside the guest, and who uses it
    Stats {
        /// Where the pod's volume is on the host
        #[arg(long)]
        volume_path: String,
    },
    /// Make a volume in use larger, with the file system on it: an image grows, a block device must have grown already
    Resize {
        /// Where the pod's volume is on the host
        #[arg(long)]
        volume_path: String,
        /// In bytes
        #[arg(long, alias = "size")]
        resize_size: u64,
    },
}

/// What goes into a report, and where it goes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct CollectOptions {
    /// Write to this file instead of standard output; it must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Logs since a time (2026-11-21T10:00:00Z) or a span (30m, 2h, 7d)
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub(crate) since: String,
    /// Read this configuration instead of the one that the runtime would read
    #[arg(long, value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
}

/// What is done with logs.
#[derive(Args)]
pub(crate) struct LogOptions {
    /// The logs; standard input if there is none
    files: Vec<PathBuf>,
    /// How the lines are written
    #[arg(long, value_enum, default_value = "text")]
    format: logs::Format,
    /// Only lines of this sandbox
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// Sandbox by sandbox, each sorted by time
    #[arg(long)]
    group: bool,
    /// Only lines since a time or a span (30m, 2h, 7d)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Fail on a line that is not understood
    #[arg(long)]
    strict: bool,
}

impl LogOptions {
    /// Reads the time.
    pub(crate) fn into_request(self) -> Result<logs::Request, String> {
        Ok(logs::Request {
            files: self.files,
            format: self.format,
            sandbox: self.sandbox,
            group: self.group,
            since: self.since.as_deref().map(time::since).transpose()?,
            strict: self.strict,
        })
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number from 0 to 3600".to_owned()),
    }
}

/// Reads the command line; ends the program if it is wrong.
pub(crate) fn parse() -> Command {
    let matches = definition().get_matches_from(words(std::env::args_os()));
    match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments.command,
        Err(error) => error.exit(),
    }
}

/// The definition of the command line, for the manual and the completions.
pub(crate) fn definition() -> clap::Command {
    Arguments::command()
}

/// Under the name of Kata's script the command is collect-data.
fn words(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.into_iter().collect();
    let name = words
        .first()
        .map(|word| Path::new(word).file_name().map(OsString::from));
    if name.flatten().is_some_and(|name| name == COLLECT_DATA) {
        words.insert(1, "collect-data".into());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        definition().debug_assert();
    }

    #[test]
    fn under_the_scripts_name_it_collects_data() {
        let as_words = |text: &str| words(text.split(' ').map(OsString::from));
        assert_eq!(as_words("/usr/bin/kata-collect-data.sh --since 1h")[1], "collect-data");
        assert_eq!(as_words("kata-ctl version")[1], "version");
    }
}
