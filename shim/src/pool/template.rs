//! Templates: VMs that were saved when they had booted, of which others are copies (docs/decisions/0063).
//!
//! ```text
//! TEMPLATE_PATH/KEY/vm            the VM's memory and state, as QEMU has written them
//! TEMPLATE_PATH/KEY/about.json    what it was made for, and how long `vm` is
//! TEMPLATE_PATH/KEY.new/          one that is being made; renamed when it is whole and on the disk
//! /run/tatami/pool/KEY.template   a link to it, by which it is found without its configuration
//! ```
//! A template is used only if it is whole, of this key, of this boot of the host, and belongs to this user alone. Whoever finds that it cannot be
//! used removes it, and boots. The module does not know how a VM is saved ([`super::maker`]).

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use config::Config;
use node::path_error::PathError;
use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::place::{self, PoolError, Slot};
use super::report::{self, Outcome};
use super::{Caller, Key};
use crate::qemu::saved::{NotCopied, Saved};

/// End of the name of one that is not whole.
const UNFINISHED: &str = ".new";

const VM: &str = "vm";
const ABOUT: &str = "about.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    key: String,
    /// The configuration file that it was made for.
    config: PathBuf,
    /// What decides it of who had it made ([`maker`]).
    caller: String,
    /// proc_sys_kernel(5), `random/boot_id` of the host: its kernel and its CPU are what they were.
    boot: String,
    /// Length of the file in bytes.
    length: u64,
    /// When it was made, in seconds since the epoch.
    made: u64,
}

/// The key of templates. It does not contain what a process has by who started it, but for the number of files, which is on the guest's command line.
pub(crate) fn key(file: &Path, config: &Config) -> Key {
    Key::of(file, config, &Caller::of_any_template().with_sizes(&config.hypervisor))
}

/// What decides templates of who makes them: processes that differ in it have templates of their own from one configuration file.
pub(super) fn maker(config: &Config) -> String {
    Caller::of_any_template().with_cpus(&config.hypervisor).to_string()
}

#[derive(Debug)]
pub(crate) struct Template {
    vm: OwnedFd,
    directory: PathBuf,
    identity: (u64, u64),
    key: String,
}

impl Template {
    /// The template for VMs of this configuration, which was loaded from `file`; none if it is not wanted or not there.
    pub(crate) fn find(file: &Path, config: &Config) -> Option<Self> {
        if !config.factory.enable_template {
            return None;
        }
        let key = key(file, config);
        let directory = config.factory.template_path.join(key.as_str());
        let before = identity(&directory);
        // Once more: a maker may have put another in its place just now.
        let opened = Self::open(directory.clone(), key.as_str());
        match opened.or_else(|_| Self::open(directory.clone(), key.as_str())) {
            Ok(template) => Some(template),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.raw_os_error().is_some() => {
                // That says something of this process, or of the disk.
                tracing::warn!(%error, directory = %directory.display(), "the template cannot be opened");
                None
            }
            Err(error) => {
                let why = format!("the template cannot be used: {error}");
                tracing::warn!(directory = %directory.display(), "{why}");
                let root = place::root();
                report::note(&root, key.as_str(), &why);
                // Whoever fills the pool next makes another.
                if identity(&directory) == before {
                    forget(&root, key.as_str());
                    remove(&directory);
                }
                None
            }
        }
    }

    fn open(directory: PathBuf, key: &str) -> io::Result<Self> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&directory)?;
        let about = opened.metadata()?;
        private(&about)?;
        let identity = (about.dev(), about.ino());
        let file = |name| -> io::Result<File> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = File::from(openat(&opened, name, flags, Mode::empty())?);
            private(&file.metadata()?)?;
            Ok(file)
        };
        let incomplete = |error: io::Error| match error.kind() {
            // The directory is there.
            io::ErrorKind::NotFound => io::Error::other("it is not whole"),
            _ => error,
        };
        let (about, vm) = (file(ABOUT).map_err(incomplete)?, file(VM).map_err(incomplete)?);
        let about: About = serde_json::from_reader(about)?;
        let data = vm.metadata()?;
        let reason = if about.key != key {
            "it is of another configuration"
        } else if about.boot != host_boot()? {
            "it was made before the host was started"
        } else if !data.is_file() || data.len() != about.length {
            "it is not whole"
        } else {
            return Ok(Self {
                vm: vm.into(),
                directory,
                identity,
                key: key.to_owned(),
            });
        };
        Err(io::Error::other(reason))
    }

    /// Makes the pool's link to it.
    pub(super) fn show(&self, root: &Path) {
        show(root, &self.key, &self.directory);
    }

    /// For a VM that is to be a copy; `counted`: of a sandbox, and not of a member.
    pub(crate) fn saved(self, counted: bool) -> Saved {
        let Self {
            vm,
            directory,
            identity,
            key,
        } = self;
        let outcome = move |outcome: Result<(), &NotCopied>| {
            let root = place::root();
            if counted {
                let counts = if outcome.is_ok() { Outcome::Copy } else { Outcome::Miss };
                report::count(&root, counts);
            }
            let Err(not) = outcome else { return };
            let why = format!("a VM could not be a copy of the template, and has booted: {}", not.why);
            tracing::warn!(directory = %directory.display(), "{why}");
            if !not.is_unfit {
                report::note(&root, &key, &why);
                return;
            }
            report::fail(&root, &key, &why);
            // Another one may have its place by now.
            if self::identity(&directory) == Some(identity) {
                forget(&root, &key);
                remove(&directory);
            }
        };
        Saved {
            file: vm,
            outcome: Box::new(outcome),
        }
    }
}

/// Counts a sandbox whose VM boots, where it might have been a copy.
pub(crate) fn count_boot() {
    report::count(&place::root(), Outcome::Miss);
}

/// One that is being made. What is not finished is removed.
#[derive(Debug)]
pub(super) struct Unfinished {
    path: PathBuf,
    whole: PathBuf,
    vm: File,
}

impl Unfinished {
    /// Makes the directories and the file. The slot's lock keeps others away.
    pub(super) fn create(template_path: &Path, key: &Key) -> Result<Self, PoolError> {
        let whole = template_path.join(key.as_str());
        let path = template_path.join(format!("{}{UNFINISHED}", key.as_str()));
        let failed = |source| PathError::new("make a template in", template_path, source);
        let make = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(template_path)?;
            private(&fs::metadata(template_path)?)?;
            remove(&path);
            DirBuilder::new().mode(0o700).create(&path)?;
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(path.join(VM))
        };
        let vm = make().map_err(failed)?;
        Ok(Self { path, whole, vm })
    }

    /// Where QEMU is to write.
    pub(super) fn file(&self) -> io::Result<OwnedFd> {
        self.vm.try_clone().map(Into::into)
    }

    /// Puts it in its place, on the disk before it has its name, and removes those that it replaces.
    pub(super) fn finish(self, root: &Path, key: &Key, config: &Path, maker: &str) -> Result<(), PoolError> {
        let failed = |source| PathError::new("write the template", &self.whole, source);
        let put = || -> io::Result<()> {
            let about = About {
                key: key.as_str().to_owned(),
                config: config.to_owned(),
                caller: maker.to_owned(),
                boot: host_boot()?,
                length: self.vm.metadata()?.len(),
                made: report::now(),
            };
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(self.path.join(ABOUT))?;
            serde_json::to_writer(&mut file, &about)?;
            file.sync_all()?;
            self.vm.sync_all()?;
            File::open(&self.path)?.sync_all()?;
            // Those who read the one that is there have it open.
            remove(&self.whole);
            fs::rename(&self.path, &self.whole)
        };
        put().map_err(failed)?;
        remove_replaced(root, &self.whole, key, config, maker);
        // Last: who waits for it finds everything done.
        show(root, key.as_str(), &self.whole);
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the templates that nobody uses any more: of the same configuration file as it was, also where it had another `template_path`, of an earlier
/// boot of the host, and what dead makers have left.
fn remove_replaced(root: &Path, whole: &Path, key: &Key, config: &Path, maker: &str) {
    let (Some(template_path), Ok(boot)) = (whole.parent(), host_boot()) else {
        return;
    };
    let elsewhere = place::templates(root).into_iter();
    for (name, path) in elsewhere.chain(place::of_keys(template_path, "")) {
        let is_replaced = |about: About| about.config == config && about.caller == maker || about.boot != boot;
        if path != whole && about(&path).is_some_and(is_replaced) {
            if name != key.as_str() {
                forget(root, &name);
            }
            remove(&path);
        }
    }
    remove_unfinished(root, template_path);
}

/// Removes the template of this key that was made when the configuration had another `template_path`: who waits for the new one must not find it.
pub(super) fn remove_elsewhere(root: &Path, template_path: &Path, key: &Key) {
    let Ok(directory) = fs::read_link(link(root, key.as_str())) else {
        return;
    };
    if directory != template_path.join(key.as_str()) {
        forget(root, key.as_str());
        if about(&directory).is_some_and(|about| about.key == key.as_str()) {
            remove(&directory);
        }
    }
}

/// Removes what dead makers have left.
pub(super) fn remove_unfinished(root: &Path, template_path: &Path) {
    for (key, path) in place::of_keys(template_path, UNFINISHED) {
        if !Slot::of_maker(root, &key).is_taken() {
            remove(&path);
        }
    }
}

/// Makes the link of a template. Without one it is used all the same, and whoever fills the pool next makes it.
fn show(root: &Path, key: &str, directory: &Path) {
    let link = link(root, key);
    let is_there = fs::read_link(&link).is_ok_and(|there| there == directory);
    if !is_there {
        let _ = fs::remove_file(&link);
        let linked = std::os::unix::fs::symlink(directory, &link);
        if let Err(error) = linked {
            tracing::debug!(%error, "a template is not shown");
        }
    }
}

/// What tells a directory from another that has its place later.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    let data = fs::symlink_metadata(directory).ok()?;
    Some((data.dev(), data.ino()))
}

fn forget(root: &Path, key: &str) {
    let _ = fs::remove_file(link(root, key));
}

fn link(root: &Path, key: &str) -> PathBuf {
    root.join(format!("{key}{}", place::TEMPLATE))
}

fn remove(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, directory = %directory.display(), "a template cannot be removed");
        }
        _ => {}
    }
}

fn about(directory: &Path) -> Option<About> {
    serde_json::from_slice(&fs::read(directory.join(ABOUT)).ok()?).ok()
}

/// A template as `factory status` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    key: String,
    /// `whole` or `making`.
    state: &'static str,
    config: PathBuf,
    directory: PathBuf,
    /// Age in seconds.
    age: u64,
    /// Bytes that it takes: its file has holes.
    bytes: u64,
}

/// All templates that the pool knows of, and those that are being made.
pub(super) fn shown(root: &Path) -> Vec<Shown> {
    // The makers first: one that ends meanwhile has left its template by then. So each is shown as one or the other, or as both.
    let mut all: Vec<Shown> = place::slots(root)
        .iter()
        .filter(|slot| slot.is_maker() && slot.is_taken())
        .map(|slot| Shown {
            key: slot.key().to_owned(),
            state: "making",
            config: report::read(slot).unwrap_or_default().config,
            directory: PathBuf::new(),
            age: 0,
            bytes: 0,
        })
        .collect();
    all.extend(place::templates(root).into_iter().filter_map(|(key, directory)| {
        let about = about(&directory)?;
        let data = fs::metadata(directory.join(VM)).ok()?;
        Some(Shown {
            key,
            state: "whole",
            config: about.config,
            directory,
            age: report::now().saturating_sub(about.made),
            bytes: data.blocks().saturating_mul(512),
        })
    }));
    all.sort_by(|one, other| one.key.cmp(&other.key));
    all
}

/// Removes the templates of one configuration file, or all. The answer is how many there were.
pub(super) fn remove_all(root: &Path, only: Option<&Path>) -> usize {
    let mut removed = 0;
    for (key, directory) in place::templates(root) {
        let about = about(&directory);
        if only.is_some_and(|only| about.is_some_and(|about| about.config != only)) {
            continue;
        }
        forget(root, &key);
        remove(&directory);
        removed += 1;
    }
    removed
}

/// A template has whatever its guest had in its memory, and decides what a guest runs: nobody else may read or write it.
fn private(data: &Metadata) -> io::Result<()> {
    if data.uid() == rustix::process::geteuid().as_raw() && data.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(io::Error::other("others may write to it"))
    }
}

fn host_boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn made(root: &Path, templates: &Path, key: &str, config: &str) -> PathBuf {
        made_by(root, templates, key, config, "maker")
    }

    fn made_by(root: &Path, templates: &Path, key: &str, config: &str, maker: &str) -> PathBuf {
        let key = Key::test(key);
        let unfinished = Unfinished::create(templates, &key).unwrap();
        fs::write(unfinished.path.join(VM), "memory and state").unwrap();
        unfinished.finish(root, &key, Path::new(config), maker).unwrap();
        templates.join(key.as_str())
    }

    #[test]
    fn a_template_is_used_only_if_it_is_whole_and_of_this_configuration_and_boot_and_nobody_elses() {
        let root = tempfile::tempdir().unwrap();
        let (pool, templates) = (root.path().join("pool"), root.path().join("templates"));
        place::create(&pool).unwrap();
        let open = |directory: &Path| {
            Template::open(directory.to_owned(), "k")
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let again = || made(&pool, &templates, "k", "/c");
        let directory = again();
        assert_eq!(open(&directory), Ok(()));
        fs::write(directory.join(VM), "memory").unwrap();
        assert_eq!(open(&directory), Err("it is not whole".to_owned()));
        again();
        fs::remove_file(directory.join(ABOUT)).unwrap();
        assert_eq!(open(&directory), Err("it is not whole".to_owned()));
        again();
        let foreign = Template::open(directory.clone(), "other").unwrap_err().to_string();
        assert_eq!(foreign, "it is of another configuration");
        let mut before = about(&directory).unwrap();
        before.boot = "another".to_owned();
        fs::write(directory.join(ABOUT), serde_json::to_vec(&before).unwrap()).unwrap();
        assert_eq!(
            open(&directory),
            Err("it was made before the host was started".to_owned())
        );
        again();
        for writable in [directory.clone(), directory.join(VM), directory.join(ABOUT)] {
            let mode = fs::metadata(&writable).unwrap().permissions();
            fs::set_permissions(&writable, fs::Permissions::from_mode(0o777)).unwrap();
            assert_eq!(open(&directory), Err("others may write to it".to_owned()));
            fs::set_permissions(&writable, mode).unwrap();
        }
        assert_eq!(open(&directory), Ok(()));
        let missing = Template::open(templates.join("missing"), "missing").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_not_finished_has_no_name_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let templates = root.path().join("templates");
        let unfinished = Unfinished::create(&templates, &Key::test("k")).unwrap();
        assert!(templates.join("k.new/vm").exists() && !templates.join("k").exists());
        drop(unfinished);
        assert_eq!(fs::read_dir(&templates).unwrap().count(), 0);
    }

    #[test]
    fn a_new_template_replaces_that_of_its_configuration_and_what_dead_makers_have_left_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let (pool, templates) = (root.path().join("pool"), root.path().join("templates"));
        place::create(&pool).unwrap();
        let old = made(&pool, &templates, "old", "/c");
        let others = made(&pool, &templates, "others", "/d");
        let living = Slot::of_maker(&pool, "living");
        let lock = living.take().unwrap();
        for name in ["dead.new", "living.new"] {
            fs::create_dir(templates.join(name)).unwrap();
        }
        let new = made(&pool, &templates, "new", "/c");
        assert!(!old.exists() && others.exists() && new.exists());
        assert!(!templates.join("dead.new").exists() && templates.join("living.new").exists());
        let keys = |shown: Vec<Shown>| {
            shown
                .into_iter()
                .map(|shown| (shown.key, shown.state))
                .collect::<Vec<_>>()
        };
        let all = [("living", "making"), ("new", "whole"), ("others", "whole")];
        assert_eq!(keys(shown(&pool)), all.map(|(key, state)| (key.to_owned(), state)));
        drop(lock);
        assert_eq!(remove_all(&pool, Some(Path::new("/c"))), 1);
        assert!(!new.exists() && others.exists());
        assert_eq!(place::templates(&pool).len(), 1);
        assert_eq!(remove_all(&pool, None), 1);
        assert!(!others.exists() && place::templates(&pool).is_empty());
    }

    #[test]
    fn processes_with_other_cpus_have_templates_of_their_own_from_one_configuration() {
        let root = tempfile::tempdir().unwrap();
        let (pool, templates) = (root.path().join("pool"), root.path().join("templates"));
        place::create(&pool).unwrap();
        let of_two = made_by(&pool, &templates, "two", "/c", "cpus=2");
        let of_one = made_by(&pool, &templates, "one", "/c", "cpus=1");
        assert!(of_two.exists() && of_one.exists());
        let again = made_by(&pool, &templates, "new", "/c", "cpus=1");
        assert!(of_two.exists() && !of_one.exists() && again.exists());
    }

    #[test]
    fn a_template_is_removed_when_its_configuration_has_another_place_for_it() {
        let root = tempfile::tempdir().unwrap();
        let (pool, here) = (root.path().join("pool"), root.path().join("here"));
        place::create(&pool).unwrap();
        for (number, key) in ["same", "other"].into_iter().enumerate() {
            let there = root.path().join(format!("there{number}"));
            let before = made(&pool, &there, "same", "/c");
            let others = made(&pool, &there, "others", "/d");
            remove_elsewhere(&pool, &there, &Key::test("same"));
            assert!(before.exists());
            if key == "same" {
                remove_elsewhere(&pool, &here, &Key::test(key));
                assert!(!before.exists());
            }
            let after = made(&pool, &here, key, "/c");
            assert!(!before.exists() && others.exists() && after.exists());
            let links: Vec<_> = place::templates(&pool).into_iter().map(|(_, path)| path).collect();
            assert!(
                links.contains(&after) && links.contains(&others) && !links.contains(&before),
                "{links:?}"
            );
        }
    }
}
