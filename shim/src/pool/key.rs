//! The key of a VM: two VMs with the same key can stand in for each other.
//!
//! The key contains the configuration of the VM after the annotations, the identity of its files (not only their names), and the
//! namespaces, capabilities and limits that the process inherited. It does not contain limits of containers, because a VM grows to them.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::Hypervisor;
use rustix::process::{Resource, getrlimit};
use sha2::{Digest, Sha256};

use crate::qemu::debug_image;

/// Bytes of the digest that are in names.
const LENGTH: usize = 8;

/// The namespaces that a process of the runtime works in. Of the calling thread: a shim has threads in two mount namespaces.
const NAMESPACES: [&str; 7] = ["mnt", "net", "pid", "user", "uts", "ipc", "cgroup"];

/// Lines of proc_pid_status(5) that say what a process may do, and what its hooks and helpers inherit.
const RIGHTS: [&str; 9] = [
    "Umask:",
    "Uid:",
    "Gid:",
    "Groups:",
    "CapEff:",
    "CapBnd:",
    "NoNewPrivs:",
    "Seccomp:",
    "Cpus_allowed:",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

/// What a process of the runtime has of the host by who started it.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Vec<String>);

impl Caller {
    /// That of the calling thread. It changes when the thread joins other cgroups: cpusets decide `Cpus_allowed`.
    pub(crate) fn own() -> Self {
        let mut lines = Vec::new();
        let mut add = |what: &str, value: &dyn fmt::Debug| lines.push(format!("{what}={value:?}\n"));
        for name in NAMESPACES {
            add(name, &fs::read_link(format!("/proc/thread-self/ns/{name}")).ok());
        }
        add("root", &fs::metadata("/").map(|root| (root.dev(), root.ino())).ok());
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        for line in status
            .lines()
            .filter(|line| RIGHTS.iter().any(|name| line.starts_with(name)))
        {
            add("rights", &line);
        }
        add("label", &fs::read("/proc/thread-self/attr/current").ok());
        lines.push(files());
        Self(lines)
    }

    /// What counts of one for a template, which is used by whoever has the same configuration.
    pub(super) fn of_any_template() -> Self {
        Self(vec![files()])
    }

    /// And the sizes and the accelerator that a configuration has in this process, which may have fewer CPUs than another: QEMU can load only what is
    /// saved from the same machine.
    pub(super) fn with_sizes(mut self, config: &Hypervisor) -> Self {
        let sizes = (hypervisor::boot_size(config), hypervisor::largest_size(config));
        self.0
            .push(format!("sizes={sizes:?}\naccelerator={:?}\n", accelerator(config)));
        self
    }

    /// And what decides sizes and accelerator that is of this process, and not of the configuration.
    pub(super) fn with_cpus(mut self, config: &Hypervisor) -> Self {
        let cpus = std::thread::available_parallelism().ok();
        self.0
            .push(format!("cpus={cpus:?}\naccelerator={:?}\n", accelerator(config)));
        self
    }
}

fn accelerator(config: &Hypervisor) -> Option<hypervisor::Accel> {
    let chosen = hypervisor::accelerator(config.accelerator);
    chosen.ok().map(|(accelerator, _)| accelerator)
}

/// virtiofsd's share of it decides how many files the guest remembers.
fn files() -> String {
    format!("files={:?}\n", getrlimit(Resource::Nofile).maximum)
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| formatter.write_str(line))
    }
}

impl Key {
    /// For VMs of this configuration, which was loaded from `file`, as this caller would boot them.
    pub(crate) fn of(file: &Path, config: &config::Config, caller: &Caller) -> Self {
        let hypervisor = &config.hypervisor;
        let console = config.agent.debug_console_enabled;
        let mut digest = Sha256::new();
        let mut add = |what: &str, value: &dyn fmt::Debug| digest.update(format!("{what}={value:?}\n"));
        add("version", &env!("CARGO_PKG_VERSION"));
        add("file", &file);
        add("hypervisor", hypervisor);
        // Whether the VM can grow.
        add("constant", &config.runtime.static_sandbox_resource_mgmt);
        add("console", &console);
        add("dial", &config.agent.dial_timeout);
        // Of QEMU's monitor and of hot-plugging.
        add("timeouts", &config.runtime.timeout_factor);
        let mut files = vec![
            std::env::current_exe().unwrap_or_default(),
            hypervisor.path.clone(),
            hypervisor.kernel.clone(),
            config::modules_beside(&hypervisor.kernel),
            hypervisor.initrd.clone(),
            hypervisor.virtio_fs_daemon.clone(),
            hypervisor.vsock_daemon.clone(),
        ];
        if console {
            files.push(hypervisor.initrd.with_file_name(debug_image::PROGRAMS));
        }
        for file in files {
            add("program", &(&file, identity(&file).ok()));
        }
        for line in &caller.0 {
            digest.update(line);
        }
        let digest = digest.finalize();
        Self(digest.iter().take(LENGTH).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The form used in file names.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(super) fn test(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// What tells a file from what another build puts in its place, links followed: where it is, how long, and when it was changed.
fn identity(path: &Path) -> io::Result<(PathBuf, [i128; 5])> {
    let found = if path.is_absolute() {
        path.to_owned()
    } else {
        let search = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&search).map(|directory| directory.join(path));
        places.find(|place| place.exists()).ok_or(io::ErrorKind::NotFound)?
    };
    let data = fs::metadata(&found)?;
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let numbers = [
        data.dev().into(),
        data.ino().into(),
        data.len().into(),
        time(data.mtime(), data.mtime_nsec()),
        time(data.ctime(), data.ctime_nsec()),
    ];
    Ok((found, numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(directory: &Path) -> config::Config {
        let mut config = config::Config::default();
        for (name, path) in [
            ("kernel", &mut config.hypervisor.kernel),
            ("initrd", &mut config.hypervisor.initrd),
        ] {
            *path = directory.join(name);
            fs::write(path, name).unwrap();
        }
        config
    }

    #[test]
    fn the_key_is_the_same_as_long_as_nothing_changes_and_another_one_for_each_change() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = configured(directory.path());
        let file = Path::new("/etc/a.toml");
        let first = Key::of(file, &config, &Caller::own());
        assert_eq!(first, Key::of(file, &config, &Caller::own()));
        assert_ne!(first, Key::of(Path::new("/etc/b.toml"), &config, &Caller::own()));
        config.hypervisor.kernel_params = "quiet".to_owned();
        let second = Key::of(file, &config, &Caller::own());
        assert_ne!(first, second);
        // As an upgrade does it: another file of the same name and length.
        let new = directory.path().join("new");
        fs::write(&new, "KERNEL").unwrap();
        fs::rename(&new, &config.hypervisor.kernel).unwrap();
        let third = Key::of(file, &config, &Caller::own());
        assert_ne!(second, third);
        fs::write(directory.path().join(config::MODULES), "modules").unwrap();
        let with_modules = Key::of(file, &config, &Caller::own());
        assert_ne!(third, with_modules);
        let third = with_modules;
        config.agent.debug_console_enabled = true;
        let fourth = Key::of(file, &config, &Caller::own());
        assert_ne!(third, fourth);
        config.runtime.static_sandbox_resource_mgmt = !config.runtime.static_sandbox_resource_mgmt;
        assert_ne!(fourth, Key::of(file, &config, &Caller::own()));
    }

    #[test]
    fn what_does_not_decide_a_vm_is_not_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = configured(directory.path());
        let file = Path::new("/etc/a.toml");
        let first = Key::of(file, &config, &Caller::own());
        config.factory.vm_cache_number = 7;
        config.runtime.disable_guest_seccomp = !config.runtime.disable_guest_seccomp;
        assert_eq!(first, Key::of(file, &config, &Caller::own()));
    }
}
