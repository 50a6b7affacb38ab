//! Raw images with a file system, and loop devices: the disks of tests. Removed when dropped.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{self, Command},
};

use rustix::fs::{major, minor};
use serde_json::json;

use crate::{Error, Result, Spec, locate, sys};

/// A raw image on the host.
#[derive(Debug)]
pub struct RawImage {
    path: PathBuf,
}

impl RawImage {
    /// One that holds `text` and then zeros.
    pub fn with(path: &Path, text: &str, size: u64) -> Result<Self> {
        fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))?;
        fs::File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(size))
            .map_err(Error::io(format!("growing {}", path.display())))?;
        Ok(Self { path: path.to_owned() })
    }

    /// One with an empty ext4 file system.
    pub fn ext4(path: &Path, size: u64) -> Result<Self> {
        Self::ext4_with(path, size, &[])
    }

    /// The same, made with these options of mkfs.ext4(8).
    pub fn ext4_with(path: &Path, size: u64, options: &[&str]) -> Result<Self> {
        let image = Self::with(path, "", size)?;
        let name = path.display().to_string();
        run("mkfs.ext4", &[&["-q", "-F"], options, &[name.as_str()]].concat())?;
        Ok(image)
    }

    /// One that is there already.
    pub fn existing(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it, to the first zero byte from `offset` on.
    pub fn text(&self, offset: usize) -> Result<String> {
        let bytes = fs::read(&self.path).map_err(Error::io(format!("reading {}", self.path.display())))?;
        let text = bytes.get(offset..).unwrap_or_default();
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// A file in its ext4 file system, read without mounting it.
    pub fn file(&self, name: &str) -> Result<String> {
        run(
            "debugfs",
            &["-R", &format!("cat {name}"), &self.path.display().to_string()],
        )
    }

    /// Whether its ext4 file system was unmounted in order: its journal holds nothing that is not in its place.
    pub fn is_clean(&self) -> Result<bool> {
        let said = run("dumpe2fs", &["-h", &self.path.display().to_string()])?;
        let clean = said
            .lines()
            .any(|line| line.starts_with("Filesystem state:") && line.trim_end().ends_with("clean"));
        Ok(clean && !said.contains("needs_recovery"))
    }

    /// A loop device on it.
    pub fn loop_device(&self) -> Result<LoopDevice> {
        let said = run("losetup", &["--find", "--show", &self.path.display().to_string()])?;
        Ok(LoopDevice {
            path: PathBuf::from(said.trim()),
            own: None,
        })
    }

    /// A loop device of a number that nobody else gets when this one is detached: others take the lowest that is free.
    pub fn loop_device_alone(&self) -> Result<LoopDevice> {
        let number = 100_000 + process::id() % 100_000;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let own = Some(number);
        let device = LoopDevice { path, own };
        run(
            "losetup",
            &[&device.path.display().to_string(), &self.path.display().to_string()],
        )?;
        Ok(device)
    }

    /// The loop devices that there are on it.
    pub fn loop_devices(&self) -> Result<String> {
        run("losetup", &["--associated", &self.path.display().to_string()])
    }
}

/// A loop device, detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    /// Its number, if the device itself was made for it.
    own: Option<u32>,
}

impl LoopDevice {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the container find it at `path`, as `--device` does.
    pub fn given_to(&self, spec: Spec, path: &str, access: &str) -> Result<Spec> {
        let number = fs::metadata(&self.path)?.rdev();
        let (major, minor) = (major(number), minor(number));
        spec.push(
            "/linux/devices",
            json!({ "path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o660 }),
        )?
        .push(
            "/linux/resources/devices",
            json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access }),
        )
    }

    /// Detaches it. The kernel does that at once only if nobody has it open any more.
    pub fn detach(self) -> Result<()> {
        run("losetup", &["--detach", &self.path.display().to_string()]).map(drop)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It may have been detached already.
        let _ = run("losetup", &["--detach", &self.path.display().to_string()]);
        if let Some(number) = self.own {
            let _ = sys::remove_loop_device(number);
        }
    }
}

/// Runs a program of the machine, which has to succeed; what it has printed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(locate::program(program)?)
        .args(args)
        .output()
        .map_err(Error::io(format!("starting {program}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Error::Command {
        command: format!("{program} {}", args.join(" ")),
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
