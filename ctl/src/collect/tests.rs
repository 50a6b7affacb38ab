//! Tests of the report's structure on hosts of different kinds, with secrets planted in everything that it reads.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::sandboxes::tests::make;

const SECRET: &str = "hunter2Hunter2";

struct Fake {
    directory: TempDir,
    host: Host,
}

impl Fake {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["bin", "etc", "var/log", "run", "share"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("share/initrd.img"), "no archive").unwrap();
        fs::write(path("share/vmlinuz"), "no kernel").unwrap();
        let configuration = path("etc/configuration.toml");
        let text = format!(
            "[hypervisor.qemu]\nkernel = \"{0}/vmlinuz\"\ninitrd = \"{0}/initrd.img\"\npath = \"/nonexistent/qemu\"\n\
             [runtime]\njaeger_password = \"{SECRET}\"\n",
            path("share").display()
        );
        fs::write(&configuration, text).unwrap();
        let host = Host {
            search: Some(path("bin").into()),
            etc: path("etc"),
            var: path("var"),
            run: path("run"),
            config: Some(configuration),
            since: 0,
            limit: Duration::from_secs(60),
        };
        Self { directory, host }
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.directory.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// The titles of sections and what is within them.
fn structure(report: &str) -> Vec<&str> {
    let mut fence = None;
    let headings = report.lines().filter(|line| {
        let ticks = line.len() - line.trim_start_matches('`').len();
        match fence {
            None if ticks >= 3 => fence = Some(ticks),
            Some(open) if ticks == open && line.len() == ticks => fence = None,
            None => return line.starts_with('#'),
            Some(_) => {}
        }
        false
    });
    headings.collect()
}

/// As Kata's users know it, and then what Kata's lacks.
const GOLDEN: &str = "# Meta details\n## Problems found\n# `kata-ctl env`\n# Runtime config files\n\
    ## Runtime default config files\n## Runtime config file contents\n## Effective configuration\n# Containerd shim v2\n\
    # KSM throttler\n# Image details\n# Initrd details\n# Logfiles\n## Runtime and shim logs\n## Guest consoles\n\
    # Container manager details\n## Docker\n## Kubernetes\n## crio\n## containerd\n## Podman\n# Packages\n# Kata Monitor\n\
    # Running sandboxes\n# Guest kernel\n# Host state\n## Devices\n## Kernel and cgroups\n## Memory and hugepages\n## Limits\n\
    ## Kernel messages about QEMU, KVM and memory";

#[tokio::test]
async fn without_containerd_every_section_is_there_and_says_what_is_missing() {
    let fake = Fake::new();
    let report = collect(&fake.host).await;
    assert_eq!(structure(&report).join("\n"), GOLDEN);
    assert_eq!(report.matches("<details>").count(), SECTIONS.len());
    assert_eq!(report.matches("</details>").count(), SECTIONS.len());
    for said in [
        "No `containerd`",
        "No `docker`",
        "No `journalctl`",
        "0 below",
        "it is compressed, or no cpio",
    ] {
        assert!(report.contains(said), "{said}:\n{report}");
    }
    // The cause of what is wrong is among the first lines.
    assert!(
        report[..report.find("</details>").unwrap()].contains("/nonexistent/qemu"),
        "{report}"
    );
    assert!(!report.contains(SECRET) && report.contains("secrets were taken out"));
}

#[tokio::test]
async fn with_containerd_its_version_configuration_and_state_are_there_without_secrets() {
    let fake = Fake::new();
    let dump =
        format!("cat <<'E'\\n[plugins.registry.configs.r.auth]\\npassword = \"{SECRET}\"\\nE").replace("\\n", "\n");
    fake.program(
        "containerd",
        &format!("case $1 in --version) echo containerd x v1.7.24;; config) {dump}\n;; esac"),
    );
    fake.program(
        "systemctl",
        &format!(
            "case $2 in containerd|k3s) echo LoadState=loaded; echo ActiveState=active-$2; \
             echo 'Environment=HTTP_PROXY=http://u:{SECRET}@p:1 API_TOKEN={SECRET}';; *) echo LoadState=not-found;; esac"
        ),
    );
    fake.program(
        "journalctl",
        &format!(
            "echo 'time=\"2026-11-21T10:00:00Z\" level=error msg=\"kata: failed, password={SECRET}\"'; \
         echo \"level=error msg=\\\"kata: asked $*\\\"\"; \
         echo '{{\"level\":\"error\",\"sandbox\":\"s\",\"msg\":\"json\",\"token\":\"{SECRET}\"}}'; echo unrelated error"
        ),
    );
    fake.program("docker", &format!("echo 'Authorization: Bearer {SECRET}'"));
    fake.program(
        "kubectl",
        &format!("printf 'users:\\n- user:\\n    client-key-data: {SECRET}\\n'"),
    );
    fake.program("dmesg", "echo 'kvm: something'; echo unrelated");
    fake.program("dpkg-query", "echo 'ii  qemu-system-x86 1:10.0'; echo 'ii  bash 5'");
    fake.file(
        "etc/containerd/config.toml",
        &format!("# here\nidentitytoken = '{SECRET}'\n"),
    );
    fake.file(
        "etc/docker/daemon.json",
        &format!("{{\"auths\":{{\"r\":{{\"auth\":\"{SECRET}\"}}}}}}"),
    );
    fake.file(
        "var/log/containerd.log",
        &format!("level=warning msg=\"kata shim\" secret={SECRET}\n"),
    );
    fake.file(
        "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        &format!("[embedded]\nregistry.configs.\"r.example\".auth.password = \"{SECRET}\"\n"),
    );
    let report = collect(&fake.host).await;
    assert_eq!(structure(&report).join("\n"), GOLDEN);
    assert!(!report.contains(SECRET), "{report}");
    for said in [
        "v1.7.24",
        "ActiveState=active-containerd",
        "ActiveState=active-k3s",
        "No service `docker`",
        "-u rke2-server",
        "[embedded]",
        "kata: failed",
        "json",
        "kvm: something",
        "qemu-system-x86",
        "# here",
        "[plugins.registry.configs.r.auth]",
    ] {
        assert!(report.contains(said), "{said}:\n{report}");
    }
    assert!(!report.contains("unrelated"), "{report}");
    let count: usize = report
        .lines()
        .last()
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(count >= 10, "{count}");
}

#[tokio::test]
async fn a_daemon_that_hangs_costs_its_section_and_no_more() {
    let mut fake = Fake::new();
    fake.host.limit = Duration::from_secs(4);
    fake.program("podman", "sleep 1000");
    fake.program("dmesg", "echo 'kvm: still here'");
    let before = Instant::now();
    let report = collect(&fake.host).await;
    assert!(before.elapsed() < Duration::from_secs(60));
    assert!(report.contains("this section has not ended within 4 s"), "{report}");
    assert!(report.contains("kvm: still here"));
    assert_eq!(
        structure(&report).iter().filter(|line| line.starts_with("# ")).count(),
        SECTIONS.len()
    );
}

#[tokio::test]
async fn dead_hung_and_half_deleted_sandboxes_are_told_apart_and_hold_nobody_up() {
    let fake = Fake::new();
    make(
        &fake.host.run,
        "dead",
        r#"{"id":"dead","namespace":"n","shim":{"pid":2147483646,"start_time":1}}"#,
    );
    make(&fake.host.run, "rubbish", "{");
    fs::create_dir(fake.host.run.join("half")).unwrap();
    // A shim that listens and says nothing: this process, on its own socket.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    let state = format!(
        r#"{{"id":"hung","shim":{{"pid":{},"start_time":{start}}}}}"#,
        std::process::id()
    );
    let directory = make(&fake.host.run, "hung", &state);
    let _listener = std::os::unix::net::UnixListener::bind(directory.join("shim.sock")).unwrap();
    fs::write(directory.join("console.log"), "Kernel panic - not syncing\n").unwrap();
    let report = collect(&fake.host).await;
    for said in [
        "4 below",
        "the shim (process 2147483646) is dead",
        "cannot be understood",
        "half",
        "it hangs",
        "Kernel panic",
    ] {
        assert!(report.contains(said), "{said}:\n{report}");
    }
    assert!(report.contains("# Host state"));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_costs_the_sections_that_need_it() {
    let mut fake = Fake::new();
    fake.host.config = Some("/nonexistent/configuration.toml".into());
    let report = collect(&fake.host).await;
    assert!(
        report.matches("cannot read the configuration /nonexistent").count() >= 4,
        "{report}"
    );
    assert_eq!(structure(&report).join("\n"), GOLDEN);
}

#[tokio::test]
async fn what_blocks_its_thread_costs_its_section_and_keeps_what_was_written() {
    let mut fake = Fake::new();
    fake.host.limit = Duration::from_millis(100);
    let page = Page::new(Arc::default());
    // As reading a file of a server that is gone does.
    let hangs: Section = ("hangs", |page, _| {
        Box::pin(async {
            page.line("begun");
            std::thread::sleep(Duration::from_secs(3600));
        })
    });
    assert!(!fill(hangs, page.clone(), Arc::new(fake.host.clone())).await);
    assert_eq!(page.written(), "begun\n\n");
    let ends: Section = ("ends", |page, _| Box::pin(async { page.line("done") }));
    fake.host.limit = Duration::from_secs(60);
    assert!(fill(ends, page.clone(), Arc::new(fake.host.clone())).await);
    assert!(page.written().ends_with("done\n\n"));
}

#[tokio::test]
async fn a_configuration_that_is_no_file_is_said_and_not_waited_for() {
    let mut fake = Fake::new();
    let fifo = fake.directory.path().join("fifo.toml");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    fake.host.config = Some(fifo);
    let report = collect(&fake.host).await;
    assert!(
        report.contains("fifo.toml") && !report.contains("has not ended"),
        "{report}"
    );
    assert_eq!(structure(&report).join("\n"), GOLDEN);
}

#[tokio::test]
async fn the_report_goes_to_a_new_file_that_nobody_else_may_read() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("report.md");
    let options = CollectOptions {
        output: Some(output.clone()),
        since: "1h".to_owned(),
        path: Some(Path::new("/nonexistent").to_owned()),
    };
    assert_eq!(report(&options).await.unwrap().text, "");
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&output).unwrap().contains("# Meta details"));
    assert!(matches!(report(&options).await, Err(CollectError::Write { .. })));
}
