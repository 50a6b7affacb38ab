//! The kernel's modules: loads what the kernel asks for by itself, and what the host has configured.
//!
//! The kernel starts this program as [`HELPER`] with the name of what it misses (request_module, kernel/module/kmod.c). The
//! modules are in one file of the host, below the shared directory, with an index at its beginning (guest-kernel/modules). Nothing here has to
//! trust that file: the kernel loads only what was built with it (guest-kernel/patches/0400-…).

mod index;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use protocol::{MODULES, SHARE_MOUNTPOINT};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::system::init_module;

use index::Index;

/// What the kernel runs to have a module loaded (CONFIG_MODPROBE_PATH), a link to this program.
pub(crate) const HELPER: &str = "/sbin/modprobe";

/// Where the index ends: an empty line.
const END_OF_INDEX: &[u8] = b"\n\n";

/// Why a module is not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// There is no archive, or it cannot be read.
    #[error("read the kernel's modules")]
    Archive(#[source] io::Error),
    /// No module has that name, nor has anything that is built in.
    #[error("the kernel has no module {0:?}")]
    Unknown(String),
    /// The kernel refuses it; EKEYREJECTED: it was not built with this kernel.
    #[error("load the kernel's module {0}")]
    Load(String, #[source] io::Error),
    /// A parameter cannot be handed on.
    #[error("the parameters of the kernel's module {0} contain a zero byte")]
    Parameters(String),
}

/// The file of the modules.
struct Archive {
    file: File,
    /// The index as it is in the file.
    text: String,
}

impl Archive {
    fn open() -> io::Result<Self> {
        let mut file = File::open(Path::new(SHARE_MOUNTPOINT).join(MODULES))?;
        let text = read_index(&mut file)?;
        Ok(Self { file, text })
    }

    /// Loads a module and what it needs. What is loaded already stays as it is.
    fn load(&self, name: &str, parameters: &str, cmdline: &str) -> Result<(), ModuleError> {
        let index = Index::parse(&self.text);
        let found = index.find(name).ok_or_else(|| ModuleError::Unknown(name.to_owned()))?;
        let last = found.len().saturating_sub(1);
        for (place, module) in found.iter().enumerate() {
            let mut words = parameters_of(module.name, cmdline);
            if place == last {
                words.extend(parameters.split_ascii_whitespace());
            }
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
        let size = usize::try_from(module.size).map_err(io::Error::other)?;
        let mut image = vec![0; size];
        let begin = self.text.len() as u64 + 1;
        self.file.read_exact_at(&mut image, begin + module.offset)?;
        Ok(image)
    }
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
        Err(error) if wanted.is_empty() => {
            tracing::debug!(%error, "no modules");
            return Ok(());
        }
        Err(error) => return Err(ModuleError::Archive(error)),
    };
    make_nodes(&Index::parse(&archive.text));
    if wanted.is_empty() {
        return Ok(());
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(ModuleError::Archive)?;
    for entry in wanted {
        let (name, parameters) = entry
            .trim()
            .split_once(char::is_whitespace)
            .unwrap_or((entry.trim(), ""));
        archive.load(name, parameters, &cmdline)?;
    }
    Ok(())
}

fn make_nodes(index: &Index<'_>) {
    for device in index.devices() {
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
    match archive.and_then(|archive| archive.load(&name, "", &cmdline)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let log = File::options().write(true).open("/dev/kmsg");
            // Without a log there is nobody to tell that either.
            let _ = log.and_then(|mut log| writeln!(log, "<4>tatami: {name}: {}", base::chain(&error)));
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
        assert!(matches!(error, ModuleError::Archive(_)), "{error}");
    }
}
