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

/// Wrong uses: the words, the exit status, and what standard error says. Each is one sentence without an address or a backtrace.
const WRONG: &[(&[&str], i32, &str)] = &[
    (&["checks"], 2, "a similar subcommand exists: 'check'"),
    (
        &["config", "--path", "/no/such.toml"],
        1,
        "/no/such.toml: No such file or directory",
    ),
    (&["config", "--path", "/proc/self"], 1, "/proc/self: not a regular file"),
    (&["exec"], 2, "<SANDBOX>"),
    (&["exec", "no-such-sandbox"], 1, "no sandbox \"no-such-sandbox\""),
    (&["where", "no-such-sandbox"], 1, "no sandbox \"no-such-sandbox\""),
    (&["where", "x", "--seconds", "x"], 2, "must be a number from 0 to 3600"),
    (&["metrics", "no-such-sandbox"], 1, "no sandbox \"no-such-sandbox\""),
    (&["memlock", "no-such-container"], 1, "no container no-such-container"),
    (
        &["direct-volume", "add", "/no/such", "{}"],
        1,
        "missing field `volume-type`",
    ),
    (
        &["direct-volume", "add", "/no/such", "{"],
        1,
        "the mount information is not",
    ),
    (
        &[
            "direct-volume",
            "add",
            "relative",
            "{\"volume-type\":\"block\",\"device\":\"/dev/null\",\"fstype\":\"ext4\"}",
        ],
        1,
        "must be absolute",
    ),
    (&["direct-volume", "stats", "/no/such"], 1, "there is no such volume"),
    (&["direct-volume", "remove", "/no/such"], 1, "there is no such volume"),
    (
        &["direct-volume", "resize", "/no/such", "12q"],
        2,
        "must be a number of bytes",
    ),
    (&["iptables", "get"], 2, "--sandbox-id"),
    (
        &["iptables", "get", "--sandbox-id", "no-such-sandbox"],
        1,
        "no sandbox \"no-such-sandbox\"",
    ),
    (&["iptables", "set", "--sandbox-id", "x", "/no/such"], 1, "/no/such"),
    (&["log-parser", "/no/such"], 1, "cannot read /no/such"),
    (&["log-parser", "/proc"], 1, "cannot read /proc: Is a directory"),
    (
        &["log-parser", "--output-format", "xml", "/dev/null"],
        2,
        "text, json, csv",
    ),
    (&["monitor", "192.0.2.1:80"], 1, "is not a loopback address"),
    (&["monitor", "nonsense"], 2, "it is ADDRESS:PORT"),
    (
        &["collect-data", "--output", "/no/such/report"],
        1,
        "cannot write the report to /no/such/report",
    ),
    (&["collect-data", "--since", "x"], 1, "is neither a time"),
    (&["factory", "init", "--nonsense"], 2, "--nonsense"),
    (
        &["node", "install", "--root", "/no/such"],
        1,
        "cannot lock /no/such: No such file or directory",
    ),
    (
        &["node", "install", "--handler", "a b", "--dry-run"],
        2,
        "small letters",
    ),
    (
        &["node", "install", "--config", "c.toml", "--dry-run"],
        2,
        "must be an absolute path",
    ),
    (
        &["node", "install", "--copy-to", "tatami"],
        2,
        "must be an absolute path",
    ),
    (
        &["node", "uninstall", "--remove-copy", "/", "--dry-run"],
        1,
        "it is not removed",
    ),
    (&["completions", "nonsense"], 2, "bash"),
    (&["man", "/no/such"], 1, "cannot write the manual pages into /no/such"),
];

#[test]
fn a_wrong_use_has_its_exit_status_and_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    for (words, code, part) in WRONG {
        // Not the machine's own configuration.
        let output = Command::new(KATA_CTL)
            .args(*words)
            .env("KATA_CONF_FILE", directory.path().join("none.toml"))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*code), "{words:?}: {said}");
        assert!(said.contains(part), "{words:?}: {said}");
        assert!(output.stdout.is_empty() || *code == 1, "{words:?}");
        assert!(
            !said.contains("panicked") && (*code == 2 || said.lines().count() == 1),
            "{words:?}: {said}"
        );
    }
}

#[cfg(test)]
mod node {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Stdio;
    use std::thread;
    use std::time::Duration;

    /// A node as a directory: containerd 1's configuration, and an installation beside it that `--copy-to` copies.
    fn node(root: &Path) -> std::path::PathBuf {
        let prefix = root.join("installed");
        for (name, text) in [
            ("installed/bin/containerd-shim-kata-v2", ""),
            ("installed/share/tatami/vmlinuz", &*"x".repeat(4 << 20)),
            ("installed/etc/configuration.toml", "[hypervisor.qemu]\n"),
            ("etc/containerd/config.toml", "version = 2\n"),
        ] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        // By another process: a child that another test starts meanwhile would have the file open for writing (ETXTBSY).
        let copied = Command::new("cp")
            .arg(KATA_CTL)
            .arg(prefix.join("bin/kata-ctl"))
            .status();
        assert!(copied.unwrap().success());
        prefix.join("bin/kata-ctl")
    }

    fn install(program: &Path, root: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .args([
                "node",
                "install",
                "--containerd-version",
                "1.7",
                "--copy-to",
                "/opt/tatami",
                "--root",
            ])
            .arg(root)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// What is there, with what is in it.
    fn files(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() && !path.is_symlink() {
                true => all.extend(files(&path)),
                false => all.push((path.clone(), std::fs::read(&path).unwrap_or_default())),
            }
        }
        all.sort();
        all
    }

    fn said(output: &std::process::Output) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        text(&output.stdout) + &text(&output.stderr)
    }

    #[test]
    fn several_at_once_do_one_after_the_other_what_one_does() {
        let root = tempfile::tempdir().unwrap();
        let program = node(root.path());
        let all: Vec<_> = (0..4)
            .map(|_| install(&program, root.path()).spawn().unwrap())
            .collect();
        for one in all {
            let output = one.wait_with_output().unwrap();
            // There is no containerd that could check what was written for the first one.
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        }
        assert_eq!(
            std::fs::metadata(root.path().join("opt/tatami/share/tatami/vmlinuz"))
                .unwrap()
                .len(),
            4 << 20
        );
        assert_eq!(std::fs::read_dir(root.path().join("opt")).unwrap().count(), 1);
    }

    /// SIGINT at any moment: another run does the rest, and a removal leaves what was there.
    #[test]
    fn what_is_interrupted_is_finished_by_the_next_run_and_taken_out_whole() {
        let root = tempfile::tempdir().unwrap();
        let program = node(root.path());
        let before = files(&root.path().join("etc"));
        for wait in [0, 1, 2, 5, 10, 20, 50] {
            let mut child = install(&program, root.path()).spawn().unwrap();
            thread::sleep(Duration::from_millis(wait));
            let pid = rustix::process::Pid::from_child(&child);
            // It may have ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            child.wait().unwrap();
            let output = install(&program, root.path()).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            let copied = root.path().join("opt/tatami/bin/kata-ctl");
            assert!(std::fs::metadata(copied).unwrap().len() > 0);
            let output = Command::new(&program)
                .args([
                    "node",
                    "uninstall",
                    "--containerd-version",
                    "1.7",
                    "--remove-copy",
                    "/opt/tatami",
                    "--root",
                ])
                .arg(root.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", said(&output));
            assert_eq!(files(&root.path().join("etc")), before, "after {wait} ms");
            assert_eq!(files(&root.path().join("opt")), []);
        }
    }

    #[test]
    fn who_is_not_root_is_told_what_could_not_be_written_and_nothing_is_changed() {
        let root = tempfile::tempdir().unwrap();
        let program = node(root.path());
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let before = files(&root.path().join("etc"));
        let output = install(&program, root.path()).uid(65534).gid(65534).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("Permission denied"), "{}", said(&output));
        assert_eq!(files(&root.path().join("etc")), before);
    }

    /// No room for the copy, in a file system of a mount namespace of its own.
    #[test]
    fn a_full_disk_is_named_and_nothing_is_changed() {
        let root = tempfile::tempdir().unwrap();
        let program = node(root.path());
        std::fs::create_dir(root.path().join("opt")).unwrap();
        let before = files(&root.path().join("etc"));
        let script = "mount -t tmpfs -o size=1m none \"$1/opt\" && \
                      \"$2\" node install --containerd-version 1.7 --copy-to /opt/tatami --root \"$1\"; \
                      status=$?; ls -A \"$1/opt\"; exit $status";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([root.path(), &program])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("No space left on device"), "{}", said(&output));
        // The half-written copy is gone.
        assert!(output.stdout.is_empty(), "{}", said(&output));
        assert_eq!(files(&root.path().join("etc")), before);
    }
}
