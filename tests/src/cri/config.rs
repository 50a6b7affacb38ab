//! What a containerd that serves CRI is configured with, for each release's own format, and its CNI network.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{Error, Result, containerd, image, locate::Version};

/// Who keeps a pod's sandbox, in containerd 2's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandboxer {
    /// containerd, by a pause container; the only way before 2.0.
    Podsandbox,
    /// The shim, by the sandbox API.
    Shim,
}

impl Sandboxer {
    fn name(self) -> &'static str {
        match self {
            Self::Podsandbox => "podsandbox",
            Self::Shim => "shim",
        }
    }
}

/// containerd's configuration for everything below `dir`, with runc alone.
pub(super) fn for_pods(dir: &Path, version: Version) -> Result<String> {
    let cni = cni_programs()?;
    let head = containerd::head(dir, &[]);
    // What this machine cannot do (lower a score, load an AppArmor profile) is left to the operator's own containerd.
    let common = "restrict_oom_score_adj = true\ndisable_apparmor = true\nnetns_mounts_under_state_dir = true\n";
    let network = format!(
        "bin_dir = \"{}\"\nconf_dir = \"{}/net.d\"\n",
        cni.display(),
        dir.display()
    );
    let runc = r#"runtime_type = "io.containerd.runc.v2""#;
    let pause = image::PAUSE;
    Ok(match version {
        Version::Installed | Version::V1_7 => format!(
            r#"version = 2
{head}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
{common}
[plugins."io.containerd.grpc.v1.cri".cni]
{network}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
{runc}
"#
        ),
        Version::V2_1 => format!(
            r#"version = 3
{head}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
{common}
[plugins."io.containerd.cri.v1.runtime".cni]
{network}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
{runc}
"#
        ),
    })
}

/// The tables of the runtime under test; `config_path` is its own configuration.
pub(super) fn runtime(version: Version, sandboxer: Sandboxer, config_path: &Path) -> String {
    let plugin = match version {
        Version::Installed | Version::V1_7 => "io.containerd.grpc.v1.cri",
        Version::V2_1 => "io.containerd.cri.v1.runtime",
    };
    let table = format!("plugins.\"{plugin}\".containerd.runtimes.kata");
    let mut text = format!(
        "[{table}]\nruntime_type = \"io.containerd.kata.v2\"\nprivileged_without_host_devices = true\n\
         privileged_without_host_devices_all_devices_allowed = true\n\
         pod_annotations = [\"io.katacontainers.*\"]\ncontainer_annotations = [\"io.katacontainers.*\"]\n"
    );
    if version == Version::V2_1 {
        text.push_str(&format!("sandboxer = \"{}\"\n", sandboxer.name()));
    }
    // With options of a runtime other than runc containerd 2.1 starts no container by the sandbox API (its issue 12986): the
    // environment names the file instead.
    if sandboxer == Sandboxer::Podsandbox {
        text.push_str(&format!(
            "[{table}.options]\nConfigPath = \"{}\"\n",
            config_path.display()
        ));
    }
    text
}

/// Where the distribution puts CNI's programs.
fn cni_programs() -> Result<PathBuf> {
    let places = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
    let found = places.into_iter().find(|dir| dir.join("bridge").exists());
    found.ok_or_else(|| Error::NoProgram {
        program: "CNI bridge plugin (containernetworking-plugins)".to_owned(),
    })
}

/// Writes the network that pods get: a bridge, addresses from its subnet, and ports of the node.
pub(super) fn write_network(dir: &Path, name: &str) -> Result<()> {
    let conf = dir.join("net.d");
    fs::create_dir(&conf).map_err(Error::io(format!("making {}", conf.display())))?;
    let network = json!({
        "cniVersion": "0.4.0",
        "name": name,
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": dir.join("ipam"),
                    "ranges": [[{ "subnet": "10.88.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let file = conf.join("10-test.conflist");
    fs::write(&file, network.to_string()).map_err(Error::io(format!("writing {}", file.display())))
}
