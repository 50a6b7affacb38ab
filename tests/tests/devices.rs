//! A container reaches the devices of its specification and those that every container has, and no others.

use framework::{Node, Result};
use serde_json::json;

/// Opening a device of the kernel's that needs no capability, made by the container itself.
const SCRIPT: &str =
    "echo nothing >/dev/null && head -c 4 /dev/zero | wc -c; mknod /dev/own c 10 229 && : <>/dev/own && echo opened";

#[test]
fn a_device_is_opened_only_where_a_rule_allows_it() -> Result<()> {
    let node = Node::start()?;
    let denied = node.spec("denied", &["sh", "-c", SCRIPT])?;
    let output = node.run_spec("denied", &denied)?.arg("--rm").output()?;
    assert_eq!(output.stdout(), "4\n");
    assert!(
        output.stderr().contains("/dev/own: Operation not permitted"),
        "{}",
        output.stderr()
    );
    let allowed = node.spec("allowed", &["sh", "-c", SCRIPT])?.push(
        "/linux/resources/devices",
        json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }),
    )?;
    let said = node.run_spec("allowed", &allowed)?.arg("--rm").ok()?;
    assert_eq!(said, "4\nopened\n");
    node.nothing_left()
}
