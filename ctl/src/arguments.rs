//! The command line.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::node::NodeCommand;
use crate::{logs, memlock, time};

/// Names of Kata's programs under which this program is one of its commands.
const NAMES: [(&str, &str); 2] = [("kata-collect-data.sh", "collect-data"), ("kata-monitor", "monitor")];

#[derive(Parser)]
#[command(
    name = "kata-ctl",
    version,
    about = "Diagnose and set up the runtime io.containerd.kata.v2"
)]
#[command(arg_required_else_help = true)]
struct Arguments {
    /// Print where the configuration is looked for, in this order
    #[arg(long, visible_alias = "kata-show-default-config-paths", exclusive = true)]
    show_default_config_paths: bool,
    /// Read this configuration instead of the one that the runtime would read
    #[arg(long, alias = "kata-config", value_name = "FILE", hide = true)]
    config: Option<PathBuf>,
    /// Ignored: messages go to standard error
    #[arg(long, short, hide = true)]
    log_level: Option<String>,
    /// Ignored
    #[arg(long, short, hide = true)]
    json_logging: bool,
    /// Ignored: messages go to standard error
    #[arg(long, hide = true)]
    log: Option<PathBuf>,
    /// Ignored
    #[arg(long, hide = true)]
    log_format: Option<String>,
    /// Ignored: there is one place for sandboxes
    #[arg(long, hide = true)]
    root: Option<PathBuf>,
    /// Ignored
    #[arg(long, hide = true)]
    rootless: Option<String>,
    /// Ignored
    #[arg(long, hide = true)]
    systemd_cgroup: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

impl Arguments {
    /// The command, with the configuration that is named before it if it names none itself.
    fn into_command(self) -> Option<Command> {
        if self.show_default_config_paths {
            return Some(Command::ConfigPaths);
        }
        let mut command = self.command?;
        match &mut command {
            Command::Config { path, .. } | Command::Check { path, .. } | Command::Env { path, .. } => {
                *path = path.take().or(self.config);
            }
            Command::CollectData(options) => options.path = options.path.take().or(self.config),
            Command::Factory {
                command: FactoryCommand::Init { config } | FactoryCommand::Destroy { config },
            } => *config = config.take().or(self.config),
            _ => {}
        }
        Some(command)
    }
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
    /// Print the configuration in effect and the files it comes from
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
    /// Print where the configuration is looked for (Kata's `--show-default-config-paths`)
    #[command(hide = true)]
    ConfigPaths,
    /// Check that this host can run sandboxes
    #[command(alias = "kata-check")]
    Check {
        /// `all` and `no-network-checks` are the same: nothing is asked of the network
        #[arg(value_enum)]
        what: Option<CheckScope>,
        /// Fail on a warning, too
        #[arg(long, short)]
        strict: bool,
        /// Ignored: nothing is asked of the network
        #[arg(long, short = 'n', hide = true)]
        no_network_checks: bool,
        /// Ignored: every line is printed anyhow
        #[arg(long, short, hide = true)]
        verbose: bool,
        /// As `check-version-only`, as a flag
        #[arg(long, short = 'c', hide = true)]
        check_version_only: bool,
        /// As `only-list-releases`, as a flag
        #[arg(long, short = 'o', hide = true)]
        only_list_releases: bool,
        /// As `include-all-releases`, as a flag
        #[arg(long, short = 'a', hide = true)]
        include_all_releases: bool,
        /// Read this file instead of the one that the runtime would read
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
        /// Only say which required fixes a guest kernel of this release has (`uname -r`)
        #[arg(long, value_name = "RELEASE", conflicts_with = "path")]
        kernel_version: Option<String>,
    },
    /// Print the environment in Kata's tables and keys
    #[command(alias = "kata-env")]
    Env {
        /// Write to this file instead of standard output
        #[arg(long, short, value_name = "OUTPUT")]
        file: Option<PathBuf>,
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
        /// Sandbox id, or a unique prefix of it
        sandbox: String,
        /// No terminal, even when run on one
        #[arg(long, short = 'T')]
        no_terminal: bool,
        /// Ignored: the runtime uses its own port
        #[arg(long = "kata-debug-port", short = 'p', value_name = "PORT")]
        port: Option<u32>,
        /// The program and its arguments; /bin/sh if there is none
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Print the metrics of a sandbox, or of all, as Prometheus text
    Metrics {
        /// Sandbox id, or a unique prefix of it
        sandbox: Option<String>,
    },
    /// Serve the metrics of all sandboxes over HTTP
    Monitor {
        /// Address to listen on (127.0.0.1:8090); :PORT means all
        #[arg(value_name = "ADDRESS:PORT", value_parser = address)]
        address: Option<SocketAddr>,
        /// The same, as an option
        #[arg(
            long,
            value_name = "ADDRESS:PORT",
            value_parser = address,
            visible_alias = "listen-address",
            conflicts_with = "address"
        )]
        listen: Option<SocketAddr>,
        /// Serve also on an address that is not a loopback address: whoever reaches it reads the metrics
        #[arg(long)]
        allow_remote: bool,
        /// Ignored: sandboxes are found without containerd
        #[arg(long, hide = true)]
        runtime_endpoint: Option<String>,
        /// Ignored
        #[arg(long, hide = true)]
        log_level: Option<String>,
    },
    /// Read or set a guest's netfilter rules, in the format of iptables-save(8)
    Iptables {
        /// What to do
        #[command(subcommand)]
        command: IptablesCommand,
    },
    /// Say how much memory a container's process may lock, whether perf buffers would be granted to it, and what to
    /// change if not
    Memlock(memlock::Question),
    /// Say what a guest is doing: a histogram of the kernel functions that its vCPUs are in
    Where {
        /// Sandbox id, or a unique prefix of it
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
    /// Manage direct-assigned volumes
    DirectVolume {
        /// What to do
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Add the runtime to this node's container managers, or remove it
    Node {
        /// What to do
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Run a program of another root directory (`node --root` asks the node's programs by it)
    #[command(hide = true)]
    InRoot {
        /// The root directory
        root: PathBuf,
        /// The program, as a path below it
        program: PathBuf,
        /// Its arguments
        #[arg(num_args = 0.., allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<String>,
    },
    /// Keep VMs that are booted in advance (`vm_cache_number`; Kata's `factory init|status|destroy`)
    Factory {
        /// What to do
        #[command(subcommand)]
        command: FactoryCommand,
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

/// What is done about warm VMs.
#[derive(Subcommand)]
pub(crate) enum FactoryCommand {
    /// Boot the missing VMs and wait until ready; make the template
    Init {
        /// The configuration file, instead of the one that the runtime would read
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show the VMs, their memory and the starts served
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End the VMs that no sandbox uses; remove the templates
    Destroy {
        /// Only those of this configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// What is done with a guest's rules.
#[derive(Subcommand)]
pub(crate) enum IptablesCommand {
    /// Print the rules
    Get {
        #[command(flatten)]
        guest: GuestRules,
    },
    /// Replace the rules of each table in FILE
    Set {
        #[command(flatten)]
        guest: GuestRules,
        /// In iptables-save(8) format
        file: PathBuf,
    },
}

/// Whose rules, and which.
#[derive(Args)]
pub(crate) struct GuestRules {
    /// Sandbox id, or a unique prefix of it
    #[arg(long, value_name = "ID")]
    pub(crate) sandbox_id: String,
    /// IPv6 rules
    #[arg(long)]
    pub(crate) v6: bool,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckScope {
    /// Everything
    All,
    /// Same as all
    NoNetworkChecks,
    /// Only print what is checked
    List,
    /// Refused: releases are not asked for
    #[value(hide = true)]
    CheckVersionOnly,
    /// Refused: releases are not asked for
    #[value(hide = true)]
    OnlyListReleases,
    /// Refused: releases are not asked for
    #[value(hide = true)]
    IncludeAllReleases,
}

/// What is done with a volume.
#[derive(Subcommand)]
pub(crate) enum VolumeCommand {
    /// Add or replace a volume
    Add {
        #[command(flatten)]
        volume: VolumePath,
        /// JSON: {"volume-type", "device", "fstype", "metadata", "options"}
        #[arg(value_name = "MOUNT_INFO", required_unless_present = "mount_info")]
        information: Option<String>,
        /// The same, as an option
        #[arg(long, value_name = "MOUNT_INFO", conflicts_with = "information")]
        mount_info: Option<String>,
    },
    /// Forget a volume
    Remove {
        #[command(flatten)]
        volume: VolumePath,
    },
    /// Show how full a volume is inside the guest, and who uses it
    Stats {
        #[command(flatten)]
        volume: VolumePath,
    },
    /// Make a volume in use larger, with the file system on it: an image grows, a block device must have grown already
    Resize {
        #[command(flatten)]
        volume: VolumePath,
        /// In bytes
        #[arg(value_name = "SIZE", required_unless_present = "resize_size", value_parser = bytes)]
        bytes: Option<u64>,
        /// The same, as an option
        #[arg(long, value_name = "SIZE", alias = "size", conflicts_with = "bytes", value_parser = bytes)]
        resize_size: Option<u64>,
    },
}

/// A volume, as kata-ctl names it (by its place) or kata-runtime (by a flag).
#[derive(Args)]
pub(crate) struct VolumePath {
    /// Where the pod's volume is on the host
    #[arg(value_name = "VOLUME_PATH", required_unless_present = "volume_path")]
    volume: Option<String>,
    /// The same, as an option
    #[arg(long, value_name = "VOLUME_PATH", conflicts_with = "volume")]
    volume_path: Option<String>,
}

impl VolumePath {
    /// The path; the command line has one.
    pub(crate) fn get(&self) -> &str {
        self.volume_path
            .as_deref()
            .or(self.volume.as_deref())
            .unwrap_or_default()
    }
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
    /// Output format
    #[arg(long, alias = "output-format", value_enum, default_value = "text")]
    format: logs::Format,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "OUTPUT")]
    pub(crate) output_file: Option<PathBuf>,
    /// Print nothing: only say what is wrong
    #[arg(long, short)]
    pub(crate) check_only: bool,
    /// Fail if one of the logs has no line
    #[arg(long)]
    error_if_file_empty: bool,
    /// Fail if no log has a line
    #[arg(long)]
    error_if_no_records: bool,
    /// Ignored: a field may always be missing
    #[arg(long, hide = true)]
    ignore_missing_fields: bool,
    /// Ignored: there are no warnings
    #[arg(long, short, hide = true)]
    quiet: bool,
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
    #[arg(long, short)]
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
            no_empty_file: self.error_if_file_empty,
            some_record: self.error_if_no_records,
        })
    }
}

/// A size of a volume.
fn bytes(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "must be a number of bytes".to_owned())
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
        Ok(arguments) => arguments.into_command().unwrap_or_else(|| missing().exit()),
        Err(error) => error.exit(),
    }
}

/// A command line without a command, which the definition does not let pass.
fn missing() -> clap::Error {
    definition().error(clap::error::ErrorKind::MissingSubcommand, "there is no command")
}

/// The definition of the command line, for the manual and the completions.
pub(crate) fn definition() -> clap::Command {
    Arguments::command()
}

/// Under the name of another of Kata's programs the command is what that does.
fn words(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.into_iter().collect();
    let name = words
        .first()
        .map(|word| Path::new(word).file_name().map(OsString::from));
    let name = name.flatten();
    if let Some((_, command)) = NAMES
        .iter()
        .find(|(other, _)| name.as_deref() == Some(OsStr::new(other)))
    {
        words.insert(1, command.into());
    }
    words
}

/// An address to serve on: `ADDRESS:PORT`, `localhost:PORT`, or as kata-monitor has it `:PORT`, which is all addresses.
///
/// # Errors
/// It is none of these.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = |text: &str| text.parse().map_err(|error| format!("{text:?} is not a port: {error}"));
    match text.split_once(':') {
        Some(("", rest)) if !rest.starts_with(':') => Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port(rest)?)),
        Some(("localhost", rest)) => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(rest)?)),
        _ => text
            .parse()
            .map_err(|error| format!("{error}: it is ADDRESS:PORT or :PORT")),
    }
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
        assert_eq!(as_words("kata-monitor --listen-address 127.0.0.1:1")[1], "monitor");
        for name in ["kata-ctl version", "/opt/kata/bin/kata-runtime version"] {
            assert_eq!(as_words(name)[1], "version");
        }
    }

    #[test]
    fn katas_ways_of_calling_its_tools_are_understood() {
        let parsed = |line: &str| {
            let words = words(line.split(' ').map(OsString::from));
            let matches = definition().try_get_matches_from(words);
            matches
                .and_then(|matches| Arguments::from_arg_matches(&matches))
                .map(|arguments| arguments.into_command().unwrap())
        };
        for line in [
            "kata-ctl check all",
            "kata-ctl check no-network-checks",
            "kata-ctl check list",
            "kata-ctl -l debug -j check all",
            "kata-ctl --show-default-config-paths",
            "kata-runtime --kata-show-default-config-paths",
            "kata-runtime --config /c.toml --log /l --log-format json --root /r --rootless auto --systemd-cgroup check -s -v",
            "kata-runtime check --only-list-releases",
            "kata-ctl log-parser -c -q -s -o /tmp/out --error-if-file-empty --error-if-no-records --ignore-missing-fields /l",
            "kata-runtime check --strict --no-network-checks",
            "kata-runtime kata-check",
            "kata-runtime kata-env --json",
            "kata-ctl env -f /tmp/env.toml",
            "kata-ctl exec -p 1026 id",
            "kata-runtime exec --kata-debug-port 1026 id",
            "kata-ctl monitor 127.0.0.1:8090",
            "kata-monitor --listen-address :8090 --allow-remote",
            "kata-monitor --listen-address 127.0.0.1:8090 --log-level debug",
            "kata-ctl direct-volume add /v {}",
            "kata-runtime direct-volume add --volume-path /v --mount-info {}",
            "kata-ctl direct-volume remove /v",
            "kata-ctl direct-volume stats /v",
            "kata-ctl direct-volume resize /v 1024",
            "kata-runtime direct-volume resize --volume-path /v --size 1024",
            "kata-ctl iptables get --sandbox-id x --v6",
            "kata-runtime iptables set --sandbox-id x /tmp/rules",
            "kata-ctl log-parser --output-format csv --output-file /tmp/log.csv /tmp/log",
            "kata-ctl factory init",
            "kata-runtime factory init --config /etc/kata-containers/configuration.toml",
            "kata-ctl factory status --json",
            "kata-ctl factory destroy",
            "kata-ctl node install --root /host --copy-to /opt/tatami --docker --restart",
            "kata-ctl node uninstall --dry-run --handler kata-qemu",
            "kata-ctl node status --json",
        ] {
            if let Err(error) = parsed(line) {
                panic!("{line}: {error}");
            }
        }
        for line in [
            "kata-ctl direct-volume add /v",
            "kata-ctl direct-volume add {} --volume-path /v",
            "kata-ctl direct-volume resize /v",
            "kata-ctl direct-volume stats",
            "kata-ctl iptables get",
            "kata-ctl iptables set --sandbox-id x",
            "kata-ctl check releases",
            "kata-ctl node install --handler Kata",
            "kata-ctl node install --containerd-version new",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        let Ok(Command::DirectVolume {
            command: VolumeCommand::Add {
                volume, information, ..
            },
        }) = parsed("kata-ctl direct-volume add /v {}")
        else {
            panic!("another command")
        };
        assert_eq!((volume.get(), information.as_deref()), ("/v", Some("{}")));
    }

    #[test]
    fn the_configuration_that_is_named_before_the_command_is_the_commands() {
        let parsed = |line: &str| {
            let matches = definition().try_get_matches_from(line.split(' '));
            let arguments = matches.and_then(|matches| Arguments::from_arg_matches(&matches));
            arguments.ok().and_then(Arguments::into_command)
        };
        let Some(Command::Env { path, .. }) = parsed("kata-runtime --kata-config /a.toml kata-env") else {
            panic!("another command")
        };
        assert_eq!(path.as_deref(), Some(Path::new("/a.toml")));
        let Some(Command::Check { path, .. }) = parsed("kata-ctl --config /a.toml check --path /b.toml") else {
            panic!("another command")
        };
        assert_eq!(path.as_deref(), Some(Path::new("/b.toml")));
        assert!(parsed("kata-ctl").is_none() && parsed("kata-ctl --log-level debug").is_none());
    }

    #[test]
    fn an_address_is_written_as_kata_monitor_takes_it() {
        assert_eq!(address(":8090").unwrap(), "[::]:8090".parse().unwrap());
        assert_eq!(address("localhost:1").unwrap(), "127.0.0.1:1".parse().unwrap());
        assert_eq!(address("[::1]:2").unwrap(), "[::1]:2".parse().unwrap());
        for text in ["", ":", "8090", ":x", "host:1", "::1", ":70000"] {
            address(text).unwrap_err();
        }
    }
}
