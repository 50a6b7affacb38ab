//! The sections about the programs that use the runtime, and about installed software: container managers, packages,
//! monitor.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::page::{COMMAND, Page};
use super::scope::Host;
use crate::command;

/// Timeout for a manager that has to ask its daemon.
const DAEMON: Duration = Duration::from_secs(15);

/// One container manager, and what is asked of it.
struct Manager {
    title: &'static str,
    program: &'static str,
    commands: &'static [&'static [&'static str]],
    /// Its unit of systemd, and those of others that have it built in.
    units: &'static [&'static str],
    /// Below /etc.
    files: &'static [&'static str],
    /// Below /var, where others keep what they made.
    made: &'static [&'static str],
}

/// In Kata's order.
const MANAGERS: [Manager; 5] = [
    Manager {
        title: "Docker",
        program: "docker",
        commands: &[&["version"], &["info"]],
        units: &["docker"],
        files: &["docker/daemon.json"],
        made: &[],
    },
    Manager {
        title: "Kubernetes",
        program: "kubectl",
        commands: &[&["version"], &["config", "view"]],
        units: &["kubelet"],
        files: &[],
        made: &["lib/kubelet/config.yaml"],
    },
    Manager {
        title: "crio",
        program: "crio",
        commands: &[&["--version"], &["config"]],
        units: &["crio"],
        files: &["crio/crio.conf"],
        made: &[],
    },
    Manager {
        title: "containerd",
        program: "containerd",
        commands: &[&["--version"], &["config", "dump"]],
        units: &["containerd", "k3s", "k3s-agent", "rke2-server", "rke2-agent"],
        files: &["containerd/config.toml"],
        made: &[
            "lib/rancher/k3s/agent/etc/containerd/config.toml",
            "lib/rancher/rke2/agent/etc/containerd/config.toml",
        ],
    },
    Manager {
        title: "Podman",
        program: "podman",
        commands: &[&["--version"], &["system", "info"]],
        units: &["podman"],
        files: &["containers/containers.conf"],
        made: &[],
    },
];

pub(super) async fn managers(page: &Page, host: &Host) {
    for manager in &MANAGERS {
        page.heading(manager.title);
        if command::find(Path::new(manager.program), host.search.as_deref()).is_some() {
            page.line(&format!("Have `{}`", manager.program));
            for arguments in manager.commands {
                page.command_within(host, manager.program, arguments, DAEMON).await;
            }
        } else {
            page.line(&format!("No `{}`", manager.program));
        }
        services(page, host, manager.units).await;
        for file in manager.files {
            let path = host.etc.join(file);
            if !page.file(&path, language(&path)) {
                page.line(&format!("No `{}`", path.display()));
            }
        }
        for file in manager.made {
            let path = host.var.join(file);
            page.file(&path, language(&path));
        }
    }
}

/// The state of each unit that there is.
async fn services(page: &Page, host: &Host, units: &[&str]) {
    let Some(systemctl) = command::find(Path::new("systemctl"), host.search.as_deref()) else {
        return page.line("No `systemctl`: the state of its service is not known");
    };
    let properties =
        "--property=LoadState,ActiveState,SubState,ExecMainStatus,ExecStart,Environment,FragmentPath,NRestarts";
    let mut none = true;
    for unit in units {
        match command::run(&systemctl, &["show", unit, properties], COMMAND).await {
            Ok(printed) if printed.out.lines().any(|line| line == "LoadState=not-found") => {}
            Ok(printed) => {
                none = false;
                page.line(&format!("State of the service `{unit}`:"));
                page.code("", &printed.all());
            }
            Err(error) => {
                none = false;
                page.missing(&format!("the state of the service `{unit}`: {}", base::chain(&error)));
            }
        }
    }
    if none {
        page.line(&format!("No service `{}`", units.join("`, `")));
    }
}

fn language(path: &Path) -> &str {
    path.extension().and_then(|kind| kind.to_str()).unwrap_or("toml")
}

pub(super) async fn packages(page: &Page, host: &Host) {
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
            Err(error) => page.missing(&format!("`{program}` {}", base::chain(&error))),
        }
    }
}

pub(super) async fn monitor(page: &Page) {
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
