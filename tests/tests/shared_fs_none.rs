//! `shared_fs = "none"`: roots are on disks, mounts are copies, and no file of the host is reached by the guest.

use framework::{Node, Result, disk::RawImage};

const NONE: &str = "[hypervisor.qemu]\nshared_fs = \"none\"\n";

mod kata_only {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use framework::Mount;
    use serde_json::json;

    use super::*;

    /// Starts a container whose root is an ext4 image with the files of the test's image.
    fn start(node: &Node, name: &str, spec: framework::Spec) -> Result<()> {
        let files = spec.root().display().to_string();
        let image = RawImage::ext4_with(&node.dir().join(format!("{name}.ext4")), 64 << 20, &["-d", &files])?;
        let root = Mount {
            kind: "ext4".to_owned(),
            source: image.path().display().to_string(),
            options: vec!["rw".to_owned(), "loop".to_owned()],
        };
        node.start_on(name, &spec.set("/root", json!({ "path": "rootfs" }))?, vec![root])
    }

    /// A step of the kubelet's writer of ConfigMaps.
    fn publish(directory: &Path, version: &str, content: &str) -> Result<()> {
        fs::create_dir_all(directory.join(version))?;
        fs::write(directory.join(version).join("key"), content)?;
        let old = fs::read_link(directory.join("..data")).ok();
        symlink(version, directory.join("..data_tmp"))?;
        fs::rename(directory.join("..data_tmp"), directory.join("..data"))?;
        match old {
            Some(old) => fs::remove_dir_all(directory.join(old))?,
            None => symlink("..data/key", directory.join("key"))?,
        }
        Ok(())
    }

    #[test]
    fn containers_of_a_pod_have_copies_and_a_config_map_is_followed() -> Result<()> {
        let node = Node::start_configured(NONE)?;
        let (data, config, hosts) = (
            node.dir().join("kubernetes.io~empty-dir/data"),
            node.dir().join("config"),
            node.dir().join("hosts"),
        );
        fs::create_dir_all(&data)?;
        fs::write(data.join("file"), "of the host\n")?;
        fs::write(&hosts, "192.0.2.1 somewhere\n")?;
        publish(&config, "..1", "old\n")?;
        let pod = node.spec("pod", &["unused"])?.of_pod(&node, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        for name in ["one", "two"] {
            let spec = node.spec(name, &["sleep", "1000"])?.of_pod(&node, "container")?;
            let spec = spec
                .bind(&data, "/data", &["rw"])?
                .bind(&hosts, "/etc/hosts", &["rw"])?
                .bind(&config, "/config", &["ro"])?;
            start(&node, name, spec)?;
        }
        let script = "cat /data/file /etc/hosts /config/key; echo from one > /data/new; echo more >> /etc/hosts; \
                      guest-probe try create /config/new; grep -c virtiofs /proc/mounts";
        let said = node.exec("one", "look").sh(&format!("{script} || true")).ok()?;
        // EROFS
        let refused = json!({ "/config/new": 30 });
        assert_eq!(said, format!("of the host\n192.0.2.1 somewhere\nold\n{refused}\n0\n"));
        // The other one has the same file systems, and the host has none of it.
        let said = node
            .exec("two", "look")
            .sh("cat /data/new; tail -n 1 /etc/hosts")
            .ok()?;
        assert_eq!(said, "from one\nmore\n");
        assert!(!data.join("new").exists());
        assert_eq!(fs::read_to_string(&hosts)?, "192.0.2.1 somewhere\n");
        let programs: Vec<_> = node
            .processes("pod")
            .into_iter()
            .map(|process| process.command)
            .collect();
        assert!(
            !programs.iter().any(|command| command.contains("virtiofsd")),
            "{programs:?}"
        );

        publish(&config, "..2", "new\n")?;
        let wait = "until [ \"$(cat /config/key)\" = new ]; do sleep 0.1; done; ls -A /config";
        for name in ["one", "two"] {
            assert_eq!(node.exec(name, "wait").sh(wait).ok()?, "..2\n..data\nkey\n", "{name}");
        }
        let rules = node
            .diagnose()?
            .args(["iptables", "get", "--sandbox-id", &node.id("pod")])
            .fails()?;
        assert!(rules.contains("no program can be given to the guest"), "{rules}");
        for name in ["one", "two", "pod"] {
            node.remove(name)?;
        }
        node.nothing_left()
    }

    #[test]
    fn a_root_of_the_hosts_and_what_is_too_much_to_copy_are_refused_by_the_key() -> Result<()> {
        let node = Node::start_configured(NONE)?;
        let said = node.run("overlay").arg("--rm").program(["true"]).fails()?;
        assert!(
            said.contains("hypervisor.qemu.shared_fs = \"none\"") && said.contains("blockfile"),
            "{said}"
        );
        node.discard("overlay")?;
        let large = node.dir().join("large");
        fs::create_dir_all(&large)?;
        fs::write(large.join("file"), vec![1; 2 << 20])?;
        let spec = node.spec("large", &["true"])?.bind(&large, "/large", &["rw"])?;
        let said = start(&node, "large", spec).unwrap_err().to_string();
        assert!(said.contains("/large") && said.contains("1 MiB"), "{said}");
        node.discard("large")?;
        node.nothing_left()
    }
}
