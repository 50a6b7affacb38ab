//! Mounts that nobody should ask for are carried out inside the container's root, or are an error that says what is wrong.

use std::{fs, os::unix::fs::symlink, time::Duration};

use framework::{Node, Result};
use serde_json::{Value, json};

/// Timeout for a container with 10,000 mounts.
const LONG: Duration = Duration::from_secs(280);

#[test]
fn destinations_that_climb_stay_inside_the_root() -> Result<()> {
    let node = Node::start()?;
    let source = node.dir().join("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "inside")?;
    let outside = node.dir().join("outside");
    let spec = node.spec("climb", &["cat", "/a/file", "/to/file", "/tofile"])?;
    let root = spec.root();
    // The last component is a link that leads outside, and to nothing there.
    symlink(&outside, root.join("to"))?;
    symlink("../../outside-file", root.join("tofile"))?;
    let spec = spec
        .bind(&source, "/x/../../../../a", &["ro"])?
        .bind(&source, "/to", &["ro"])?
        .bind(&source.join("file"), "/tofile", &["ro"])?;
    assert_eq!(node.run_spec("climb", &spec)?.arg("--rm").ok()?, "insideinsideinside");
    assert!(!outside.exists() && !node.dir().join("outside-file").exists());
    node.nothing_left()
}

#[test]
fn a_name_of_255_bytes_with_newlines_is_a_name() -> Result<()> {
    let node = Node::start()?;
    let name = "a\nb \\ \t\u{7f}%s'\"".repeat(32);
    let name: String = name.chars().take(255).collect();
    let source = node.dir().join(&name);
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "odd")?;
    let spec = node
        .spec("odd", &["sh", "-c", "cat /data/*/file; cd /data/* && touch new"])?
        .bind(&source, &format!("/data/{name}"), &["rw"])?;
    let said = node.run_spec("odd", &spec)?.arg("--rm").output()?.success()?.stdout();
    assert!(said.starts_with("odd"), "{said}");
    assert!(source.join("new").exists());
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// runc takes it for one below the root, with a warning; so do we.
    #[test]
    fn a_relative_destination_is_below_the_root() -> Result<()> {
        let node = Node::start()?;
        let source = node.dir().join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("file"), "relative")?;
        let spec = node
            .spec("relative", &["cat", "/some/where/file"])?
            .bind(&source, "some/where", &["ro"])?;
        assert_eq!(node.run_spec("relative", &spec)?.arg("--rm").ok()?, "relative");
        node.nothing_left()
    }

    #[test]
    fn what_cannot_be_mounted_is_an_error_that_names_it() -> Result<()> {
        let node = Node::start()?;
        let mount = |destination: &str, kind: &str, source: &str, options: Value| json!({ "destination": destination, "type": kind, "source": source, "options": options });
        let long = "x".repeat(256);
        symlink("/proc/sys", node.dir().join("kernel"))?;
        let kernel = node.dir().join("kernel").display().to_string();
        let cases = [
            (
                mount("/d", "bind", "relative/path", json!(["bind"])),
                vec!["relative/path"],
            ),
            (mount("/d", "bind", "", json!(["bind"])), vec!["/d"]),
            (
                mount("/d", "bind", "/tmp/../no-such", json!(["bind"])),
                vec!["/d", "/tmp/../no-such", "cannot be resolved on the host"],
            ),
            (mount("/d", "ext4", "/dev/sda", json!([])), vec!["/d", "ext4"]),
            (
                mount("/d", "bind", &kernel, json!(["rbind"])),
                vec!["/d", "leads into the host's /proc or /sys"],
            ),
            (mount("/d", "tmpfs", "tmpfs", json!(["size=much"])), vec!["/d", "size"]),
            (
                mount(&format!("/{long}"), "bind", "/etc", json!(["bind"])),
                vec![long.as_str()],
            ),
            (mount("/proc/1", "bind", "/etc", json!(["bind"])), vec!["/proc/1"]),
        ];
        for (number, (mount, names)) in cases.into_iter().enumerate() {
            let name = format!("bad{number}");
            let spec = node.spec(&name, &["true"])?.push("/mounts", mount)?;
            let said = node.run_spec(&name, &spec)?.arg("--rm").fails()?;
            for wanted in names {
                assert!(said.contains(wanted), "no {wanted:?} in {said}");
            }
            node.discard(&name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn ten_thousand_mounts_work_or_are_refused_clearly() -> Result<()> {
        let node = Node::start()?;
        let source = node.dir().join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("file"), "one of many")?;
        let mounts: Vec<_> = (0..10_000)
            .map(|number| {
                // A directory is a file system of its own in the guest; files are not.
                let source = if number % 10 == 0 { source.clone() } else { source.join("file") };
                json!({ "destination": format!("/m/{number}"), "type": "bind", "source": source, "options": ["bind", "rprivate", "ro"] })
            })
            .collect();
        let mut spec = node.spec("many", &["cat", "/m/9999", "/m/9990/file"])?;
        for mount in mounts {
            spec = spec.push("/mounts", mount)?;
        }
        let output = node.run_spec("many", &spec)?.arg("--rm").limit(LONG).output()?;
        let said = output.stderr();
        // Nothing hangs, nothing is half there. Each mount costs virtiofsd a descriptor, and one for its mount point: a host that
        // lets it have fewer than 20,000 ends it with an error that names the mount that was one too many.
        assert!(
            output.stdout() == "one of manyone of many"
                || (said.contains("/m/") && said.contains("file table overflow")),
            "{said}"
        );
        eprintln!("ten thousand mounts: {:?} {said}", output.code);
        node.discard("many")?;
        node.nothing_left()
    }
}
