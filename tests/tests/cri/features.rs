//! What containerd tells the kubelet that a handler can do, and what the kubelet asks for then.

use std::fs;

use framework::{
    Result,
    cri::{
        PodNode,
        messages::{HandlerFeatures, Mount},
    },
    locate::Version,
};
use rustix::mount::MountFlags;

/// runc has recursive read-only mounts since 1.1, and user namespaces with id-mapped mounts since 1.2: Debian 12 has an older one.
mod kata_only {
    use super::*;

    /// containerd 2.1 asks no runtime but those of the type runc. The type says which options a runtime is given; which program is
    /// started, `runtime_path` says.
    const TABLE: &str = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\n\
        runtime_type = \"io.containerd.runc.v2\"\nruntime_path = ";

    #[test]
    fn the_kubelet_is_offered_recursive_read_only_volumes_and_user_namespaces_and_the_volumes_work() -> Result<()> {
        let node = PodNode::start_edited(Version::V2_1, None, |base, _| {
            let program = framework::locate::built("bin/containerd-shim-kata-v2", "build")?;
            Ok(format!("{base}{TABLE}\"{}\"\n", program.display()))
        })?;
        let features = node.cri().handlers()?.remove("kata");
        let both = HandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: true,
        };
        assert_eq!(features, Some(both));

        let volume = node.dir().join("volume");
        fs::create_dir_all(volume.join("below"))?;
        let below = framework::HostMount::new(&volume.join("below"), MountFlags::empty())?;
        let pod = node.run(&node.pod("recursive"))?;
        let script = "for at in once all; do touch /$at/file 2>/dev/null || echo $at ro; \
            touch /$at/below/file 2>/dev/null || echo $at below ro; done; uname -r; echo end";
        let mut config = pod.script("app", script);
        for (at, recursive_read_only) in [("/once", false), ("/all", true)] {
            config.mounts.push(Mount {
                container_path: at.to_owned(),
                host_path: volume.display().to_string(),
                readonly: true,
                recursive_read_only,
                ..Mount::default()
            });
        }
        let app = pod.start(&config)?;
        app.await_line("end")?;
        let lines: Vec<_> = app.log()?.into_iter().map(|line| line.text).collect();
        assert_eq!(lines[..3], ["once ro", "all ro", "all below ro"], "{lines:?}");
        pod.remove()?;
        drop(below);
        node.nothing_left()
    }
}
