//! `kata-ctl node` on a node: in a mount namespace whose /etc and /usr/local/bin are the test's own, with each containerd.
//! What it leaves in containerd's configuration runs a pod.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
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

    fn configuration(&self) -> PathBuf {
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
fn files(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
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
        symlink(dockerd, place.0.path().join("bin/dockerd"))?;
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

    /// A node whose root is a directory, and a containerd that runs the image on it.
    struct DaemonSet {
        node: Node,
        host: PathBuf,
    }

    impl DaemonSet {
        /// The node has its containerd, a systemctl that writes down what it is told, and a shell for that.
        fn new() -> Result<Self> {
            let node = Node::start_runtime(Runtime::Runc)?;
            let host = node.dir().join("host");
            for directory in ["etc/containerd", "bin", "opt"] {
                fs::create_dir_all(host.join(directory))?;
            }
            programs::add(&host, &[programs::CONTAINERD])?;
            fs::copy(locate::program("busybox")?, host.join("bin/sh"))?;
            fs::write(host.join("bin/systemctl"), "#!/bin/sh\necho \"$*\" >>/told\n")?;
            fs::set_permissions(host.join("bin/systemctl"), fs::Permissions::from_mode(0o755))?;
            let daemon_set = Self { node, host };
            daemon_set.import(&locate::build())?;
            Ok(daemon_set)
        }

        /// Makes the image out of a build directory. It takes the place of the one before.
        fn import(&self, build: &Path) -> Result<()> {
            let directory = self.node.dir().join("image");
            let made = Command::new(locate::workspace().join("scripts/image"))
                .arg(&directory)
                .env("BUILD", build)
                .output()?;
            if !made.status.success() {
                return Err(Error::unexpected(String::from_utf8_lossy(&made.stderr).into_owned()));
            }
            let archive = directory.join("tatami.tar");
            self.node.ctr().args(["image", "import"]).arg(archive).ok()?;
            Ok(())
        }

        fn configuration(&self) -> PathBuf {
            self.host.join("etc/containerd/config.toml")
        }

        /// How often the node's systemctl was called, in lines of what it was told.
        fn told(&self) -> Result<Vec<String>> {
            let told = fs::read_to_string(self.host.join("told"))?;
            Ok(told.lines().map(str::to_owned).collect())
        }

        /// Runs a manifest's container, privileged and with the node's root.
        fn run(&self, arguments: Vec<String>) -> Result<String> {
            let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", self.host.display());
            self.node
                .ctr()
                .args(["run", "--rm", "--privileged", "--runtime", "io.containerd.runc.v2"])
                .args(["--mount", &mount])
                .args(["docker.io/library/tatami:latest", "node"])
                // ctr puts arguments in the place of the image's entry point.
                .args(["/opt/tatami/bin/kata-ctl", "node"])
                .args(arguments)
                .ok()
        }
    }

    /// The version of what is tested, and another one that has as many bytes.
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    fn other_version() -> String {
        format!("9{}", VERSION.get(1..).unwrap_or_default())
    }

    /// A build directory whose programs say that they are of another version.
    fn build_of_another_version(directory: &Path) -> Result<()> {
        fs::create_dir_all(directory.join("bin"))?;
        for part in ["share", "etc"] {
            symlink(locate::build().join(part), directory.join(part))?;
        }
        for program in fs::read_dir(locate::build().join("bin"))? {
            let program = program?;
            let to = directory.join("bin").join(program.file_name());
            let mut bytes = fs::read(program.path())?;
            let ours = ["containerd-shim-kata-v2", "kata-ctl"];
            if ours.iter().any(|name| program.file_name() == *name) {
                let (old, new) = (VERSION.as_bytes(), other_version());
                while let Some(at) = bytes.windows(old.len()).position(|window| window == old) {
                    bytes.splice(at..at + old.len(), new.bytes());
                }
            }
            fs::write(&to, bytes)?;
            fs::set_permissions(&to, program.metadata()?.permissions())?;
        }
        Ok(())
    }

    /// What the programs of a pod's shim say of their version, one for each process.
    fn shims(pod: &str) -> Vec<String> {
        let versions = [VERSION.to_owned(), other_version()];
        let of = |process: &framework::leftovers::Process| {
            let exe = format!("/proc/{}/exe", process.pid);
            let path = fs::read_link(&exe).unwrap_or_default();
            if !path.to_string_lossy().contains("containerd-shim-kata-v2") {
                return None;
            }
            // Also of a file that has been removed since.
            let bytes = fs::read(exe).unwrap_or_default();
            let says = |version: &&String| {
                let line = format!("Version: {version}\n");
                bytes.windows(line.len()).any(|window| window == line.as_bytes())
            };
            versions.iter().find(says).cloned()
        };
        framework::leftovers::processes(pod).iter().filter_map(of).collect()
    }

    #[test]
    fn an_upgrade_by_the_image_leaves_running_pods_and_a_removal_leaves_nothing() -> Result<()> {
        an_upgrade_leaves_running_pods(Version::Installed)
    }

    /// By what was written for containerd 1.6, as after an upgrade of containerd.
    #[test]
    fn an_upgrade_by_the_image_leaves_running_pods_with_containerd_1_7() -> Result<()> {
        an_upgrade_leaves_running_pods(Version::V1_7)
    }

    /// The node's containerd runs a pod by what the image has installed. An image of another version is installed over it: the pod lives, and the
    /// next one is of the other version. Then all is taken out. The PATH of containerd has another shim, the build's.
    fn an_upgrade_leaves_running_pods(version: Version) -> Result<()> {
        let daemon_set = DaemonSet::new()?;
        // The node's /opt/tatami, at a place that its containerd finds in the root of this machine.
        let prefix = daemon_set.node.dir().join("tatami");
        let copied = daemon_set.host.join(prefix.strip_prefix("/").unwrap_or(&prefix));
        symlink(&copied, &prefix)?;
        let with_prefix = |manifest: &str| -> Result<Vec<String>> {
            let words = arguments(manifest)?.into_iter();
            Ok(words
                .map(|word| match word.as_str() {
                    "/opt/tatami" => prefix.display().to_string(),
                    _ => word,
                })
                .collect())
        };
        let mut before = Vec::new();
        let node = PodNode::start_edited(version, None, |base, configured| {
            fs::write(daemon_set.configuration(), base)?;
            before = files(&daemon_set.host.join("etc"))?;
            daemon_set.run(with_prefix("install.yaml")?)?;
            let delivered = daemon_set.host.join("etc/kata-containers/configuration.toml");
            fs::write(configured, fs::read(delivered)?)?;
            Ok(fs::read_to_string(daemon_set.configuration())?)
        })?;
        let guest = "grep -q tatami /proc/version && echo in a guest; sleep 1000";
        let old = node.run(&node.pod("old"))?;
        let app = old.start(&old.script("app", guest))?;
        app.await_line("in a guest")?;
        let is_of = |pod: &str, version: &str| {
            let shims = shims(pod);
            assert!(
                !shims.is_empty() && shims.iter().all(|shim| shim == version),
                "{shims:?} and no {version}"
            );
        };
        is_of(&old.id, VERSION);

        let build = daemon_set.node.dir().join("build");
        build_of_another_version(&build)?;
        daemon_set.import(&build)?;
        daemon_set.run(with_prefix("install.yaml")?)?;
        let said = Command::new(prefix.join("bin/containerd-shim-kata-v2"))
            .arg("--version")
            .output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(&format!("Version: {}", other_version())), "{said}");
        // Only the first installation has changed containerd's configuration, so only then is it restarted.
        assert_eq!(daemon_set.told()?.len(), 2);

        assert_eq!(app.sh("echo alive")?, "alive\n");
        let more = old.start(&old.script("more", guest))?;
        more.await_line("in a guest")?;
        let new = node.run(&node.pod("new"))?;
        let fresh = new.start(&new.script("app", guest))?;
        fresh.await_line("in a guest")?;
        is_of(&old.id, VERSION);
        is_of(&new.id, &other_version());
        assert_eq!(app.sh("echo alive")?, "alive\n");
        for pod in [&old, &new] {
            pod.stop()?;
            node.cri().remove_pod(&pod.id)?;
        }
        node.nothing_left()?;

        daemon_set.run(with_prefix("uninstall.yaml")?)?;
        assert_eq!(files(&daemon_set.host.join("etc"))?, before);
        assert!(!copied.exists(), "{} is left", copied.display());
        drop(node);
        daemon_set.node.nothing_left()
    }

    /// What deploy/install.yaml and deploy/uninstall.yaml run, with their arguments but `--wait`.
    #[test]
    fn the_image_installs_a_node_as_a_daemonset_does() -> Result<()> {
        let daemon_set = DaemonSet::new()?;
        let host = &daemon_set.host;
        fs::write(daemon_set.configuration(), "version = 2\n")?;
        let run = |manifest: &str| daemon_set.run(arguments(manifest)?);
        run("install.yaml")?;
        let configuration = fs::read_to_string(daemon_set.configuration())?;
        assert!(
            configuration.contains("runtime_path = \"/opt/tatami/bin/containerd-shim-kata-v2\""),
            "{configuration}"
        );
        assert!(host.join("opt/tatami/share/tatami/vmlinuz").is_file());
        assert!(host.join("etc/kata-containers/configuration.toml").is_file());
        assert_eq!(
            daemon_set.told()?,
            ["restart containerd", "is-active --quiet containerd"]
        );
        // The pod starts again: containerd, and with it every pod of the node, is left alone.
        run("install.yaml")?;
        assert_eq!(daemon_set.told()?.len(), 2);

        run("uninstall.yaml")?;
        assert_eq!(fs::read_to_string(daemon_set.configuration())?, "version = 2\n");
        assert!(!host.join("etc/kata-containers/configuration.toml").exists());
        assert_eq!(daemon_set.told()?.len(), 4);
        daemon_set.node.nothing_left()
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
