//! Fills the pool with a member for every free slot, as long as the host has memory, and empties it.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::spawn::{Program, RunError};
use node::host_ns::HostNamespace;
use oci_spec::runtime::Spec;

use super::place::{self, PoolError, Slot};
use super::wire::{self, Hello, Request};
use super::{Caller, Key, Template, report, template};
use crate::program::settings::Settings;

/// What a member and who fills the pool have of the environment. What else there is may be another sandbox's, as containerd's TTRPC_ADDRESS is.
const OF_EVERY_SANDBOX: [&str; 2] = ["KATA_CONF_FILE", "PATH"];

/// Bytes of arguments: two ids and three paths.
const ROOM: usize = 640;

/// Of the host's memory, one in so many stays free beside the pool.
const KEPT_FREE: u64 = 10;

/// Timeout for a member to say hello and to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Timeout for the pool to be filled: members are started, and nobody waits until they have booted.
const FILL_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two looks whether one has ended: there is no event for a lock that is given back.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// After a failure a start does not have a template made again for so long: each attempt boots a VM.
const AGAIN: Duration = Duration::from_secs(600);

/// What is to become of a template that could not be made or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It is made again at once.
    Again,
    /// It is made again some minutes later.
    Stays,
}

#[derive(Debug)]
pub(crate) struct Filled {
    started: u32,
    key: Key,
    template: Option<Key>,
}

/// For `kata-ctl factory init`, which waits for members and a template of these keys alone.
impl fmt::Display for Filled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.started, self.key.as_str())?;
        self.template
            .as_ref()
            .map_or(Ok(()), |key| write!(formatter, " {}", key.as_str()))
    }
}

/// How many members the configuration asks for, and whether for a template.
///
/// # Errors
/// It cannot be used.
pub(crate) fn wanted(config_path: Option<&Path>) -> Result<String, PoolError> {
    let settings = Settings::load(config_path, &Spec::default()).map_err(PoolError::Configuration)?;
    let factory = settings.config.factory;
    let template = if factory.enable_template { " template" } else { "" };
    Ok(format!("{}{template}", factory.vm_cache_number))
}

/// Starts a member in every free slot, and returns at once; they boot by themselves. If the template is missing, it is made first, by a process that then fills
/// the pool. The calling thread is in the host's mount namespace.
///
/// # Errors
/// The configuration or the pool's files cannot be used, or a member cannot be started.
pub(crate) fn fill(config_path: Option<&Path>, failed: Failed) -> Result<Filled, PoolError> {
    let settings = Settings::load(config_path, &Spec::default()).map_err(PoolError::Configuration)?;
    let root = place::root();
    let key = Key::of(&settings.file, &settings.config, &Caller::own());
    let factory = &settings.config.factory;
    let template = factory
        .enable_template
        .then(|| template::key(&settings.file, &settings.config));
    if factory.vm_cache_number == 0 && template.is_none() && !root.exists() {
        return Ok(Filled {
            started: 0,
            key,
            template,
        });
    }
    place::create(&root)?;
    place::sweep(&root);
    report::forget_notices(&root, key.as_str());
    let size = hypervisor::boot_size(&settings.config.hypervisor).memory.bytes();
    let mut started = 0;
    if let Some(template) = &template {
        template::remove_elsewhere(&root, &factory.template_path, template);
        match Template::find(&settings.file, &settings.config) {
            Some(found) => found.show(&root),
            None if make(&root, template, size, config_path, failed)? => {
                return Ok(Filled {
                    started,
                    key,
                    template: Some(template.clone()),
                });
            }
            None => {}
        }
    }
    // Each that boots, for whatever configuration, may still take what its VM may have and has not taken.
    let _reckoning = place::reckon(&root)?;
    let mut promised: u64 = place::slots(&root).iter().map(report::outstanding).sum();
    for number in 0..factory.vm_cache_number {
        let slot = Slot::new(&root, &key, number);
        let Some(lock) = slot.take()? else { continue };
        promised = promised.saturating_add(size);
        if !has_room(promised) {
            tracing::warn!(started, "the host has too little free memory for more warm VMs");
            report::note(
                &root,
                key.as_str(),
                "the host has too little free memory for more warm VMs",
            );
            break;
        }
        slot.promise(&lock, size)?;
        spawn(&slot, lock, config_path)?;
        started += 1;
    }
    Ok(Filled { started, key, template })
}

/// Has the template of this key made, whose VM has so much memory. The answer is whether somebody makes it.
fn make(root: &Path, key: &Key, size: u64, config_path: Option<&Path>, failed: Failed) -> Result<bool, PoolError> {
    if failed == Failed::Again {
        report::forget_notices(root, key.as_str());
    } else if report::has_failed_within(root, key.as_str(), AGAIN) {
        return Ok(false);
    }
    let slot = Slot::of_maker(root, key.as_str());
    let _reckoning = place::reckon(root)?;
    let promised: u64 = place::slots(root).iter().map(report::outstanding).sum();
    let Some(lock) = slot.take()? else {
        return Ok(true);
    };
    // The VM's, and its copy's: the directory may be in memory.
    let needed = size.saturating_mul(2);
    if !has_room(promised.saturating_add(needed)) {
        let why = "the host has too little free memory for a template";
        tracing::warn!("{why}");
        report::note(root, key.as_str(), why);
        return Ok(false);
    }
    slot.promise(&lock, needed)?;
    start("template", &slot, lock, config_path, "")?;
    Ok(true)
}

/// Whether the host has memory for so much more, and [`KEPT_FREE`] beside it.
pub(super) fn has_room(bytes: u64) -> bool {
    let memory = base::meminfo::read();
    let figures = memory.and_then(|memory| Some((memory.mem_total, memory.mem_available?)));
    figures.is_none_or(|(total, available)| available.saturating_sub(bytes) >= total / KEPT_FREE)
}

fn spawn(slot: &Slot, lock: OwnedFd, config_path: Option<&Path>) -> Result<(), PoolError> {
    start("member", slot, lock, config_path, &" ".repeat(ROOM))
}

/// Starts a process that has this slot. `room` is for the arguments that it shows when it is a sandbox's.
fn start(what: &str, slot: &Slot, lock: OwnedFd, config_path: Option<&Path>, room: &str) -> Result<(), PoolError> {
    let failed = |source| PoolError::Start("member of the pool", source);
    let mut words = ["-pool", what, "-slot", slot.name()].map(OsStr::new).to_vec();
    if let Some(path) = config_path {
        words.extend([OsStr::new("-config-path"), path.as_os_str()]);
    }
    words.extend([OsStr::new("-room"), OsStr::new(room)]);
    let member = Program::new(std::env::current_exe().map_err(failed)?)
        .args(words)
        .inherit_envs(&OF_EVERY_SANDBOX)
        .session()
        .descriptors(vec![lock]);
    member.spawn().map(drop).map_err(failed)
}

/// Ends the members that wait, and removes the templates: those of one configuration, or all. Members that are being claimed become what they were claimed
/// for. The answer is how many have ended, and how many templates there were.
///
/// # Errors
/// Some are still there.
pub(crate) fn drain(config_path: Option<&Path>) -> Result<String, PoolError> {
    let root = place::root();
    let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    let only = config_path.map(|path| config::locate(Some(path), environment.as_deref()));
    let of_it = |slot: &Slot| {
        let Some(only) = &only else { return true };
        report::read(slot).is_none_or(|notes| notes.config == *only)
    };
    let slots: Vec<Slot> = place::slots(&root).into_iter().filter(of_it).collect();
    let taken: Vec<Slot> = slots.into_iter().filter(Slot::is_taken).collect();
    let stay = end_all(taken.clone(), END_LIMIT);
    place::sweep(&root);
    let templates = template::remove_all(&root, only.as_deref());
    if let Ok(settings) = Settings::load(config_path, &Spec::default()) {
        template::remove_unfinished(&root, &settings.config.factory.template_path);
    }
    let members = taken.iter().filter(|slot| !slot.is_maker()).count();
    place::remove_empty(&root);
    match stay {
        0 => Ok(format!("{members} {templates}")),
        stay => Err(PoolError::Stays(stay)),
    }
}

/// Ends members: asks them, and kills those that have not ended within the limit. The answer is how many are still there within as much time again.
fn end_all(mut left: Vec<Slot>, limit: Duration) -> usize {
    let asking = Instant::now() + limit;
    let deadline = asking + limit;
    let mut asked = Vec::new();
    while !left.is_empty() && Instant::now() < deadline {
        for slot in &left {
            // What is being claimed is no member any more when that is done; and nobody claims what is about to be killed.
            let Some(_held) = slot.hold() else { continue };
            let process = report::read(slot).and_then(|notes| notes.process);
            match process {
                Some(process) if slot.is_maker() || process.is_stopped() || Instant::now() >= asking => process.kill(),
                _ if asked.contains(slot) => {}
                _ => {
                    if retire(slot).is_ok() {
                        asked.push(slot.clone());
                    }
                }
            }
        }
        std::thread::sleep(BETWEEN_LOOKS);
        left.retain(Slot::is_taken);
    }
    left.len()
}

fn retire(slot: &Slot) -> std::io::Result<()> {
    let connection = wire::connect_to(&slot.claim_socket())?;
    wire::receive::<Hello>(connection.as_fd(), BETWEEN_LOOKS * 50)?;
    Request::Retire.send(&connection, None)
}

/// Fills the pool again after a start. Blocks.
pub(crate) fn refill(host: &HostNamespace, config_path: Option<PathBuf>) {
    // In the host's mount namespace: a member of the server's own would fit nobody. And by a process that ends: members are no children of a
    // sandbox's shim, which counts its children's mounts and file accesses as its own.
    let filled = host.run(move || {
        let mut words = ["-pool", "fill"].map(OsStr::new).to_vec();
        if let Some(path) = &config_path {
            words.extend([OsStr::new("-config-path"), path.as_os_str()]);
        }
        let program = std::env::current_exe().map_err(RunError::Start)?;
        Program::new(program)
            .args(words)
            .inherit_envs(&OF_EVERY_SANDBOX)
            .run(FILL_TIMEOUT)
    });
    let why = match filled {
        Ok(Ok(finished)) if finished.status.success() => {
            return tracing::debug!(started = finished.stdout, "the pool of warm VMs is filled again");
        }
        Ok(Ok(finished)) => finished.stderr,
        Ok(Err(error)) => error.to_string(),
        Err(error) => base::chain(&error),
    };
    tracing::warn!(why, "the pool of warm VMs is not filled again");
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use node::process::ProcessRef;
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn a_member_that_is_claimed_at_the_same_time_is_not_killed() {
        let root = tempfile::tempdir().unwrap();
        let members = [0, 1].map(|number| {
            let slot = Slot::new(root.path(), &Key::test("k"), number);
            let taken = slot.take().unwrap().unwrap();
            slot.directory().create().unwrap();
            let process = Command::new("sleep").arg("600").spawn().unwrap();
            let pid = i32::try_from(process.id()).unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
            report::Notes {
                process: ProcessRef::of(pid),
                ..report::Notes::default()
            }
            .write(&slot);
            (slot, taken, process)
        });
        let [(claimed, its_lock, mut server), (waits, lock, mut member)] = members;
        let held = claimed.hold();
        std::thread::scope(|scope| {
            let slots = vec![claimed.clone(), waits];
            let ended = scope.spawn(|| end_all(slots, Duration::from_secs(5)));
            assert!(!member.wait().unwrap().success());
            drop(lock);
            // It is adopted.
            std::fs::rename(claimed.directory().path(), root.path().join("sandbox")).unwrap();
            drop((its_lock, held));
            assert_eq!(ended.join().unwrap(), 0);
        });
        assert_eq!(server.try_wait().unwrap(), None);
        server.kill().unwrap();
        server.wait().unwrap();
    }

    #[test]
    fn a_host_has_room_for_little_and_not_for_all_that_it_has() {
        assert!(has_room(0));
        assert!(!has_room(u64::MAX / 2));
    }
}
