//! Direct-assigned volumes as a CSI driver handles them, by `kata-ctl direct-volume`, while a container uses them.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use framework::{Error, Node, Result, Spec, disk::RawImage, http, leftovers, locate};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A volume that is known to the runtime until this is dropped.
struct Volume<'a> {
    node: &'a Node,
    path: PathBuf,
}

impl<'a> Volume<'a> {
    fn add(node: &'a Node, device: &Path, fstype: &str, options: &[&str]) -> Result<Self> {
        let path = node.dir().join("volume");
        fs::create_dir_all(&path)?;
        let info = json!({ "volume-type": "block", "device": device, "fstype": fstype, "options": options });
        let volume = Self { node, path };
        volume.verb("add", &["--mount-info", &info.to_string()])?.ok()?;
        Ok(volume)
    }

    fn verb(&self, verb: &str, more: &[&str]) -> Result<framework::Ctr> {
        let words = ["direct-volume", verb, "--volume-path"];
        Ok(self.node.diagnose()?.args(words).arg(&self.path).args(more))
    }

    fn stats(&self) -> Result<Value> {
        self.verb("stats", &[])?.output()?.success()?.json()
    }

    /// Bytes of the file system, as the guest tells them.
    fn total(&self) -> Result<u64> {
        let stats = self.stats()?;
        stats["usage"][0]["total"]
            .as_u64()
            .ok_or_else(|| Error::unexpected(format!("no total in {stats}")))
    }

    fn resize(&self, size: u64) -> Result<framework::Ctr> {
        self.verb("resize", &["--resize-size", &size.to_string()])
    }

    /// A container that has the volume on /data.
    fn user(&self, name: &str) -> Result<Spec> {
        let spec = self.node.spec(name, &["sleep", "1000"])?;
        spec.bind(&self.path, "/data", &["rw"])
    }

    fn run(&self, name: &str) -> Result<()> {
        self.run_spec(name, &self.user(name)?)
    }

    fn run_spec(&self, name: &str, spec: &Spec) -> Result<()> {
        self.node.run_spec(name, spec)?.args(["-d", "--null-io"]).ok().map(drop)
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        // What is left of it is of no use to anybody.
        let _ = self.verb("remove", &[]).and_then(framework::Ctr::output);
        leftovers::remove_direct_volumes();
    }
}

/// Its free space as the container's programs see it, in KiB.
const ROOM: &str = "df -k /data | tail -n 1 | tr -s ' ' | cut -d' ' -f4";

fn room(node: &Node, name: &str, exec: &str) -> Result<u64> {
    let said = node.exec(name, exec).sh(ROOM).ok()?;
    said.trim()
        .parse()
        .map_err(|_| Error::unexpected(format!("df says {said:?}")))
}

#[test]
fn a_volume_in_use_tells_how_full_it_is_and_grows_with_its_file_system() -> Result<()> {
    let node = Node::start()?;
    let image = RawImage::ext4(&node.dir().join("volume.img"), 16 * MIB)?;
    let volume = Volume::add(&node, image.path(), "ext4", &[])?;
    let unused = volume.verb("stats", &[])?.fails()?;
    assert!(unused.contains("no running sandbox uses the volume"), "{unused}");
    volume.run("user")?;
    let id = node.id("user");

    let before = volume.stats()?;
    assert_eq!(before["usage"][0]["unit"], 1, "{before}");
    assert_eq!(before["usage"][1]["unit"], 2, "{before}");
    assert_eq!(before["sandboxes"], json!([id]), "{before}");
    assert_eq!(before["device_bytes"], 16 * MIB, "{before}");
    assert_eq!(before["mount"]["fstype"], "ext4", "{before}");
    let total = volume.total()?;
    assert!(total > 8 * MIB && total < 16 * MIB, "{before}");
    node.exec("user", "fill")
        .sh("head -c 4194304 /dev/zero > /data/file && sync")
        .ok()?;
    let used = |stats: &Value| stats["usage"][0]["used"].as_u64().unwrap_or(0);
    let filled = volume.stats()?;
    assert!(used(&filled) >= used(&before) + 4 * MIB, "{before} {filled}");
    assert_eq!(
        filled["usage"][1]["used"].as_u64(),
        before["usage"][1]["used"].as_u64().map(|inodes| inodes + 1),
        "{before} {filled}"
    );

    // As Kata's own client asks: by the device, on the management socket of the shim.
    let socket = Path::new("/run/vc/sbs").join(&id).join("shim-monitor.sock");
    let device = image.path().display().to_string();
    let target = format!("/direct-volume/stats?path={}", device.replace('/', "%2F"));
    let (_, by_device) = http::get(UnixStream::connect(&socket)?, &target)?;
    let by_device: Value = serde_json::from_str(&by_device)?;
    assert_eq!(by_device["usage"], filled["usage"], "{by_device} {filled}");
    let body = json!({ "VolumePath": device, "Size": 24 * MIB }).to_string();
    let resize = http::ask(
        UnixStream::connect(&socket)?,
        "POST",
        "/direct-volume/resize",
        body.as_bytes(),
    );
    let (head, said) = resize?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head} {said}");
    assert_eq!(fs::metadata(image.path())?.len(), 24 * MIB);

    let had = room(&node, "user", "before")?;
    volume.resize(64 * MIB)?.ok()?;
    assert!(volume.total()? > 48 * MIB, "{}", volume.stats()?);
    assert!(room(&node, "user", "after")? > had + 32 * 1024);
    // Again is no error: a driver that was interrupted tries again.
    volume.resize(64 * MIB)?.ok()?;
    let smaller = volume.resize(32 * MIB)?.fails()?;
    assert!(smaller.contains("cannot be made smaller"), "{smaller}");
    assert_eq!(fs::metadata(image.path())?.len(), 64 * MIB);
    node.exec("user", "more")
        .sh("head -c 20971520 /dev/zero > /data/more && sync")
        .ok()?;

    node.remove("user")?;
    assert!(image.is_clean()?);
    node.nothing_left()?;
    // The word that this sandbox uses it is gone with the sandbox.
    let unused = volume.resize(128 * MIB)?.fails()?;
    assert!(unused.ends_with("can make its file system larger\n"), "{unused}");
    Ok(())
}

#[test]
fn a_device_has_to_grow_on_the_host_first_and_a_killed_shim_leaves_no_word() -> Result<()> {
    let node = Node::start()?;
    let image = RawImage::ext4(&node.dir().join("disk.img"), 16 * MIB)?;
    let host = image.loop_device()?;
    let volume = Volume::add(&node, host.path(), "ext4", &[])?;
    volume.run("user")?;
    let early = volume.resize(48 * MIB)?.fails()?;
    assert!(early.contains("make the device itself larger first"), "{early}");
    let before = volume.total()?;
    assert!(before < 16 * MIB);

    fs::File::options().write(true).open(image.path())?.set_len(48 * MIB)?;
    let told = Command::new(locate::program("losetup")?)
        .arg("--set-capacity")
        .arg(host.path())
        .status()?;
    assert!(told.success());
    // Fewer than it has: it is what the driver was asked for, and the file system takes all.
    volume.resize(40 * MIB)?.ok()?;
    assert!(volume.total()? > 40 * MIB, "{}", volume.stats()?);

    node.kill_process("user", "containerd-shim")?;
    assert_eq!(node.await_stopped("user")?, 137);
    node.ctr().args(["container", "rm"]).arg(node.id("user")).ok()?;
    node.nothing_left()?;
    let unused = volume.verb("stats", &[])?.fails()?;
    assert!(unused.ends_with("can say how full it is\n"), "{unused}");
    host.detach()?;
    assert_eq!(image.loop_devices()?, "");
    Ok(())
}

/// Four megabytes at sixteen megabits a second: two seconds, however slow the machine is.
#[test]
fn disks_share_the_rate_that_the_configuration_gives_them() -> Result<()> {
    let limits = "[hypervisor.qemu]\ndisk_rate_limiter_bw_max_rate = 16000000\n";
    let node = Node::start_configured(limits)?;
    let image = RawImage::ext4(&node.dir().join("volume.img"), 32 * MIB)?;
    let volume = Volume::add(&node, image.path(), "ext4", &[])?;
    volume.run("writer")?;
    let began = std::time::Instant::now();
    let script = "dd if=/dev/zero of=/data/file bs=1M count=4 conv=fsync 2>/dev/null && echo written";
    assert_eq!(node.exec("writer", "write").sh(script).ok()?, "written\n");
    assert!(began.elapsed().as_millis() > 1500, "{:?}", began.elapsed());
    // It grows through the node that limits it.
    volume.resize(64 * MIB)?.ok()?;
    assert!(volume.total()? > 48 * MIB, "{}", volume.stats()?);
    node.remove("writer")?;
    assert!(image.is_clean()?);
    node.nothing_left()
}

/// Forty requests at ten a second: four seconds, less what the bucket holds at the start (a tenth of a second's).
#[test]
fn disks_do_as_many_requests_a_second_as_the_configuration_allows() -> Result<()> {
    let node = Node::start_configured("[hypervisor.qemu]\ndisk_rate_limiter_ops_max_rate = 10\n")?;
    let free = Node::start()?;
    let took = |node: &Node| -> Result<f64> {
        let image = RawImage::ext4(&node.dir().join("volume.img"), 32 * MIB)?;
        let volume = Volume::add(node, image.path(), "ext4", &[])?;
        volume.run("reader")?;
        let prepare = "dd if=/dev/zero of=/data/file bs=1M count=4 conv=fsync 2>/dev/null";
        node.exec("reader", "prepare").sh(prepare).ok()?;
        // In the guest, whose clock does not count the start of the program.
        let script = "now() { cut -d' ' -f1 /proc/uptime; }; echo 3 > /proc/sys/vm/drop_caches 2>/dev/null; now; \
                      dd if=/data/file of=/dev/null bs=4k count=40 iflag=direct 2>/dev/null; now";
        let said = node.exec("reader", "read").sh(script).ok()?;
        let mut times = said.lines().filter_map(|line| line.parse::<f64>().ok());
        let (began, ended) = (times.next().unwrap_or_default(), times.next().unwrap_or_default());
        node.remove("reader")?;
        node.nothing_left()?;
        Ok(ended - began)
    };
    let (limited, free) = (took(&node)?, took(&free)?);
    assert!(
        limited > 3.0 && limited > 2.0 * free,
        "{limited} s, and {free} s without a limit"
    );
    Ok(())
}

#[test]
fn what_cannot_grow_is_refused_with_the_reason() -> Result<()> {
    let node = Node::start()?;
    let image = RawImage::ext4(&node.dir().join("volume.img"), 16 * MIB)?;
    let volume = Volume::add(&node, image.path(), "ext4", &["ro"])?;
    volume.run("reader")?;
    assert!(volume.total()? > 8 * MIB);
    let refused = volume.resize(64 * MIB)?.fails()?;
    assert!(refused.contains("read-only"), "{refused}");
    assert_eq!(fs::metadata(image.path())?.len(), 16 * MIB);
    node.remove("reader")?;
    node.nothing_left()
}

#[test]
fn a_limit_of_io_for_the_volumes_device_is_one_for_the_guests_disk() -> Result<()> {
    let node = Node::start()?;
    let image = RawImage::ext4(&node.dir().join("disk.img"), 16 * MIB)?;
    let host = image.loop_device()?;
    let number = fs::metadata(host.path())?.rdev();
    let volume = Volume::add(&node, host.path(), "ext4", &[])?;
    let limited = |spec: Value| json!({ "throttleWriteBpsDevice": [spec] });
    let device = json!({ "major": rustix::fs::major(number), "minor": rustix::fs::minor(number), "rate": 4 * MIB });
    let spec = volume.user("writer")?.own_cgroup()?;
    volume.run_spec("writer", &spec.set("/linux/resources/blockIO", limited(device))?)?;
    let script = "echo $(grep ' /data ' /proc/self/mountinfo | cut -d' ' -f3); cat /sys/fs/cgroup/io.max";
    let said = node.exec("writer", "look").sh(script).ok()?;
    let disk = said.lines().next().unwrap_or_default();
    assert_eq!(
        said,
        format!("{disk}\n{disk} rbps=max wbps=4194304 riops=max wiops=max\n")
    );
    node.remove("writer")?;
    node.nothing_left()?;
    host.detach()
}
