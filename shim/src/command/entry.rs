//! The commands of the program. `main` only calls this module.

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base::spawn::raise_open_files;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use node::hooks::{self, PoststopHooks};
use node::host_ns::HostNamespace;
use node::process::ProcessRef;
use node::run_dir::{self, RunDir, SandboxState};
use node::sys;
use protobuf::{Message, MessageField};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::command::cli::{self, Command, PoolAction};
use crate::command::{delete, features, options, start};
use crate::id::SandboxId;
use crate::pool;
use crate::program::announcement::Announcement;
use crate::program::arguments::Arguments;
use crate::program::context::ServerContext;
use crate::program::logging;
use crate::qemu::parked::Parked;
use crate::{cleanup, server};

/// The runtime's name, as containerd calls it.
const RUNTIME: &str = "io.containerd.kata.v2";

/// Largest runtime options that are read, in bytes.
const OPTIONS_MAX: u64 = 1 << 20;

/// Threads of the server that run tasks. What blocks has threads of its own.
const WORKERS: usize = 2;

/// Runs the command line. Nothing but the answer goes to stdout.
///
/// # Errors
/// The command failed: the caller prints why, on stderr, and exits with 1.
pub fn run(words: impl IntoIterator<Item = String>) -> Result<(), Box<dyn Error>> {
    match cli::parse(words)? {
        Command::Version => print(version().as_bytes()),
        Command::Info => {
            // The options change nothing, but whoever writes them must not meet a closed pipe.
            stdin()?;
            print(&info()?.write_to_bytes()?)
        }
        Command::Start(arguments) => {
            let config_path = options::config_path_on_stdin(&stdin()?)?;
            let bundle = bundle(&arguments)?;
            cleanup::sweep(Path::new(run_dir::ROOT));
            let started = start::start(&arguments, &bundle, config_path.as_deref())?;
            print(started.address.as_bytes())?;
            started.announced();
            Ok(())
        }
        Command::Delete(arguments) => {
            let bundle = bundle(&arguments)?;
            print(&delete::delete(&arguments, &bundle).write_to_bytes()?)
        }
        Command::Poststop(directory) => {
            // Whoever removes the sandbox holds the other end until it is done, or has ended.
            io::copy(&mut io::stdin().lock(), &mut io::sink())?;
            hooks::run_handed_over(&directory);
            Ok(())
        }
        Command::Serve(arguments) => {
            no_core_dumps()?;
            let listener = UnixListener::from(sys::inherited()?);
            let announcement = Announcement::from(io::stdin().as_fd().try_clone_to_owned()?);
            serve_on(listener, announcement, arguments, None)
        }
        Command::Member { slot, config_path } => {
            no_core_dumps()?;
            match pool::run(&slot, config_path)? {
                Some(pool::Adoption {
                    listener,
                    announcement,
                    arguments,
                    parked,
                }) => serve_on(listener, announcement, arguments, Some(parked)),
                None => Ok(()),
            }
        }
        Command::Template { slot, config_path } => {
            no_core_dumps()?;
            Ok(pool::make(&slot, config_path.as_deref())?)
        }
        Command::Pool(action, config_path) => print(manage_pool(action, config_path.as_deref())?.as_bytes()),
    }
}

fn manage_pool(action: PoolAction, config_path: Option<&Path>) -> Result<String, Box<dyn Error>> {
    Ok(match action {
        PoolAction::Fill => pool::fill(config_path, pool::Failed::Stays)?.to_string(),
        PoolAction::Init => pool::fill(config_path, pool::Failed::Again)?.to_string(),
        PoolAction::Drain => pool::drain(config_path)?,
        PoolAction::Status => pool::status()?,
        PoolAction::Number => pool::wanted(config_path)?,
    })
}

fn print(bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// All of stdin; nothing where a person would have to type it.
fn stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let stdin = io::stdin().lock();
    if !stdin.is_terminal() {
        stdin.take(OPTIONS_MAX).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The bundle: the flag's value, or the working directory.
fn bundle(arguments: &Arguments) -> io::Result<PathBuf> {
    env::current_dir().map(|directory| directory.join(&arguments.bundle))
}

fn version() -> String {
    format!(
        "containerd-shim-kata-v2:\n  Runtime: {RUNTIME}\n  Version: {}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn info() -> Result<RuntimeInfo, serde_json::Error> {
    Ok(RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        features: MessageField::some(features::features()?),
        ..RuntimeInfo::default()
    })
}

/// The server, with the VM that it has adopted if there is one. The order matters: an inherited descriptor is taken before another gets its
/// number; the thread that stays behind is started before this one leaves the host's mount namespace; all others are started after.
fn serve_on(
    listener: UnixListener,
    announcement: Announcement,
    arguments: Arguments,
    parked: Option<Parked>,
) -> Result<(), Box<dyn Error>> {
    let files = raise_open_files();
    let id = SandboxId::from(&arguments.id);
    let run_dir = RunDir::of(&arguments.namespace, &id);
    let log = logging::init(&arguments.bundle, &arguments.namespace, &id, arguments.debug);
    if let Err(error) = files {
        tracing::warn!(%error, "the limit of open files cannot be raised: few containers and execs can run at a time");
    }
    let result = serve_logged(listener, announcement, arguments, parked, run_dir.clone(), log);
    if let Err(error) = &result {
        tracing::error!(error = &**error, "the server failed");
    }
    cleanup::remove_sandbox(&run_dir, ProcessRef::own());
    result
}

/// Has the kernel dump no core of this process and of its copies, wherever `core_pattern` leads: what containers read and write passes
/// through its memory. What it executes is not affected (prctl(2), PR_SET_DUMPABLE): hooks and logging programs dump as containerd's
/// limits have it.
fn no_core_dumps() -> rustix::io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn serve_logged(
    listener: UnixListener,
    announcement: Announcement,
    arguments: Arguments,
    parked: Option<Parked>,
    run_dir: RunDir,
    log: logging::LogHandle,
) -> Result<(), Box<dyn Error>> {
    let host = HostNamespace::spawn()?;
    let id = SandboxId::from(&arguments.id);
    if parked.is_none() {
        run_dir.write_state(&SandboxState::new(&arguments.namespace, &id))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let hosts = host.clone();
    let poststop = PoststopHooks::below(run_dir.path());
    let context = ServerContext {
        namespace: arguments.namespace,
        id,
        bundle: arguments.bundle,
        ttrpc_address: env::var("TTRPC_ADDRESS").unwrap_or_default(),
        run_dir,
        host,
        config_path: arguments.config_path,
        debug: arguments.debug,
        log,
        parked: Mutex::new(parked),
    };
    let served = runtime.block_on(server::serve(listener, announcement, context));
    // From the host's mount namespace, which the removal of the sandbox's directory is not in.
    runtime.block_on(poststop.run_all(&hosts));
    // What still blocks in a thread must not hold up the end.
    runtime.shutdown_background();
    tracing::info!(reason = ?served?, "the server has ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_dumps_no_core_and_what_it_executes_does_as_before() {
        use rustix::process::{Resource, dumpable_behavior, getrlimit};
        no_core_dumps().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let limit = std::process::Command::new("sh")
            .args(["-c", "ulimit -c"])
            .output()
            .unwrap();
        let own = getrlimit(Resource::Core)
            .current
            .map_or("unlimited".to_owned(), |bytes| (bytes / 512).to_string());
        assert_eq!(String::from_utf8_lossy(&limit.stdout).trim(), own);
    }
}
