//! `kata-ctl`: what an operator asks when a sandbox does not start.
//!
//! Reads and reports; it is never in the path of a container. Results go to standard output, everything about them to
//! standard error. The exit status is 1 if something is wrong, 2 if the command line is.

mod check;
mod config;
mod version;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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

#[derive(Subcommand)]
enum Command {
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
    },
    /// Check that this host can run sandboxes
    Check {
        /// Read this file instead of the one that the runtime would read
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
    },
}

/// What a command has to say.
struct Report {
    /// For standard output.
    text: String,
    /// Whether all is well.
    good: bool,
}

fn main() -> ExitCode {
    let report = match Arguments::parse().command {
        Command::Version { json } => Ok(version::report(json)),
        Command::Config { path, json } => config::report(path.as_deref(), json),
        Command::Check { path } => Ok(check::report(path.as_deref())),
    };
    match report {
        Ok(report) => finish(&report),
        Err(error) => {
            complain(&chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn finish(report: &Report) -> ExitCode {
    match io::stdout().lock().write_all(report.text.as_bytes()) {
        Ok(()) if report.good => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        // A reader that has seen enough, such as head(1).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("cannot write the result: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to standard error. If that fails there is nobody left to tell.
fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "kata-ctl: {line}");
}

/// An error with all its causes.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
