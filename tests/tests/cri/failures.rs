//! What goes wrong: bad requests, and sandboxes that die.

use std::path::Path;

use framework::{
    Error, Result,
    cri::{
        PodNode, Sandboxer,
        messages::{ContainerState, CreateContainerRequest, PodSandboxState},
    },
    leftovers,
    locate::Version,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn message<T>(result: Result<T>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

fn kill_programs(node: &PodNode, program: &str) -> Result<()> {
    let victims = leftovers::processes(&node.dir().file_name().unwrap_or_default().to_string_lossy());
    let victims: Vec<_> = victims
        .into_iter()
        .filter(|process| process.program().contains(program))
        .collect();
    if victims.is_empty() {
        return Err(Error::unexpected(format!("no {program} runs")));
    }
    for victim in victims {
        let pid = i32::try_from(victim.pid).map_err(|_| Error::unexpected("a pid that is no pid"))?;
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            // It went with one that was killed already.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(Error::io("killing")(error.into())),
        }
    }
    Ok(())
}

#[test]
fn requests_for_what_is_not_there_are_refused_and_leave_nothing() -> Result<()> {
    let node = PodNode::start()?;
    assert!(message(node.cri().pod_status("nonesuch")).contains("not found"));
    node.cri().remove_pod("nonesuch")?;
    let pod = node.run_pod("once")?;
    let config = pod.container("late", &["true"]);
    let request = CreateContainerRequest {
        pod_sandbox_id: "nonesuch".to_owned(),
        config: Some(config.clone()),
        sandbox_config: Some(pod.config.clone()),
    };
    assert!(message(node.cri().create_container(request)).contains("nonesuch"));
    pod.stop()?;
    // A container for a sandbox that is no more: refused at its creation or at its start.
    let refused = pod.start(&config).map(drop);
    assert!(message(refused).contains(&pod.id[..12]));
    node.cri().remove_pod(&pod.id)?;
    node.nothing_left()
}

#[test]
fn a_pod_whose_network_namespace_has_gone_is_stopped_and_removed() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("unplugged")?;
    let app = pod.start(&pod.container("app", &["sleep", "1000"]))?;
    // As after a crash of the node's own clean-up, or by an operator's hand.
    for file in leftovers::entries(&node.dir().join("state/netns")) {
        umount2(Path::new(&file), MntFlags::MNT_DETACH).map_err(|error| Error::io("unmounting")(error.into()))?;
        std::fs::remove_file(&file)?;
    }
    // The machine is in the namespace, which lives on without a name.
    assert_eq!(app.exec(&["echo", "still"])?, "still\n");
    pod.stop()?;
    pod.stop()?;
    node.cri().remove_pod(&pod.id)?;
    node.nothing_left()
}

/// Kills a program of a pod's sandbox and expects the pod to end as a crashed one does, and to be removed.
fn a_pod_ends_with(program: &str, version: Version, sandboxer: Sandboxer) -> Result<()> {
    let node = PodNode::start_with(version, sandboxer, None)?;
    let pod = node.run_pod("victim")?;
    let app = pod.start(&pod.container("app", &["sleep", "1000"]))?;
    kill_programs(&node, program)?;
    // Without its shim, containerd 2.1 can say nothing of a sandbox that the shim keeps.
    let told = sandboxer == Sandboxer::Podsandbox || program != "containerd-shim";
    if told {
        pod.await_not_ready()?;
    }
    // Nobody takes it for a container that has done its work.
    assert_ne!(app.await_exit()?.exit_code, 0);
    // Nothing more runs in it.
    let late = pod.start(&pod.container("late", &["true"])).map(drop);
    assert!(late.is_err());
    pod.stop()?;
    pod.stop()?;
    if told {
        assert_eq!(pod.status()?.state(), PodSandboxState::NotReady);
    }
    node.cri().remove_pod(&pod.id)?;
    node.cri().remove_pod(&pod.id)?;
    assert!(message(node.cri().pod_status(&pod.id)).contains("not found"));
    assert!(node.cri().pods()?.is_empty() && node.cri().containers()?.is_empty());
    node.nothing_left()
}

#[test]
fn a_pod_whose_shim_is_known_to_a_restarted_containerd_goes_on() -> Result<()> {
    a_pod_survives_a_restart(PodNode::start()?)
}

fn a_pod_survives_a_restart(mut node: PodNode) -> Result<()> {
    let pod = node.run_pod("survivor")?;
    let app = pod.start(&pod.container("app", &["sleep", "1000"]))?;
    let (id, app) = (pod.id.clone(), app.id.clone());
    node.crash_containerd()?;
    assert_eq!(node.cri().pod_status(&id)?.state(), PodSandboxState::Ready);
    assert_eq!(node.cri().container_status(&app)?.state(), ContainerState::Running);
    assert_eq!(node.cri().exec_sync(&app, &["echo", "still"], 60)?.stdout, b"still\n");
    node.cri().stop_pod(&id)?;
    node.cri().remove_pod(&id)?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    #[test]
    fn a_pod_of_the_sandbox_api_goes_on_when_containerd_is_restarted() -> Result<()> {
        a_pod_survives_a_restart(PodNode::start_with(Version::V2_1, Sandboxer::Shim, None)?)
    }

    /// What runc's shim leaves behind is the operator's to remove.
    #[test]
    fn a_pod_whose_shim_was_killed_is_stopped_and_removed() -> Result<()> {
        a_pod_ends_with("containerd-shim", Version::wanted()?, Sandboxer::Podsandbox)
    }

    #[test]
    fn a_pod_whose_machine_was_killed_is_stopped_and_removed() -> Result<()> {
        a_pod_ends_with("qemu-system", Version::wanted()?, Sandboxer::Podsandbox)
    }

    #[test]
    fn a_pod_whose_machine_was_killed_on_containerd_1_7_is_stopped_and_removed() -> Result<()> {
        a_pod_ends_with("qemu-system", Version::V1_7, Sandboxer::Podsandbox)
    }

    #[test]
    fn a_pod_whose_machine_was_killed_by_the_sandbox_api_is_stopped_and_removed() -> Result<()> {
        a_pod_ends_with("qemu-system", Version::V2_1, Sandboxer::Shim)
    }

    #[test]
    fn a_pod_whose_shim_was_killed_by_the_sandbox_api_is_stopped_and_removed() -> Result<()> {
        a_pod_ends_with("containerd-shim", Version::V2_1, Sandboxer::Shim)
    }
}
