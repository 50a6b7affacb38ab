//! `kata-ctl`: information for an operator when a sandbox does not start, or does not work as it should.
//!
//! It reads and reports, except for `node`, `factory`, `direct-volume`, `iptables set` and programs that `exec` runs. It is never in the path of a
//! container. Results go to standard output, messages to standard error. The exit status is 1 for a failure, and 2 for a
//! wrong command line.

mod arguments;
mod check;
mod collect;
mod command;
mod config;
mod direct_volume;
mod env;
mod exec;
mod factory;
mod iptables;
mod logs;
mod manual;
mod memlock;
mod metrics;
mod monitor;
mod node;
mod place;
mod progress;
mod redact;
mod report;
mod sandboxes;
mod time;
mod version;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use arguments::{CheckScope, Command, VolumeCommand};
use direct_volume::Places;
use progress::said;
use report::{Report, print_message};

enum End {
    Report(Report),
    /// With a program's own exit code.
    Code(u32),
}

type Failure = Box<dyn Error>;

/// Kata's tools ask GitHub for them.
const NO_RELEASES: &str =
    "releases are not asked for, because kata-ctl never uses the network: ask your package manager";

fn main() -> ExitCode {
    let command = arguments::parse();
    // Streams and sockets of one command: a thread of its own for each would be a waste.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            print_message(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(Box::pin(run(command)));
    // A program that still prints, or a terminal that is still read, must not keep us.
    runtime.shutdown_background();
    match ended {
        Ok(End::Report(report)) => finish(&report),
        // An exit code has eight bits (exit(3)).
        Ok(End::Code(code)) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Err(error) => {
            print_message(&base::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<End, Failure> {
    let report = match command {
        Command::Version { json } => version::report(json),
        Command::Config { keys: true, .. } => config::keys(),
        Command::Config { path, json, .. } => config::report(path.as_deref(), json)?,
        Command::Check {
            kernel_version: Some(release),
            ..
        } => check::kernel::report(&release, io::stdout().is_terminal()),
        Command::ConfigPaths => Report {
            text: ::config::DEFAULT_PATHS.iter().map(|path| format!("{path}\n")).collect(),
            good: true,
        },
        Command::Check {
            what: Some(CheckScope::CheckVersionOnly | CheckScope::OnlyListReleases | CheckScope::IncludeAllReleases),
            ..
        }
        | Command::Check {
            check_version_only: true,
            ..
        }
        | Command::Check {
            only_list_releases: true,
            ..
        }
        | Command::Check {
            include_all_releases: true,
            ..
        } => return Err(NO_RELEASES.into()),
        Command::Check {
            what: Some(CheckScope::List),
            path,
            ..
        } => check::names(path.as_deref()).await,
        Command::Check { path, strict, .. } => {
            let checked = check::report(path.as_deref(), io::stdout().is_terminal(), strict);
            said("looking at what a sandbox needs", checked).await
        }
        Command::Env { path, json, file } => {
            let asked = env::report(path.as_deref(), json);
            let report = said("asking the programs for their versions", asked).await?;
            match file {
                Some(file) => written(&file, &report)?,
                None => report,
            }
        }
        Command::CollectData(options) => collect::report(&options).await?,
        Command::Metrics { sandbox } => said("asking the shims", metrics::report(sandbox.as_deref())).await?,
        Command::Iptables { command } => said("asking the shim", iptables::report(&command)).await?,
        Command::Monitor {
            address,
            listen,
            allow_remote,
            ..
        } => {
            monitor::serve(address.or(listen).unwrap_or(monitor::ADDRESS), allow_remote).await?;
            return Ok(End::Code(0));
        }
        Command::Where { sandbox, seconds, json } => {
            let seen = place::report(&sandbox, Duration::from_secs_f64(seconds), json);
            said("looking at the vCPUs", seen).await?
        }
        Command::Exec {
            sandbox,
            no_terminal,
            command,
            ..
        } => {
            let terminal = !no_terminal && io::stdin().is_terminal() && io::stdout().is_terminal();
            return Ok(End::Code(exec::run(&sandbox, &command, terminal).await?));
        }
        Command::LogParser(mut options) => {
            let (file, check_only) = (options.output_file.take(), options.check_only);
            let report = logs::report(&options.into_request()?)?;
            match file {
                _ if check_only => Report {
                    text: String::new(),
                    ..report
                },
                Some(file) => written(&file, &report)?,
                None => report,
            }
        }
        Command::DirectVolume { command } => volume(&command).await?,
        // It waits by itself, on a runtime of its own.
        Command::Memlock(question) => {
            let asked = tokio::task::spawn_blocking(move || memlock::report(&question));
            said("asking the shims", asked).await??
        }
        Command::Node { command } => {
            let stays = command.stays();
            let asked = tokio::task::spawn_blocking(move || node::report(&command));
            let report = said("asking the container managers", asked).await??;
            if stays {
                stay(&report).await?;
            }
            report
        }
        Command::InRoot {
            root,
            program,
            arguments,
        } => {
            let error = node::exec_in(&root, &program, &arguments);
            return Err(format!("cannot run {} below {}: {error}", program.display(), root.display()).into());
        }
        Command::Factory { command } => said("asking the pool of warm VMs", factory::report(&command)).await?,
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { directory } => manual::pages(&directory)?,
    };
    Ok(End::Report(report))
}

async fn volume(command: &VolumeCommand) -> Result<Report, direct_volume::DirectVolumeError> {
    let places = Places::default();
    match command {
        VolumeCommand::Add {
            volume,
            information,
            mount_info,
        } => {
            let information = mount_info.as_deref().or(information.as_deref()).unwrap_or_default();
            direct_volume::add(places.volumes, volume.get(), information)
        }
        VolumeCommand::Remove { volume } => direct_volume::remove(places.volumes, volume.get()),
        VolumeCommand::Stats { volume } => said("asking the guest", direct_volume::stats(&places, volume.get())).await,
        VolumeCommand::Resize {
            volume,
            bytes,
            resize_size,
        } => {
            let size = resize_size.or(*bytes).unwrap_or_default();
            let resizing = direct_volume::resize(&places, volume.get(), size);
            said("growing the file system", resizing).await
        }
    }
}

/// Prints now what would be printed at the end, and waits for SIGTERM or SIGINT.
async fn stay(report: &Report) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    print_message(&format!("done, waiting for SIGTERM:\n{}", report.text.trim_end()));
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// A report in a file is not on standard output.
fn written(file: &Path, report: &Report) -> Result<Report, Failure> {
    std::fs::write(file, &report.text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(Report {
        text: String::new(),
        good: report.good,
    })
}

fn finish(report: &Report) -> ExitCode {
    match io::stdout().lock().write_all(report.text.as_bytes()) {
        Ok(()) if report.good => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        // A reader that has seen enough, such as head(1).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            print_message(&format!("cannot write the result: {error}"));
            ExitCode::FAILURE
        }
    }
}
