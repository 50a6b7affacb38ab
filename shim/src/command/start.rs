//! `start`: finds the sandbox's server or starts one, and prints the address of its socket.
//!
//! The listening socket is bound here and inherited by the server. So containerd can connect as soon as the address is
//! printed, and nothing has to wait or poll.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use base::spawn::{Accounting, Program, Score};
use node::bundle::{self, BundleError};
use node::process::ProcessRef;
use node::run_dir::{RunDir, RunDirError};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use super::joined;
use crate::cleanup;
use crate::id::SandboxId;
use crate::pool;
use crate::program::alive::is_alive;
use crate::program::announcement::Launched;
use crate::program::arguments::Arguments;
use crate::program::settings::file as configuration_file;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bundle does not say what is needed.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A container of a pod whose shim is gone.
    #[error("the shim of sandbox {0} does not run")]
    SandboxGone(SandboxId),
    /// A container that is to have the network of one whose VM is configured otherwise.
    #[error(
        "the container is to have the network of another one, and so its VM, which has another configuration file: {}, and not {}",
        theirs.display(),
        own.display()
    )]
    OtherConfiguration { theirs: PathBuf, own: PathBuf },
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The server's mount namespace cannot be made.
    #[error(
        "the root directory is not a mount point, as after a plain chroot(2), and a sandbox's mounts cannot be kept apart \
         from the host's: make it one (mount --bind DIR DIR) before the chroot"
    )]
    NoMountPoint,
    #[error("cannot start the server")]
    Spawn(#[source] io::Error),
    /// The address cannot be left for containerd.
    #[error("cannot write {}", path.display())]
    Address {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The server's address, and the server if this call has started it.
#[derive(Debug)]
pub struct Started {
    pub address: String,
    launched: Option<Launched>,
}

impl Started {
    /// Tells the server that its address has been printed. A server that is not told ends.
    pub fn announced(self) {
        if let Some(launched) = self.launched {
            launched.announced();
        }
    }
}

/// Does the work. `bundle` is absolute, `config_path` is what the runtime options
/// on stdin say.
///
/// # Errors
/// There is no server, and none can be started.
pub fn start(arguments: &Arguments, bundle: &Path, config_path: Option<&Path>) -> Result<Started, StartError> {
    let sandbox = bundle::sandbox_of(bundle, &arguments.id)?;
    let own = RunDir::of(&arguments.namespace, &sandbox);
    if sandbox == SandboxId::from(&arguments.id)
        && let Some((other, theirs)) = joined::wanted(&arguments.namespace, bundle)?
        && other != own
    {
        let file = configuration_file(config_path);
        if theirs.as_ref() != Some(&file) {
            return Err(StartError::OtherConfiguration {
                theirs: theirs.unwrap_or_default(),
                own: file,
            });
        }
        if let Some(started) = join(&other, bundle)? {
            return Ok(started);
        }
    }
    let run_dir = own;
    let address = run_dir.address();
    let lock = run_dir.lock()?;
    let mut launched = None;
    if !is_alive(&run_dir.socket()) {
        if sandbox != SandboxId::from(&arguments.id) {
            return Err(StartError::SandboxGone(sandbox));
        }
        // The server would find it out, and could tell nobody but its log.
        if !is_mount_point(Path::new("/")) {
            return Err(StartError::NoMountPoint);
        }
        // A server that died left it: what a new one needs is free after this.
        cleanup::remove_locked(&run_dir, &lock);
        let adopted = pool::claim(arguments, bundle, config_path, &sandbox, &lock).map(Ok);
        let server = adopted.unwrap_or_else(|| launch(arguments, bundle, config_path, &sandbox, &run_dir));
        match server {
            Ok(server) => launched = Some(server),
            Err(error) => {
                cleanup::remove_locked(&run_dir, &lock);
                return Err(error);
            }
        }
    }
    if let Err(error) = write_address(bundle, &address) {
        if let Some(launched) = launched {
            // containerd learns of no server. This one may not have written down yet that it is one.
            if let Some(process) = launched.process {
                process.kill();
            }
            cleanup::remove_locked(&run_dir, &lock);
        }
        return Err(error);
    }
    Ok(Started { address, launched })
}

/// The server of another sandbox, in which the container will be; none if it has ended meanwhile.
fn join(other: &RunDir, bundle: &Path) -> Result<Option<Started>, StartError> {
    let _lock = other.lock()?;
    if !is_alive(&other.socket()) {
        return Ok(None);
    }
    other.mark_joined()?;
    let address = other.address();
    write_address(bundle, &address)?;
    let launched = None;
    Ok(Some(Started { address, launched }))
}

/// Whether something is mounted here; true where the kernel (before 5.8) does not tell.
fn is_mount_point(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    found.is_ok_and(|found| {
        !found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
            || found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

fn launch(
    arguments: &Arguments,
    bundle: &Path,
    config_path: Option<&Path>,
    sandbox: &SandboxId,
    run_dir: &RunDir,
) -> Result<Launched, StartError> {
    run_dir.create()?;
    let path = run_dir.socket();
    let listener = UnixListener::bind(&path).map_err(|source| StartError::Listen {
        path: path.clone(),
        source,
    })?;
    let program = std::env::current_exe().map_err(StartError::Spawn)?;
    let mut words = [
        "-namespace",
        arguments.namespace.as_str(),
        "-id",
        sandbox.as_str(),
        "-bundle",
    ]
    .map(OsStr::new)
    .to_vec();
    words.extend([bundle.as_os_str(), OsStr::new("-socket"), path.as_os_str()]);
    if let Some(config_path) = config_path {
        words.extend([OsStr::new("-config-path"), config_path.as_os_str()]);
    }
    if arguments.debug {
        words.push(OsStr::new("-debug"));
    }
    let (theirs, announcement) = io::pipe().map_err(StartError::Spawn)?;
    // The host's OOM killer takes a shim before its containerd, as with containerd's own shims. containerd has put into the environment what the
    // server needs of it.
    let server = Program::new(program)
        .args(words)
        .envs(std::env::vars_os())
        .stdin(theirs)
        .session()
        .descriptors(vec![OwnedFd::from(listener)])
        .accounting(Accounting {
            score: Score::BeforeCaller,
            ..Accounting::default()
        });
    // It writes down itself what it is made of: two writers would overwrite each other's entries.
    let server = server.spawn().map_err(StartError::Spawn)?;
    Ok(Launched {
        process: i32::try_from(server.id()).ok().and_then(ProcessRef::of),
        announcement: announcement.into(),
    })
}

/// containerd 1.6 and 1.7 read the address from here when they come back after a restart.
fn write_address(bundle: &Path, address: &str) -> Result<(), StartError> {
    let path = bundle.join(bundle::ADDRESS);
    let new = bundle.join(".address");
    fs::write(&new, address)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|source| StartError::Address { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_told_from_a_directory_on_it() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
        assert!(!is_mount_point(Path::new("/nonexistent")));
    }
}
