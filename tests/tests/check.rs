//! As a new user has it: one thing is broken. `kata-ctl check` must lead to it in one reading, and so must what `ctr run` says.

use std::{fs, path::Path, process::Command, time::Duration};

use framework::{Node, Result, locate};

/// Timeout for a failed start, on a machine that boots other VMs as well.
const IN_TIME: Duration = Duration::from_secs(60);

/// A container under a configuration with `dropin` does not start. What `check` fails names all of `checked`, and nothing else
/// fails; what `ctr` says names all of `said`.
fn broken(dropin: &str, checked: &[&str], said: &[&str]) -> Result<()> {
    let node = Node::start_configured(dropin)?;
    let path = node.dir().join("configuration.toml");
    let report = node
        .diagnose()?
        .args(["check", "--path"])
        .arg(&path)
        .output()?
        .code(1)?
        .stdout();
    let failed: Vec<_> = report.lines().filter(|line| line.starts_with("fail")).collect();
    assert_eq!(failed.len(), 1, "{report}");
    for word in checked {
        assert!(failed[0].contains(word), "no {word:?} in: {}", failed[0]);
    }
    let refused = node
        .run("broken")
        .arg("--rm")
        .program(["true"])
        .limit(IN_TIME)
        .fails()?;
    for word in said {
        assert!(refused.contains(word), "no {word:?} in: {refused}");
    }
    node.discard("broken")?;
    node.nothing_left()
}

#[test]
fn a_kernel_that_is_not_there() -> Result<()> {
    broken(
        "[hypervisor.qemu]\nkernel = \"/nonexistent/vmlinuz\"\n",
        &["kernel: /nonexistent/vmlinuz cannot be read", "hypervisor.qemu.kernel"],
        &["kernel", "/nonexistent/vmlinuz"],
    )
}

#[test]
fn a_virtiofsd_that_is_not_there() -> Result<()> {
    broken(
        "[hypervisor.qemu]\nvirtio_fs_daemon = \"/nonexistent/virtiofsd\"\n",
        &[
            "virtiofsd: ",
            "/nonexistent/virtiofsd",
            "hypervisor.qemu.virtio_fs_daemon",
        ],
        &["virtiofsd", "/nonexistent/virtiofsd"],
    )
}

#[test]
fn a_vsock_daemon_that_is_not_there() -> Result<()> {
    broken(
        "[hypervisor.qemu]\nvsock = \"vhost-user\"\nvsock_daemon = \"/nonexistent/vsock\"\n",
        &["vsock: ", "/nonexistent/vsock", "hypervisor.qemu.vsock_daemon"],
        &["vsock", "/nonexistent/vsock"],
    )
}

#[test]
fn an_initrd_in_place_of_the_kernel() -> Result<()> {
    let initrd = locate::built("share/initrd.img", "build")?.display().to_string();
    broken(
        &format!("[hypervisor.qemu]\nkernel = \"{initrd}\"\n"),
        &["kernel: ", &initrd, "not a kernel", "exchange"],
        &["kernel", &initrd],
    )
}

#[test]
fn a_kernel_in_place_of_the_initrd() -> Result<()> {
    let kernel = locate::built("share/vmlinuz", "build")?.display().to_string();
    broken(
        &format!("[hypervisor.qemu]\ninitrd = \"{kernel}\"\n[agent.kata]\ndial_timeout = 30\n"),
        &["initrd: ", &kernel, "not an initrd", "exchange"],
        // The guest's kernel says so itself, on its console.
        &["guest", "init"],
    )
}

/// Not run: a guest of that size would take the host's memory for its own tables. It is no failure either, as memory is only
/// promised.
#[test]
fn more_memory_than_the_host_has() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("configuration.toml");
    fs::copy(locate::configuration()?, &path)?;
    let dropins = directory.path().join("config.d");
    fs::create_dir(&dropins)?;
    fs::write(
        dropins.join("90-test.toml"),
        "[hypervisor.qemu]\ndefault_memory = 1048576\n",
    )?;
    let output = Command::new(locate::built("bin/kata-ctl", "build")?)
        .args(["check", "--path"])
        .arg(&path)
        .output()?;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = report.lines().find(|line| line.starts_with("warn  memory:"));
    assert!(
        line.is_some_and(|line| line.contains("1048576 MiB") && line.contains("lower hypervisor.qemu.default_memory")),
        "{report}"
    );
    Ok(())
}

#[test]
fn less_memory_than_a_guest_can_have() -> Result<()> {
    broken(
        "[hypervisor.qemu]\ndefault_memory = 16\n",
        &["configuration: ", "default_memory = 16", "from 64"],
        &["default_memory = 16", "from 64"],
    )
}

#[test]
fn a_containerd_that_does_not_know_the_runtime() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let script = "#!/bin/sh\ncase $1 in config) echo '[plugins]';; *) echo containerd x v1.7.24;; esac\n";
    write_program(&directory.path().join("containerd"), script)?;
    let output = Command::new(locate::built("bin/kata-ctl", "build")?)
        .args(["check", "--path"])
        .arg(locate::configuration()?)
        .env("PATH", directory.path())
        .output()?;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = report
        .lines()
        .find(|line| line.starts_with("warn  containerd's configuration:"));
    assert!(
        line.is_some_and(
            |line| line.contains("no runtime of type io.containerd.kata.v2") && line.contains("add [plugins")
        ),
        "{report}"
    );
    Ok(())
}

fn write_program(path: &Path, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, script)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// A plain chroot(2): its root directory is no mount point.
#[test]
fn a_root_that_is_no_mount_point() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bundle = directory.path().join("bundle");
    fs::create_dir(&bundle)?;
    fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.0.2"}"#)?;
    let script = "set -e; mkdir root; for part in bin lib lib64 usr proc run dev work; do mkdir root/$part; done; \
                  for part in bin lib lib64 usr proc run dev; do mount --rbind /$part root/$part; done; \
                  mount --bind . root/work; cp \"$SHIM\" shim; cd root; \
                  exec chroot . sh -c 'cd /work/bundle; exec /work/shim -namespace chroot -address /x -publish-binary /x \
                  -id chroot start'";
    let output = Command::new(locate::program("unshare")?)
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .current_dir(directory.path())
        .env("SHIM", locate::built("bin/containerd-shim-kata-v2", "build")?)
        .stdin(std::process::Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(
        said.contains("not a mount point") && said.contains("mount --bind"),
        "{said}"
    );
    Ok(())
}
