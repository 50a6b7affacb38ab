//! What `make packages` leaves: the same bytes each time, a runtime that works wherever it is unpacked, and a package that leaves nothing.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use framework::{Error, Node, Result, locate};
use serde_json::Value;
use tempfile::TempDir;

/// The packages of the build, made anew.
struct Packages(TempDir);

impl Packages {
    fn make() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        run(Command::new(locate::workspace().join("scripts/packages"))
            .arg(directory.path())
            .env("BUILD", locate::build()))?;
        Ok(Self(directory))
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found: Vec<_> = fs::read_dir(self.0.path())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        found.sort();
        Ok(found)
    }

    fn with_end(&self, end: &str) -> Result<PathBuf> {
        let files = self.files()?;
        let found = files.into_iter().find(|path| path.to_string_lossy().ends_with(end));
        found.ok_or_else(|| Error::unexpected(format!("no {end}")))
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(Error::unexpected(format!("{command:?}: {}", text(&output.stderr)))),
    }
}

#[test]
fn two_runs_give_the_same_bytes() -> Result<()> {
    let (one, other) = (Packages::make()?, Packages::make()?);
    let (one, other) = (one.files()?, other.files()?);
    assert_eq!(one.len(), 4, "{one:?}");
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one.file_name(), other.file_name());
        assert!(fs::read(one)? == fs::read(other)?, "{} differs", one.display());
    }
    Ok(())
}

#[test]
fn an_archive_runs_a_container_wherever_it_is_unpacked() -> Result<()> {
    let packages = Packages::make()?;
    let place = tempfile::tempdir()?;
    run(Command::new("tar")
        .arg("-C")
        .arg(place.path())
        .arg("-xf")
        .arg(packages.with_end(".tar.gz")?))?;
    let prefix = fs::read_dir(place.path())?
        .next()
        .ok_or_else(|| Error::unexpected("an empty archive"))??
        .path();
    let configuration = fs::read_to_string(prefix.join("etc/configuration.toml"))?;
    assert!(!configuration.contains('@') && !configuration.contains(&*locate::build().to_string_lossy()));
    let node = Node::start_unpacked(&prefix)?;
    assert_eq!(
        node.run("unpacked").arg("--rm").program(["echo", "hello"]).ok()?,
        "hello\n"
    );
    node.nothing_left()?;
    let shown = run(Command::new(prefix.join("bin/kata-runtime"))
        .args(["config", "--path"])
        .arg(prefix.join("etc/configuration.toml")))?;
    for part in [
        "share/tatami/vmlinuz",
        "share/tatami/initrd.img",
        "libexec/tatami/virtiofsd",
    ] {
        assert!(shown.contains(&*prefix.join(part).to_string_lossy()), "{part}: {shown}");
    }
    Ok(())
}

#[test]
fn a_debian_package_says_what_it_needs_and_is_gone_when_it_is_purged() -> Result<()> {
    let packages = Packages::make()?;
    let deb = packages.with_end(".deb")?;
    let fields = run(Command::new("dpkg-deb").arg("-f").arg(&deb))?;
    for needed in [
        "Depends: libc6 (>= 2.",
        "libseccomp2",
        "libcap-ng0",
        "Recommends: containerd, qemu-system-x86",
    ] {
        assert!(fields.contains(needed), "{needed}: {fields}");
    }
    let root = tempfile::tempdir()?;
    for directory in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.path().join("var/lib/dpkg").join(directory))?;
    }
    for file in ["status", "available"] {
        fs::write(root.path().join("var/lib/dpkg").join(file), "")?;
    }
    let dpkg = |words: &[&str]| -> Result<String> {
        run(Command::new("dpkg")
            .arg(format!("--root={}", root.path().display()))
            .args(["--force-depends", "--force-script-chrootless"])
            .args(words))
    };
    dpkg(&["-i", &deb.to_string_lossy()])?;
    assert!(run(Command::new(root.path().join("usr/bin/kata-ctl")).arg("version"))?.contains("kata-ctl"));
    assert_eq!(
        fs::read_link(root.path().join("usr/bin/kata-monitor"))?,
        Path::new("kata-ctl")
    );
    // What the operator has changed stays until it is purged.
    let configuration = root.path().join("etc/kata-containers/configuration.toml");
    fs::write(&configuration, "# changed\n")?;
    dpkg(&["--remove", "tatami"])?;
    assert_eq!(fs::read_to_string(&configuration)?, "# changed\n");
    dpkg(&["--purge", "tatami"])?;
    assert!(!configuration.exists() && !root.path().join("usr/bin/kata-ctl").exists());
    assert!(!root.path().join("usr/share/tatami").exists());
    Ok(())
}

/// On a node that has this machine's files, containerd and QEMU among them. `make test-packages` does the same in fresh roots.
#[test]
fn the_readme_followed_command_by_command_runs_a_container_and_leaves_nothing_installed() -> Result<()> {
    let packages = Packages::make()?;
    let said = run(Command::new(locate::workspace().join("scripts/follow-readme"))
        .arg("/")
        .arg(packages.with_end(".deb")?))?;
    for command in ["# apt install ", "# ctr run ", "# apt purge tatami"] {
        assert!(said.contains(command), "{command}: {said}");
    }
    Ok(())
}

#[test]
fn a_debian_package_is_as_debian_has_them_and_says_under_which_licences_its_parts_are() -> Result<()> {
    let packages = Packages::make()?;
    let deb = packages.with_end(".deb")?;
    run(Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error,warning"])
        .arg(&deb))?;
    let root = tempfile::tempdir()?;
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(root.path()))?;
    let doc = root.path().join("usr/share/doc/tatami");
    let copyright = fs::read_to_string(doc.join("copyright"))?;
    for part in [
        "debug-console.img",
        "iptables.img",
        "LGPL-2.1",
        "vmlinuz",
        "busybox-static",
        "libexec",
    ] {
        assert!(copyright.contains(part), "{part}: {copyright}");
    }
    let texts = run(Command::new("zcat").arg(doc.join("licences.txt.gz")))?;
    // Of the shim, of the agent, and of a daemon.
    for crate_ in ["tokio 1.", "libseccomp 0.", "virtiofsd 1."] {
        assert!(texts.contains(crate_), "{crate_}");
    }
    assert!(texts.contains("Permission is hereby granted") && texts.contains("Apache License"));
    Ok(())
}

#[test]
fn an_rpm_says_what_it_needs_runs_a_container_and_leaves_no_file() -> Result<()> {
    let packages = Packages::make()?;
    let rpm = packages.with_end(".rpm")?;
    let query = |what: &str| run(Command::new("rpm").args(["-qp", what]).arg(&rpm));
    let needed = query("--requires")?;
    for library in ["libc.so.6(GLIBC_2.", "libseccomp.so.2", "libcap-ng.so.0"] {
        assert!(needed.contains(library), "{library}: {needed}");
    }
    assert!(query("--recommends")?.contains("qemu-system-x86-core >= 2:8.2"));
    assert_eq!(query("--configfiles")?, "/etc/kata-containers/configuration.toml\n");
    // As on a node, but for the libraries: they are packages of another distribution.
    let root = tempfile::tempdir()?;
    let package = rpm.display().to_string();
    let in_root = |words: &[&str]| -> Result<String> {
        run(Command::new("rpm")
            .arg(format!("--root={}", root.path().display()))
            .arg("--nodeps")
            .args(words))
    };
    in_root(&["-i", &package])?;
    assert_eq!(in_root(&["-V", "tatami"])?, "");
    let at = |path: &str| root.path().join(path);
    assert!(run(Command::new(at("usr/bin/kata-ctl")).arg("version"))?.contains("kata-ctl"));
    let shim = run(Command::new(at("usr/bin/containerd-shim-kata-v2")).arg("-v"))?;
    assert!(!shim.is_empty());
    // The guest is found beside the program, without a word in the file.
    let shown = run(Command::new(at("usr/bin/kata-ctl"))
        .args(["config", "--path"])
        .arg(at("etc/kata-containers/configuration.toml")))?;
    assert!(
        shown.contains(&*at("usr/share/tatami/vmlinuz").to_string_lossy()),
        "{shown}"
    );
    symlink("../etc/kata-containers", at("usr/etc"))?;
    let node = Node::start_unpacked(&at("usr"))?;
    assert_eq!(node.run("rpm").arg("--rm").program(["echo", "hello"]).ok()?, "hello\n");
    node.nothing_left()?;
    fs::remove_file(at("usr/etc"))?;

    in_root(&["-e", "tatami"])?;
    let left = run(Command::new("find")
        .arg(root.path())
        .args(["-not", "-type", "d", "-not", "-path", "*rpm*"]))?;
    assert_eq!(left, "");
    Ok(())
}

#[test]
fn the_list_of_parts_is_spdx_and_names_the_kernel_and_the_crates() -> Result<()> {
    let packages = Packages::make()?;
    let list: Value = serde_json::from_str(&fs::read_to_string(packages.with_end(".spdx.json")?)?)
        .map_err(|error| Error::unexpected(error.to_string()))?;
    assert_eq!(list["spdxVersion"], "SPDX-2.3");
    let parts = list["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let licence = |name: &str| {
        let part = parts.iter().find(|part| part["name"] == name);
        part.map(|part| part["licenseDeclared"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(licence("linux").as_deref(), Some("GPL-2.0-only"));
    assert_eq!(licence("iptables").as_deref(), Some("GPL-2.0-or-later"));
    assert!(licence("tokio").is_some() && licence("libseccomp").is_some() && licence("virtiofsd").is_some());
    // Of tests alone.
    assert!(licence("proptest").is_none() && licence("tonic").is_none());
    let mut ids: Vec<_> = parts.iter().map(|part| part["SPDXID"].to_string()).collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id is there twice");
    Ok(())
}
