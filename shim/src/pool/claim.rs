//! `start`'s side: finds a member of the pool and has it adopt the sandbox.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use base::scale::Scale;
use node::bundle;
use node::guest_spec;
use node::host_cgroup;
use node::process;
use node::run_dir::{Lock, RunDir};
use node::sizing::Sizing;

use super::wire::{self, Adopted, Claim, Hello, Request};
use super::{Caller, Key, place, report};
use crate::announcement::Launched;
use crate::arguments::Arguments;
use crate::cleanup;
use crate::id::SandboxId;
use crate::settings::Settings;

/// For a member to say hello: it does at once, unless it is stopped or the host is very busy.
const HELLO: Duration = Duration::from_secs(1);

/// For a member to adopt: it renames a directory and binds a socket. One that has been asked and does not answer is killed.
const ADOPTION: Duration = Duration::from_secs(30);

/// Has a member of the pool adopt the sandbox whose lock this is. None where there is no pool, or no member that fits: then the sandbox is
/// started as without a pool. After the answer it listens, and everything of the sandbox is where its own start would
/// have put it.
pub(crate) fn claim(
    arguments: &Arguments,
    bundle: &Path,
    config_path: Option<&Path>,
    sandbox: &SandboxId,
    lock: &Lock,
) -> Option<Launched> {
    let root = place::root();
    if !root.exists() || bundle::is_awaited(bundle) {
        return None;
    }
    // What cannot be read or understood is reported by the Create of the sandbox that is started then.
    let (spec, _) = guest_spec::read(&bundle.join("config.json")).ok()?;
    let settings = Settings::load(config_path, &spec).ok()?;
    if settings.config.factory.vm_cache_number == 0 {
        return None;
    }
    let sizing = Sizing::new(&settings.config, &spec);
    if !sizing.fits_a_warm_vm() {
        report::count(&root, report::Outcome::Miss);
        return None;
    }
    let scale = Scale::new(settings.config.runtime.timeout_factor.get());
    let key = Key::of(&settings.file, &settings.config, &Caller::own());
    let claim = Claim {
        namespace: arguments.namespace.as_str().to_owned(),
        sandbox: sandbox.as_str().to_owned(),
        bundle: bundle.to_owned(),
        config_path: config_path.map(Path::to_owned),
        debug: arguments.debug,
        environment: std::env::vars_os().collect(),
        cgroups: host_cgroup::own(),
        oom_score_adj: own_oom_score_adj(),
    };
    let request = Request::Claim(Box::new(claim));
    let mut slots = place::slots(&root);
    slots.retain(|slot| slot.has_key(&key));
    // Starts at the same time begin with different members.
    let first = usize::try_from(std::process::id()).unwrap_or(0) % slots.len().max(1);
    slots.rotate_left(first);
    for slot in slots {
        match attempt(&slot, &request, lock, scale) {
            Ok(server) => {
                report::count(&root, report::Outcome::Hit);
                return Some(server);
            }
            Err(error) => {
                tracing::debug!(slot = slot.name(), %error, "this member of the pool is not to be had");
                // One that has died while it adopted.
                cleanup::remove_locked(&RunDir::of(&arguments.namespace, sandbox), lock);
            }
        }
    }
    report::count(&root, report::Outcome::Miss);
    None
}

fn attempt(slot: &place::Slot, request: &Request, lock: &Lock, scale: Scale) -> std::io::Result<Launched> {
    let connection = wire::connect_to(&slot.claim_socket())?;
    let (hello, _) = wire::receive::<Hello>(connection.as_fd(), scale.of(HELLO))?;
    if !hello.ready {
        return Err(std::io::ErrorKind::WouldBlock.into());
    }
    request.send(&connection, Some(lock.as_fd()))?;
    let adopted = wire::receive::<Adopted>(connection.as_fd(), scale.of(ADOPTION));
    if let Err(error) = &adopted
        && error.kind() == std::io::ErrorKind::TimedOut
    {
        // It has the lock, and would go on with the sandbox's name whenever it is continued.
        process::kill_all(&[hello.process], Instant::now() + HELLO);
    }
    adopted.map(|_| Launched {
        process: Some(hello.process),
        announcement: connection,
    })
}

fn own_oom_score_adj() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}
