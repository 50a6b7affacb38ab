//! The files of the host that QEMU sees: itself, the libraries that it is linked with, its firmware, the guest's kernel and initrd.
//!
//! Decides which they are and where each is found in QEMU's root, which is a file system of its own and otherwise empty;
//! [`crate::process::sys::root`] makes it. Sockets, disks, taps and devices QEMU inherits or gets by its monitor: they have no path.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use base::spawn::{Program, RunError};

use crate::process::elf;
use crate::process::sys::root::{Root, RootBuilder};

/// Where QEMU finds the guest's kernel in its root.
pub(crate) const KERNEL: &str = "/guest/kernel";
/// Where it finds the guest's initrd.
pub(crate) const INITRD: &str = "/guest/initrd";

/// Which libraries the loader finds outside its own directories (ld.so(8)).
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// Directories of firmware, below the directory that the program's own is in (`/usr`, `/opt/kata`) and below `/usr`. A
/// distribution's QEMU has links from the first to the others.
const FIRMWARE: [&str; 8] = [
    "share/qemu",
    "share/qemu-kvm",
    "share/kata-qemu",
    "share/seabios",
    "share/seavgabios",
    "share/qemu-firmware",
    "share/qemu-efi-aarch64",
    "lib/ipxe/qemu",
];

/// Timeout for a loader to list a program's libraries: it reads some hundred files. Generous, as nothing but a dead file server uses it up.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// Characters of a loader's complaint that are passed on.
const MOST_SAID: usize = 1024;

/// Why QEMU's root cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum QemuRootError {
    /// QEMU is a script, or a program of another kind.
    #[error(
        "{path:?} cannot be run with nothing but its own files around it: let hypervisor.qemu.path name QEMU's program itself, \
         or set hypervisor.qemu.rootless to false"
    )]
    Program {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The program's loader does not say what it would load.
    #[error("the loader {loader:?} does not list the libraries of {path:?}: {said}")]
    Libraries {
        loader: PathBuf,
        /// The program whose libraries were asked for.
        path: PathBuf,
        said: String,
    },
    /// A file that it is to see.
    #[error("{path:?} cannot be given to QEMU")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The root of a QEMU, to be mounted on `directory`, which is made. Waits for the loader.
pub(crate) fn of(program: &Path, kernel: &Path, initrd: &Path, directory: &Path) -> Result<Root, QemuRootError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| QemuRootError::File { path, source }
    };
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(directory)(error)),
        _ => {}
    }
    let mut root = RootBuilder::new(directory).map_err(failed(directory))?;
    root.bind(program, &lexical(program)).map_err(failed(program))?;
    // QEMU and its libraries look for what lies beside them by this, where others have a /proc.
    root.link(Path::new("/proc/self/exe"), &lexical(program))
        .map_err(failed(program))?;
    // QEMU tries on it which locks the kernel has (qemu_probe_lock_ops of its util/osdep.c). Without, it takes those of a process,
    // which do not keep two disks of a VM from being the same file.
    let null = Path::new("/dev/null");
    root.bind_device(null, null).map_err(failed(null))?;
    for file in libraries(program)? {
        root.bind(&file, &lexical(&file)).map_err(failed(&file))?;
    }
    for directory in firmware(program) {
        root.bind_directory(&directory, &lexical(&directory))
            .map_err(failed(&directory))?;
    }
    for (file, name) in [(kernel, KERNEL), (initrd, INITRD)] {
        add_readable(&mut root, file, Path::new(name)).map_err(failed(file))?;
    }
    root.finish().map_err(failed(directory))
}

/// A file that QEMU, which is nobody, has to read. One that is not for everybody is copied.
fn add_readable(root: &mut RootBuilder, file: &Path, name: &Path) -> io::Result<()> {
    let opened = File::open(file)?;
    if opened.metadata()?.mode() & 0o004 == 0 {
        root.copy(opened, name)
    } else {
        root.bind(file, name)
    }
}

/// The loader, its cache, and every library that it would load. None of a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, QemuRootError> {
    let foreign = |source| QemuRootError::Program {
        path: program.to_owned(),
        source,
    };
    let interpreter = File::open(program).and_then(|mut file| elf::interpreter(&mut file));
    let Some(loader) = interpreter.map_err(foreign)? else {
        return Ok(Vec::new());
    };
    // What ldd(1) does, for the loaders of glibc and of musl.
    let listing = Program::new(&loader).args([OsStr::new("--list"), program.as_os_str()]);
    let refused = |said| QemuRootError::Libraries {
        loader: loader.clone(),
        path: program.to_owned(),
        said,
    };
    let list = listing.run(LIST_TIMEOUT).map_err(|error| match error {
        RunError::Start(source) => foreign(source),
        error @ RunError::TimedOut { .. } => refused(error.to_string()),
    })?;
    if !list.status.success() {
        return Err(refused(list.stderr.chars().take(MOST_SAID).collect()));
    }
    let mut files = listed(&list.stdout);
    if !files.contains(&loader) {
        files.push(loader);
    }
    let cache = PathBuf::from(LOADER_CACHE);
    files.extend(cache.exists().then_some(cache));
    Ok(files)
}

/// The paths in a loader's list: `libz.so.1 => /lib/libz.so.1 (0x7f…)` or `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
fn listed(list: &str) -> Vec<PathBuf> {
    let paths = list.lines().filter_map(|line| {
        let text = line.trim();
        let path = text.split_once(" => ").map_or(text, |(_, path)| path);
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    let mut found: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// The directories of firmware that this host has.
fn firmware(program: &Path) -> Vec<PathBuf> {
    let own = program.parent().and_then(Path::parent).map(lexical);
    let prefixes = [own, Some(PathBuf::from("/usr"))].into_iter().flatten();
    let mut found: Vec<PathBuf> = Vec::new();
    for prefix in prefixes {
        for directory in FIRMWARE.map(|name| prefix.join(name)) {
            if directory.is_dir() && !found.contains(&directory) {
                found.push(directory);
            }
        }
    }
    found
}

/// The path without `.` and `..`: in the new root there are no links on the way.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaders_list_is_read_whoever_wrote_it() {
        let glibc = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
                      \tlibown.so => /opt/a b/bin/../lib/libown.so (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            listed(glibc),
            [
                "/lib/x86_64-linux-gnu/libz.so.1",
                "/opt/a b/bin/../lib/libown.so",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
        let musl = "\t/lib/ld-musl-x86_64.so.1 (0x7f)\n\tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n";
        assert_eq!(listed(musl), [PathBuf::from("/lib/ld-musl-x86_64.so.1")]);
        assert_eq!(listed("\tlibgone.so => not found\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_libraries_of_a_program_are_found_and_a_script_is_refused_with_the_key() {
        let files = libraries(&std::env::current_exe().unwrap()).unwrap();
        let named = |name: &str| files.iter().any(|file| file.to_string_lossy().contains(name));
        assert!(named("libc.so") && named("ld-"), "{files:?}");
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n".repeat(9)).unwrap();
        let said = libraries(script.path()).unwrap_err().to_string();
        assert!(said.contains("hypervisor.qemu.rootless"), "{said}");
    }

    #[test]
    fn a_path_in_the_root_has_no_way_upwards() {
        for (path, plain) in [
            ("/opt/x/bin/../lib/a.so", "/opt/x/lib/a.so"),
            ("/../../a", "/a"),
            ("/./a/", "/a"),
        ] {
            assert_eq!(lexical(Path::new(path)), Path::new(plain));
        }
        assert_eq!(lexical(Path::new("/..")), Path::new("/"));
    }
}
