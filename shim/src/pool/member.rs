//! A member's process: boots its VM, waits for a claim, and becomes a sandbox's shim, or ends.
//!
//! The main thread stays in the host's mount namespace until then. It alone decides, one request after the other. So a VM is never handed
//! out twice, and a VM that is claimed cannot be retired.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::host_cgroup::{self, HostCgroup};
use node::path_error::PathError;
use node::process::ProcessRef;
use node::run_dir::{RunDir, SandboxState};
use node::sizing::Sizing;
use node::sys;
use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::place::{self, PoolError, Slot};
use super::report::{self, Notes};
use super::warm::{self, Booting, FIRST_TO_GO};
use super::wire::{self, Adopted, Claim, Hello, Request};
use super::{Caller, Key, Template, fill};
use crate::cleanup;
use crate::id::{ContainerId, Namespace, SandboxId};
use crate::program::announcement::Announcement;
use crate::program::arguments::Arguments;
use crate::program::settings::Settings;
use crate::qemu::parked::Parked;

/// The namespace in the records of members: containerd's own have no such name.
const NAMESPACE: &str = "tatami.pool";

/// Pause between two looks whether the member is still what the configuration asks for.
const LOOK: Duration = Duration::from_secs(30);

/// Timeout for a claim to come after the hello.
const REQUEST: Duration = Duration::from_secs(2);

/// A claim, the lock on the sandbox's directory, and where the answer goes.
struct Asked {
    claim: Box<Claim>,
    lock: OwnedFd,
    connection: OwnedFd,
}

/// What a sandbox's server begins with that a member has become.
pub(crate) struct Adoption {
    pub(crate) listener: UnixListener,
    pub(crate) announcement: Announcement,
    pub(crate) arguments: Arguments,
    pub(crate) parked: Parked,
}

/// What ended a member's wait.
enum Next {
    Claimed(Asked),
    End(&'static str),
}

/// A member's life. Returns when the member has ended, without anything, or has adopted a sandbox, which its caller is to serve.
///
/// # Errors
/// The VM did not come up, or the sandbox cannot be adopted.
pub(crate) fn run(slot: &str, config_path: Option<PathBuf>) -> Result<Option<Adoption>, Box<dyn std::error::Error>> {
    let lock = sys::inherited()?;
    let root = place::root();
    let slot = Slot::named(&root, slot.to_owned());
    let home = host_cgroup::own();
    match Member::begin(&slot, config_path) {
        Ok(member) => member.live(lock, &home),
        Err(error) => {
            report::note(&root, slot.key(), &base::chain(&error));
            end(&home, &slot.directory());
            Err(error.into())
        }
    }
}

/// Removes what the calling process has made. `home` are the cgroups in which it was started: it cannot remove those that it is in.
pub(super) fn end(home: &str, directory: &RunDir) {
    host_cgroup::join(&host_cgroup::procs_of(home));
    cleanup::remove_contents(directory);
}

struct Member {
    slot: Slot,
    config_path: Option<PathBuf>,
    directory: RunDir,
    listener: OwnedFd,
    booting: Booting,
    parked: Option<Parked>,
    notes: Notes,
    began: Instant,
    idle_timeout: Duration,
    /// Before it joined the pool's cgroup.
    caller: Caller,
}

/// Moves this process, which has the slot, to a cgroup of its own, and writes that down for whoever cleans up.
pub(super) fn join_own_cgroup(slot: &Slot) -> Result<HostCgroup, PoolError> {
    let failed = |error: &dyn std::error::Error| PoolError::Boot(error.to_string());
    // Of this process alone: the next one may have the slot before this one's VM has left the pool's cgroup.
    let id = SandboxId::new(&format!("pool-{}-{}", slot.name(), std::process::id())).map_err(|error| failed(&error))?;
    let namespace = Namespace::new(NAMESPACE).map_err(|error| failed(&error))?;
    let cgroup = HostCgroup::create(Some(Path::new("/")), &id);
    let mut state = SandboxState::new(&namespace, &id);
    state.cgroups = cgroup.directories().to_vec();
    slot.directory().write_state(&state)?;
    host_cgroup::join(&cgroup.procs_files());
    Ok(cgroup)
}

impl Member {
    fn begin(slot: &Slot, config_path: Option<PathBuf>) -> Result<Self, PoolError> {
        let spec = Spec::default();
        let settings = Settings::load(config_path.as_deref(), &spec).map_err(PoolError::Configuration)?;
        let mut config = settings.config;
        let caller = Caller::own();
        if !slot.has_key(&Key::of(&settings.file, &config, &caller)) {
            return Err(PoolError::Boot("what decides the VM has changed".to_owned()));
        }
        let idle_timeout = config.factory.vm_cache_idle_timeout;
        let saved = Template::find(&settings.file, &config).map(|template| template.saved(false));
        Sizing::new(&config, &spec).apply(&mut config);
        let directory = slot.directory();
        directory.create()?;
        let socket = slot.claim_socket();
        let listener = wire::listen_at(&socket).map_err(|source| PathError::new("listen on", &socket, source))?;
        let cgroup = join_own_cgroup(slot)?;
        set_oom_score_adj(FIRST_TO_GO);
        let notes = Notes::own(settings.file);
        notes.write(slot);
        let booting = warm::boot(config, directory.clone(), cgroup, saved)?;
        Ok(Self {
            slot: slot.clone(),
            config_path,
            directory,
            listener,
            booting,
            parked: None,
            notes,
            began: Instant::now(),
            idle_timeout,
            caller,
        })
    }

    fn live(mut self, lock: OwnedFd, home: &str) -> Result<Option<Adoption>, Box<dyn std::error::Error>> {
        let next = self.wait();
        // Who connected and was not asked finds the next member.
        let Self {
            slot,
            directory,
            parked,
            listener,
            ..
        } = self;
        drop(listener);
        match (next, parked) {
            (Ok(Next::Claimed(asked)), Some(parked)) => adopt(asked, &directory, parked, lock, home).map(Some),
            (next, parked) => {
                // QEMU and its helpers go with it.
                drop(parked);
                end(home, &directory);
                drop(lock);
                match next {
                    Ok(Next::End(why)) => {
                        tracing::debug!(why, "the member of the pool ends");
                        Ok(None)
                    }
                    Ok(Next::Claimed(..)) => Ok(None),
                    Err(error) => {
                        report::note(&place::root(), slot.key(), &base::chain(&error));
                        Err(error.into())
                    }
                }
            }
        }
    }

    /// Waits for a claim or a reason to end.
    fn wait(&mut self) -> Result<Next, PoolError> {
        let failed = |source| PoolError::Start("member of the pool", source);
        let mut look = Instant::now() + LOOK;
        loop {
            // A pipe that nobody writes to: its end shows as a hang-up.
            let mut events = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.booting.alive, PollFlags::IN),
            ];
            let left = look.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|error| failed(io::Error::other(error)))?;
            match poll(&mut events, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let [asked, told] = [events[0].revents(), events[1].revents()];
            if !told.is_empty()
                && let Some(end) = self.hear()?
            {
                return Ok(end);
            }
            if asked.contains(PollFlags::IN)
                && let Some(next) = self.answer()
            {
                return Ok(next);
            }
            if Instant::now() >= look {
                if let Some(why) = self.is_superfluous() {
                    return Ok(Next::End(why));
                }
                look = Instant::now() + LOOK;
            }
        }
    }

    /// What the VM's thread has to say: a byte when the VM has booted, the end of the pipe when it has gone.
    fn hear(&mut self) -> Result<Option<Next>, PoolError> {
        let ended = Ok(Some(Next::End("the VM has ended")));
        if self.parked.is_some() {
            return ended;
        }
        let mut byte = [0];
        let count = rustix::io::read(&self.booting.alive, &mut byte).unwrap_or(0);
        let result = self.booting.result.try_recv();
        match result {
            Ok(parked) => {
                let parked = parked?;
                self.notes.vm = parked.processes();
                self.notes.ready = true;
                self.notes.write(&self.slot);
                self.began = Instant::now();
                self.parked = Some(parked);
                if count == 0 { ended } else { Ok(None) }
            }
            Err(_) => ended,
        }
    }

    fn answer(&mut self) -> Option<Next> {
        let connection = wire::accept(self.listener.as_fd()).ok()?;
        let ready = self.parked.is_some();
        let process = self.notes.process?;
        wire::send(connection.as_fd(), &Hello { ready, process }, None).ok()?;
        match wire::receive::<Request>(connection.as_fd(), REQUEST).ok()? {
            (Request::Retire, _) => Some(Next::End("it was told to end")),
            // A VM that has died since the hello is not given away, also if its thread does not know yet.
            (Request::Claim(claim), Some(lock)) if ready && self.notes.vm.iter().all(ProcessRef::is_alive) => {
                Some(Next::Claimed(Asked {
                    claim,
                    lock,
                    connection,
                }))
            }
            (Request::Claim(_), _) => None,
        }
    }

    /// Why it is not wanted any more, if it is not.
    fn is_superfluous(&self) -> Option<&'static str> {
        if self.parked.is_some() && self.began.elapsed() >= self.idle_timeout {
            return Some("nobody has claimed it for long");
        }
        let Ok(settings) = Settings::load(self.config_path.as_deref(), &Spec::default()) else {
            return Some("its configuration cannot be read");
        };
        if !self
            .slot
            .has_key(&Key::of(&settings.file, &settings.config, &self.caller))
        {
            return Some("what decides the VM has changed");
        }
        if self.slot.number() >= settings.config.factory.vm_cache_number {
            return Some("the pool is to have fewer");
        }
        (!fill::has_room(0)).then_some("the host has too little free memory")
    }
}

/// Becomes the sandbox's shim. The lock on its directory is held until the sandbox is there by its name: whoever asked for it may be gone by then.
fn adopt(
    asked: Asked,
    directory: &RunDir,
    parked: Parked,
    slot: OwnedFd,
    home: &str,
) -> Result<Adoption, Box<dyn std::error::Error>> {
    let (cgroups, vm) = (parked.cgroup.directories().to_vec(), parked.processes());
    let (arguments, listener) = match take_name(&asked, directory, cgroups, vm) {
        Ok(taken) => taken,
        Err(error) => {
            // Nobody knows of it.
            drop(parked);
            end(home, directory);
            return Err(error);
        }
    };
    let Asked {
        claim,
        lock,
        connection,
    } = asked;
    drop((slot, lock));
    host_cgroup::join(&host_cgroup::procs_of(&claim.cgroups));
    set_oom_score_adj(claim.oom_score_adj.saturating_add(1).min(FIRST_TO_GO));
    sys::replace_environment(claim.environment);
    show(&arguments);
    Ok(Adoption {
        listener,
        announcement: connection.into(),
        arguments,
        parked,
    })
}

/// Gives the member's directory the sandbox's name and state, listens in it, and answers. From the answer on the sandbox is one like any other. If it
/// fails the directory is the member's as before: whoever removes it must find nothing of a sandbox in it, which may be somebody else's.
fn take_name(
    asked: &Asked,
    directory: &RunDir,
    cgroups: Vec<PathBuf>,
    vm: Vec<ProcessRef>,
) -> Result<(Arguments, UnixListener), Box<dyn std::error::Error>> {
    let claim = &asked.claim;
    let arguments = Arguments {
        namespace: Namespace::new(&claim.namespace)?,
        id: ContainerId::new(&claim.sandbox)?,
        bundle: claim.bundle.clone(),
        debug: claim.debug,
        config_path: claim.config_path.clone(),
    };
    let id = SandboxId::from(&arguments.id);
    let run_dir = RunDir::of(&arguments.namespace, &id);
    let mut state = SandboxState::new(&arguments.namespace, &id);
    (state.cgroups, state.vm) = (cgroups, vm);
    let listener = rename(directory, &run_dir, &state, || {
        wire::send(asked.connection.as_fd(), &Adopted, None)
    })?;
    Ok((arguments, listener))
}

/// Renames a member's directory to a sandbox's, with the sandbox's state, and listens in it. Then `answer` is called. After an error it has its name and its
/// state of before.
fn rename(
    directory: &RunDir,
    run_dir: &RunDir,
    state: &SandboxState,
    answer: impl FnOnce() -> io::Result<()>,
) -> Result<UnixListener, Box<dyn std::error::Error>> {
    let before = directory.read_state()?;
    directory.rename_to(run_dir)?;
    let named = || -> Result<UnixListener, Box<dyn std::error::Error>> {
        run_dir.write_state(state)?;
        let listener = UnixListener::bind(run_dir.socket())?;
        answer()?;
        Ok(listener)
    };
    match named() {
        Ok(listener) => {
            for name in ["claim", "member.json"] {
                // Nobody looks for them in a sandbox's directory.
                let _ = fs::remove_file(run_dir.path().join(name));
            }
            Ok(listener)
        }
        Err(error) => {
            if let Some(before) = before {
                run_dir.write_state(&before)?;
            }
            run_dir.rename_to(directory)?;
            Err(error)
        }
    }
}

/// Shows the process as one that `start` has launched: operators look for the sandbox among the arguments.
fn show(arguments: &Arguments) {
    let run_dir = RunDir::of(&arguments.namespace, &SandboxId::from(&arguments.id));
    let program = std::env::args().next().unwrap_or_default();
    let mut words: Vec<String> = vec![program];
    for (flag, value) in [
        ("-namespace", arguments.namespace.as_str().to_owned()),
        ("-id", arguments.id.as_str().to_owned()),
        ("-bundle", arguments.bundle.display().to_string()),
        ("-socket", run_dir.socket().display().to_string()),
    ] {
        words.extend([flag.to_owned(), value]);
    }
    if let Err(error) = sys::show_arguments(&words) {
        tracing::debug!(%error, "the shim keeps the arguments of a member of the pool");
    }
}

/// Without CAP_SYS_RESOURCE nobody goes below what was inherited: then that is what it keeps.
fn set_oom_score_adj(score: i32) {
    let _ = fs::write(Path::new("/proc/self/oom_score_adj"), score.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_have_the_sandboxs_name_has_nothing_of_the_sandbox() {
        let root = tempfile::tempdir().unwrap();
        let directory = RunDir::at(root.path().join("k.0"));
        directory.create().unwrap();
        fs::write(directory.path().join("claim"), "").unwrap();
        let state = |namespace: &str, id: &str| {
            let (namespace, id) = (Namespace::new(namespace).unwrap(), SandboxId::new(id).unwrap());
            (
                RunDir::below(root.path(), &namespace, &id),
                SandboxState::new(&namespace, &id),
            )
        };
        let (_, of_member) = state(NAMESPACE, "pool-k.0-1");
        directory.write_state(&of_member).unwrap();
        let (run_dir, of_sandbox) = state("default", "box");
        // Somebody else has the name.
        fs::create_dir_all(run_dir.path().join("something")).unwrap();
        rename(&directory, &run_dir, &of_sandbox, || Ok(())).unwrap_err();
        assert_eq!(directory.read_state().unwrap(), Some(of_member.clone()));
        fs::remove_dir_all(run_dir.path()).unwrap();
        // Who asked is gone.
        let gone = || Err(io::ErrorKind::BrokenPipe.into());
        rename(&directory, &run_dir, &of_sandbox, gone).unwrap_err();
        assert_eq!(directory.read_state().unwrap(), Some(of_member));
        assert!(!run_dir.path().exists());
        fs::remove_file(directory.path().join(protocol::SHIM_SOCKET)).unwrap();
        rename(&directory, &run_dir, &of_sandbox, || Ok(())).unwrap();
        assert_eq!(run_dir.read_state().unwrap(), Some(of_sandbox));
        assert!(!directory.path().exists() && !run_dir.path().join("claim").exists());
    }
}
