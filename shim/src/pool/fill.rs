//! Fills the pool with a member for every free slot, as long as the host has memory, and empties it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::spawn::{Program, RunError};
use node::host_ns::HostNamespace;
use node::process::{self, ProcessRef};
use oci_spec::runtime::Spec;

use super::place::{self, PoolError, Slot};
use super::wire::{self, Hello, Request};
use super::{Caller, Key, report};
use crate::settings::Settings;

/// What a member and who fills the pool have of the environment. What else there is may be another sandbox's, as containerd's TTRPC_ADDRESS is.
const OF_EVERY_SANDBOX: [&str; 2] = ["KATA_CONF_FILE", "PATH"];

/// Bytes of arguments: two ids and three paths.
const ROOM: usize = 640;

/// Of the host's memory, one in so many stays free beside the pool.
const KEPT_FREE: u64 = 10;

/// For a member to say hello and to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// For the pool to be filled: members are started, and nobody waits until they have booted.
const FILL_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks whether one has ended: there is no event for a lock that is given back.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// How many members the configuration asks for.
///
/// # Errors
/// It cannot be used.
pub(crate) fn wanted(config_path: Option<&Path>) -> Result<u32, PoolError> {
    let settings = Settings::load(config_path, &Spec::default()).map_err(PoolError::Configuration)?;
    Ok(settings.config.factory.vm_cache_number)
}

/// Starts a member in every free slot, and returns at once; they boot by themselves. The calling thread is in the host's mount namespace. The
/// answer is how many were started.
///
/// # Errors
/// The configuration or the pool's files cannot be used, or a member cannot be started.
pub(crate) fn fill(config_path: Option<&Path>) -> Result<u32, PoolError> {
    let settings = Settings::load(config_path, &Spec::default()).map_err(PoolError::Configuration)?;
    let root = place::root();
    if settings.config.factory.vm_cache_number == 0 && !root.exists() {
        return Ok(0);
    }
    place::create(&root)?;
    place::sweep(&root);
    report::note(&root, "");
    let key = Key::of(&settings.file, &settings.config, &Caller::own());
    let size = hypervisor::boot_size(&settings.config.hypervisor).memory.bytes();
    let mut started = 0;
    for number in 0..settings.config.factory.vm_cache_number {
        let slot = Slot::new(&root, &key, number);
        let Some(lock) = slot.take()? else { continue };
        // Each that was started may still take all that its VM may have.
        if !has_room(size.saturating_mul(u64::from(started) + 1)) {
            tracing::warn!(started, "the host has too little free memory for more warm VMs");
            report::note(&root, "the host has too little free memory for more warm VMs");
            break;
        }
        spawn(&slot, lock, config_path)?;
        started += 1;
    }
    Ok(started)
}

/// Whether the host has memory for so much more, and [`KEPT_FREE`] beside it.
pub(super) fn has_room(bytes: u64) -> bool {
    let memory = base::meminfo::read();
    let figures = memory.and_then(|memory| Some((memory.mem_total, memory.mem_available?)));
    figures.is_none_or(|(total, available)| available.saturating_sub(bytes) >= total / KEPT_FREE)
}

fn spawn(slot: &Slot, lock: OwnedFd, config_path: Option<&Path>) -> Result<(), PoolError> {
    let failed = |source| PoolError::Start("member of the pool", source);
    let room = " ".repeat(ROOM);
    let mut words = ["-pool", "member", "-slot", slot.name()].map(OsStr::new).to_vec();
    if let Some(path) = config_path {
        words.extend([OsStr::new("-config-path"), path.as_os_str()]);
    }
    // For the arguments that it shows when it is a sandbox's.
    words.extend([OsStr::new("-room"), OsStr::new(&room)]);
    let member = Program::new(std::env::current_exe().map_err(failed)?)
        .args(words)
        .inherit_envs(&OF_EVERY_SANDBOX)
        .session()
        .descriptors(vec![lock]);
    member.spawn().map(drop).map_err(failed)
}

/// Ends the members that wait: those of one configuration, or all. Members that are being claimed become what they were claimed for. The answer is
/// how many have ended.
///
/// # Errors
/// Some are still there.
pub(crate) fn drain(config_path: Option<&Path>) -> Result<usize, PoolError> {
    let root = place::root();
    let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    let only = config_path.map(|path| config::locate(Some(path), environment.as_deref()));
    let of_it = |slot: &Slot| {
        let Some(only) = &only else { return true };
        report::read(slot).is_none_or(|notes| notes.config == *only)
    };
    let slots: Vec<Slot> = place::slots(&root).into_iter().filter(of_it).collect();
    let taken: Vec<Slot> = slots.into_iter().filter(Slot::is_taken).collect();
    let mut left = taken.clone();
    let deadline = Instant::now() + END_LIMIT;
    let mut asked = Vec::new();
    while !left.is_empty() && Instant::now() < deadline {
        for slot in &left {
            if !asked.contains(slot) && retire(slot).is_ok() {
                asked.push(slot.clone());
            }
        }
        std::thread::sleep(BETWEEN_LOOKS);
        left.retain(Slot::is_taken);
    }
    // One that is stopped neither ends nor can be claimed: a claim needs its hello. Its directory is still the pool's.
    for slot in &left {
        let notes = report::read(slot).and_then(|notes| notes.process);
        let process: Vec<ProcessRef> = notes.into_iter().collect();
        process::kill_all(&process, Instant::now() + END_LIMIT);
    }
    left.retain(Slot::is_taken);
    place::sweep(&root);
    place::remove_empty(&root);
    match left.len() {
        0 => Ok(taken.len()),
        stay => Err(PoolError::Stays(stay)),
    }
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
    use super::*;

    #[test]
    fn a_host_has_room_for_little_and_not_for_all_that_it_has() {
        assert!(has_room(0));
        assert!(!has_room(u64::MAX / 2));
    }
}
