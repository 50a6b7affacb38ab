//! The images that the tests run: one layer made from the machine's static busybox and the guest probe.
//!
//! It is made once and kept in the build directory under the hash of what went into it.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Error, Result, locate};

pub const NAME: &str = "docker.io/tatami/test:1";
/// The same files under another name, and [`SECOND_LAYER`] in a second layer. Its program does nothing for ever: a pod's sandbox.
pub const PAUSE: &str = "docker.io/tatami/pause:1";

/// A file that only the second layer of [`PAUSE`] has.
pub const SECOND_LAYER: &str = "/etc/second-layer";

/// The image on the host: an archive for `ctr image import`, and the same files as a directory.
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// Finds the image, or makes it.
    pub fn get() -> Result<Self> {
        let busybox = locate::program("busybox")?;
        let probe = locate::guest_probe()?;
        let key = sha256(&[&read(&busybox)?[..], &read(&probe)?, include_bytes!("image.rs")].concat());
        let cache = locate::build().join("tests");
        let dir = cache.join(format!("image-{}", &key[..16]));
        if !dir.exists() {
            let work = tempfile::Builder::new()
                .prefix(".image-")
                .tempdir_in(&cache)
                .map_err(Error::io(format!("making a directory in {}", cache.display())))?;
            make(work.path(), &busybox, &probe)?;
            fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
            let made = work.keep();
            // Another test may have been faster. Its image is the same, so ours is dropped.
            if fs::rename(&made, &dir).is_err() {
                fs::remove_dir_all(&made)?;
            }
        }
        Ok(Self { dir })
    }

    /// The archive in the OCI image layout.
    pub fn archive(&self) -> PathBuf {
        self.dir.join("image.tar")
    }

    /// Copies the image's files to `target`, for containers whose root is a directory of the host.
    pub fn copy_root(&self, target: &Path) -> Result<()> {
        run(Command::new("cp").arg("-a").arg(self.dir.join("rootfs")).arg(target))
    }
}

fn make(dir: &Path, busybox: &Path, probe: &Path) -> Result<()> {
    root(&dir.join("rootfs"), busybox, probe)?;
    let blobs = dir.join("oci/blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::create_dir_all(dir.join("second/etc"))?;
    fs::write(dir.join("second").join(&SECOND_LAYER[1..]), "second\n")?;
    let layer = layer_of(dir, &blobs, "rootfs")?;
    let second = layer_of(dir, &blobs, "second")?;
    fs::remove_dir_all(dir.join("second"))?;
    let manifests = [
        manifest(&blobs, &[&layer], NAME, &["sh"])?,
        manifest(&blobs, &[&layer, &second], PAUSE, &["sleep", "2147483647"])?,
    ];
    fs::write(
        dir.join("oci/index.json"),
        json!({ "schemaVersion": 2, "manifests": manifests }).to_string(),
    )?;
    fs::write(
        dir.join("oci/oci-layout"),
        json!({ "imageLayoutVersion": "1.0.0" }).to_string(),
    )?;
    let loaded = for_docker(&blobs, &manifests[0])?;
    fs::write(dir.join("oci/manifest.json"), loaded.to_string())?;
    tar(&dir.join("oci"), &dir.join("image.tar"))?;
    fs::remove_dir_all(dir.join("oci"))?;
    Ok(())
}

/// A layer of the files in a directory of `dir`, which is a blob then.
fn layer_of(dir: &Path, blobs: &Path, files: &str) -> Result<Vec<u8>> {
    let archive = dir.join("layer.tar");
    tar(&dir.join(files), &archive)?;
    let layer = read(&archive)?;
    fs::rename(archive, blobs.join(sha256(&layer)))?;
    Ok(layer)
}

/// What `docker load` reads, of the image with that line in the index: it finds the blobs where they are.
fn for_docker(blobs: &Path, line: &Value) -> Result<Value> {
    let path = |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().replace(':', "/");
    let name = path(line).replace("sha256/", "");
    let manifest: Value = serde_json::from_slice(&read(&blobs.join(name))?)?;
    Ok(json!([{
        "Config": format!("blobs/{}", path(&manifest["config"])),
        "RepoTags": ["tatami/test:1"],
        "Layers": [format!("blobs/{}", path(&manifest["layers"][0]))],
    }]))
}

/// Writes one image's blobs; the answer is its line of the index.
fn manifest(blobs: &Path, layers: &[&[u8]], name: &str, program: &[&str]) -> Result<Value> {
    let digests: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer_type, layer)).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin:/sbin"], "Cmd": program },
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let config = blob(blobs, "application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut manifest = blob(blobs, "application/vnd.oci.image.manifest.v1+json", &manifest)?;
    manifest["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1" });
    Ok(manifest)
}

/// A root file system: busybox under the name of every applet, the probe, and the two account files.
fn root(root: &Path, busybox: &Path, probe: &Path) -> Result<()> {
    for dir in [
        "bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "var",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    fs::copy(probe, root.join("bin/guest-probe"))?;
    let list = Command::new(busybox)
        .arg("--list")
        .output()
        .map_err(Error::io("asking busybox for its applets"))?;
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("/bin/busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")?;
    Ok(())
}

fn blob(blobs: &Path, media_type: &str, content: &Value) -> Result<Value> {
    let bytes = content.to_string().into_bytes();
    fs::write(blobs.join(sha256(&bytes)), &bytes)?;
    Ok(descriptor(media_type, &bytes))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() })
}

fn tar(dir: &Path, archive: &Path) -> Result<()> {
    let flags = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
    run(Command::new("tar")
        .args(flags)
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(archive)
        .arg("."))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Error::io(format!("running {command:?}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::unexpected(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    )))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(format!("reading {}", path.display())))
}

/// The SHA-256 of `bytes` in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}
