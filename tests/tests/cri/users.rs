//! `hostUsers: false`: a pod whose root is nobody on the node, with its volumes mapped, as the kubelet asks for it since Kubernetes 1.25.

use std::{fs, os::unix::fs::MetadataExt};

use framework::{
    Result,
    cri::{
        PodNode,
        messages::{
            IdMapping, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
            UserNamespace,
        },
        pod::security,
    },
    locate::Version,
};

/// The node's user that is the pod's root.
const ROOT: u32 = 131_072;

fn mapping() -> Vec<IdMapping> {
    vec![IdMapping {
        host_id: ROOT,
        container_id: 0,
        length: 65_536,
    }]
}

fn options() -> NamespaceOption {
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: mapping(),
            gids: mapping(),
        }),
        ..NamespaceOption::default()
    }
}

fn without_host_users(mut config: PodSandboxConfig) -> PodSandboxConfig {
    config.linux.get_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(options()),
        ..LinuxSandboxSecurityContext::default()
    });
    config
}

/// runc takes id-mapped mounts since 1.2, and Debian 12 has an older one.
mod kata_only {
    use super::*;

    #[test]
    fn a_pod_without_host_users_has_its_files_and_volumes_mapped() -> Result<()> {
        // Without options: with them containerd 2.1 takes those of runc for what it reads the user namespace from.
        let node = PodNode::start_edited(Version::V2_1, None, |base, _| {
            let table = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\n";
            Ok(format!("{base}{table}runtime_type = \"io.containerd.kata.v2\"\n"))
        })?;
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        fs::write(volume.join("file"), "content\n")?;
        let pod = node.run(&without_host_users(node.pod("mapped")))?;
        let script = "cat /proc/self/uid_map; stat -c '%n %u:%g' /bin /data /data/file; cat /data/file; echo x > /data/new; \
            touch /tmp/own && stat -c '%n %u' /tmp/own; echo end";
        let mut config = pod.script("app", script);
        security(&mut config).namespace_options = Some(options());
        config.mounts.push(Mount {
            container_path: "/data".to_owned(),
            host_path: volume.display().to_string(),
            uid_mappings: mapping(),
            gid_mappings: mapping(),
            ..Mount::default()
        });
        let app = pod.start(&config)?;
        app.await_line("end")?;
        let lines: Vec<_> = app.log()?.into_iter().map(|line| line.text).collect();
        let map: Vec<_> = lines[0].split_whitespace().collect();
        assert_eq!(map, ["0", "131072", "65536"], "{lines:?}");
        for line in ["/bin 0:0", "/data 0:0", "/data/file 0:0", "content", "/tmp/own 0"] {
            assert!(lines.iter().any(|found| found == line), "{line} in {lines:?}");
        }
        // What the pod's root makes on a volume is root's on the node.
        assert_eq!(fs::metadata(volume.join("new"))?.uid(), 0);
        pod.remove()?;
        node.nothing_left()
    }
}
