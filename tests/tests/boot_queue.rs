//! Many sandboxes that are started at once all come up.

use std::time::Duration;

use framework::{Node, Result, Runtime};

/// More than any machine that runs the tests has CPUs for, on a busy one.
const MANY: usize = 12;

#[test]
fn twelve_containers_that_are_started_at_once_all_run() -> Result<()> {
    let node = Node::start()?;
    let running: Vec<_> = (0..MANY)
        .map(|number| {
            node.run(&format!("c{number}"))
                .arg("--rm")
                .program(["echo", "up"])
                .limit(Duration::from_secs(240))
                .spawn()
        })
        .collect::<Result<_>>()?;
    for container in running {
        assert_eq!(container.wait()?.success()?.stdout(), "up\n");
    }
    let cpus = std::thread::available_parallelism()?.get();
    if node.runtime() == Runtime::Kata && cpus < MANY {
        node.await_log(&["are booting: this one waits"])?;
    }
    node.nothing_left()
}
