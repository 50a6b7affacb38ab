//! `start`'s side: finds a member of the pool and has it adopt the sandbox.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use base::scale::Scale;
use node::bundle;
use node::guest_spec;
use node::host_cgroup;
use node::process;
use node::run_dir::{Lock, RunDir};
use node::sizing::Sizing;

use super::place::{self, Slot};
use super::wire::{self, Adopted, Claim, Hello, Request};
use super::{Caller, Key, report};
use crate::cleanup;
use crate::id::SandboxId;
use crate::program::announcement::Launched;
use crate::program::arguments::Arguments;
use crate::program::settings::Settings;

/// Timeout for a member to say hello: it does at once, unless something is wrong with it or the host is very busy.
const HELLO: Duration = Duration::from_secs(1);

/// Timeout for all members together that do not: then the sandbox is started as without a pool.
const HELLOS: Duration = Duration::from_secs(2);

/// Timeout for a member to adopt: it renames a directory and binds a socket. One that has been asked and does not answer is killed.
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
        if !settings.config.factory.enable_template {
            report::count(&root, report::Outcome::Miss);
        }
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
    let run_dir = RunDir::of(&arguments.namespace, sandbox);
    let server = offer(&slots, &request, &run_dir, lock, scale);
    match &server {
        Some(_) => report::count(&root, report::Outcome::Hit),
        // It is not known yet what the sandbox gets.
        None if settings.config.factory.enable_template => {}
        None => report::count(&root, report::Outcome::Miss),
    }
    server
}

/// Offers the sandbox to one member after the other until one takes it.
fn offer(slots: &[Slot], request: &Request, run_dir: &RunDir, lock: &Lock, scale: Scale) -> Option<Launched> {
    let deadline = Instant::now() + scale.of(HELLOS);
    for slot in slots {
        match attempt(slot, request, lock, deadline, scale) {
            Ok(server) => return Some(server),
            Err(error) => {
                tracing::debug!(slot = slot.name(), %error, "this member of the pool is not to be had");
                // One that has died while it adopted.
                cleanup::remove_locked(run_dir, lock);
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    None
}

fn attempt(slot: &Slot, request: &Request, lock: &Lock, deadline: Instant, scale: Scale) -> io::Result<Launched> {
    // Whoever has it claims it, or ends it.
    let _held = slot.hold().ok_or(io::ErrorKind::WouldBlock)?;
    let (connection, hello) = greet(slot, deadline)?;
    if !hello.ready {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    request.send(&connection, Some(lock.as_fd()))?;
    let adopted = wire::receive::<Adopted>(connection.as_fd(), scale.of(ADOPTION));
    if let Err(error) = &adopted
        && error.kind() == io::ErrorKind::TimedOut
    {
        // It has the lock, and would go on with the sandbox's name whenever it is continued.
        process::kill_all(&[hello.process], Instant::now() + HELLO);
    }
    adopted.map(|_| Launched {
        process: Some(hello.process),
        announcement: connection,
    })
}

/// Connects to a member that is held. One that is stopped, or says nothing for so long that something must be wrong with it, is killed: it would
/// hold up every start. Whoever fills the pool next removes what it leaves.
fn greet(slot: &Slot, deadline: Instant) -> io::Result<(OwnedFd, Hello)> {
    let process = report::read(slot).and_then(|notes| notes.process);
    let left = deadline.saturating_duration_since(Instant::now());
    let greeted = if process.is_some_and(|process| process.is_stopped()) {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        let connection = wire::connect_to(&slot.claim_socket())?;
        let hello = wire::receive::<Hello>(connection.as_fd(), HELLO.min(left));
        hello.map(|(hello, _)| (connection, hello))
    };
    if let (Err(error), Some(process)) = (&greeted, process)
        && error.kind() == io::ErrorKind::TimedOut
        && (left >= HELLO / 2 || process.is_stopped())
    {
        tracing::warn!(
            slot = slot.name(),
            pid = process.pid,
            "this member of the pool does not answer, and is killed"
        );
        process.kill();
    }
    greeted
}

fn own_oom_score_adj() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use node::process::ProcessRef;
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;
    use crate::id::Namespace;

    /// A member that has the socket and never says anything.
    fn silent(root: &Path, number: u32, stopped: bool) -> (Slot, Child, OwnedFd) {
        let slot = Slot::new(root, &Key::test("k"), number);
        slot.directory().create().unwrap();
        let listener = wire::listen_at(&slot.claim_socket()).unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        let own = ProcessRef::of(pid).unwrap();
        report::Notes {
            process: Some(own),
            ..report::Notes::default()
        }
        .write(&slot);
        if stopped {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
            while !own.is_stopped() {
                std::thread::yield_now();
            }
        }
        (slot, process, listener)
    }

    fn offered(root: &Path, slots: &[Slot]) -> Duration {
        let namespace = Namespace::new("n").unwrap();
        let run_dir = RunDir::below(root, &namespace, &SandboxId::new("s").unwrap());
        let lock = run_dir.lock().unwrap();
        let began = Instant::now();
        assert!(offer(slots, &Request::Retire, &run_dir, &lock, Scale::new(1.0)).is_none());
        began.elapsed()
    }

    #[test]
    fn members_that_are_stopped_cost_a_start_nothing_and_are_killed() {
        let root = tempfile::tempdir().unwrap();
        let (slots, processes): (Vec<_>, Vec<_>) = (0..30)
            .map(|number| silent(root.path(), number, true))
            .map(|(slot, process, listener)| (slot, (process, listener)))
            .unzip();
        let took = offered(root.path(), &slots);
        assert!(took < HELLO, "{took:?}");
        for (mut process, _) in processes {
            assert!(!process.wait().unwrap().success());
        }
    }

    #[test]
    fn members_that_say_nothing_cost_a_start_two_seconds_together_and_one_that_is_claimed_by_another_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut members: Vec<_> = (0..4).map(|number| silent(root.path(), number, false)).collect();
        let slots: Vec<Slot> = members.iter().map(|(slot, ..)| slot.clone()).collect();
        let held = slots[0].hold().unwrap();
        let took = offered(root.path(), &slots);
        assert!(took >= HELLOS && took < HELLOS + HELLO, "{took:?}");
        drop(held);
        // Those that were waited for.
        for (_, process, _) in &mut members[1..3] {
            assert!(!process.wait().unwrap().success());
        }
        for (_, process, _) in members.iter_mut().step_by(3) {
            assert_eq!(process.try_wait().unwrap(), None);
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}
