//! Finds what the tests need on this machine. A part that is missing is an error that says what makes it.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// Whether this is the machine that has to have KVM and everything else (`make test-kvm`).
pub fn has_to_be_kvm() -> bool {
    env::var("TATAMI_TEST_PLATFORM").as_deref() == Ok("kvm")
}

/// The root of the checkout: where the test runner says that it is, or where the tests were built.
pub fn workspace() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    // The manifest's directory is `<workspace>/tests`.
    Path::new(&manifest)
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where `make build` puts what it makes: `TATAMI_BUILD`, or `build/` in the checkout.
pub fn build() -> PathBuf {
    env::var_os("TATAMI_BUILD").map_or_else(|| workspace().join("build"), PathBuf::from)
}

/// A part of the build, which must be there.
pub fn built(part: &str, target: &'static str) -> Result<PathBuf> {
    let path = build().join(part);
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::Missing { path, target })
    }
}

/// The static program that runs inside containers.
pub fn guest_probe() -> Result<PathBuf> {
    built("tests/guest-probe", "build")
}

/// The configuration file that points at what was built.
pub fn configuration() -> Result<PathBuf> {
    built("etc/configuration.toml", "build")
}

/// Everything the Tatami runtime needs, checked before a container is tried, so that the error names the file.
pub fn runtime_parts() -> Result<()> {
    const PARTS: [&str; 6] = [
        "bin/containerd-shim-kata-v2",
        "bin/virtiofsd",
        "bin/vhost-device-vsock",
        "share/vmlinuz",
        "share/initrd.img",
        "etc/configuration.toml",
    ];
    PARTS.iter().try_for_each(|part| built(part, "build").map(drop))
}

pub fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::NoProgram {
            program: name.to_owned(),
        })
}

/// Which containerd a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The distribution's own, 1.6 on Debian 12.
    Installed,
    /// 1.7, unpacked below the build directory.
    V1_7,
    /// 2.1, unpacked below the build directory.
    V2_1,
}

impl Version {
    /// The version that `TATAMI_TEST_CONTAINERD` asks for.
    pub fn wanted() -> Result<Self> {
        match env::var("TATAMI_TEST_CONTAINERD").as_deref() {
            Err(_) | Ok("" | "1.6") => Ok(Self::Installed),
            Ok("1.7") => Ok(Self::V1_7),
            Ok("2.1") => Ok(Self::V2_1),
            Ok(other) => Err(Error::unexpected(format!(
                "TATAMI_TEST_CONTAINERD={other}: it is 1.6, 1.7 or 2.1"
            ))),
        }
    }

    /// How `containerd --version` of it begins.
    pub fn number(self) -> &'static str {
        match self {
            Self::Installed => "1.6.",
            Self::V1_7 => "1.7.",
            Self::V2_1 => "2.1.",
        }
    }

    /// The path of `containerd` or `ctr` of this version.
    pub fn binary(self, name: &str) -> Result<PathBuf> {
        match self {
            Self::Installed => program(name),
            Self::V1_7 => built(&format!("containerd/1.7/bin/{name}"), "deps"),
            Self::V2_1 => built(&format!("containerd/2.1/bin/{name}"), "deps"),
        }
    }
}
