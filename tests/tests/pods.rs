//! Containers that CRI's annotations put into one sandbox.

use framework::{Node, Result, Spec};

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// A container of the sandbox `pod`; CRI sends these two annotations with each.
fn member(spec: Spec, node: &Node, kind: &str, pod: &str) -> Result<Spec> {
    spec.annotation(TYPE, kind)?.annotation(SANDBOX, &node.id(pod))
}

mod kata_only {
    use super::*;

    #[test]
    fn two_containers_of_one_pod_share_a_machine_and_end_apart() -> Result<()> {
        let node = Node::start()?;
        let pause = node.spec("pod", &["sleep", "1000"])?.set("/hostname", "the-pod")?;
        node.run_spec("pod", &member(pause, &node, "sandbox", "pod")?)?
            .arg("-d")
            .ok()?;
        let app = member(node.spec("app", &["sleep", "2000"])?, &node, "container", "pod")?;
        node.run_spec("app", &app)?.arg("-d").ok()?;

        // The kernel draws a new boot id at every boot, so equal ones mean one machine.
        let boot = ["cat", "/proc/sys/kernel/random/boot_id"];
        let ids = [
            node.exec("pod", "boot").program(boot).ok()?,
            node.exec("app", "boot").program(boot).ok()?,
        ];
        assert_eq!(ids[0], ids[1]);
        let machines = node
            .processes("pod")
            .into_iter()
            .filter(|process| process.command.contains("qemu-system"))
            .count();
        assert_eq!(machines, 1);

        // `start` gave the same address for both.
        let bundles = [node.bundle("pod"), node.bundle("app")];
        let address = |bundle: &std::path::Path| std::fs::read_to_string(bundle.join("address"));
        assert_eq!(address(&bundles[0])?, address(&bundles[1])?);

        // The end of one does not touch the other.
        node.remove("app")?;
        assert_eq!(node.exec("pod", "still").program(["echo", "here"]).ok()?, "here\n");
        let again = member(node.spec("app", &["echo", "again"])?, &node, "container", "pod")?;
        assert_eq!(node.run_spec("app", &again)?.arg("--rm").ok()?, "again\n");
        node.remove("pod")?;
        node.nothing_left()
    }
}
