//! The same pod on every containerd that is supported, and by both ways in which containerd 2 keeps sandboxes.

use framework::{
    Result,
    cri::{PodNode, Sandboxer, messages::PodSandboxState},
    locate::Version,
};

fn a_pod_lives(version: Version, sandboxer: Sandboxer) -> Result<()> {
    let node = PodNode::start_with(version, sandboxer, None)?;
    let mut config = node.pod("flow");
    config.hostname = "flow-host".to_owned();
    let pod = node.run(&config)?;
    let app = pod.start(&pod.script("app", "hostname; echo err >&2; sleep 1000"))?;
    app.await_line("flow-host")?;
    app.await_line("err")?;
    assert_eq!(app.exec(&["echo", "exec"])?, "exec\n");
    let failed = pod.start(&pod.script("failed", "exit 9"))?.await_exit()?;
    assert_eq!(failed.exit_code, 9);
    let ipc = ["readlink", "/proc/self/ns/ipc"];
    let other = pod.start(&pod.container("other", &["sleep", "1000"]))?;
    assert_eq!(app.exec(&ipc)?, other.exec(&ipc)?);
    let memory = node.cri().container_stats(&app.id)?.memory;
    assert!(
        memory
            .and_then(|memory| memory.usage_bytes)
            .is_some_and(|bytes| bytes.value > 0)
    );
    assert_eq!(pod.status()?.state(), PodSandboxState::Ready);
    pod.stop()?;
    pod.stop()?;
    assert_eq!(pod.status()?.state(), PodSandboxState::NotReady);
    node.cri().remove_pod(&pod.id)?;
    node.cri().remove_pod(&pod.id)?;
    node.nothing_left()
}

#[test]
fn a_pod_lives_on_the_containerd_of_the_distribution() -> Result<()> {
    a_pod_lives(Version::Installed, Sandboxer::Podsandbox)
}

#[test]
fn a_pod_lives_on_containerd_1_7() -> Result<()> {
    a_pod_lives(Version::V1_7, Sandboxer::Podsandbox)
}

#[test]
fn a_pod_lives_on_containerd_2_1_with_its_pause_container() -> Result<()> {
    a_pod_lives(Version::V2_1, Sandboxer::Podsandbox)
}

mod kata_only {
    use super::*;

    #[test]
    fn a_pod_lives_on_containerd_2_1_by_the_sandbox_api() -> Result<()> {
        a_pod_lives(Version::V2_1, Sandboxer::Shim)
    }
}
