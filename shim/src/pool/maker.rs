//! The process that makes a template: boots a VM, has it saved, and ends. Then it fills the pool, whose members are copies.
//!
//! It has a slot of the pool, as a member has, so there is one for each key, and what a dead one leaves is removed with what dead members leave.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use base::chain;
use config::Config;
use node::boot_queue::BootQueue;
use node::host_cgroup::{self, HostCgroup};
use node::host_ns;
use node::run_dir;
use node::sizing::Sizing;
use node::sys;
use oci_spec::runtime::Spec;

use super::place::{self, PoolError, Slot};
use super::report::{self, Notes};
use super::template::{self, Unfinished};
use super::{Failed, fill, member, warm};
use crate::program::settings::Settings;

/// Makes the template of this slot.
///
/// # Errors
/// There is none, or the pool cannot be filled then. The first is noted for `kata-ctl factory status`.
pub(crate) fn make(slot: &str, config_path: Option<&Path>) -> Result<(), PoolError> {
    let lock = sys::inherited().map_err(|source| PoolError::Start("maker of a template", source))?;
    let root = place::root();
    let slot = Slot::named(&root, slot.to_owned());
    let home = host_cgroup::own();
    let made = make_in(&root, &slot, config_path);
    member::end(&home, &slot.directory());
    if let Err(error) = &made {
        report::fail(&root, slot.key(), &format!("there is no template: {}", chain(error)));
    }
    // Without a template its members boot. Whoever empties the pool meanwhile waits for the lock, and no other maker is started.
    let filled = fill(config_path, Failed::Stays);
    drop(lock);
    made?;
    filled.map(drop)
}

fn make_in(root: &Path, slot: &Slot, config_path: Option<&Path>) -> Result<(), PoolError> {
    let spec = Spec::default();
    let settings = Settings::load(config_path, &spec).map_err(PoolError::Configuration)?;
    let (file, mut config) = (settings.file, settings.config);
    let key = template::key(&file, &config);
    if !slot.has_key(&key) {
        return Err(PoolError::Boot("what decides the VM has changed".to_owned()));
    }
    let maker = template::maker(&config);
    Sizing::new(&config, &spec).apply(&mut config);
    let unfinished = Unfinished::create(&config.factory.template_path, &key)?;
    let cgroup = set_up(slot, file.clone())?;
    let vm = unfinished
        .file()
        .map_err(|source| PoolError::Start("template", source))?;
    let directory = slot.directory().path().to_owned();
    // The VM is this thread's: it leaves the host's mount namespace, and its children end with it.
    let booting = std::thread::Builder::new()
        .name("vm".to_owned())
        .spawn(move || save(&config, &directory, &cgroup, vm));
    let booting = booting.map_err(|source| PoolError::Start("thread for the VM", source))?;
    let panicked = |_| PoolError::Boot("its thread has panicked".to_owned());
    booting.join().map_err(panicked)??;
    unfinished.finish(root, &key, &file, &maker)
}

/// Gives the slot a directory and a cgroup, and writes down for whoever cleans up what there is.
fn set_up(slot: &Slot, config: PathBuf) -> Result<HostCgroup, PoolError> {
    slot.directory().create()?;
    let cgroup = member::join_own_cgroup(slot)?;
    Notes::own(config).write(slot);
    Ok(cgroup)
}

fn save(config: &Config, directory: &Path, cgroup: &HostCgroup, vm: OwnedFd) -> Result<(), PoolError> {
    let failed = |error: &dyn std::error::Error| PoolError::Boot(chain(error));
    host_ns::leave().map_err(|error| failed(&error))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source: io::Error| PoolError::Start("runtime", source))?;
    runtime.block_on(async {
        warm::yield_to_sandboxes(cgroup).await;
        let queue = BootQueue::in_advance(Path::new(run_dir::ROOT));
        let _place = queue.enter().await.map_err(|error| failed(&error))?;
        let image = warm::debug_image(config, directory);
        let hypervisor = image.as_ref().map_or(&config.hypervisor, |image| &image.config);
        let request = warm::request(config, directory.to_owned(), directory.join("shared"), cgroup);
        let (word, waits) = (protocol::TEMPLATE_PARAMETER, protocol::TEMPLATE_WAITS);
        let saved = Box::pin(hypervisor::save_booted(hypervisor, request, word, waits, vm));
        saved.await.map_err(|error| failed(&error))
    })
}
