//! Pods with Kata's own configuration files.

mod kata_only {
    use std::fs;

    use framework::{Result, cri::PodNode, locate};

    #[test]
    fn a_pod_of_two_containers_runs_with_the_stock_file_of_each_of_katas_runtimes() -> Result<()> {
        for name in ["go.toml", "runtime-rs.toml"] {
            let stock = fs::read_to_string(locate::workspace().join("config/tests/stock").join(name))?;
            let node = PodNode::start_configured("")?;
            let file = node.dir().join("configuration.toml");
            fs::write(file, stock.replace("@PREFIX@", "/nonexistent/opt/kata"))?;
            let pod = node.run_pod("stock")?;
            let first = pod.start(&pod.container("first", &["sleep", "1000"]))?;
            let second = pod.start(&pod.script("second", "echo started; sleep 1000"))?;
            second.await_line("started")?;
            assert_eq!(first.sh("echo hello")?, "hello\n", "{name}");
            let queues = first.sh("ls /sys/class/net/eth0/queues | grep -c rx")?;
            assert_eq!(queues, "1\n", "{name}");
            for container in [first, second] {
                container.stop(0)?;
                container.remove()?;
            }
            pod.stop()?;
            pod.remove()?;
            node.nothing_left()?;
        }
        Ok(())
    }
}
