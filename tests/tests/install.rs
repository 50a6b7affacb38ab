//! What `make install` leaves works where there is no checkout: looked at from a mount namespace in which the checkout and
//! the build are hidden.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use framework::{Error, Result, locate};
use tempfile::TempDir;

/// An installation in a directory of its own, for a prefix that no machine has.
struct Installation {
    root: TempDir,
    prefix: String,
}

impl Installation {
    fn new() -> Result<Self> {
        Self::with_accelerator("")
    }

    /// As by `make install ACCELERATOR=…`.
    fn with_accelerator(accelerator: &str) -> Result<Self> {
        let root = tempfile::tempdir()?;
        let prefix = format!("/opt/tatami-installed-{}", std::process::id());
        let installed = Command::new(locate::workspace().join("scripts/install"))
            .env("BUILD", locate::build())
            .env("DESTDIR", root.path())
            .env("PREFIX", &prefix)
            .env("ACCELERATOR", accelerator)
            .env("QEMU", locate::program("qemu-system-x86_64")?)
            .output()?;
        let installation = Self { root, prefix };
        match installed.status.success() {
            true => Ok(installation),
            false => Err(Error::unexpected(said(&installed))),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(self.prefix.trim_start_matches('/')).join(name)
    }

    fn configuration(&self) -> PathBuf {
        self.root.path().join("etc/kata-containers/configuration.toml")
    }

    /// Runs a script where the prefix is in its place and the checkout is not.
    fn sh(&self, script: &str) -> Result<Output> {
        // /opt of its own: nothing is made on the host.
        let hide = "set -e; mount -t tmpfs none /opt; mkdir -p \"$PREFIX\"; mount --bind \"$INSTALLED\" \"$PREFIX\"; \
                    mount -t tmpfs none \"$CHECKOUT\"; [ ! -e \"$BUILD\" ] || mount -t tmpfs none \"$BUILD\"; cd /; \
                    exec env -i PATH=\"$PREFIX/bin:/usr/sbin:/usr/bin:/sbin:/bin\" CONFIGURATION=\"$CONFIGURATION\" \
                    sh -ec \"$SCRIPT\"";
        let output = Command::new(locate::program("unshare")?)
            .args(["--mount", "--propagation", "private", "sh", "-c", hide])
            .env("PREFIX", &self.prefix)
            .env("INSTALLED", self.file(""))
            .env("CHECKOUT", locate::workspace())
            .env("BUILD", locate::build())
            .env("CONFIGURATION", self.configuration())
            .env("SCRIPT", script)
            .output()?;
        Ok(output)
    }

    fn ok(&self, script: &str) -> Result<String> {
        let output = self.sh(script)?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Error::unexpected(format!("{script}: {}", said(&output)))),
        }
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// All regular files below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => files(&entry.path(), found)?,
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn an_installation_works_without_the_checkout() -> Result<()> {
    let installation = Installation::new()?;
    let version = installation.ok("kata-ctl version")?;
    assert!(version.starts_with("kata-ctl "), "{version}");
    let shim = installation.ok("containerd-shim-kata-v2 -v")?;
    assert!(shim.contains("Version: "), "{shim}");

    // What is no file of ours may be missing on this machine: only what was installed is judged.
    let checked = installation.sh("kata-ctl check --path \"$CONFIGURATION\"")?;
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    for (what, file) in [
        ("kernel", "share/tatami/vmlinuz"),
        ("initrd", "share/tatami/initrd.img"),
        ("virtiofsd", "libexec/tatami/virtiofsd"),
        ("shim", "bin/containerd-shim-kata-v2"),
    ] {
        let line = format!("ok    {what}: {}/{file}", installation.prefix);
        assert!(checked.lines().any(|one| one.starts_with(&line)), "{line}:\n{checked}");
    }
    assert!(!checked.contains("fail  "), "{checked}");

    let report = installation.ok("kata-collect-data.sh --since 1m --path \"$CONFIGURATION\"")?;
    assert!(
        report.starts_with("<details>\n<summary>Meta details</summary>"),
        "{report}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let completions = installation.ok(&format!("kata-ctl completions {shell}"))?;
        assert!(completions.contains("collect-data"), "{shell}");
    }
    for file in [
        "share/man/man1/kata-ctl.1",
        "share/man/man1/kata-ctl-collect-data.1",
        "share/man/man1/kata-ctl-direct-volume-resize.1",
        "share/bash-completion/completions/kata-ctl",
        "share/zsh/site-functions/_kata-ctl",
        "share/fish/vendor_completions.d/kata-ctl.fish",
        "share/tatami/System.map",
        "share/tatami/modules.img",
        "share/tatami/debug-console.img",
        "share/tatami/iptables.img",
        "libexec/tatami/vhost-device-vsock",
    ] {
        assert!(fs::metadata(installation.file(file))?.len() > 0, "{file}");
    }
    Ok(())
}

#[test]
fn no_text_of_an_installation_names_a_place_of_the_build() -> Result<()> {
    let installation = Installation::new()?;
    let checkout = locate::workspace().display().to_string();
    let build = locate::build().display().to_string();
    let mut found = Vec::new();
    files(installation.root.path(), &mut found)?;
    for file in &found {
        // Programs may say where their sources were: texts are what is read.
        if let Ok(text) = fs::read_to_string(file) {
            assert!(
                !text.contains(&checkout) && !text.contains(&build),
                "{}",
                file.display()
            );
        }
    }
    assert!(found.len() > 20, "{found:?}");
    Ok(())
}

#[test]
fn an_installation_refuses_to_emulate_where_the_installer_says_kvm_and_a_package_takes_what_there_is() -> Result<()> {
    for (said, written) in [("", "auto"), ("kvm", "kvm")] {
        let configuration = fs::read_to_string(Installation::with_accelerator(said)?.configuration())?;
        let line = format!("accelerator = \"{written}\"");
        assert!(configuration.lines().any(|one| one == line), "{line}");
    }
    assert!(Installation::with_accelerator("xen").is_err());
    Ok(())
}
