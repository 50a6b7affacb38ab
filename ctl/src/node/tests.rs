//! A node as a directory. What its programs would say is tried with real ones by tests/tests/node_install.rs.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::programs::Release;
use super::*;

struct Node {
    root: TempDir,
    major: u32,
}

impl Node {
    fn new(major: u32) -> Self {
        let node = Self {
            root: tempfile::tempdir().unwrap(),
            major,
        };
        node.write("opt/tatami/bin/containerd-shim-kata-v2", "");
        node.write("opt/tatami/etc/configuration.toml", "[hypervisor.qemu]\n");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn target(&self) -> Target {
        Target {
            root: self.root.path().to_owned(),
            handler: "kata".to_owned(),
            containerd_config: "/etc/containerd/config.toml".into(),
            containerd_version: Some(Release {
                major: self.major,
                minor: 7,
            }),
        }
    }

    fn added(&self) -> Result<Vec<Part>, NodeError> {
        parts::added(
            &self.target(),
            Path::new("/opt/tatami"),
            None,
            self.path("etc/docker").exists(),
        )
    }

    fn install(&self) -> String {
        carry_out(&self.target(), &self.added().unwrap(), false, false, true)
            .unwrap()
            .text
    }

    fn uninstall(&self) -> String {
        let parts = parts::removed(&self.target(), Some(Path::new("/opt/tatami"))).unwrap();
        carry_out(&self.target(), &parts, false, false, false).unwrap().text
    }

    fn standing(&self) -> Vec<(&'static str, &'static str)> {
        let standing = parts::standing(&self.target()).unwrap();
        standing.iter().map(|one| (one.manager, one.state)).collect()
    }

    /// All files of the node, with what is in them.
    fn all(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(directory: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, into);
                } else if let Ok(target) = fs::read_link(&path) {
                    into.push((path, target.into_os_string().into_encoded_bytes()));
                } else {
                    into.push((path.clone(), fs::read(&path).unwrap()));
                }
            }
        }
        let mut all = Vec::new();
        walk(self.root.path(), &mut all);
        all.sort();
        all
    }
}

const OWN: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"p\" # no line feed";

#[test]
fn all_managers_know_it_and_forget_it_byte_for_byte() {
    let node = Node::new(1);
    node.write("etc/containerd/config.toml", OWN);
    node.write("etc/docker/daemon.json", "{ \"debug\":true }");
    node.write("etc/crio/crio.conf", "");
    let k3s = "var/lib/rancher/k3s/agent/etc/containerd";
    node.write(&format!("{k3s}/config.toml"), "version = 3\n");
    node.write(
        "var/lib/rancher/rke2/agent/etc/containerd/config.toml.tmpl",
        "# mine\n{{ template \"base\" . }}\n",
    );
    node.write("etc/systemd/system/k3s-agent.service", "");
    let before = node.all();
    let known = |state| {
        let managers = ["containerd", "k3s", "RKE2", "CRI-O"];
        managers.map(|manager| (manager, state)).to_vec()
    };
    assert_eq!(node.standing(), known("not installed"));

    let said = node.install();
    assert!(said.contains("\nto do   systemctl restart k3s-agent\n"), "{said}");
    let template = node.read(&format!("{k3s}/config-v3.toml.tmpl"));
    assert!(template.starts_with("{{ template \"base\" . }}\n") && template.contains("io.containerd.cri.v1.runtime"));
    assert!(
        node.read("etc/crio/crio.conf.d/50-tatami.conf")
            .contains("[crio.runtime.runtimes.\"kata\"]")
    );
    assert_eq!(
        node.read("etc/kata-containers/configuration.toml"),
        "[hypervisor.qemu]\n"
    );
    let link = fs::read_link(node.path("usr/local/bin/containerd-shim-kata-v2")).unwrap();
    assert_eq!(link, Path::new("/opt/tatami/bin/containerd-shim-kata-v2"));
    let mut all = known("installed");
    all.push(("Docker", "installed"));
    assert_eq!(node.standing(), all);

    let after = node.all();
    assert_eq!(node.install(), "nothing to change\n");
    assert_eq!(node.all(), after);
    node.uninstall();
    assert_eq!(node.all(), before);
    assert_eq!(node.uninstall(), "nothing to change\n");
}

#[test]
fn what_the_operator_changed_since_stays() {
    let node = Node::new(2);
    node.write("etc/containerd/config.toml", "version = 3\n");
    node.install();
    let text = node
        .read("etc/containerd/config.toml")
        .replace("version = 3\n", "version = 3\nroot = \"/r\"\n");
    node.write("etc/containerd/config.toml", &text);
    node.write("etc/kata-containers/configuration.toml", "# mine\n");
    node.uninstall();
    assert_eq!(node.read("etc/containerd/config.toml"), "version = 3\nroot = \"/r\"\n");
    // The copy of the file as it was is the operator's way back.
    assert_eq!(node.read("etc/containerd/config.toml.before-tatami"), "version = 3\n");
    assert_eq!(node.read("etc/kata-containers/configuration.toml"), "# mine\n");
}

#[test]
fn a_node_without_a_configuration_has_none_afterwards() {
    for imports in [false, true] {
        let node = Node::new(2);
        node.write("usr/bin/containerd", "");
        if imports {
            node.write(
                "etc/containerd/config.toml",
                "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n",
            );
        }
        let before = node.all();
        // There is no root to run that containerd in, so what it would say is not asked.
        carry_out(&node.target(), &node.added().unwrap(), false, false, false).unwrap();
        assert_eq!(node.path("etc/containerd/conf.d/tatami.toml").exists(), imports);
        assert_eq!(node.standing(), [("containerd", "installed")]);
        node.uninstall();
        assert_eq!(node.all(), before);
    }
}

#[test]
fn one_file_that_cannot_be_added_to_leaves_all_as_they_were() {
    let node = Node::new(1);
    node.write("etc/containerd/config.toml", "version = 2\n");
    node.write("etc/crio/crio.conf.d/50-tatami.conf", "# the operator's\n");
    let before = node.all();
    let error = node.added().unwrap_err().to_string();
    assert!(
        error.ends_with("50-tatami.conf is there and was not written by this program: move it away"),
        "{error}"
    );
    assert_eq!(node.all(), before);
}

/// Kata's installer links its shim by the same name in the same place.
#[test]
fn a_shim_of_another_runtime_stays_where_it_is() {
    const LINK: &str = "usr/local/bin/containerd-shim-kata-v2";
    let other: fn(&Node) = |node| {
        node.write("opt/kata/bin/containerd-shim-kata-v2", "");
        fs::create_dir_all(node.path("usr/local/bin")).unwrap();
        std::os::unix::fs::symlink("/opt/kata/bin/containerd-shim-kata-v2", node.path(LINK)).unwrap();
    };
    let program: fn(&Node) = |node| node.write(LINK, &"x".repeat(5 << 20));
    let earlier: fn(&Node) = |node| node.write("usr/local/sbin/containerd-shim-kata-v2", "");
    for put in [other, program, earlier] {
        let node = Node::new(1);
        put(&node);
        node.write("etc/containerd/config.toml", "version = 2\n");
        let before = node.all();
        let said = node.install();
        assert!(
            said.contains("is another program: `ctr` and Docker use that\n"),
            "{said}"
        );
        node.uninstall();
        assert_eq!(node.all(), before);
    }
}

#[test]
fn a_node_without_a_manager_or_a_shim_is_told_so() {
    let node = Node::new(1);
    assert!(matches!(node.added(), Err(NodeError::NoManager { .. })));
    assert!(matches!(
        parts::standing(&node.target()),
        Err(NodeError::NoManager { .. })
    ));
    fs::remove_file(node.path("opt/tatami/bin/containerd-shim-kata-v2")).unwrap();
    assert!(matches!(node.added(), Err(NodeError::NoShim { .. })));
}

#[test]
fn a_dry_run_shows_the_change_and_makes_none() {
    let node = Node::new(1);
    node.write("etc/containerd/config.toml", "version = 2\n");
    let before = node.all();
    let said = carry_out(&node.target(), &node.added().unwrap(), true, true, true)
        .unwrap()
        .text;
    assert!(
        said.contains("/etc/containerd/config.toml\n  + # BEGIN tatami"),
        "{said}"
    );
    assert!(said.ends_with("to do   systemctl restart containerd\n"), "{said}");
    assert_eq!(node.all(), before);
}
