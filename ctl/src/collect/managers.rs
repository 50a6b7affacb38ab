//! The sections about what uses the runtime, and what is installed: container managers, packages, monitor.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::Host;
use super::page::{COMMAND, Page};
use crate::command;

/// For a manager that has to ask its daemon.
const DAEMON: Duration = Duration::from_secs(15);

/// One container manager, and what is asked of it.
struct Manager {
    title: &'static str,
    program: &'static str,
    commands: &'static [&'static [&'static str]],
    /// Its unit of systemd.
    unit: &'static str,
    /// Below /etc.
    files: &'static [&'static str],
}

/// In Kata's order.
const MANAGERS: [Manager; 5] = [
    Manager {
        title: "Docker",
        program: "docker",
        commands: &[&["version"], &["info"]],
        unit: "docker",
        files: &["docker/daemon.json"],
    },
    Manager {
        title: "Kubernetes",
        program: "kubectl",
        commands: &[&["version"], &["config", "view"]],
        unit: "kubelet",
        files: &[],
    },
    Manager {
        title: "crio",
        program: "crio",
        commands: &[&["--version"]],
        unit: "crio",
        files: &["crio/crio.conf"],
    },
    Manager {
        title: "containerd",
        program: "containerd",
        commands: &[&["--version"], &["config", "dump"]],
        unit: "containerd",
        files: &["containerd/config.toml"],
    },
    Manager {
        title: "Podman",
        program: "podman",
        commands: &[&["--version"], &["system", "info"]],
        unit: "podman",
        files: &["containers/containers.conf"],
    },
];

pub(super) async fn managers(page: &Page<'_>, host: &Host) {
    for manager in &MANAGERS {
        page.heading(manager.title);
        if command::find(Path::new(manager.program), host.search.as_deref()).is_none() {
            page.line(&format!("No `{}`", manager.program));
            continue;
        }
        page.line(&format!("Have `{}`", manager.program));
        for arguments in manager.commands {
            page.command_within(host, manager.program, arguments, DAEMON).await;
        }
        let properties = "--property=LoadState,ActiveState,SubState,ExecMainStatus,Environment,FragmentPath,NRestarts";
        if !page
            .command(host, "systemctl", &["show", manager.unit, properties])
            .await
        {
            page.line("No `systemctl`: the state of its service is not known");
        }
        for file in manager.files {
            let path = host.etc.join(file);
            let language = path
                .extension()
                .and_then(|kind| kind.to_str())
                .unwrap_or("toml")
                .to_owned();
            if !page.file(&path, &language) {
                page.line(&format!("No `{}`", path.display()));
            }
        }
    }
}

pub(super) async fn packages(page: &Page<'_>, host: &Host) {
    const NAMES: [&str; 12] = [
        "kata",
        "tatami",
        "qemu",
        "virtiofsd",
        "vhost-device",
        "containerd",
        "docker",
        "runc",
        "crio",
        "cri-o",
        "podman",
        "linux-image",
    ];
    let lists: [(&str, &[&str]); 2] = [
        (
            "dpkg-query",
            &["-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n"],
        ),
        ("rpm", &["-qa"]),
    ];
    for (program, arguments) in lists {
        let Some(path) = command::find(Path::new(program), host.search.as_deref()) else {
            page.line(&format!("No `{program}`"));
            continue;
        };
        match command::run(&path, arguments, COMMAND).await {
            Ok(printed) => {
                let ours = printed
                    .out
                    .lines()
                    .filter(|line| NAMES.iter().any(|name| line.contains(name)));
                let ours: Vec<_> = ours.collect();
                page.line(&format!("Packages of `{program}` that matter here ({}):", ours.len()));
                page.code("", &ours.join("\n"));
            }
            Err(error) => page.missing(&format!("`{program}` {}", crate::chain(&error))),
        }
    }
}

pub(super) async fn monitor(page: &Page<'_>) {
    let address = SocketAddr::from(([127, 0, 0, 1], 8090));
    let connected = tokio::time::timeout(Duration::from_secs(2), tokio::net::TcpStream::connect(address)).await;
    let state = match connected {
        Ok(Ok(_)) => "something serves",
        Ok(Err(_)) => "nothing serves",
        Err(_) => "nothing answers on",
    };
    page.line(&format!(
        "`kata-ctl monitor`, version `{}`; {state} `{address}` (its default address).",
        env!("CARGO_PKG_VERSION")
    ));
}
