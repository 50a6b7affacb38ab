//! The figures for Prometheus: on the shim's own socket, by `kata-ctl metrics`, and by `kata-ctl monitor`.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use framework::{Error, Node, Result, http::get, locate};
use prometheus_parse::Scrape;

/// Timeout for a guest that is well to say so within the shim's patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directory of a sandbox, by the id in its sandbox.json.
fn directory(id: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/run/tatami")? {
        let path = entry?.path();
        // Others come and go meanwhile.
        let state = fs::read_to_string(path.join("sandbox.json")).unwrap_or_default();
        if state.contains(&format!("\"{id}\"")) {
            return Ok(path);
        }
    }
    Err(Error::unexpected(format!("no directory of sandbox {id}")))
}

/// Names of the figures of one sandbox, read by a parser of Prometheus's.
fn names(text: &str, sandbox: &str) -> Result<BTreeSet<String>> {
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
    let own = scrape
        .samples
        .iter()
        .filter(|sample| sample.labels.get("sandbox") == Some(sandbox));
    let names: BTreeSet<_> = own.map(|sample| sample.metric.clone()).collect();
    for name in &names {
        let described = scrape.docs.contains_key(name);
        assert!(described && name.starts_with("kata_"), "{name}:\n{text}");
    }
    Ok(names)
}

/// Asks until the guest has answered as well: the shim gives it some seconds, and this machine boots others meanwhile. What it
/// says then is the head and the figures' names.
fn with_guest(sandbox: &str, ask: impl Fn() -> Result<(String, String)>) -> Result<(String, BTreeSet<String>)> {
    let began = Instant::now();
    loop {
        let (head, body) = ask()?;
        // A container's figures may be late as the guest's own may.
        let up = [
            format!("kata_guest_up{{sandbox=\"{sandbox}\"}} 1"),
            format!("kata_container_up{{sandbox=\"{sandbox}\",container=\"{sandbox}\"}} 1"),
        ];
        if up.iter().all(|up| body.contains(up)) {
            return Ok((head, names(&body, sandbox)?));
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::unexpected(format!("no guest answers: {head}\n{body}")));
        }
    }
}

/// `kata-ctl monitor`, ended when dropped.
struct Monitor {
    child: Child,
    address: String,
}

impl Monitor {
    fn start() -> Result<Self> {
        let mut child = Command::new(locate::built("bin/kata-ctl", "build")?)
            .args(["monitor", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stderr) = child.stderr.take() {
            BufReader::new(stderr).read_line(&mut line)?;
        }
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once('/'));
        match address {
            Some((address, _)) => Ok(Self {
                address: address.to_owned(),
                child,
            }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::unexpected(format!("the monitor says {line:?}")))
            }
        }
    }

    fn get(&self, path: &str) -> Result<(String, String)> {
        get(TcpStream::connect(&self.address)?, path)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended, which the test has seen then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The selectors in the queries of Kata's Grafana dashboard (kata-containers, docs/how-to/data/dashboard.json), but for
/// `kata_*_go_*`: nothing here is written in Go.
const DASHBOARD: [(&str, &[(&str, &str)]); 35] = [
    ("kata_monitor_scrape_count", &[]),
    ("kata_monitor_scrape_failed_count", &[]),
    ("kata_monitor_running_shim_count", &[]),
    ("kata_monitor_scrape_durations_histogram_milliseconds", &[]),
    ("kata_monitor_process_open_fds", &[]),
    ("kata_monitor_process_resident_memory_bytes", &[]),
    (
        "kata_shim_rpc_durations_histogram_milliseconds",
        &[("action", "create")],
    ),
    (
        "kata_shim_agent_rpc_durations_histogram_milliseconds",
        &[("action", "grpc.GetMetricsRequest")],
    ),
    (
        "kata_shim_agent_rpc_durations_histogram_milliseconds",
        &[("action", "grpc.CreateContainerRequest")],
    ),
    ("kata_shim_netdev", &[("interface", "lo")]),
    ("kata_shim_proc_status", &[("item", "vmrss")]),
    ("kata_shim_io_stat", &[("item", "rchar")]),
    ("kata_shim_io_stat", &[("item", "wchar")]),
    ("kata_shim_fds", &[]),
    ("kata_agent_process_open_fds", &[]),
    ("kata_agent_process_resident_memory_bytes", &[]),
    ("kata_agent_proc_status", &[("item", "vmrss")]),
    ("kata_agent_proc_stat", &[("item", "utime")]),
    ("kata_hypervisor_fds", &[]),
    ("kata_hypervisor_proc_status", &[("item", "vmrss")]),
    ("kata_hypervisor_io_stat", &[("item", "wchar")]),
    ("kata_hypervisor_io_stat", &[("item", "rchar")]),
    ("kata_hypervisor_netdev", &[("interface", "lo")]),
    ("kata_hypervisor_proc_stat", &[("item", "utime")]),
    ("kata_guest_load", &[("item", "load1")]),
    ("kata_guest_meminfo", &[("item", "mem_total")]),
    ("kata_guest_meminfo", &[("item", "mem_free")]),
    ("kata_guest_meminfo", &[("item", "mem_available")]),
    ("kata_guest_netdev_stat", &[("item", "sent_bytes")]),
    ("kata_guest_netdev_stat", &[("item", "recv_bytes")]),
    ("kata_guest_netdev_stat", &[("item", "sent_errs")]),
    ("kata_guest_netdev_stat", &[("item", "recv_errs")]),
    ("kata_guest_netdev_stat", &[("item", "sent_drop")]),
    ("kata_guest_netdev_stat", &[("item", "recv_drop")]),
    ("kata_guest_tasks", &[]),
];

#[test]
fn each_query_of_katas_dashboard_finds_figures() -> Result<()> {
    let node = Node::start()?;
    node.run("pod").arg("-d").program(["sleep", "1000"]).ok()?;
    let id = node.id("pod");
    let monitor = Monitor::start()?;
    // A scrape counts itself when it is over, and a call to the agent likewise: the second one has all.
    with_guest(&id, || monitor.get("/metrics"))?;
    let (_, text) = monitor.get("/metrics")?;
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
    for (metric, labels) in DASHBOARD {
        let own = |sample: &&prometheus_parse::Sample| {
            let labels = labels
                .iter()
                .all(|(name, value)| sample.labels.get(name) == Some(value));
            let of = ["sandbox", "sandbox_id"].map(|label| sample.labels.get(label));
            sample.metric == metric && labels && (metric.starts_with("kata_monitor") || of.contains(&Some(id.as_str())))
        };
        assert!(
            scrape.samples.iter().any(|sample| own(&sample)),
            "{metric} {labels:?}:\n{text}"
        );
    }
    let memory = scrape
        .samples
        .iter()
        .find(|sample| sample.metric == "kata_agent_process_resident_memory_bytes");
    let memory = memory.map(|sample| sample.value.clone());
    assert!(
        matches!(memory, Some(prometheus_parse::Value::Gauge(bytes)) if bytes > 100_000.0),
        "{memory:?}"
    );
    drop(monitor);
    node.remove("pod")?;
    node.nothing_left()
}

#[test]
fn the_same_figures_are_on_the_shims_socket_by_the_command_and_by_the_monitor() -> Result<()> {
    let node = Node::start()?;
    node.run("measured").arg("-d").program(["sleep", "1000"]).ok()?;
    let id = node.id("measured");

    let socket = directory(&id)?.join("shim-monitor.sock");
    let metadata = fs::metadata(&socket)?;
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let (head, own) = with_guest(&id, || get(UnixStream::connect(&socket)?, "/metrics"))?;
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.contains("version=0.0.4"),
        "{head}"
    );
    for name in [
        "kata_guest_up",
        "kata_shim_cpu_seconds_total",
        "kata_hypervisor_resident_memory_bytes",
        "kata_virtiofsd_resident_memory_bytes",
        "kata_guest_cpu_seconds_total",
        "kata_guest_memory_bytes",
        "kata_guest_pressure_seconds_total",
        "kata_guest_oom_kills_total",
        "kata_guest_tasks",
        "kata_relay_connections",
        "kata_container_up",
        "kata_container_processes",
    ] {
        assert!(own.contains(name), "{name}: {own:?}");
    }
    let (head, _) = get(UnixStream::connect(&socket)?, "/elsewhere")?;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");

    let by_command =
        || -> Result<(String, String)> { Ok((String::new(), node.diagnose()?.args(["metrics", &id]).ok()?)) };
    assert_eq!(with_guest(&id, by_command)?.1, own);

    let monitor = Monitor::start()?;
    let (head, one) = with_guest(&id, || monitor.get(&format!("/metrics?sandbox={id}")))?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(one, own);
    // Others' sandboxes may be there as well.
    let (_, all) = with_guest(&id, || monitor.get("/metrics"))?;
    let mut with_up = own.clone();
    with_up.insert("kata_shim_up".to_owned());
    assert_eq!(all, with_up);
    let (_, list) = monitor.get("/sandboxes")?;
    assert!(list.lines().any(|line| line == id), "{list}");
    let (head, _) = monitor.get("/metrics?sandbox=no-such-sandbox")?;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let (_, url) = monitor.get(&format!("/agent-url?sandbox={id}"))?;
    assert!(url.starts_with("hvsock:///run/tatami/"), "{url}");
    drop(monitor);

    node.remove("measured")?;
    assert!(!socket.exists());
    node.nothing_left()
}
