//! A cache, a pin and inputs of a test's own for the scripts in `guest-kernel/`, and a toy in the place of Linux: a source
//! that its build takes for a kernel's and compiles in a moment. It knows nothing of what the scripts do with them.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{Error, Result, image::sha256, locate};

/// The package that a test's pin names; there is none.
pub const PACKAGE: &str = "no-such-package";

/// A cache and a pin of a test's own.
pub struct Pinned {
    dir: tempfile::TempDir,
}

impl Pinned {
    /// A pin that names a version and the checksum of its tarball, and an empty cache.
    pub fn new(version: &str, sum: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let pin = format!(
            "KERNEL_VERSION={version}\nKERNEL_SERIES=6.12\nKERNEL_PACKAGE={PACKAGE}\nKERNEL_PACKAGE_VERSION={version}-1\n\
             KERNEL_SHA256={sum}\nKERNEL_PLACES=\"cache given package\"\n"
        );
        fs::write(dir.path().join("pin"), pin)?;
        fs::create_dir_all(dir.path().join("cache/src"))?;
        fs::create_dir(dir.path().join("bin"))?;
        Ok(Self { dir })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pin(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir().join("pin"))?)
    }

    /// Where the cache keeps the tarball of a version.
    pub fn cached(&self, version: &str) -> PathBuf {
        self.dir().join(format!("cache/src/{PACKAGE}-{version}-1.tar.xz"))
    }

    /// Puts a program before those of the machine.
    pub fn program(&self, name: &str, script: &str) -> Result<()> {
        let path = self.dir().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// A script of `guest-kernel/` with these surroundings, not yet run.
    pub fn command(&self, script: &str) -> Command {
        let mut path = OsString::from(self.dir().join("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new(locate::workspace().join("guest-kernel").join(script));
        command
            .env("TATAMI_CACHE", self.dir().join("cache"))
            .env("KERNEL_PIN", self.dir().join("pin"))
            .env("PATH", path)
            .env_remove("KERNEL_SOURCE");
        command
    }

    pub fn run(&self, script: &str, given: Option<&Path>) -> Result<Output> {
        let mut command = self.command(script);
        if let Some(given) = given {
            command.env("KERNEL_SOURCE", given);
        }
        command
            .output()
            .map_err(Error::io(format!("running guest-kernel/{script}")))
    }
}

/// What the toy's build does, as kbuild's targets do it that `guest-kernel/build` asks for. A file `slow` in the source's
/// parent makes the compilation of b.o stop in its midst, with half of it written, after it has said so in `stopped`.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 117
PAHOLE ?= pahole
boot := $(O)/arch/x86/boot
allnoconfig:
	@cp $(KCONFIG_ALLCONFIG) $(O)/$(KCONFIG_CONFIG)
	@echo "CONFIG_PAHOLE_VERSION=$$($(PAHOLE) --version || echo 0)" >>$(O)/$(KCONFIG_CONFIG)
$(O)/%.o: %.c
	@echo '  CC      $@'
	@echo $* >>$(O)/compiled
	@echo half >$@
	@[ $* != b ] || [ ! -e ../slow ] || { touch ../stopped; sleep 600; }
	@cp $< $@
vmlinux: $(O)/a.o $(O)/b.o
modules:
	@mkdir -p $(O)/include/config && echo $(VERSION) >$(O)/include/config/kernel.release
	@touch $(O)/modules.order $(O)/modules.builtin
bzImage: $(O)/a.o $(O)/b.o
	@mkdir -p $(boot)
	@cat $^ >$(O)/vmlinux && cp $(O)/vmlinux $(boot)/bzImage && echo map >$(O)/System.map
"#;

/// The toy's files and the tarball of them.
pub struct Toy {
    work: tempfile::TempDir,
}

impl Toy {
    /// A toy of Linux 6.12.117.
    pub fn new() -> Result<Self> {
        let work = tempfile::tempdir()?;
        let files = [
            ("Makefile", MAKEFILE),
            ("a.c", "first part\n"),
            ("b.c", "second part\n"),
        ];
        pack(work.path(), &files)?;
        Ok(Self { work })
    }

    /// What its build makes.
    pub const IMAGE: &str = "first part\nsecond part\n";

    pub fn tarball(&self) -> PathBuf {
        self.work.path().join("linux.tar.xz")
    }

    /// A pin that names it as `version`, without patches and without fixes to look for, on a copy of our fragments.
    pub fn pinned(&self, version: &str) -> Result<Pinned> {
        let pinned = Pinned::new(version, &sha256(&fs::read(self.tarball())?))?;
        fs::create_dir_all(pinned.dir().join("inputs/config"))?;
        for entry in fs::read_dir(locate::workspace().join("guest-kernel/config"))? {
            let entry = entry?;
            fs::copy(entry.path(), pinned.dir().join("inputs/config").join(entry.file_name()))?;
        }
        Ok(pinned)
    }

    /// A build of it, not yet run.
    pub fn build(&self, pinned: &Pinned) -> Command {
        let mut command = pinned.command("build");
        command
            .env("KERNEL_SOURCE", self.tarball())
            .env("KERNEL_FIXES", "/dev/null")
            .env("KERNEL_INPUTS", pinned.dir().join("inputs"));
        command
    }
}

/// Packs files as the tarball of a kernel's source, `linux.tar.xz` in `dir`.
///
/// # Errors
/// A file cannot be written, or tar fails.
pub fn pack(dir: &Path, files: &[(&str, &str)]) -> Result<PathBuf> {
    for (file, text) in files {
        let path = dir.join("linux").join(file);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        fs::write(path, text)?;
    }
    let tarball = dir.join("linux.tar.xz");
    let status = Command::new("tar")
        .arg("-cJf")
        .arg(&tarball)
        .arg("-C")
        .arg(dir)
        .arg("linux")
        .status()?;
    if !status.success() {
        return Err(Error::unexpected(format!("tar: {status}")));
    }
    Ok(tarball)
}
