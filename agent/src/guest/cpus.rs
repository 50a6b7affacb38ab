//! CPUs that are plugged into the VM: the kernel detects them, and this module brings them online.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::blocking;
use crate::common::timeouts::scaled;
use crate::guest::uevents::Uevents;

/// The kernel's Documentation/core-api/cpu_hotplug.rst.
const CPUS: &str = "/sys/devices/system/cpu";

/// How long a CPU may take to appear: the kernel only has to ask ACPI, which takes a second under emulation on a busy host.
const APPEARS: Duration = Duration::from_secs(20);

/// Why there are not so many CPUs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnlineError {
    /// The kernel has made room for fewer when it booted.
    #[error("the guest's kernel has no place for {wanted} CPUs but for {possible}")]
    NoPlace {
        /// How many were asked for.
        wanted: u32,
        /// How many there can be.
        possible: u32,
    },
    /// Some have not come.
    #[error("{online} of {wanted} CPUs are online, and no other has appeared within {} s", scaled(APPEARS).as_secs_f64())]
    Missing {
        /// How many were asked for.
        wanted: u32,
        /// How many there are.
        online: u32,
    },
    /// A file of the kernel.
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
        let path = entry.path().join("online");
        // Not each entry is a CPU, and the first has no such file.
        if fs::read_to_string(&path).is_ok_and(|text| text.trim() == "0") {
            fs::write(&path, "1").map_err(failed("write", &path))?;
        }
    }
    Ok(count(cpus, "online")? >= wanted)
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
