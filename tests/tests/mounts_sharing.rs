//! Whatever the host's source is, and however often it is mounted, the container has what it has on any other runtime.

use std::{fs, os::unix::fs::symlink, path::Path};

use framework::{HostMount, Node, Report, Result};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

fn options(report: &Report, point: &str) -> Result<Vec<String>> {
    let options = report.mount(point)?["options"].clone();
    Ok(options
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect())
}

fn has(report: &Report, point: &str, wanted: &[&str]) -> Result<()> {
    let options = options(report, point)?;
    for option in wanted {
        assert!(
            options.iter().any(|other| other == option),
            "{point}: no {option} in {options:?}"
        );
    }
    Ok(())
}

#[test]
fn sources_of_every_kind_are_what_they_are_on_the_host() -> Result<()> {
    let node = Node::start()?;
    let source = node.dir().join("source");
    fs::create_dir_all(source.join("inner"))?;
    fs::write(source.join("file"), "file")?;
    fs::write(source.join("inner/deep"), "deep")?;
    symlink(source.join("inner"), node.dir().join("link"))?;
    symlink("file", source.join("filelink"))?;
    let below = HostMount::new(&source.join("below"), MountFlags::empty())?;
    fs::write(source.join("below/submount"), "submount")?;
    let strict = node.dir().join("strict");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let strict_mount = HostMount::new(&strict, flags)?;

    let spec = node
        .spec("kinds", &["sleep", "1000"])?
        .bind(&source, "/rw", &["rw"])?
        .bind(&source, "/ro", &["ro"])?
        .bind(&source.join("inner"), "/inside", &["rw"])?
        .bind(&node.dir().join("link"), "/linked", &["ro"])?
        .bind(&source.join("filelink"), "/linkedfile", &["ro"])?
        .bind(&source, "/flags", &["nosuid", "nodev", "noexec", "noatime"])?
        .bind(&source, "/relatime", &["relatime"])?
        .bind(&strict, "/strict", &[])?
        .push(
            "/mounts",
            json!({ "destination": "/alone", "type": "bind", "source": source, "options": ["bind", "ro"] }),
        )?;
    node.run_spec("kinds", &spec)?.arg("-d").ok()?;
    let sh = |script: &str| node.exec("kinds", "x").sh(script).output();

    let read =
        "cat /rw/file /ro/inner/deep /inside/deep /linked/deep /linkedfile /rw/below/submount /ro/below/submount";
    assert_eq!(sh(read)?.success()?.stdout(), "filedeepdeepdeepfilesubmountsubmount");
    // Without `rbind` nothing that is mounted below comes along.
    assert_eq!(sh("ls /alone/below")?.success()?.stdout(), "");
    // What one mount writes the others see, and the one that is read-only takes nothing. `ro` is of the mount alone, not of what is
    // mounted below it, as with runc.
    let tried = "echo new > /rw/new; cat /ro/new; echo other > /inside/other; cat /rw/inner/other; echo sub > /rw/below/sub; \
                 guest-probe try create /ro/no /ro/below/no /linked/no /alone/no";
    let tried = sh(tried)?.success()?.stdout();
    let errors = tried.strip_prefix("new\nother\n").unwrap_or(&tried);
    let read_only = json!({ "/ro/no": 30, "/ro/below/no": 0, "/linked/no": 30, "/alone/no": 30 });
    assert_eq!(serde_json::from_str::<Value>(errors)?, read_only, "EROFS is 30");
    assert_eq!(fs::read_to_string(source.join("below/sub"))?, "sub\n");

    let report = Report::parse(
        &node
            .exec("kinds", "r")
            .program(["guest-probe", "report"])
            .output()?
            .success()?,
    )?;
    has(&report, "/flags", &["nosuid", "nodev", "noexec", "noatime"])?;
    has(&report, "/relatime", &["relatime"])?;
    has(&report, "/ro", &["ro"])?;
    // As on the host, though the specification does not say so.
    has(&report, "/strict", &["nosuid", "nodev", "noexec"])?;
    let plain = options(&report, "/rw")?;
    assert!(
        !plain.iter().any(|option| option == "noexec" || option == "nodev"),
        "{plain:?}"
    );
    node.remove("kinds")?;
    below.unmount()?;
    strict_mount.unmount()?;
    node.nothing_left()
}

#[test]
fn a_file_that_the_host_replaces_is_the_old_one_where_it_is_mounted_itself() -> Result<()> {
    let node = Node::start()?;
    let file = node.dir().join("file");
    fs::write(&file, "old")?;
    let spec = node.spec("old", &["sleep", "1000"])?.bind(&file, "/file", &["ro"])?;
    node.run_spec("old", &spec)?.arg("-d").ok()?;
    // A write into the file is seen; a file that takes its name is another one, as with every bind mount.
    fs::write(&file, "changed in place")?;
    let wait = "until grep -q changed /file; do :; done; cat /file";
    assert_eq!(node.exec("old", "a").sh(wait).ok()?, "changed in place");
    fs::write(node.dir().join("new"), "new")?;
    fs::rename(node.dir().join("new"), &file)?;
    assert_eq!(
        node.exec("old", "b").program(["cat", "/file"]).ok()?,
        "changed in place"
    );
    node.remove("old")?;
    node.nothing_left()
}

/// A directory of the host's /dev, removed at the end.
struct BelowDev(std::path::PathBuf);

impl Drop for BelowDev {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_no_device_below_dev_is_the_hosts_and_a_device_can_stand_for_another() -> Result<()> {
    let node = Node::start()?;
    let dev = BelowDev(Path::new("/dev").join(node.namespace()));
    fs::create_dir_all(dev.0.join("disk/by-id"))?;
    symlink("../../vda", dev.0.join("disk/by-id/x"))?;
    fs::write(dev.0.join("file"), "file")?;
    let _log = std::os::unix::net::UnixListener::bind(dev.0.join("log"))?;
    let script = "readlink /disk/by-id/x; cat /file; echo; test -S /dev/log && echo socket; stat -c %t:%T /dev/random; \
                  stat -c %t:%T /dev/null";
    let spec = node
        .spec("dev", &["sh", "-c", script])?
        .bind(&dev.0.join("disk"), "/disk", &["ro"])?
        .bind(&dev.0.join("file"), "/file", &["ro"])?
        .bind(&dev.0.join("log"), "/dev/log", &["rw"])?
        .bind(Path::new("/dev/urandom"), "/dev/random", &["rw"])?;
    let said = node.run_spec("dev", &spec)?.arg("--rm").ok()?;
    assert_eq!(said, "../../vda\nfile\nsocket\n1:9\n1:3\n");
    node.nothing_left()
}

#[test]
fn an_overlay_can_have_its_upper_layer_on_a_volume() -> Result<()> {
    let node = Node::start()?;
    let volume = node.dir().join("volume");
    for name in ["lower", "upper", "work"] {
        fs::create_dir_all(volume.join(name))?;
    }
    fs::write(volume.join("lower/changed"), "lower\n")?;
    fs::write(volume.join("lower/removed"), "")?;
    fs::create_dir(volume.join("lower/emptied"))?;
    fs::write(volume.join("lower/emptied/file"), "")?;
    let script = "mkdir /m && mount -t overlay overlay -o lowerdir=/v/lower,upperdir=/v/upper,workdir=/v/work /m && \
                  echo upper > /m/changed && rm /m/removed && rm -r /m/emptied && mkdir /m/emptied && \
                  cat /v/lower/changed /m/changed && ls /m /m/emptied && umount /m && \
                  mount -t overlay overlay -o lowerdir=/v/lower,upperdir=/v/upper,workdir=/v/work /m && ls /m /m/emptied";
    let mut spec = node
        .spec("overlay", &["sh", "-c", script])?
        .bind(&volume, "/v", &["rw"])?;
    for set in ["bounding", "effective", "permitted"] {
        spec = spec.push(&format!("/process/capabilities/{set}"), "CAP_SYS_ADMIN")?;
    }
    let said = node.run_spec("overlay", &spec)?.arg("--rm").ok()?;
    let listed = "/m:\nchanged\nemptied\n\n/m/emptied:\n";
    assert_eq!(said, format!("lower\nupper\n{listed}{listed}"));
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// CRI's annotations for a container of the sandbox `pod`.
    fn member(node: &Node, spec: framework::Spec, kind: &str) -> Result<framework::Spec> {
        spec.of_pod(node, kind)
    }

    #[test]
    fn one_source_is_writable_in_one_container_of_a_pod_and_read_only_in_the_other() -> Result<()> {
        let node = Node::start()?;
        let source = node.dir().join("source");
        fs::create_dir(&source)?;
        // The sandbox itself has no image: what is asked of it is that it is there.
        let pod = node.spec("pod", &["sleep", "1000"])?;
        node.run_spec("pod", &member(&node, pod, "sandbox")?)?.arg("-d").ok()?;
        let writer = node
            .spec("writer", &["sleep", "1000"])?
            .bind(&source, "/data", &["rw"])?;
        node.run_spec("writer", &member(&node, writer, "container")?)?
            .arg("-d")
            .ok()?;
        let reader = node.spec("app", &["sleep", "1000"])?.bind(&source, "/data", &["ro"])?;
        node.run_spec("app", &member(&node, reader, "container")?)?
            .arg("-d")
            .ok()?;
        node.exec("writer", "w").sh("echo shared > /data/file").ok()?;
        assert_eq!(node.exec("app", "r").program(["cat", "/data/file"]).ok()?, "shared\n");
        let tried = ["guest-probe", "try", "write", "/data/file"];
        let tried = node.exec("app", "t").program(tried).output()?.json()?;
        assert_eq!(tried, json!({ "/data/file": 30 }));
        // One virtiofsd, and its sandbox's parent process, for both.
        let daemons = node.processes("pod");
        let daemons = daemons
            .iter()
            .filter(|process| process.program().ends_with("virtiofsd"));
        assert!(daemons.count() <= 2);
        node.remove("app")?;
        node.remove("writer")?;
        node.remove("pod")?;
        node.nothing_left()
    }

    #[test]
    fn files_of_the_kernel_are_the_guests_own() -> Result<()> {
        let node = Node::start()?;
        let spec = node
            .spec("kernel", &["guest-probe", "report"])?
            .bind(Path::new("/sys/class"), "/class", &["ro"])?
            .bind(Path::new("/proc/sys/kernel"), "/kernel", &["ro"])?
            .bind(Path::new("/dev/null"), "/nothing", &["rw"])?;
        let report = node.report("kernel", &spec)?;
        assert_eq!(report.mount("/class")?["type"], "sysfs");
        assert_eq!(report.mount("/kernel")?["type"], "proc");
        assert_eq!(report.mount("/nothing")?["type"], "devtmpfs");
        node.nothing_left()
    }
}
