//! What a caller of `kata-ctl` sees: its two streams and its exit status.

use std::process::Command;

const KATA_CTL: &str = env!("CARGO_BIN_EXE_kata-ctl");

#[test]
fn the_configuration_goes_to_stdout_and_its_warnings_to_stderr() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configuration.toml");
    std::fs::write(
        &path,
        "[hypervisor.qemu]\nkernel = \"/k\"\ninitrd = \"/i\"\ncolour = 1\n",
    )
    .unwrap();
    let output = Command::new(KATA_CTL)
        .arg("config")
        .env("KATA_CONF_FILE", &path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("\ndefault_memory = 256\n"), "{shown}");
    let expected = format!(
        "kata-ctl: warning: {}:4: hypervisor.qemu.colour is unknown and has no effect\n",
        path.display()
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

#[test]
fn a_configuration_that_is_wrong_is_an_error_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.toml");
    std::fs::write(&path, "[runtime]\nenable_debug = 1\n").unwrap();
    let output = Command::new(KATA_CTL)
        .args(["config", "--path"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let expected = format!(
        "kata-ctl: {}:2: runtime.enable_debug = 1: must be true or false\n",
        path.display()
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

#[test]
fn a_check_without_a_configuration_fails_and_says_so() {
    let output = Command::new(KATA_CTL)
        .args(["check", "--path", "/nonexistent/c.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = String::from_utf8(output.stdout).unwrap();
    let first = report.lines().next().unwrap();
    let expected = "fail  configuration: cannot read the configuration /nonexistent/c.toml: No such file or directory";
    assert!(first.starts_with(expected), "{first}");
}

#[test]
fn a_command_that_does_not_exist_is_not_a_failed_check() {
    let output = Command::new(KATA_CTL).arg("chekc").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
