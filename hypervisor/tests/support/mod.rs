//! A guest to test with: an initrd with one small program, a sandbox directory, and a line-wise conversation.

use std::path::{Path, PathBuf};
use std::process::Command;

use config::Hypervisor;
use hypervisor::{GuestListener, GuestStream, Vm, VmRequest};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// A directory of a sandbox, on a shared mount of this test's own namespace.
pub(crate) struct Sandbox {
    pub(crate) config: Hypervisor,
    directory: TempDir,
}

impl Sandbox {
    /// To be called before the test makes any thread, which then all see the same mounts.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        mount(Some("shared"), &shared, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();

        let build = std::env::var_os("TATAMI_BUILD").expect("TATAMI_BUILD names the directory that `make build` fills");
        let build = PathBuf::from(build);
        let initrd = directory.path().join("initrd.img");
        std::fs::write(&initrd, initrd_with(&compiled_init(directory.path()))).unwrap();
        let config = Hypervisor {
            kernel: build.join("share/vmlinuz"),
            initrd,
            virtio_fs_daemon: build.join("bin/virtiofsd"),
            vsock_daemon: build.join("bin/vhost-device-vsock"),
            ..Hypervisor::default()
        };
        Self { config, directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn request(&self) -> VmRequest {
        VmRequest {
            id: String::from("test"),
            run_dir: self.directory.path().to_owned(),
            shared_dir: self.path("shared"),
            share_tag: String::from("share"),
            netns: hypervisor::NetworkNamespace::Empty,
            nics: Vec::new(),
            cgroup_procs: Vec::new(),
            score: base::spawn::Score::Inherited,
            start_timeout: std::time::Duration::from_secs(30),
            scale: base::scale::Scale::default(),
            kernel_params: Vec::new(),
            host_port: 1024,
            port_parameter: String::from("test.port"),
        }
    }

    /// Boots, and waits until the guest is ready.
    pub(crate) async fn boot(&self) -> (Vm, Guest) {
        let (vm, listener) = hypervisor::boot(&self.config, self.request()).await.unwrap();
        let ended = vm.ended();
        let guest = tokio::select! {
            guest = Guest::accept(listener) => guest,
            ended = ended => panic!("{ended}"),
        };
        (vm, guest)
    }

    /// Mounts a tmpfs with one file below the shared directory.
    pub(crate) fn mount_below_share(&self, name: &str, content: &str) {
        let target = self.path("shared").join(name);
        std::fs::create_dir(&target).unwrap();
        mount(Some("later"), &target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::write(target.join("file"), content).unwrap();
    }

    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.to_string_lossy().contains(".sock"))
            .collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The directory cannot be removed below a mount.
        let _ = umount(&self.path("shared"));
    }
}

pub(crate) struct Guest {
    stream: BufReader<GuestStream>,
    _listener: GuestListener,
}

impl Guest {
    async fn accept(mut listener: GuestListener) -> Self {
        let stream = BufReader::new(listener.accept().await.unwrap());
        let mut guest = Self {
            stream,
            _listener: listener,
        };
        assert_eq!(guest.line().await, "ready");
        guest
    }

    pub(crate) async fn tell(&mut self, order: &str) {
        self.stream
            .get_mut()
            .write_all(format!("{order}\n").as_bytes())
            .await
            .unwrap();
    }

    pub(crate) async fn ask(&mut self, order: &str) -> String {
        self.tell(order).await;
        self.line().await
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }
}

/// Whether a process exists that is not a zombie of ours.
pub(crate) fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn compiled_init(directory: &Path) -> Vec<u8> {
    let program = directory.join("init");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/init.rs");
    let status = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            source,
            "-o",
        ])
        .arg(&program)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(&program).unwrap()
}

/// A cpio archive in the form newc (Documentation/driver-api/early-userspace/buffer-format.rst) with `/init`, and the
/// console that it prints to.
fn initrd_with(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o040_755, (0, 0), &[]);
    entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    entry(&mut archive, "init", 0o100_755, (0, 0), init);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let size = u32::try_from(content.len()).unwrap();
    let name_size = u32::try_from(name.len() + 1).unwrap();
    archive.extend_from_slice(b"070701");
    for field in [0, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
