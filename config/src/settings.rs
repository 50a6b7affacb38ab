//! Every supported key: where it is, how it is read, what it fills, how it is shown.
//!
//! This is the only list of them; the loader, the annotations, `kata-ctl config` and the check of the shipped default
//! all go through it.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

use crate::model::Config;
use crate::raw::{Raw, Refusal};
use crate::value::{
    Accelerator, MachineType, Mebibytes, NamePattern, PathPattern, SharedFs, Vcpus, VirtioFsCache, Vsock,
};

/// A table of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Hypervisor,
    Agent,
    Runtime,
}

impl Table {
    pub(crate) const ALL: [Table; 3] = [Table::Hypervisor, Table::Agent, Table::Runtime];

    /// Its name in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Hypervisor => "hypervisor.qemu",
            Table::Agent => "agent.kata",
            Table::Runtime => "runtime",
        }
    }

    /// What its annotations start with.
    pub(crate) fn annotation_prefix(self) -> &'static str {
        match self {
            Table::Hypervisor => "io.katacontainers.config.hypervisor.",
            Table::Agent => "io.katacontainers.config.agent.",
            Table::Runtime => "io.katacontainers.config.runtime.",
        }
    }
}

/// Which list of the configuration has to allow the path in an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathList {
    Hypervisor,
    VirtioFsDaemon,
    Boot,
}

impl PathList {
    /// The list's key.
    pub(crate) fn key(self) -> &'static str {
        match self {
            PathList::Hypervisor => "valid_hypervisor_paths",
            PathList::VirtioFsDaemon => "valid_virtio_fs_daemon_paths",
            PathList::Boot => "valid_boot_paths",
        }
    }

    /// The list itself.
    pub(crate) fn patterns(self, config: &Config) -> &[PathPattern] {
        match self {
            PathList::Hypervisor => &config.hypervisor.valid_hypervisor_paths,
            PathList::VirtioFsDaemon => &config.hypervisor.valid_virtio_fs_daemon_paths,
            PathList::Boot => &config.hypervisor.valid_boot_paths,
        }
    }
}

/// How a key can be set by an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only in the file.
    File,
    /// By the annotation of this name.
    Annotation(&'static str),
    /// By the annotation of this name, to a path that the list allows.
    Path(&'static str, PathList),
    /// By the annotation of this name, which adds to what the file says.
    Append(&'static str),
}

/// A supported key.
pub(crate) struct Setting {
    pub(crate) table: Table,
    pub(crate) key: &'static str,
    pub(crate) access: Access,
    /// Another place for a key that is listed elsewhere too: read, but not shown.
    pub(crate) alias: bool,
    pub(crate) set: fn(&mut Config, Raw<'_>) -> Result<(), Refusal>,
    pub(crate) show: fn(&Config) -> Value,
}

impl Setting {
    /// The name of its annotation, without the prefix.
    pub(crate) fn annotation(&self) -> Option<&'static str> {
        match self.access {
            Access::File => None,
            Access::Annotation(name) | Access::Path(name, _) | Access::Append(name) => Some(name),
        }
    }
}

/// The setting with that key.
pub(crate) fn find(table: Table, key: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| setting.table == table && setting.key == key)
}

struct Codec<T> {
    read: fn(Raw<'_>) -> Result<T, Refusal>,
    show: fn(&T) -> Value,
}

macro_rules! setting {
    ($table:ident, $room:ident . $field:ident, $codec:expr, $access:expr) => {
        setting!($table, $room.$field, $codec, $access, false)
    };
    ($table:ident, $room:ident . $field:ident, $codec:expr, $access:expr, $alias:expr) => {
        Setting {
            table: Table::$table,
            key: stringify!($field),
            access: $access,
            alias: $alias,
            set: |config, raw| {
                config.$room.$field = ($codec.read)(raw)?;
                Ok(())
            },
            show: |config| ($codec.show)(&config.$room.$field),
        }
    };
}

/// All supported keys, in the order in which they are shown.
pub(crate) static SETTINGS: &[Setting] = &[
    setting!(
        Hypervisor,
        hypervisor.path,
        PROGRAM,
        Access::Path("path", PathList::Hypervisor)
    ),
    setting!(
        Hypervisor,
        hypervisor.kernel,
        FILE,
        Access::Path("kernel", PathList::Boot)
    ),
    setting!(
        Hypervisor,
        hypervisor.initrd,
        FILE,
        Access::Path("initrd", PathList::Boot)
    ),
    setting!(
        Hypervisor,
        hypervisor.machine_type,
        MACHINE_TYPE,
        Access::Annotation("machine_type")
    ),
    setting!(Hypervisor, hypervisor.accelerator, ACCELERATOR, Access::File),
    setting!(
        Hypervisor,
        hypervisor.default_vcpus,
        VCPUS,
        Access::Annotation("default_vcpus")
    ),
    setting!(
        Hypervisor,
        hypervisor.default_maxvcpus,
        MAX_VCPUS,
        Access::Annotation("default_max_vcpus")
    ),
    setting!(
        Hypervisor,
        hypervisor.default_memory,
        MEMORY,
        Access::Annotation("default_memory")
    ),
    setting!(
        Hypervisor,
        hypervisor.memory_slots,
        SLOTS,
        Access::Annotation("memory_slots")
    ),
    setting!(
        Hypervisor,
        hypervisor.kernel_params,
        KERNEL_PARAMS,
        Access::Append("kernel_params")
    ),
    setting!(
        Hypervisor,
        hypervisor.shared_fs,
        SHARED_FS,
        Access::Annotation("shared_fs")
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_daemon,
        PROGRAM,
        Access::Path("virtio_fs_daemon", PathList::VirtioFsDaemon)
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_cache,
        VIRTIO_FS_CACHE,
        Access::Annotation("virtio_fs_cache")
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_queue_size,
        QUEUE_SIZE,
        Access::Annotation("virtio_fs_queue_size")
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_extra_args,
        VIRTIO_FS_ARGS,
        Access::Annotation("virtio_fs_extra_args")
    ),
    setting!(Hypervisor, hypervisor.vsock, VSOCK, Access::File),
    setting!(Hypervisor, hypervisor.vsock_daemon, PROGRAM, Access::File),
    setting!(Hypervisor, hypervisor.seccompsandbox, SECCOMP_SANDBOX, Access::File),
    setting!(
        Hypervisor,
        hypervisor.enable_iothreads,
        BOOLEAN,
        Access::Annotation("enable_iothreads")
    ),
    setting!(Hypervisor, hypervisor.enable_debug, BOOLEAN, Access::File),
    setting!(Hypervisor, hypervisor.enable_annotations, NAME_PATTERNS, Access::File),
    setting!(
        Hypervisor,
        hypervisor.valid_hypervisor_paths,
        PATH_PATTERNS,
        Access::File
    ),
    setting!(
        Hypervisor,
        hypervisor.valid_virtio_fs_daemon_paths,
        PATH_PATTERNS,
        Access::File
    ),
    setting!(Hypervisor, hypervisor.valid_boot_paths, PATH_PATTERNS, Access::File),
    setting!(Agent, agent.dial_timeout, DIAL_TIMEOUT, Access::File),
    setting!(Agent, agent.enable_debug, BOOLEAN, Access::File),
    setting!(Agent, agent.debug_console_enabled, BOOLEAN, Access::File),
    setting!(Runtime, runtime.enable_debug, BOOLEAN, Access::File),
    setting!(
        Runtime,
        runtime.create_container_timeout,
        CREATE_TIMEOUT,
        Access::Annotation("create_container_timeout")
    ),
    setting!(
        Runtime,
        runtime.disable_guest_seccomp,
        BOOLEAN,
        Access::Annotation("disable_guest_seccomp")
    ),
    setting!(
        Runtime,
        runtime.sandbox_cgroup_only,
        BOOLEAN,
        Access::Annotation("sandbox_cgroup_only")
    ),
    setting!(Runtime, runtime.static_sandbox_resource_mgmt, BOOLEAN, Access::File),
    // Kata's runtime-rs has it in the agent's table.
    setting!(
        Agent,
        runtime.create_container_timeout,
        CREATE_TIMEOUT,
        Access::File,
        true
    ),
];

const BOOLEAN: Codec<bool> = Codec {
    read: |raw| raw.boolean().ok_or_else(|| Refusal::new("true or false")),
    show: |value| Value::Boolean(*value),
};

const FILE: Codec<PathBuf> = Codec {
    read: |raw| path(raw, false),
    show: |path| show_path(path),
};
const PROGRAM: Codec<PathBuf> = Codec {
    read: |raw| path(raw, true),
    show: |path| show_path(path),
};

/// Longest path that a system call takes, without its NUL (PATH_MAX, limits.h).
const LONGEST_PATH: usize = 4095;

fn path(raw: Raw<'_>, bare_name: bool) -> Result<PathBuf, Refusal> {
    let valid = |text: &&str| {
        let bare = bare_name && !text.contains('/') && !text.is_empty() && *text != "." && *text != "..";
        let plain = text.len() <= LONGEST_PATH && !text.contains(char::is_control);
        plain && (bare || (Path::new(text).is_absolute() && !text.ends_with('/')))
    };
    let allowed = if bare_name {
        "an absolute path, or a name without a slash, which is looked up in PATH"
    } else {
        "an absolute path"
    };
    raw.text()
        .filter(valid)
        .map(PathBuf::from)
        .ok_or_else(|| Refusal::new(allowed))
}

fn show_path(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

/// Reads one of an enum's names.
macro_rules! choice_codec {
    ($type:ident) => {
        Codec::<$type> {
            read: |raw| {
                let found = raw
                    .text()
                    .and_then(|text| $type::ALL.iter().find(|choice| choice.as_str() == text));
                found.copied().ok_or_else(|| {
                    let names: Vec<_> = $type::ALL.iter().map(|choice| format!("\"{choice}\"")).collect();
                    Refusal::new(names.join(" or "))
                })
            },
            show: |value| Value::String(value.as_str().to_owned()),
        }
    };
}

const MACHINE_TYPE: Codec<MachineType> = choice_codec!(MachineType);
const ACCELERATOR: Codec<Accelerator> = choice_codec!(Accelerator);
const SHARED_FS: Codec<SharedFs> = choice_codec!(SharedFs);
const VIRTIO_FS_CACHE: Codec<VirtioFsCache> = choice_codec!(VirtioFsCache);
const VSOCK: Codec<Vsock> = choice_codec!(Vsock);

const VCPUS: Codec<Vcpus> = Codec {
    read: |raw| {
        // 0.5 is allowed in Kata 3, and the VM gets whole CPUs.
        let number = raw
            .number()
            .ok_or_else(|| Refusal::new("a number of CPUs; negative for all of the host's"))?;
        Ok(if number < 0.0 {
            Vcpus::Host
        } else {
            Vcpus::Count(whole_cpus(number))
        })
    },
    show: |value| match value {
        Vcpus::Host => Value::Integer(-1),
        Vcpus::Count(count) => Value::Integer(count.get().into()),
    },
};

/// Rounds up; 0 is 1, as in Kata. A float that does not fit becomes the largest number (the `as` conversion saturates),
/// and no VM gets more than `MAX_VCPUS` anyhow.
fn whole_cpus(number: f64) -> NonZeroU32 {
    NonZeroU32::new(number.ceil() as u32).unwrap_or(NonZeroU32::MIN)
}

const MAX_VCPUS: Codec<Vcpus> = Codec {
    read: |raw| {
        let number = raw.integer().and_then(|number| u32::try_from(number).ok());
        let number = number.ok_or_else(|| Refusal::new("a whole number of CPUs; 0 for all of the host's"))?;
        Ok(NonZeroU32::new(number).map_or(Vcpus::Host, Vcpus::Count))
    },
    show: |value| match value {
        Vcpus::Host => Value::Integer(0),
        Vcpus::Count(count) => Value::Integer(count.get().into()),
    },
};

fn whole(raw: Raw<'_>, least: u32, most: u32, what: &str) -> Result<u32, Refusal> {
    let number = raw.integer().and_then(|number| u32::try_from(number).ok());
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| Refusal::new(format!("{what} from {least} to {most}")))
}

/// 64 MiB is what the guest's kernel and initrd need; 1 TiB is beyond any host that this was tried on.
const MEMORY: Codec<Mebibytes> = Codec {
    read: |raw| whole(raw, 64, 1 << 20, "a whole number of MiB").map(Mebibytes),
    show: |value| Value::Integer(value.0.into()),
};

/// QEMU's limit on x86_64 is ACPI_MAX_RAM_SLOTS, 256.
const SLOTS: Codec<u32> = Codec {
    read: |raw| whole(raw, 1, 256, "a whole number"),
    show: |value| Value::Integer((*value).into()),
};

/// QEMU's limit is VIRTQUEUE_MAX_SIZE, 1024; a split virtqueue's size is a power of two (virtio 1.2, 2.7).
const QUEUE_SIZE: Codec<u16> = Codec {
    read: |raw| {
        let size = raw.integer().and_then(|number| u16::try_from(number).ok());
        let size = size.filter(|size| size.is_power_of_two() && (2..=1024).contains(size));
        size.ok_or_else(|| Refusal::new("a power of two from 2 to 1024"))
    },
    show: |value| Value::Integer((*value).into()),
};

const DIAL_TIMEOUT: Codec<Duration> = Codec {
    read: |raw| seconds(raw, 3_600),
    show: show_seconds,
};
const CREATE_TIMEOUT: Codec<Duration> = Codec {
    read: |raw| seconds(raw, 86_400),
    show: show_seconds,
};

fn seconds(raw: Raw<'_>, most: u32) -> Result<Duration, Refusal> {
    whole(raw, 1, most, "a whole number of seconds").map(|number| Duration::from_secs(number.into()))
}

fn show_seconds(duration: &Duration) -> Value {
    Value::Integer(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))
}

/// The kernel's own limit is COMMAND_LINE_SIZE, 2048 on x86_64; the rest is for what the runtime adds.
pub(crate) const LONGEST_KERNEL_PARAMS: usize = 1536;

const KERNEL_PARAMS: Codec<String> = Codec {
    read: |raw| {
        let valid = |text: &&str| text.len() <= LONGEST_KERNEL_PARAMS && !text.contains(char::is_control);
        let text = raw.text().filter(valid).map(|text| text.trim().to_owned());
        text.ok_or_else(|| Refusal::new(format!("one line of at most {LONGEST_KERNEL_PARAMS} bytes")))
    },
    show: |value| Value::String(value.clone()),
};

/// What the runtime tells virtiofsd itself: an argument that says otherwise could serve other files to the guest.
const OWN_VIRTIOFSD_OPTIONS: &[&str] = &[
    "--socket-path",
    "--fd",
    "--shared-dir",
    "--cache",
    "--sandbox",
    "--seccomp",
    "--socket-group",
    "--tag",
    "-o",
];

const VIRTIO_FS_ARGS: Codec<Vec<String>> = Codec {
    read: |raw| {
        let arguments = raw.list().ok_or_else(|| Refusal::new("a list of strings"))?;
        let refused = arguments.iter().find(|argument| !valid_virtiofsd_argument(argument));
        match refused {
            None => Ok(arguments),
            Some(argument) => Err(Refusal::new(format!(
                "a list of virtiofsd's long options with their values after a `=`, without {}; {argument:?} is not one",
                OWN_VIRTIOFSD_OPTIONS.join(", ")
            ))),
        }
    },
    show: |value| Value::Array(value.iter().cloned().map(Value::String).collect()),
};

fn valid_virtiofsd_argument(argument: &str) -> bool {
    let name = argument.split('=').next().unwrap_or_default();
    name.len() > 2
        && name.starts_with("--")
        && !argument.contains(char::is_control)
        && !OWN_VIRTIOFSD_OPTIONS.contains(&name)
}

const SECCOMP_SANDBOX: Codec<Option<String>> = Codec {
    read: |raw| {
        let valid = |text: &&str| text.is_empty() || *text == "off" || valid_sandbox(text);
        let text = raw.text().filter(valid).ok_or_else(|| {
            Refusal::new("\"off\", or \"on\" followed by options such as \",spawn=deny\" (qemu(1), -sandbox)")
        })?;
        Ok(text.starts_with("on").then(|| text.to_owned()))
    },
    show: |value| Value::String(value.clone().unwrap_or_else(|| String::from("off"))),
};

fn valid_sandbox(text: &str) -> bool {
    let mut parts = text.split(',');
    parts.next() == Some("on")
        && parts.all(|part| match part.split_once('=') {
            Some(("elevateprivileges", value)) => matches!(value, "allow" | "deny" | "children"),
            Some(("obsolete" | "spawn" | "resourcecontrol", value)) => matches!(value, "allow" | "deny"),
            _ => false,
        })
}

const NAME_PATTERNS: Codec<Vec<NamePattern>> = Codec {
    read: |raw| {
        let texts = raw
            .list()
            .ok_or_else(|| Refusal::new("a list of regular expressions"))?;
        let compile = |text: &String| {
            NamePattern::new(text)
                .map_err(|error| Refusal::new(format!("a list of regular expressions; {text:?} is none: {error}")))
        };
        texts.iter().map(compile).collect()
    },
    show: |value| {
        Value::Array(
            value
                .iter()
                .map(|pattern| Value::String(pattern.as_str().to_owned()))
                .collect(),
        )
    },
};

const PATH_PATTERNS: Codec<Vec<PathPattern>> = Codec {
    read: |raw| {
        let texts = raw.list().ok_or_else(|| Refusal::new("a list of path patterns"))?;
        let compile = |text: &String| {
            PathPattern::new(text)
                .map_err(|error| Refusal::new(format!("a list of path patterns; {text:?} is none: {error}")))
        };
        texts.iter().map(compile).collect()
    },
    show: |value| {
        Value::Array(
            value
                .iter()
                .map(|pattern| Value::String(pattern.as_str().to_owned()))
                .collect(),
        )
    },
};
