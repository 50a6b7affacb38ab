//! The one directory that holds a sandbox's files, and `sandbox.json` in it.
//!
//! It owns the names (docs/architecture.md, "Files of a sandbox"). It must not know the purpose of the files.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::host::path_error::PathError;
use crate::host::process::ProcessRef;
use crate::host::remove;
use crate::network::NetworkRecord;
use lifecycle::id::{Namespace, SandboxId};

/// Where all sandboxes have their directories.
pub const ROOT: &str = protocol::SANDBOXES;

/// End of the name of a lock beside a sandbox's directory.
const LOCK: &str = ".lock";

/// The form of `sandbox.json` that this build writes and reads.
const STATE_VERSION: u32 = 1;

/// Largest `sandbox.json` that is read, in bytes: many times what is written.
const STATE_MAX: u64 = 1 << 20;

/// Why a sandbox's directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum RunDirError {
    #[error(transparent)]
    Io(#[from] PathError),
    /// `sandbox.json` is not what this program writes.
    #[error("{} cannot be understood", path.display())]
    State {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// What `delete` needs when the shim is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    version: u32,
    /// containerd's namespace of the sandbox.
    pub namespace: String,
    /// The id that containerd gave the sandbox.
    pub id: String,
    /// The shim's server process.
    pub shim: Option<ProcessRef>,
    /// QEMU, whose pid stands for the sandbox, and then its helpers.
    pub vm: Vec<ProcessRef>,
    /// The sandbox's cgroup directories on the host.
    pub cgroups: Vec<PathBuf>,
    /// What runs the guest, as QEMU says: `kvm` or `tcg`. None until it runs.
    #[serde(default)]
    pub accelerator: Option<String>,
    /// What connects the guest: `vhost` or `vhost-user`. None until it runs.
    #[serde(default)]
    pub vsock: Option<String>,
    /// What is changed in the pod's network namespace.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// Whether it is a pod: no container joins it but the pod's. None until its server has read its specification.
    #[serde(default)]
    pub pod: Option<bool>,
    /// The configuration file.
    #[serde(default)]
    pub config_path: Option<PathBuf>,
}

/// A field, if it is what this build writes.
fn field<T: DeserializeOwned + Default>(fields: &Value, name: &str) -> T {
    let value = fields.get(name).cloned().unwrap_or_default();
    serde_json::from_value(value).unwrap_or_default()
}

/// The entries of a list that are what this build writes.
fn list<T: DeserializeOwned>(fields: &Value, name: &str) -> Vec<T> {
    let entries = fields.get(name).and_then(Value::as_array).into_iter().flatten();
    entries
        .filter_map(|entry| serde_json::from_value(entry.clone()).ok())
        .collect()
}

impl SandboxState {
    /// As much of it as can be understood.
    fn of(fields: &Value) -> Self {
        Self {
            version: field(fields, "version"),
            namespace: field(fields, "namespace"),
            id: field(fields, "id"),
            shim: field(fields, "shim"),
            vm: list(fields, "vm"),
            cgroups: list(fields, "cgroups"),
            accelerator: field(fields, "accelerator"),
            vsock: field(fields, "vsock"),
            network: field(fields, "network"),
            pod: field(fields, "pod"),
            config_path: field(fields, "config_path"),
        }
    }

    /// The state of a sandbox of which nothing runs but the caller.
    #[must_use]
    pub fn new(namespace: &Namespace, id: &SandboxId) -> Self {
        Self {
            version: STATE_VERSION,
            namespace: namespace.as_str().to_owned(),
            id: id.as_str().to_owned(),
            shim: ProcessRef::own(),
            vm: Vec::new(),
            cgroups: Vec::new(),
            accelerator: None,
            vsock: None,
            network: None,
            pod: None,
            config_path: None,
        }
    }
}

/// A sandbox's directory, whether or not it exists yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory below [`ROOT`].
    #[must_use]
    pub fn of(namespace: &Namespace, id: &SandboxId) -> Self {
        Self::below(Path::new(ROOT), namespace, id)
    }

    /// The directory below another root: for tests.
    #[must_use]
    pub fn below(root: &Path, namespace: &Namespace, id: &SandboxId) -> Self {
        Self {
            path: root.join(name(namespace, id)),
        }
    }

    /// The directory of a VM that is nobody's yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory's name: a part of the sandbox's id, and a hash.
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Gives it the name of another one, which is not there.
    ///
    /// # Errors
    /// There is something of this name.
    pub fn rename_to(&self, other: &Self) -> Result<(), RunDirError> {
        fs::rename(&self.path, &other.path).map_err(|source| failed("make", &other.path, source))
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the task API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join(protocol::SHIM_SOCKET)
    }

    /// The socket in the form containerd wants it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The directory that virtiofsd serves.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.path.join("shared")
    }

    /// Where the shim learns what the host mounts later: `<container>/<n>`.
    #[must_use]
    pub fn received(&self) -> PathBuf {
        self.path.join("received")
    }

    /// Where the poststop hooks are that outlive the sandbox's directory.
    #[must_use]
    pub fn handed_over_hooks(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".poststop");
        path.into()
    }

    /// The file for the guest's console output.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    fn state(&self) -> PathBuf {
        self.path.join("sandbox.json")
    }

    fn joined(&self) -> PathBuf {
        self.path.join("joined")
    }

    /// Writes down that containers of other ids may be in the sandbox, which is no pod.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn mark_joined(&self) -> Result<(), RunDirError> {
        let path = self.joined();
        fs::write(&path, "").map_err(|source| failed("create", &path, source))
    }

    /// Whether containers of other ids may be in the sandbox.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.joined().exists()
    }

    /// The directory of the server that has this address, as [`RunDir::address`] gives it.
    #[must_use]
    pub fn of_address(address: &str) -> Option<Self> {
        let path = Path::new(address.strip_prefix("unix://")?).parent()?;
        let found = Self { path: path.to_owned() };
        (path.parent() == Some(Path::new(ROOT)) && found.address() == address).then_some(found)
    }

    /// Makes the directory, mode 0700, and its parents. It may exist.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(&self) -> Result<(), RunDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| failed("create", &self.path, source))
    }

    /// Holds off every other `start` and removal of this sandbox until the answer is dropped, and none of another's.
    /// Blocks.
    ///
    /// The lock is on a file beside the directory, as the directory itself comes and goes.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn lock(&self) -> Result<Lock, RunDirError> {
        self.lock_by(File::lock)
    }

    /// The same without waiting; none if somebody has the lock.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn try_lock(&self) -> Result<Option<Lock>, RunDirError> {
        let mut busy = false;
        let locked = self.lock_by(|file| {
            file.try_lock().map_err(|error| {
                busy = matches!(error, TryLockError::WouldBlock);
                error.into()
            })
        });
        if busy { Ok(None) } else { locked.map(Some) }
    }

    fn lock_by(&self, mut wait: impl FnMut(&File) -> io::Result<()>) -> Result<Lock, RunDirError> {
        let mut name = self.path.clone().into_os_string();
        name.push(LOCK);
        let path = PathBuf::from(name);
        let mut lock = || -> io::Result<File> {
            if let Some(root) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(root)?;
            }
            loop {
                let file = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&path)?;
                wait(&file)?;
                // Whoever had it may have removed the name, and somebody may have made another file by now.
                let named = fs::metadata(&path).ok().map(|named| (named.dev(), named.ino()));
                let own = file.metadata()?;
                if named == Some((own.dev(), own.ino())) {
                    return Ok(file);
                }
            }
        };
        match lock() {
            Ok(file) => Ok(Lock {
                path,
                directory: self.path.clone(),
                file,
            }),
            Err(source) => Err(failed("lock", &path, source)),
        }
    }

    /// Those below a root that have been locked and have not been removed, whether or not they have a directory.
    #[must_use]
    pub fn known(root: &Path) -> Vec<Self> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let known = names.filter_map(|name| Some(Self::at(root.join(name.strip_suffix(LOCK)?))));
        known.collect()
    }

    /// Whether it has no `sandbox.json`: nobody has written down that he is its server.
    #[must_use]
    pub fn is_unrecorded(&self) -> bool {
        !self.state().exists()
    }

    /// Removes the directory and all in it. It may be gone.
    ///
    /// # Errors
    /// Something cannot be removed, or is mounted in it.
    pub fn remove(&self) -> Result<(), RunDirError> {
        remove::directory(&self.path).map_err(|source| failed("remove", &self.path, source))
    }

    /// Writes `sandbox.json`: a reader sees the old one or the new one, whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_state(&self, state: &SandboxState) -> Result<(), RunDirError> {
        let path = self.state();
        let new = self.path.join("sandbox.json.new");
        let text = serde_json::to_vec_pretty(state).map_err(|source| RunDirError::State {
            path: path.clone(),
            source,
        })?;
        let write = || -> io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&text)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| failed("write", &path, source))
    }

    /// Reads `sandbox.json`; none where there is none. Of one that another build has written the answer is what this one understands of it:
    /// whoever removes the sandbox ends what it knows of.
    ///
    /// # Errors
    /// It cannot be read, or is no JSON.
    pub fn read_state(&self) -> Result<Option<SandboxState>, RunDirError> {
        let path = self.state();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("open", &path, source)),
        };
        let fields: Value = serde_json::from_reader(io::Read::take(file, STATE_MAX)).map_err(|source| {
            let path = path.clone();
            RunDirError::State { path, source }
        })?;
        let state = SandboxState::of(&fields);
        if state.version != STATE_VERSION {
            tracing::warn!(
                path = %path.display(),
                version = state.version,
                known = STATE_VERSION,
                "the sandbox was started by another version"
            );
        }
        Ok(Some(state))
    }
}

/// See [`RunDir::lock`].
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    directory: PathBuf,
    file: File,
}

impl AsFd for Lock {
    /// The lock is the open file's: whoever gets it by SCM_RIGHTS has the lock as well (flock(2), unix(7)).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The file goes with the sandbox's directory.
impl Drop for Lock {
    fn drop(&mut self) {
        if !self.directory.exists() {
            // One that stays is used again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> RunDirError {
    RunDirError::from(PathError::new(operation, path, source))
}

/// Short enough for a socket's path, which may have 107 bytes (unix(7)), and still readable.
fn name(namespace: &Namespace, id: &SandboxId) -> String {
    let digest = Sha256::digest(format!("{namespace}/{id}"));
    let readable: String = id.as_str().chars().take(24).collect();
    let hash: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{readable}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir(root: &Path, id: &str) -> RunDir {
        RunDir::below(root, &Namespace::new("default").unwrap(), &SandboxId::new(id).unwrap())
    }

    #[test]
    fn the_longest_ids_still_give_paths_that_fit_a_socket() {
        let long = "a".repeat(lifecycle::id::MAX_LENGTH);
        let longest = run_dir(Path::new(ROOT), &long)
            .path()
            .join("vsock/vsock.sock_4294967295");
        assert!(longest.as_os_str().len() <= 107, "{}", longest.display());
        let other = format!("{}b", "a".repeat(lifecycle::id::MAX_LENGTH - 1));
        assert_ne!(run_dir(Path::new(ROOT), &long), run_dir(Path::new(ROOT), &other));
    }

    #[test]
    fn the_state_comes_back_and_is_absent_before() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = run_dir(root.path(), "one");
        assert_eq!(run_dir.read_state().unwrap(), None);
        run_dir.create().unwrap();
        let state = SandboxState::new(&Namespace::new("default").unwrap(), &SandboxId::new("one").unwrap());
        run_dir.write_state(&state).unwrap();
        assert_eq!(run_dir.read_state().unwrap(), Some(state));
        run_dir.remove().unwrap();
        run_dir.remove().unwrap();
        assert!(!run_dir.path().exists());
    }

    #[test]
    fn of_a_state_of_another_version_what_is_known_is_read() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = run_dir(root.path(), "one");
        run_dir.create().unwrap();
        let text = r#"{"version":2,"namespace":"n","id":{"new":1},"shim":{"pid":7,"start_time":8,"more":9},
            "vm":[{"pid":5,"start_time":6},{"handle":"x"}],"cgroups":["/a",1],"network":7}"#;
        fs::write(run_dir.state(), text).unwrap();
        let state = run_dir.read_state().unwrap().unwrap();
        assert_eq!(
            (state.version, state.namespace.as_str(), state.id.as_str()),
            (2, "n", "")
        );
        assert_eq!(state.shim.map(|shim| shim.pid), Some(7));
        assert_eq!(state.vm.iter().map(|process| process.pid).collect::<Vec<_>>(), [5]);
        assert_eq!((state.cgroups, state.network), (vec![PathBuf::from("/a")], None));
        fs::write(run_dir.state(), "{").unwrap();
        assert!(matches!(run_dir.read_state(), Err(RunDirError::State { .. })));
    }
}
