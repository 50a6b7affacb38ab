//! The same flow on every containerd that is supported, whatever the environment asks for.

use framework::{Node, Result, locate::Version};

fn a_container_lives(version: Version) -> Result<()> {
    let node = Node::start_version(version)?;
    let said = node.containerd_version()?;
    assert!(said.contains(&format!("Version:  {}", version.number())), "{said}");

    let output = node
        .run("flow")
        .arg("--rm")
        .sh("echo out; echo err >&2; exit 7")
        .output()?
        .code(7)?;
    assert_eq!(
        (output.stdout(), output.stderr()),
        ("out\n".to_owned(), "err\n".to_owned())
    );

    node.run("task").arg("-d").program(["sleep", "1000"]).ok()?;
    assert_eq!(node.exec("task", "exec").program(["echo", "exec"]).ok()?, "exec\n");
    assert!(node.task("metrics", "task").ok()?.contains("memory"));
    node.task("pause", "task").ok()?;
    node.task("resume", "task").ok()?;
    node.remove("task")?;
    node.nothing_left()
}

#[test]
fn a_container_lives_on_the_containerd_of_the_distribution() -> Result<()> {
    a_container_lives(Version::Installed)
}

#[test]
fn a_container_lives_on_containerd_1_7() -> Result<()> {
    a_container_lives(Version::V1_7)
}

#[test]
fn a_container_lives_on_containerd_2_1() -> Result<()> {
    a_container_lives(Version::V2_1)
}
