//! The guest kernel's source is the pinned one or none, and it has the fixes that the runtime depends on: what a newcomer is
//! told when it is not so. No kernel is built here.

use std::{
    fs,
    process::{Command, Output},
};

use framework::{
    Error, Result,
    image::sha256,
    kernel_pin::{Pinned, pack},
    locate,
};

const SOURCE: &[u8] = b"a kernel's source";

fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "it was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_says(said: &str, expected: &[&str]) {
    for text in expected {
        assert!(said.contains(text), "{text:?} is not in:\n{said}");
    }
}

#[test]
fn one_wrong_byte_in_the_cached_source_is_an_error_with_both_sums_and_a_remedy() -> Result<()> {
    let pinned = Pinned::new("6.12.117", &sha256(SOURCE))?;
    let cached = pinned.cached("6.12.117");
    fs::write(&cached, SOURCE)?;
    let good = pinned.run("source", None)?;
    assert_eq!(
        String::from_utf8_lossy(&good.stdout).trim(),
        cached.display().to_string()
    );

    let mut damaged = SOURCE.to_vec();
    damaged[3] ^= 1;
    fs::write(&cached, &damaged)?;
    // The build looks before it does anything else, also when it has nothing to do.
    for script in ["source", "build"] {
        let said = refused(&pinned.run(script, None)?);
        assert_says(
            &said,
            &[
                &sha256(SOURCE),
                &sha256(&damaged),
                "damaged",
                "remedy: ",
                &format!("rm {}", cached.display()),
            ],
        );
    }

    fs::remove_file(&cached)?;
    let said = refused(&pinned.run("source", None)?);
    assert_says(
        &said,
        &[
            "no-such-package=6.12.117-1 cannot be fetched",
            "KERNEL_SOURCE",
            "kernel-bump",
        ],
    );
    Ok(())
}

#[test]
fn a_given_source_is_taken_into_the_cache_if_it_is_the_pinned_one() -> Result<()> {
    let pinned = Pinned::new("6.12.117", &sha256(SOURCE))?;
    let given = pinned.dir().join("given.tar.xz");
    let said = refused(&pinned.run("source", Some(&given))?);
    assert_says(&said, &["given.tar.xz is no file", "remedy: "]);

    fs::write(&given, "something else")?;
    let said = refused(&pinned.run("source", Some(&given))?);
    assert_says(&said, &[&sha256(b"something else"), &sha256(SOURCE), "kernel-bump"]);
    assert!(!pinned.cached("6.12.117").exists());

    fs::write(&given, SOURCE)?;
    assert!(pinned.run("source", Some(&given))?.status.success());
    assert_eq!(fs::read(pinned.cached("6.12.117"))?, SOURCE);
    Ok(())
}

#[test]
fn a_version_without_the_fuse_fix_is_refused_before_anything_is_fetched() -> Result<()> {
    let pinned = Pinned::new("6.6.7", &sha256(SOURCE))?;
    let said = refused(&pinned.run("build", None)?);
    assert_says(
        &said,
        &[
            "Linux 6.6.7 lacks",
            "fuse-8040",
            "issue 8040",
            "EBADF",
            "6.6.8",
            "remedy: ",
        ],
    );
    assert!(!said.contains("perf-growth"), "{said}");

    let script = locate::workspace().join("guest-kernel/bump");
    let output = Command::new(script)
        .arg("6.6.7")
        .env("TATAMI_CACHE", pinned.dir())
        .output()?;
    assert_says(
        &refused(&output),
        &["Linux 6.6.7 lacks", "fuse-8040", "guest-kernel/pin is as it was"],
    );
    Ok(())
}

#[test]
fn a_source_that_lacks_a_fix_is_refused_by_name_whatever_its_version_says() -> Result<()> {
    let work = tempfile::tempdir()?;
    let tarball = pack(
        work.path(),
        &[
            ("Makefile", "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\n"),
            ("fs/fuse/inode.c", "int nothing;\n"),
            (
                "kernel/events/core.c",
                "\t\tuser_locked = user_lock_limit;\n\t\tuser_extra -= extra;\n",
            ),
        ],
    )?;

    let pinned = Pinned::new("6.12.117", &sha256(&fs::read(&tarball)?))?;
    let said = refused(&pinned.run("build", Some(&tarball))?);
    assert_says(
        &said,
        &[
            "lacks",
            "fuse-8040",
            "fs/fuse/inode.c",
            "remedy: ",
            "guest-kernel/patches",
        ],
    );
    assert!(!said.contains("perf-growth"), "{said}");
    Ok(())
}

#[test]
fn every_fix_has_the_patch_that_it_names_and_a_variant_without_it() -> Result<()> {
    let workspace = locate::workspace();
    let table: toml::Table = fs::read_to_string(workspace.join("guest-kernel/fixes.toml"))?
        .parse()
        .map_err(|error| Error::unexpected(format!("fixes.toml: {error}")))?;
    let fixes = table["fix"].as_array().cloned().unwrap_or_default();
    assert!(!fixes.is_empty());
    for fix in fixes {
        let id = fix["id"].as_str().unwrap_or_default();
        let variant = workspace.join(format!("tests/kernel/{id}.patch"));
        assert!(variant.is_file(), "{} is missing", variant.display());
        let patch = fix["patch"].as_str().unwrap_or_default();
        assert!(
            patch.is_empty() || workspace.join("guest-kernel/patches").join(patch).is_file(),
            "{patch}"
        );
        assert_eq!(
            patch.is_empty(),
            fix["commits"].as_array().is_some_and(|all| !all.is_empty()),
            "{id}"
        );
        assert!(fix["tests"].as_array().is_some_and(|tests| !tests.is_empty()), "{id}");
    }
    Ok(())
}
