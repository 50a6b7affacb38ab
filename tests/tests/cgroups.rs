//! Cgroups that a container makes in its own.

mod kata_only {
    use framework::{Node, Result, Spec};
    use serde_json::json;

    /// A container of the sandbox `pod`, as CRI writes it.
    fn member(spec: Spec, node: &Node, kind: &str) -> Result<Spec> {
        spec.of_pod(node, kind)
    }

    /// With its own cgroup, writable, as a privileged container has it.
    fn with_cgroup(spec: Spec) -> Result<Spec> {
        let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] });
        spec.push("/mounts", mount)?
            .push("/linux/namespaces", json!({ "type": "cgroup" }))
    }

    /// Makes sixty in each other, of names so long that a path from the guest's root has no room for 32 of them, and a process in the last; and
    /// five thousand side by side: as far as it is let. Says how deep it came, how many there are, and whether it can allow itself more.
    const MAKE: &str = "cd /sys/fs/cgroup; name=$(printf %0126d 0); n=0; \
        while [ $n -lt 60 ] && mkdir $name 2>/dev/null && cd $name; do n=$((n+1)); done; echo depth $n; \
        sleep 1000 & echo $! > cgroup.procs; cd /sys/fs/cgroup; mkdir $(seq 1 5000) 2>/dev/null; \
        grep nr_descendants cgroup.stat; echo max > cgroup.max.descendants || echo no more; echo ready; sleep 1000";

    #[test]
    fn a_container_makes_only_so_many_and_is_removed_with_them_and_its_neighbour_goes_on() -> Result<()> {
        let node = Node::start()?;
        let pod = member(node.spec("pod", &["/pause"])?, &node, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let other = member(node.spec("other", &["sleep", "1000"])?, &node, "container")?;
        node.run_spec("other", &other)?.arg("-d").ok()?;
        // Twice by the same name: nothing is in the way of the second.
        for _ in 0..2 {
            let said = node.dir().join("said");
            std::fs::write(&said, "")?;
            let script = format!("exec > /said 2>&1; {MAKE}");
            let spec = with_cgroup(node.spec("app", &["sh", "-c", &script])?)?.bind(&said, "/said", &["rw"])?;
            node.run_spec("app", &member(spec, &node, "container")?)?
                .arg("-d")
                .ok()?;
            let told = framework::wait::content(node.dir(), "said", std::time::Duration::from_secs(120), |text| {
                text.contains("ready")
            })?;
            assert_eq!(node.exec("other", "alive").program(["echo", "alive"]).ok()?, "alive\n");
            node.remove("app")?;
            assert_eq!(node.exec("other", "still").program(["echo", "still"]).ok()?, "still\n");
            let lines: Vec<_> = told.lines().filter(|line| !line.starts_with("sh: ")).collect();
            assert_eq!(lines, ["depth 32", "nr_descendants 4096", "no more", "ready"], "{told}");
        }
        node.remove("other")?;
        node.remove("pod")?;
        node.nothing_left()
    }

    #[test]
    fn whoever_asks_for_more_of_them_by_unified_keys_gets_them() -> Result<()> {
        let node = Node::start()?;
        let keys = json!({ "cgroup.max.depth": "40", "cgroup.max.descendants": "50" });
        let script = "cd /sys/fs/cgroup; cat cgroup.max.depth cgroup.max.descendants; \
                      mkdir -p $(yes d | head -n 40 | tr '\\n' /) $(seq 1 10) && echo made; mkdir 11 2>/dev/null || echo full";
        let spec = with_cgroup(node.spec("more", &["sh", "-c", script])?)?.set("/linux/resources/unified", keys)?;
        assert_eq!(node.run_spec("more", &spec)?.arg("--rm").ok()?, "40\n50\nmade\nfull\n");
        node.nothing_left()
    }
}
