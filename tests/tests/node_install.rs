//! `kata-ctl node` on a node: in a mount namespace whose /etc and /usr/local/bin are the test's own, with each containerd.
//! What it leaves in containerd's configuration runs a pod.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use framework::{
    Docker, Error, Node, Result, Runtime,
    cri::PodNode,
    docker::IMAGE,
    locate::{self, Version},
    programs,
};
use tempfile::TempDir;

/// A node's directories, kept between commands.
struct Place(TempDir);

impl Place {
    /// A node whose containerd is this one and is configured so.
    fn new(version: Version, configuration: &str) -> Result<Self> {
        let place = Self(tempfile::tempdir()?);
        for directory in ["etc", "work", "bin", "opt", "host"] {
            fs::create_dir(place.0.path().join(directory))?;
        }
        fs::create_dir(place.0.path().join("etc/containerd"))?;
        fs::write(place.configuration(), configuration)?;
        // Debian's own is in /usr/bin.
        if version != Version::Installed {
            fs::copy(version.binary("containerd")?, place.0.path().join("bin/containerd"))?;
        }
        Ok(place)
    }

    fn configuration(&self) -> std::path::PathBuf {
        self.0.path().join("etc/containerd/config.toml")
    }

    /// Runs a script on the node; `kata-ctl` is the build's.
    fn sh(&self, script: &str) -> Result<Output> {
        let lay_out = "set -e; cd \"$PLACE\"; mount -t overlay -o lowerdir=/etc,upperdir=etc,workdir=work none /etc; \
                       mount --bind bin /usr/local/bin; mount --bind opt /opt; exec sh -ec \"$SCRIPT\"";
        let mut path = locate::build().join("bin").into_os_string();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        let output = Command::new(locate::program("unshare")?)
            .args(["--mount", "--propagation", "private", "sh", "-c", lay_out])
            .env("PLACE", self.0.path())
            .env("SCRIPT", script)
            .env("PATH", path)
            .output()?;
        Ok(output)
    }

    fn ok(&self, script: &str) -> Result<String> {
        let output = self.sh(script)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(Error::unexpected(format!(
                "{script}: {said}{}",
                String::from_utf8_lossy(&output.stderr)
            ))),
        }
    }
}

/// Files of a directory, with what is in them.
fn files(directory: &Path) -> Result<Vec<(std::path::PathBuf, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files(&path)?),
            false => all.push((path.clone(), fs::read(&path)?)),
        }
    }
    all.sort();
    Ok(all)
}

/// The whole way: installed, a pod runs, taken out, and the files are as they were.
fn a_node_learns_and_forgets(version: Version) -> Result<()> {
    let mut kept = None;
    let node = PodNode::start_edited(version, None, |base, _| {
        let place = Place::new(version, base)?;
        let before = files(&place.0.path().join("etc"))?;
        let said = place.ok("kata-ctl node status && exit 1; kata-ctl node install && kata-ctl node status")?;
        assert!(said.contains("not installed  /etc/containerd/config.toml"), "{said}");
        assert!(said.contains("to do   systemctl restart containerd\n"), "{said}");
        assert!(said.ends_with("installed      /etc/containerd/config.toml\n"), "{said}");
        let configuration = fs::read_to_string(place.configuration())?;
        assert_eq!(place.ok("kata-ctl node install")?, "nothing to change\n");
        kept = Some((place, before));
        Ok(configuration)
    })?;
    let pod = node.run(&node.pod("installed"))?;
    let app = pod.start(&pod.script("app", "grep -q tatami /proc/version && echo in a guest; sleep 1000"))?;
    app.await_line("in a guest")?;
    pod.stop()?;
    node.cri().remove_pod(&pod.id)?;
    node.nothing_left()?;

    let (place, before) = kept.ok_or_else(|| Error::unexpected("containerd was not configured"))?;
    place.ok("kata-ctl node uninstall")?;
    assert_eq!(files(&place.0.path().join("etc"))?, before);
    assert_eq!(
        files(&place.0.path().join("bin"))?.len(),
        usize::from(version != Version::Installed)
    );
    Ok(())
}

mod kata_only {
    use super::*;

    #[test]
    fn a_node_learns_and_forgets_with_the_containerd_of_the_distribution() -> Result<()> {
        a_node_learns_and_forgets(Version::Installed)
    }

    #[test]
    fn a_node_learns_and_forgets_with_containerd_1_7() -> Result<()> {
        a_node_learns_and_forgets(Version::V1_7)
    }

    #[test]
    fn a_node_learns_and_forgets_with_containerd_2_1() -> Result<()> {
        a_node_learns_and_forgets(Version::V2_1)
    }

    /// With the Docker that the build has: its own check, a container by the name that it has learnt, and the bytes that were there.
    #[test]
    fn docker_learns_the_runtime_runs_a_container_by_it_and_forgets() -> Result<()> {
        let place = Place::new(Version::Installed, "disabled_plugins = [\"cri\"]\n")?;
        let dockerd = locate::built("docker/bin/dockerd", "deps-containerd")?;
        std::os::unix::fs::symlink(dockerd, place.0.path().join("bin/dockerd"))?;
        let settings = place.0.path().join("etc/docker/daemon.json");
        fs::create_dir(place.0.path().join("etc/docker"))?;
        fs::write(&settings, "{ \"debug\":true,\n   \"userland-proxy\" : false }")?;
        let before = files(&place.0.path().join("etc"))?;
        let said = place.ok("kata-ctl node install --docker")?;
        assert!(said.contains("systemctl restart docker\n"), "{said}");
        // containerd's CRI plugin is disabled, which a note says.
        assert!(
            place
                .ok("kata-ctl node install --docker")?
                .starts_with("nothing to change\n")
        );
        let merged: serde_json::Value = serde_json::from_slice(&fs::read(&settings)?)?;
        assert_eq!(merged["debug"], true);
        assert_eq!(merged["userland-proxy"], false);

        let docker = Docker::start_with_settings(&fs::read_to_string(&settings)?)?;
        let runtimes = docker.docker(&["info", "--format", "{{json .Runtimes}}"]).ok()?;
        assert!(runtimes.contains("\"kata\""), "{runtimes}");
        let run = docker.docker(&["run", "--rm", "--runtime", "kata", IMAGE]);
        let said = run
            .args(["sh", "-c", "grep -q tatami /proc/version && echo in a guest"])
            .ok()?;
        assert_eq!(said, "in a guest\n");
        drop(docker);

        // What Docker cannot read is refused, and nothing is changed.
        place.ok("kata-ctl node uninstall")?;
        assert_eq!(files(&place.0.path().join("etc"))?, before);
        fs::write(&settings, "{ \"no-such-key\": 1 }")?;
        let before = files(&place.0.path().join("etc"))?;
        let output = place.sh("kata-ctl node install --docker")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains("no-such-key"),
            "{said}"
        );
        assert_eq!(files(&place.0.path().join("etc"))?, before);
        Ok(())
    }

    /// As a DaemonSet's container does it: the installation is copied, and the node is below a directory.
    #[test]
    fn a_container_installs_on_the_node_below_a_directory() -> Result<()> {
        let imports = "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
        let place = Place::new(Version::V2_1, imports)?;
        let script = "mount --rbind / host; kata-ctl node install --root \"$PLACE/host\" --copy-to /opt/tatami; \
                      /opt/tatami/bin/kata-ctl node status; /usr/local/bin/containerd-shim-kata-v2 --version; \
                      /usr/local/bin/containerd config dump";
        let said = place.ok(script)?;
        assert!(said.contains("containerd-shim-kata-v2"), "{said}");
        assert!(
            said.contains("runtime_path = '/opt/tatami/bin/containerd-shim-kata-v2'"),
            "{said}"
        );
        assert_eq!(fs::read_to_string(place.configuration())?, imports);
        place.ok("mount --rbind / host; kata-ctl node uninstall --root \"$PLACE/host\"")?;
        assert!(!place.0.path().join("etc/containerd/conf.d/tatami.toml").exists());
        Ok(())
    }

    /// What deploy/install.yaml and deploy/uninstall.yaml run, with their arguments but `--wait`.
    #[test]
    fn the_image_installs_a_node_as_a_daemonset_does() -> Result<()> {
        let node = Node::start_runtime(Runtime::Runc)?;
        let made = Command::new(locate::workspace().join("scripts/image"))
            .arg(node.dir())
            .env("BUILD", locate::build())
            .output()?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        node.ctr()
            .args(["image", "import"])
            .arg(node.dir().join("tatami.tar"))
            .ok()?;

        // The node's root: its containerd, a systemctl that writes down what it is told, and a shell for that.
        let host = node.dir().join("host");
        for directory in ["etc/containerd", "bin", "opt"] {
            fs::create_dir_all(host.join(directory))?;
        }
        programs::add(&host, &[programs::CONTAINERD])?;
        fs::copy(locate::program("busybox")?, host.join("bin/sh"))?;
        fs::write(host.join("bin/systemctl"), "#!/bin/sh\necho \"$*\" >>/told\n")?;
        fs::set_permissions(host.join("bin/systemctl"), fs::Permissions::from_mode(0o755))?;
        fs::write(host.join("etc/containerd/config.toml"), "version = 2\n")?;

        let run = |manifest: &str| -> Result<String> {
            let arguments = arguments(manifest)?;
            let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", host.display());
            let image = "docker.io/library/tatami:latest";
            node.ctr()
                .args([
                    "run",
                    "--rm",
                    "--privileged",
                    "--runtime",
                    "io.containerd.runc.v2",
                    "--mount",
                    &mount,
                ])
                .args([image, "node"])
                // ctr puts arguments in the place of the image's entry point.
                .args(["/opt/tatami/bin/kata-ctl", "node"])
                .args(arguments)
                .ok()
        };
        let told = || fs::read_to_string(host.join("told"));
        run("install.yaml")?;
        let configuration = fs::read_to_string(host.join("etc/containerd/config.toml"))?;
        assert!(
            configuration.contains("runtime_path = \"/opt/tatami/bin/containerd-shim-kata-v2\""),
            "{configuration}"
        );
        assert!(host.join("opt/tatami/share/tatami/vmlinuz").is_file());
        assert!(host.join("etc/kata-containers/configuration.toml").is_file());
        assert_eq!(told()?, "restart containerd\nis-active --quiet containerd\n");
        // The pod starts again: containerd, and with it every pod of the node, is left alone.
        run("install.yaml")?;
        assert_eq!(told()?.lines().count(), 2);

        run("uninstall.yaml")?;
        assert_eq!(
            fs::read_to_string(host.join("etc/containerd/config.toml"))?,
            "version = 2\n"
        );
        assert!(!host.join("etc/kata-containers/configuration.toml").exists());
        assert_eq!(told()?.lines().count(), 4);
        node.nothing_left()
    }

    /// The arguments of a manifest's container, without the one that makes it stay.
    fn arguments(manifest: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(locate::workspace().join("deploy").join(manifest))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("args: ["));
        let line = line.and_then(|line| line.strip_suffix(']'));
        let line = line.ok_or_else(|| Error::unexpected(format!("no arguments in {manifest}")))?;
        let words = line.split(", ").filter(|word| *word != "--wait");
        Ok(words.map(str::to_owned).collect())
    }

    /// A configuration that containerd cannot read afterwards is as it was.
    #[test]
    fn what_containerd_does_not_take_is_taken_back() -> Result<()> {
        let place = Place::new(Version::V1_7, "version = 2\nroot = 1\n")?;
        let before = files(&place.0.path().join("etc"))?;
        let output = place.sh("kata-ctl node install")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("containerd --config /etc/containerd/config.toml config dump` failed"),
            "{said}"
        );
        assert_eq!(files(&place.0.path().join("etc"))?, before);
        Ok(())
    }
}
