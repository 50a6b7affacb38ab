//! CPUs that are plugged into the VM: the kernel detects them, and this module brings them online, whenever they appear.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::blocking;
use crate::common::timeouts::scaled;
use crate::guest::uevents::{Uevents, added};

/// The kernel's Documentation/core-api/cpu_hotplug.rst.
const CPUS: &str = "/sys/devices/system/cpu";

/// How long a CPU may take to appear: the kernel only has to ask ACPI, which takes a second under emulation on a busy host.
const APPEARS: Duration = Duration::from_secs(20);

/// Why there are not so many CPUs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnlineError {
    /// The kernel has made room for fewer when it booted.
    #[error("the guest's kernel has no place for {wanted} CPUs but for {possible}")]
    NoPlace { wanted: u32, possible: u32 },
    #[error("{online} of {wanted} CPUs are online, and no other has appeared within {} s", scaled(APPEARS).as_secs_f64())]
    Missing { wanted: u32, online: u32 },
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> OnlineError {
    move |source| OnlineError::Io {
        what,
        path: path.into(),
        source,
    }
}

/// Sees to it that at least so many CPUs are online.
///
/// # Errors
/// The kernel has no place for them, or they do not appear.
pub(crate) async fn online(wanted: u32) -> Result<(), OnlineError> {
    if counted("online")? >= wanted {
        return Ok(());
    }
    let possible = counted("possible")?;
    if possible < wanted {
        return Err(OnlineError::NoPlace { wanted, possible });
    }
    let events = Uevents::listen().map_err(failed("listen to the events of", CPUS))?;
    let coming = async {
        loop {
            // On a thread of its own: the kernel measures each CPU's speed, which takes seconds under emulation.
            let brought = blocking::run(move || bring_online(Path::new(CPUS), wanted)).await;
            if brought.map_err(failed("bring online the CPUs of", CPUS))?? {
                return Ok(());
            }
            events.next().await.map_err(failed("listen to the events of", CPUS))?;
        }
    };
    match tokio::time::timeout(scaled(APPEARS), coming).await {
        Ok(result) => result,
        Err(_) => Err(OnlineError::Missing {
            wanted,
            online: counted("online")?,
        }),
    }
}

/// CPUs that have appeared.
#[derive(Debug, PartialEq, Eq)]
enum Appeared {
    Numbers(BTreeSet<u32>),
    /// Announcements were lost: it may be any CPU.
    Any,
}

impl Appeared {
    /// Takes note of an announcement; of none if some were lost.
    fn note(&mut self, announcement: Option<&[u8]>) {
        let Some(announcement) = announcement else {
            *self = Self::Any;
            return;
        };
        if let (Self::Numbers(numbers), Some(number)) = (self, number_in(announcement)) {
            numbers.insert(number);
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Numbers(numbers) => numbers.iter().any(|number| name == format!("cpu{number}")),
        }
    }
}

/// The number of the CPU whose appearance is announced.
fn number_in(announcement: &[u8]) -> Option<u32> {
    added(announcement)?
        .strip_prefix("/devices/system/cpu/cpu")?
        .parse()
        .ok()
}

/// Brings each CPU online that appears. [`online`] waits for a limited time, and the host may add a CPU without a call, when the guest has
/// let go of one that was in its place. Never returns, unless the kernel announces nothing.
pub(crate) async fn follow() {
    let error = match Uevents::listen() {
        Ok(events) => loop {
            let mut appeared = Appeared::Numbers(BTreeSet::new());
            if let Err(error) = events.next_of(|announcement| appeared.note(announcement)).await {
                break error;
            }
            if appeared == Appeared::Numbers(BTreeSet::new()) {
                continue;
            }
            let brought = blocking::run(move || bring_online_those(Path::new(CPUS), &appeared)).await;
            match brought.map_err(failed("bring online the CPUs of", CPUS)).flatten() {
                Ok(()) => {}
                Err(error) => tracing::warn!(error = base::chain(&error), "a CPU that has appeared is not online"),
            }
        },
        Err(error) => error,
    };
    tracing::warn!(%error, "CPUs that appear late stay offline until the next change of the VM's size");
}

fn counted(list: &str) -> Result<u32, OnlineError> {
    count(Path::new(CPUS), list)
}

fn count(cpus: &Path, list: &str) -> Result<u32, OnlineError> {
    let path = cpus.join(list);
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    in_list(&text).ok_or_else(|| failed("understand", path)(io::ErrorKind::InvalidData.into()))
}

/// How many CPUs a list has (cpuset(7), "List format").
fn in_list(list: &str) -> Option<u32> {
    let mut cpus = 0u32;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        cpus = cpus.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(cpus)
}

/// Brings CPUs online until there are so many, and says whether there are.
fn bring_online(cpus: &Path, wanted: u32) -> Result<bool, OnlineError> {
    for entry in fs::read_dir(cpus).map_err(failed("list", cpus))?.flatten() {
        if count(cpus, "online")? >= wanted {
            return Ok(true);
        }
        bring_online_one(&entry.path())?;
    }
    Ok(count(cpus, "online")? >= wanted)
}

/// Brings those online that have appeared. One that cannot be does not keep the others from it.
fn bring_online_those(cpus: &Path, appeared: &Appeared) -> Result<(), OnlineError> {
    let mut first = Ok(());
    for entry in fs::read_dir(cpus).map_err(failed("list", cpus))?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| appeared.has(name)) {
            first = first.and(bring_online_one(&entry.path()));
        }
    }
    first
}

/// Not each entry is a CPU, and the first has no such file.
fn bring_online_one(cpu: &Path) -> Result<(), OnlineError> {
    let path = cpu.join("online");
    if fs::read_to_string(&path).is_ok_and(|text| text.trim() == "0") {
        fs::write(&path, "1").map_err(failed("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted() {
        for (list, cpus) in [
            ("0\n", Some(1)),
            ("0-3", Some(4)),
            ("0,2-3,7", Some(4)),
            ("", None),
            ("3-1", None),
            ("x", None),
        ] {
            assert_eq!(in_list(list), cpus, "{list:?}");
        }
        assert_eq!(in_list("0-4294967295"), None);
    }

    #[test]
    fn a_cpu_that_appears_late_is_brought_online_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let file = |cpu: &str| directory.path().join(cpu).join("online");
        for cpu in ["cpu0", "cpu1", "cpu12", "cpufreq"] {
            fs::create_dir(directory.path().join(cpu)).unwrap();
            fs::write(file(cpu), "0\n").unwrap();
        }
        let said = |cpu: &str| fs::read_to_string(file(cpu)).unwrap();
        let mut appeared = Appeared::Numbers(BTreeSet::new());
        appeared.note(Some(b"add@/devices/system/cpu/cpu12\0ACTION=add\0"));
        // Another device, and a CPU that has gone.
        appeared.note(Some(b"add@/devices/system/memory/memory1\0ACTION=add\0"));
        appeared.note(Some(b"remove@/devices/system/cpu/cpu1\0ACTION=remove\0"));
        assert_eq!(appeared, Appeared::Numbers(BTreeSet::from([12])));
        bring_online_those(directory.path(), &appeared).unwrap();
        assert_eq!(["cpu0", "cpu1", "cpu12"].map(said), ["0\n", "0\n", "1"]);
        // Announcements were lost: it may be any.
        appeared.note(None);
        bring_online_those(directory.path(), &appeared).unwrap();
        assert_eq!(["cpu0", "cpu1", "cpu12"].map(said), ["1"; 3]);
    }

    #[test]
    fn those_that_are_offline_are_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for cpu in ["cpu0", "cpu1", "cpufreq"] {
            fs::create_dir(path(cpu)).unwrap();
        }
        fs::write(path("cpu1/online"), "0\n").unwrap();
        fs::write(path("online"), "0\n").unwrap();
        // No kernel counts here.
        assert!(!bring_online(directory.path(), 2).unwrap());
        assert_eq!(fs::read_to_string(path("cpu1/online")).unwrap(), "1");
        fs::write(path("online"), "0-1\n").unwrap();
        fs::write(path("cpu1/online"), "0\n").unwrap();
        assert!(bring_online(directory.path(), 2).unwrap());
        assert_eq!(fs::read_to_string(path("cpu1/online")).unwrap(), "0\n");
    }
}
