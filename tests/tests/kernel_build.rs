//! What `guest-kernel/build` and `guest-kernel/bump` do around the compilation, with a toy in the place of Linux and
//! programs of the tests' own in the place of apt's and make's. No kernel is built here.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use framework::{
    Error, Result,
    image::sha256,
    kernel_pin::{Pinned, Toy},
    wait,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_refused(output: &Output, expected: &[&str]) {
    assert!(!output.status.success(), "it was not refused");
    let said = said(output);
    for text in expected {
        assert!(said.contains(text), "{text:?} is not in:\n{said}");
    }
}

/// The directory of the result that a build prints.
#[track_caller]
fn result(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", said(output));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

#[test]
fn a_tree_that_a_killed_build_left_half_written_gives_the_same_kernel() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.117")?;
    let tree = pinned.dir().join("cache/kernel/tree");
    // Unpacks it, and compiles nothing.
    result(&toy.build(&pinned).arg("config").output()?);
    fs::write(tree.join("slow"), "")?;
    let mut build = toy
        .build(&pinned)
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let stopped = wait::changed(&tree, Duration::from_secs(120), || {
        tree.join("stopped").exists().then_some(())
    });
    let group = Pid::from_raw(i32::try_from(build.id()).unwrap_or_default());
    killpg(group, Signal::SIGKILL).map_err(std::io::Error::from)?;
    build.wait()?;
    stopped?;
    assert_eq!(fs::read_to_string(tree.join("src/out-x86_64/b.o"))?, "half\n");

    fs::remove_file(tree.join("slow"))?;
    let built = result(&toy.build(&pinned).output()?);
    assert_eq!(fs::read_to_string(built.join("vmlinuz"))?, Toy::IMAGE);
    Ok(())
}

#[test]
fn a_build_makes_again_only_what_a_patch_changes() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.117")?;
    let first = result(&toy.build(&pinned).output()?);
    let list = pinned.dir().join("cache/kernel/tree/src/out-x86_64/compiled");
    // In any order: several are compiled at a time.
    let compiled = || -> Result<Vec<String>> {
        let mut all: Vec<_> = fs::read_to_string(&list)?.lines().map(str::to_owned).collect();
        all.sort();
        Ok(all)
    };
    assert_eq!(compiled()?, ["a", "b"]);

    fs::create_dir(pinned.dir().join("inputs/patches"))?;
    let patch = pinned.dir().join("inputs/patches/0001-x.patch");
    fs::write(
        &patch,
        "Why.\n---\n--- a/b.c\n+++ b/b.c\n@@ -1 +1 @@\n-second part\n+patched part\n",
    )?;
    let second = result(&toy.build(&pinned).output()?);
    assert_eq!(
        fs::read_to_string(second.join("vmlinuz"))?,
        "first part\npatched part\n"
    );
    assert_eq!(compiled()?, ["a", "b", "b"]);

    // Nothing is compiled for a kernel that is there.
    fs::remove_file(&patch)?;
    assert_eq!(result(&toy.build(&pinned).output()?), first);
    assert_eq!(compiled()?, ["a", "b", "b"]);

    fs::write(
        &patch,
        "Why.\n---\n--- a/b.c\n+++ b/b.c\n@@ -1 +1 @@\n-third part\n+x\n",
    )?;
    assert_refused(
        &toy.build(&pinned).output()?,
        &["a patch does not fit Linux 6.12.117", "b.c"],
    );
    Ok(())
}

#[test]
fn a_source_of_another_version_than_the_pin_says_is_refused_each_time() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.118")?;
    for _ in 0..2 {
        assert_refused(
            &toy.build(&pinned).output()?,
            &[
                "the source is of Linux 6.12.117",
                "names 6.12.118",
                "kernel-bump VERSION=6.12.117",
            ],
        );
    }
    Ok(())
}

#[test]
fn what_else_is_installed_does_not_change_the_configuration() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.117")?;
    let config = |pinned: &Pinned| -> Result<String> {
        let path = result(&toy.build(pinned).arg("config").output()?);
        Ok(fs::read_to_string(path)?)
    };
    let without = config(&pinned)?;
    assert!(without.contains("CONFIG_PAHOLE_VERSION=0"), "{without}");
    pinned.program("pahole", "echo 130")?;
    assert_eq!(config(&pinned)?, without);

    // Where it is used it counts, and it is part of what the result is named by.
    let debug = pinned.dir().join("inputs/config/debug.config");
    let text = fs::read_to_string(&debug)? + "CONFIG_DEBUG_INFO_BTF=y\n";
    fs::write(&debug, text)?;
    assert!(config(&pinned)?.contains("CONFIG_PAHOLE_VERSION=130"));
    let with_130 = result(&toy.build(&pinned).output()?);
    pinned.program("pahole", "echo 131")?;
    assert_ne!(result(&toy.build(&pinned).output()?), with_130);
    pinned.program("pahole", "exit 1")?;
    assert_refused(&toy.build(&pinned).output()?, &["BTF", "apt-get install dwarves"]);
    Ok(())
}

#[test]
fn an_option_that_the_kernel_drops_is_named() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.117")?;
    let base = pinned.dir().join("inputs/config/base.config");
    let text = fs::read_to_string(&base)? + "# CONFIG_PAHOLE_VERSION is not set\n";
    fs::write(&base, text)?;
    assert_refused(
        &toy.build(&pinned).output()?,
        &["CONFIG_PAHOLE_VERSION is not set", "the 1 options above", "remedy: "],
    );
    Ok(())
}

#[test]
fn a_missing_cross_compiler_is_an_error_that_names_its_package() -> Result<()> {
    let pinned = Pinned::new("6.12.117", &sha256(b""))?;
    // Every program of the machine but the compilers for another architecture.
    let programs = pinned.dir().join("programs");
    fs::create_dir(&programs)?;
    for dir in ["/usr/bin", "/bin", "/usr/sbin"] {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("aarch64-") {
                continue;
            }
            match std::os::unix::fs::symlink(entry.path(), programs.join(entry.file_name())) {
                // The same name in two directories: /bin may be a link to /usr/bin, and what a name leads to may be missing.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                linked => linked?,
            }
        }
    }
    let output = pinned
        .command("build")
        .args(["--arch", "arm64"])
        .env("PATH", &programs)
        .output()?;
    assert_refused(
        &output,
        &[
            "aarch64-linux-gnu-gcc, is not installed",
            "apt-get install gcc-aarch64-linux-gnu",
        ],
    );
    Ok(())
}

/// The names of Debian's packages as apt knows them.
const MADISON: &str = "echo ' linux-source-6.12 | 6.12.118-1~deb12u1 | http://mirror bookworm/main amd64 Packages'";

fn bump(pinned: &Pinned, version: &str, given: Option<&Path>) -> Command {
    let mut command = pinned.command("bump");
    command.arg(version);
    if let Some(given) = given {
        command.env("KERNEL_SOURCE", given);
    }
    command
}

#[test]
fn a_bump_that_fails_names_its_step_and_leaves_the_pin() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.117")?;
    let pin = pinned.pin()?;
    let given = toy.tarball();
    let failing = |version: &str, given: Option<&Path>, expected: &[&str]| -> Result<()> {
        assert_refused(&bump(&pinned, version, given).output()?, expected);
        assert_eq!(pinned.pin()?, pin);
        Ok(())
    };
    pinned.program("apt-cache", MADISON)?;
    pinned.program("apt-get", "exit 100")?;
    failing("6.12", None, &["'6.12' is no version", "VERSION=6.12.118"])?;
    failing(
        "6.12.119",
        None,
        &[
            "finding Debian's package failed",
            "Debian has no linux-source-6.12 of Linux 6.12.119",
            "it has: 6.12.118-1~deb12u1",
            "KERNEL_SOURCE",
        ],
    )?;
    failing(
        "6.12.118",
        None,
        &[
            "fetching the source failed",
            "linux-source-6.12=6.12.118-1~deb12u1 cannot be fetched",
        ],
    )?;
    pinned.program("make", "[ \"$3\" != build ] || exit 2")?;
    failing(
        "6.12.118",
        Some(&given),
        &["building the kernel failed", "'make build' puts the pinned kernel back"],
    )?;
    pinned.program("make", "[ \"$3\" != test-kernel ] || exit 2")?;
    failing(
        "6.12.118",
        Some(&given),
        &["the proof of the fixes (make test-kernel) failed"],
    )
}

#[test]
fn a_bump_builds_and_proves_the_new_kernel_and_then_moves_the_pin() -> Result<()> {
    let toy = Toy::new()?;
    let pinned = toy.pinned("6.12.117")?;
    let old = pinned.pin()?;
    let made = pinned.dir().join("made");
    // Each target sees the new pin, with the sum of what was given.
    let show = format!(
        "echo \"$3 $(grep -c 'VERSION=6.12.118$' $KERNEL_PIN) $(. $KERNEL_PIN; echo $KERNEL_SHA256)\" >>{0}\ncmp -s {1} {2} || exit 3",
        made.display(),
        pinned.dir().join("pin").display(),
        pinned.dir().join("pin.before").display()
    );
    fs::write(pinned.dir().join("pin.before"), &old)?;
    pinned.program("make", &show)?;

    // A tarball of an earlier attempt does not count.
    let wrong = pinned.dir().join("wrong.tar.xz");
    fs::write(&wrong, "not it")?;
    pinned.program("make", "exit 2")?;
    assert!(!bump(&pinned, "6.12.118", Some(&wrong)).output()?.status.success());
    pinned.program("make", &show)?;
    let output = bump(&pinned, "6.12.118", Some(&toy.tarball())).output()?;
    assert!(output.status.success(), "{}", said(&output));

    let sum = sha256(&fs::read(toy.tarball())?);
    assert_eq!(
        fs::read_to_string(&made)?,
        format!("build 1 {sum}\ntest-kernel 1 {sum}\n")
    );
    let pin = pinned.pin()?;
    for line in [
        "KERNEL_VERSION=6.12.118",
        "KERNEL_PACKAGE=linux-source-6.12",
        "KERNEL_PACKAGE_VERSION=6.12.118-given",
        &format!("KERNEL_SHA256={sum}"),
        "KERNEL_PLACES=\"cache given\"",
    ] {
        assert!(pin.lines().any(|found| found == line), "{line} is not in\n{pin}");
    }
    // What it names can be built without the file that was given.
    let source = pinned.run("source", None)?;
    if source.status.success() {
        return Ok(());
    }
    Err(Error::unexpected(said(&source)))
}
