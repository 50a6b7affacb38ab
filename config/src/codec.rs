//! How each kind of value is parsed and shown.
//!
//! This module defines types and ranges of settings; `settings` says which setting has which.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

use crate::locked::{CapPolicy, LockLimit, OnExcess, PerfEventKb};
use crate::raw::{Raw, Refusal};
use crate::value::{
    Accelerator, BlockAio, EmptyDirMode, Factor, HostNetwork, InterNetworking, MachineType, Mebibytes, MilliCpus,
    NamePattern, PathPattern, SandboxBind, Secret, SharedFs, Vcpus, VirtioFsCache, Vsock,
};
use crate::virtiofsd;

/// Reads and shows one kind of value.
pub(crate) struct Codec<T> {
    pub(crate) read: fn(Raw<'_>) -> Result<T, Refusal>,
    pub(crate) show: fn(&T) -> Value,
}

pub(crate) const BOOLEAN: Codec<bool> = Codec {
    read: |raw| raw.boolean().ok_or_else(|| Refusal::new("true or false")),
    show: |value| Value::Boolean(*value),
};

pub(crate) const FILE: Codec<PathBuf> = Codec {
    read: |raw| path(raw, false),
    show: |path| show_path(path),
};
pub(crate) const PROGRAM: Codec<PathBuf> = Codec {
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

pub(crate) const MACHINE_TYPE: Codec<MachineType> = choice_codec!(MachineType);
pub(crate) const ACCELERATOR: Codec<Accelerator> = choice_codec!(Accelerator);
pub(crate) const SHARED_FS: Codec<SharedFs> = choice_codec!(SharedFs);
pub(crate) const EMPTY_DIR_MODE: Codec<EmptyDirMode> = choice_codec!(EmptyDirMode);
pub(crate) const VIRTIO_FS_CACHE: Codec<VirtioFsCache> = choice_codec!(VirtioFsCache);
pub(crate) const BLOCK_AIO: Codec<BlockAio> = choice_codec!(BlockAio);
pub(crate) const VSOCK: Codec<Vsock> = choice_codec!(Vsock);
pub(crate) const ON_EXCESS: Codec<OnExcess> = choice_codec!(OnExcess);
pub(crate) const CAP_POLICY: Codec<CapPolicy> = choice_codec!(CapPolicy);
pub(crate) const INTERNETWORKING: Codec<InterNetworking> = choice_codec!(InterNetworking);
pub(crate) const HOST_NETWORK: Codec<HostNetwork> = choice_codec!(HostNetwork);

pub(crate) const VCPUS: Codec<Vcpus> = Codec {
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

pub(crate) const MAX_VCPUS: Codec<Vcpus> = Codec {
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

/// Negative is our word for "not set": Kata's runtime-rs knows none.
pub(crate) const OVERHEAD_VCPUS: Codec<Option<MilliCpus>> = Codec {
    read: |raw| {
        let refusal = || Refusal::new("a number of CPUs from 0 to 240, or a negative one for none of its own");
        let number = raw.number().filter(|number| *number <= 240.0).ok_or_else(refusal)?;
        // In range; a fraction of a thousandth is rounded up.
        Ok((number >= 0.0).then_some(MilliCpus((number * 1000.0).ceil() as u32)))
    },
    show: |value| match value {
        None => Value::Integer(-1),
        Some(MilliCpus(milli)) => Value::Float(f64::from(*milli) / 1000.0),
    },
};

/// What lies beyond is no slow node but a mistake.
pub(crate) const TIMEOUT_FACTOR: Codec<Factor> = Codec {
    read: |raw| {
        let number = raw.number().filter(|number| (0.1..=100.0).contains(number));
        let number = number.ok_or_else(|| Refusal::new("a number from 0.1 to 100"))?;
        Ok(Factor((number * 1000.0).round() as u32))
    },
    show: |value| Value::Float(value.get()),
};

/// As [`OVERHEAD_VCPUS`].
pub(crate) const OVERHEAD_MEMORY: Codec<Option<Mebibytes>> = Codec {
    read: |raw| match raw.integer() {
        Some(number) if number < 0 => Ok(None),
        _ => whole(
            raw,
            0,
            1 << 20,
            "a negative number for none of its own, or a whole number of MiB",
        )
        .map(|number| Some(Mebibytes(number))),
    },
    show: |value| Value::Integer(value.map_or(-1, |value| value.0.into())),
};

/// Properties of QEMU's CPU: nothing that would end the option or the word.
pub(crate) const CPU_FEATURES: Codec<String> = Codec {
    read: |raw| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-+=".contains(c);
        let property = |text: &str| !text.is_empty() && text.chars().all(plain);
        let valid = |text: &&str| text.len() <= 1024 && text.split(',').all(property);
        let text = raw.text().filter(valid).map(str::to_owned);
        text.ok_or_else(|| Refusal::new("properties of QEMU's CPU with commas between them, as in \"pmu=off,vmx=off\""))
    },
    show: |value| Value::String(value.clone()),
};

fn whole(raw: Raw<'_>, least: u32, most: u32, what: &str) -> Result<u32, Refusal> {
    let number = raw.integer().and_then(|number| u32::try_from(number).ok());
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| Refusal::new(format!("{what} from {least} to {most}")))
}

/// 64 MiB is what the guest's kernel and initrd need; 1 TiB is beyond any host that this was tried on.
pub(crate) const MEMORY: Codec<Mebibytes> = Codec {
    read: |raw| whole(raw, 64, 1 << 20, "a whole number of MiB").map(Mebibytes),
    show: |value| Value::Integer(value.0.into()),
};

/// As [`MEMORY`]; 0 is none.
pub(crate) const MEMORY_LIMIT: Codec<Option<Mebibytes>> = Codec {
    read: |raw| match raw.integer() {
        Some(0) => Ok(None),
        _ => whole(
            raw,
            64,
            1 << 20,
            "0 for memory that does not grow, or a whole number of MiB",
        )
        .map(|number| Some(Mebibytes(number))),
    },
    show: |value| Value::Integer(value.map_or(0, |value| value.0.into())),
};

/// As [`MEMORY`]; 0 is Kata's word for all of the host's.
pub(crate) const MAX_MEMORY: Codec<Option<Mebibytes>> = Codec {
    read: |raw| match raw.integer() {
        Some(0) => Ok(None),
        _ => whole(raw, 64, 1 << 20, "0 for all of the host's, or a whole number of MiB")
            .map(|number| Some(Mebibytes(number))),
    },
    show: |value| Value::Integer(value.map_or(0, |value| value.0.into())),
};

/// QEMU's limit is VIRTQUEUE_MAX_SIZE, 1024; a split virtqueue's size is a power of two (virtio 1.2, 2.7).
pub(crate) const QUEUE_SIZE: Codec<u16> = Codec {
    read: |raw| {
        let size = raw.integer().and_then(|number| u16::try_from(number).ok());
        let size = size.filter(|size| size.is_power_of_two() && (2..=1024).contains(size));
        size.ok_or_else(|| Refusal::new("a power of two from 2 to 1024"))
    },
    show: |value| Value::Integer((*value).into()),
};

/// The most that QEMU's throttling takes, in bytes or requests per second (`THROTTLE_VALUE_MAX`, include/qemu/throttle.h).
const MOST_RATE: i64 = 1_000_000_000_000_000;

/// In bits per second. Less than a kilobit would be nothing at all.
pub(crate) const BIT_RATE: Codec<u64> = Codec {
    read: |raw| rate(raw, 1000, "0 (no limit), or bits per second from 1000 to 10^15"),
    show: show_rate,
};
pub(crate) const OPERATION_RATE: Codec<u64> = Codec {
    read: |raw| rate(raw, 1, "0 (no limit), or requests per second, at most 10^15"),
    show: show_rate,
};

fn rate(raw: Raw<'_>, least: i64, allowed: &'static str) -> Result<u64, Refusal> {
    let valid = |rate: &i64| *rate == 0 || (least..=MOST_RATE).contains(rate);
    let rate = raw.integer().filter(valid);
    rate.and_then(|rate| u64::try_from(rate).ok())
        .ok_or_else(|| Refusal::new(allowed))
}

fn show_rate(rate: &u64) -> Value {
    Value::Integer(i64::try_from(*rate).unwrap_or(i64::MAX))
}

pub(crate) const DIAL_TIMEOUT: Codec<Duration> = Codec {
    read: |raw| seconds(raw, 3_600),
    show: show_seconds,
};
/// In milliseconds, rounded up to seconds, and never more than [`DIAL_TIMEOUT`] allows.
pub(crate) const RECONNECT_TIMEOUT: Codec<Duration> = Codec {
    read: |raw| {
        let milliseconds = whole(raw, 0, 3_600_000, "a whole number of milliseconds")?;
        Ok(Duration::from_secs(milliseconds.div_ceil(1000).into()))
    },
    show: show_seconds,
};
pub(crate) const CREATE_TIMEOUT: Codec<Duration> = Codec {
    read: |raw| seconds(raw, 86_400),
    show: show_seconds,
};

/// A tap has at most 256 queues (MAX_TAP_QUEUES, drivers/net/tun.c); each pair costs descriptors and memory. 0: not set.
pub(crate) const NETWORK_QUEUES: Codec<u32> = Codec {
    read: |raw| whole(raw, 0, 64, "a whole number of pairs of queues"),
    show: |value| Value::Integer((*value).into()),
};

/// More than this many starts at once no node has.
pub(crate) const CACHE_NUMBER: Codec<u32> = Codec {
    read: |raw| whole(raw, 0, 1024, "a whole number of VMs"),
    show: |value| Value::Integer((*value).into()),
};
pub(crate) const CACHE_IDLE_TIMEOUT: Codec<Duration> = Codec {
    read: |raw| seconds(raw, 31_536_000),
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

pub(crate) const KERNEL_PARAMS: Codec<String> = Codec {
    read: |raw| {
        let valid = |text: &&str| text.len() <= LONGEST_KERNEL_PARAMS && !text.contains(char::is_control);
        let text = raw.text().filter(valid).map(|text| text.trim().to_owned());
        text.ok_or_else(|| Refusal::new(format!("one line of at most {LONGEST_KERNEL_PARAMS} bytes")))
    },
    show: |value| Value::String(value.clone()),
};

/// A module's name is shorter than MODULE_NAME_LEN (include/linux/moduleparam.h: 56 on 64 bit). As in Kata, an annotation has
/// semicolons between the modules: a parameter may contain commas.
pub(crate) const KERNEL_MODULES: Codec<Vec<String>> = Codec {
    read: |raw| {
        const MOST: usize = 64;
        let allowed =
            "a list of at most 64 modules, each a name with parameters after it, as in \"bonding max_bonds=2\"";
        let entries = match raw {
            Raw::Annotation(text) if !text.trim_start().starts_with('[') => {
                Some(text.split(';').map(str::to_owned).collect::<Vec<_>>())
            }
            Raw::File(_) | Raw::Annotation(_) => raw.list(),
        };
        let entries = entries.ok_or_else(|| Refusal::new(allowed))?;
        let trimmed = entries.iter().map(|entry| entry.trim().to_owned());
        let entries: Vec<String> = trimmed.filter(|entry| !entry.is_empty()).collect();
        let name = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            name.len() < 56 && name.chars().all(plain)
        };
        let valid = |entry: &String| {
            let plain = entry.len() <= 1024 && !entry.contains(char::is_control);
            plain && entry.split_whitespace().next().is_some_and(name)
        };
        match entries.len() <= MOST && entries.iter().all(valid) {
            true => Ok(entries),
            false => Err(Refusal::new(allowed)),
        }
    },
    show: |value| strings(value.iter().map(String::as_str)),
};

/// In the guest each has the last part of its path as its name.
pub(crate) const SANDBOX_BINDS: Codec<Vec<SandboxBind>> = Codec {
    read: |raw| {
        let allowed = "a list of at most 64 absolute paths, each with nothing, \":ro\" or \":rw\" after it, whose last parts differ";
        let words = raw.list().filter(|words| words.len() <= 64);
        let binds = words.and_then(|words| words.iter().map(|word| SandboxBind::parse(word)).collect());
        let binds: Vec<SandboxBind> = binds.ok_or_else(|| Refusal::new(allowed))?;
        let names: BTreeSet<&OsStr> = binds.iter().map(SandboxBind::name).collect();
        match names.len() == binds.len() {
            true => Ok(binds),
            false => Err(Refusal::new(allowed)),
        }
    },
    show: |value| Value::Array(value.iter().map(|bind| Value::String(bind.to_string())).collect()),
};

/// Longest text about a collector of spans, in bytes.
const LONGEST_COLLECTOR: usize = 2048;

/// The URL that spans are sent to. TLS is not spoken.
pub(crate) const COLLECTOR: Codec<String> = Codec {
    read: |raw| {
        let plain = |text: &str| text.len() <= LONGEST_COLLECTOR && text.bytes().all(|byte| byte.is_ascii_graphic());
        let valid = |text: &&str| {
            let rest = text.strip_prefix("http://");
            text.is_empty() || rest.is_some_and(|rest| !rest.starts_with(['/', ':']) && !rest.is_empty() && plain(rest))
        };
        let text = raw.text().filter(valid);
        text.map(str::to_owned).ok_or_else(|| {
            Refusal::new("a URL that begins with http:// (TLS is not spoken: name a collector of the node)")
        })
    },
    show: |value| Value::String(value.clone()),
};

fn collector_text(raw: Raw<'_>) -> Result<String, Refusal> {
    let valid = |text: &&str| text.len() <= LONGEST_COLLECTOR && !text.contains(char::is_control);
    let text = raw.text().filter(valid).map(str::to_owned);
    text.ok_or_else(|| Refusal::new(format!("one line of at most {LONGEST_COLLECTOR} bytes")))
}

/// In HTTP Basic (RFC 7617) a colon ends the user's name.
pub(crate) const COLLECTOR_USER: Codec<String> = Codec {
    read: |raw| match collector_text(raw)? {
        name if name.contains(':') => Err(Refusal::new("a name without a colon")),
        name => Ok(name),
    },
    show: |value| Value::String(value.clone()),
};

/// It is not shown.
pub(crate) const COLLECTOR_PASSWORD: Codec<Secret> = Codec {
    read: |raw| collector_text(raw).map(Secret::new),
    show: |value| Value::String(value.to_string()),
};

pub(crate) const VIRTIO_FS_ARGS: Codec<Vec<String>> = Codec {
    read: |raw| {
        let words = raw.list().ok_or_else(|| Refusal::new("a list of strings"))?;
        match raw {
            Raw::File(_) => virtiofsd::arguments(&words),
            Raw::Annotation(_) => virtiofsd::arguments_of_a_pod(&words),
        }
    },
    show: |value| Value::Array(value.iter().cloned().map(Value::String).collect()),
};

pub(crate) const SECCOMP_SANDBOX: Codec<Option<String>> = Codec {
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

fn strings<'a>(texts: impl Iterator<Item = &'a str>) -> Value {
    Value::Array(texts.map(|text| Value::String(text.to_owned())).collect())
}

pub(crate) const NAME_PATTERNS: Codec<Vec<NamePattern>> = Codec {
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
    show: |value| strings(value.iter().map(NamePattern::as_str)),
};

pub(crate) const PATH_PATTERNS: Codec<Vec<PathPattern>> = Codec {
    read: |raw| {
        let texts = raw.list().ok_or_else(|| Refusal::new("a list of path patterns"))?;
        let compile = |text: &String| {
            PathPattern::new(text)
                .map_err(|error| Refusal::new(format!("a list of path patterns; {text:?} is none: {error}")))
        };
        texts.iter().map(compile).collect()
    },
    show: |value| strings(value.iter().map(PathPattern::as_str)),
};

/// Patterns of sockets are compared with paths that have no links, no `.` and no `..`.
pub(crate) const SOCKET_PATTERNS: Codec<Vec<PathPattern>> = Codec {
    read: |raw| {
        let absolute = |pattern: &PathPattern| {
            let text = pattern.as_str();
            text.starts_with('/') && !text.split('/').any(|part| part == "." || part == "..")
        };
        let patterns = (PATH_PATTERNS.read)(raw)?;
        match patterns.iter().find(|pattern| !absolute(pattern)) {
            Some(pattern) => Err(Refusal::new(format!(
                "a list of patterns of absolute paths without \".\" and \"..\"; {:?} is none",
                pattern.as_str()
            ))),
            None => Ok(patterns),
        }
    },
    show: |value| (PATH_PATTERNS.show)(value),
};

pub(crate) const LOCK_LIMIT: Codec<LockLimit> = Codec {
    read: |raw| {
        let number = raw.integer().and_then(|number| u64::try_from(number).ok());
        let limit = match number {
            Some(bytes) => LockLimit::bytes(bytes),
            None => raw.text().and_then(LockLimit::parse),
        };
        limit.ok_or_else(|| Refusal::new(LockLimit::ALLOWED))
    },
    show: |value| Value::String(value.to_string()),
};

pub(crate) const PERF_EVENT_KB: Codec<PerfEventKb> = Codec {
    read: |raw| {
        let number = whole(raw, 0, PerfEventKb::MAX.get(), "a whole number of KiB")?;
        PerfEventKb::new(number).ok_or_else(|| Refusal::new("a number that the kernel takes"))
    },
    show: |value| Value::Integer(value.get().into()),
};
