//! The kernel's modules: loads those that the kernel requests, and those that the host has configured.
//!
//! The kernel starts this program as [`HELPER`] with the name of the module that it needs (request_module, kernel/module/kmod.c). The
//! modules are in one file of the host, below the shared directory, with an index at its beginning (guest-kernel/modules). That file need not
//! be trusted: the kernel loads only modules that were built with it (guest-kernel/patches/0400-…).

mod index;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::process::ExitCode;

use protocol::{MODULES, SHARE_MOUNTPOINT};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::system::init_module;

use index::Index;

/// What the kernel runs to have a module loaded (CONFIG_MODPROBE_PATH), a link to this program.
pub(crate) const HELPER: &str = "/sbin/modprobe";

/// Largest module that the kernel takes, in bytes (guest-kernel/patches/0400-…).
const LARGEST: u64 = 16 << 20;

/// Where the index ends: an empty line.
const END_OF_INDEX: &[u8] = b"\n\n";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// There is no archive, or it cannot be read.
    #[error("read the kernel's modules")]
    Archive(#[source] io::Error),
    /// There is no archive, and what is configured is not in the kernel.
    #[error("the kernel has no modules: none is beside it on the host, and {0:?} is not built in")]
    NotBuiltIn(String, #[source] io::Error),
    /// No module has that name, nor has anything that is built in.
    #[error("the kernel has no module {0:?}")]
    Unknown(String),
    /// The kernel refuses it; EKEYREJECTED: it was not built with this kernel.
    #[error("load the kernel's module {0}")]
    Load(String, #[source] io::Error),
    #[error("the parameters of the kernel's module {0} contain a zero byte")]
    Parameters(String),
}

struct Archive {
    file: File,
    /// The index as it is in the file.
    text: String,
}

impl Archive {
    fn open() -> io::Result<Self> {
        let mut file = File::open(Path::new(SHARE_MOUNTPOINT).join(MODULES))?;
        let text = read_index(&mut file)?;
        let running = rustix::system::uname();
        let running = running.release().to_string_lossy();
        // Its first line.
        match text.lines().next().and_then(|line| line.strip_prefix("release ")) {
            Some(release) if release != running => {
                let message = format!("they belong to the kernel {release}, and this one is {running}");
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
            _ => Ok(Self { file, text }),
        }
    }

    /// Loads a module and what it needs, each with its parameters among those that are configured. What is loaded already stays as it is, and
    /// costs nothing: a container may ask for it again and again.
    fn load(
        &self,
        index: &Index<'_>,
        name: &str,
        configured: &Parameters<'_>,
        cmdline: &str,
    ) -> Result<(), ModuleError> {
        let found = index.find(name).ok_or_else(|| ModuleError::Unknown(name.to_owned()))?;
        for module in found.iter().filter(|module| !is_loaded(module.name)) {
            let mut words = parameters_of(module.name, cmdline);
            words.extend(configured.get(module.name).into_iter().flatten());
            let words = CString::new(words.join(" ")).map_err(|_| ModuleError::Parameters(module.name.to_owned()))?;
            let image = self.read(module).map_err(ModuleError::Archive)?;
            match init_module(&image, &words) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(ModuleError::Load(module.name.to_owned(), errno.into())),
            }
        }
        Ok(())
    }

    fn read(&self, module: &index::Module<'_>) -> io::Result<Vec<u8>> {
        let begin = (self.text.len() as u64 + 1).checked_add(module.offset);
        let (Some(begin), Ok(size), ..=LARGEST) = (begin, usize::try_from(module.size), module.size) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its index is wrong"));
        };
        let mut image = vec![0; size];
        self.file.read_exact_at(&mut image, begin)?;
        Ok(image)
    }
}

/// The parameters that are configured, by the modules' names.
type Parameters<'a> = HashMap<&'a str, Vec<&'a str>>;

fn is_loaded(module: &str) -> bool {
    let state = std::fs::read_to_string(Path::new("/sys/module").join(module).join("initstate"));
    state.is_ok_and(|state| state.trim_end() == "live")
}

/// Whether the kernel has it without an archive: as a module that is built in, or as a file system.
fn is_built_in(name: &str) -> bool {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    Path::new("/sys/module").join(name.replace('-', "_")).exists()
        || filesystems
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name))
}

/// An entry of the configuration: the module's name, and its parameters.
fn split(entry: &str) -> (&str, &str) {
    let entry = entry.trim();
    entry.split_once(char::is_whitespace).unwrap_or((entry, ""))
}

/// Reads up to the empty line; the text ends with the line break before it.
fn read_index(file: &mut (impl Read + Seek)) -> io::Result<String> {
    /// A few times what our kernel's has.
    const MOST: u64 = 1 << 20;
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    let mut part = vec![0; 32 << 10];
    let end = loop {
        let count = file.read(&mut part)?;
        let seen = text.len().saturating_sub(1);
        text.extend_from_slice(&part[..count]);
        let found = text[seen..]
            .windows(END_OF_INDEX.len())
            .position(|bytes| bytes == END_OF_INDEX);
        if let Some(found) = found {
            break seen + found + 1;
        }
        if count == 0 || text.len() as u64 > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no index"));
        }
    };
    text.truncate(end);
    String::from_utf8(text).map_err(io::Error::other)
}

/// The parameters of a module on the kernel's command line, as modprobe(8) takes them from there.
fn parameters_of<'a>(module: &str, cmdline: &'a str) -> Vec<&'a str> {
    let own = |word: &'a str| {
        let (name, parameter) = word.split_once('.')?;
        (name.replace('-', "_") == module).then_some(parameter)
    };
    cmdline.split_ascii_whitespace().filter_map(own).collect()
}

/// Makes the nodes of devices whose modules are loaded when they are opened, and loads what is configured: each entry a name, with
/// parameters after it.
///
/// # Errors
/// An entry cannot be loaded. A kernel without modules has no devices of them, and that is no error.
pub(crate) fn prepare(wanted: &[String]) -> Result<(), ModuleError> {
    let archive = match Archive::open() {
        Ok(archive) => archive,
        Err(error) => {
            if error.kind() == io::ErrorKind::NotFound {
                tracing::debug!("the kernel has no modules");
            } else {
                tracing::warn!(%error, "the kernel's modules cannot be loaded");
            }
            let missing = wanted
                .iter()
                .map(|entry| split(entry).0)
                .find(|name| !is_built_in(name));
            return missing.map_or(Ok(()), |name| Err(ModuleError::NotBuiltIn(name.to_owned(), error)));
        }
    };
    let index = Index::parse(&archive.text);
    make_nodes(&index);
    if wanted.is_empty() {
        return Ok(());
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(ModuleError::Archive)?;
    // Of all entries first: one may need another, which is loaded with it.
    let mut configured = Parameters::new();
    for (name, parameters) in wanted.iter().map(|entry| split(entry)) {
        if let Some(module) = index
            .find(name)
            .and_then(|found| found.last().map(|module| module.name))
        {
            let words = configured.entry(module).or_default();
            words.extend(parameters.split_ascii_whitespace());
        }
    }
    wanted
        .iter()
        .try_for_each(|entry| archive.load(&index, split(entry).0, &configured, &cmdline))
}

fn make_nodes(index: &Index<'_>) {
    let below = |path: &str| {
        Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    for device in index.devices().iter().filter(|device| below(device.path)) {
        let path = Path::new("/dev").join(device.path);
        let kind = if device.block {
            FileType::BlockDevice
        } else {
            FileType::CharacterDevice
        };
        let number = makedev(device.number.0, device.number.1);
        match mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), number) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no node of a device that the kernel has as a module")
            }
        }
    }
}

/// The file systems that the kernel has as modules; none if they cannot be read.
pub(crate) fn file_systems() -> Vec<String> {
    let Ok(archive) = Archive::open() else {
        return Vec::new();
    };
    let index = Index::parse(&archive.text);
    index.file_systems().map(str::to_owned).collect()
}

/// Whether the kernel has started this program to have a module loaded.
pub(crate) fn is_helper(name: Option<&OsStr>) -> bool {
    name == Some(OsStr::new(HELPER))
}

/// Loads what the last argument names: `-q -- NAME`. What goes wrong is in the kernel's log; nobody else listens.
pub(crate) fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let Some(name) = arguments.last() else {
        return ExitCode::FAILURE;
    };
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let archive = Archive::open().map_err(ModuleError::Archive);
    match archive.and_then(|archive| {
        let index = Index::parse(&archive.text);
        archive.load(&index, &name, &Parameters::new(), &cmdline)
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let log = File::options().write(true).open("/dev/kmsg");
            // Each write is a record (Documentation/ABI/testing/dev-kmsg).
            let line = format!("<4>tatami: {name}: {}\n", base::chain(&error));
            // Without a log there is nobody to tell that either.
            let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_makes_it_the_helper() {
        assert!(is_helper(Some(OsStr::new("/sbin/modprobe"))));
        assert!(!is_helper(Some(OsStr::new("modprobe"))) && !is_helper(None));
    }

    #[test]
    fn parameters_on_the_kernels_command_line_are_the_modules() {
        let cmdline = "quiet bonding.max_bonds=0 nbd.nbds_max=4 dm-raid.x=1 bonding.miimon=100\n";
        assert_eq!(parameters_of("bonding", cmdline), ["max_bonds=0", "miimon=100"]);
        assert_eq!(parameters_of("dm_raid", cmdline), ["x=1"]);
        assert!(parameters_of("quiet", cmdline).is_empty());
    }

    #[test]
    fn an_index_ends_with_an_empty_line_wherever_it_is_and_a_file_without_one_is_refused() {
        for lines in [1, 1000, 4000] {
            let text = "alias a b\n".repeat(lines);
            let bytes = format!("{text}\nbody\n\n").into_bytes();
            assert_eq!(read_index(&mut io::Cursor::new(bytes)).unwrap(), text);
        }
        for bad in [&b""[..], b"alias a b\n", &[b'x'; 3 << 20][..]] {
            assert!(read_index(&mut io::Cursor::new(bad)).is_err());
        }
    }

    #[test]
    fn without_an_archive_only_what_is_asked_for_is_an_error() {
        assert!(prepare(&[]).is_ok());
        let error = prepare(&["nfs".to_owned()]).unwrap_err();
        assert!(matches!(error, ModuleError::NotBuiltIn(..)), "{error}");
        assert!(prepare(&["tmpfs".to_owned()]).is_ok(), "it is in /proc/filesystems");
    }
}
