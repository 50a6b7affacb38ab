//! Pods driven through containerd's CRI plugin, as the kubelet does.

mod failures;
mod features;
mod life;
mod manifest;
mod memlock;
mod namespaces;
mod resources;
mod security;
mod sizing;
mod stats;
mod stock;
mod streams;
mod users;
mod versions;

use framework::{
    Result,
    cri::{Container, PodNode, messages::AttachRequest, stream::Streams},
};

fn attach(node: &PodNode, container: &Container<'_>) -> Result<Streams> {
    let url = node.cri().attach(AttachRequest {
        container_id: container.id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    })?;
    Streams::connect(node.netns()?, &url)
}
