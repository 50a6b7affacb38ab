//! `kata-ctl factory`: fills the pool of warm VMs, shows it, and empties it. The shim's program does it (docs/boot.md, "Warm starts"); this
//! asks it, and waits.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scrape::text::{Kind, Text};
use serde::Deserialize;

use crate::Report;
use crate::arguments::FactoryCommand;
use crate::command::{self, CommandError};

/// The shim's program, which is installed beside this one, or where containerd finds it.
const SHIM: &str = "containerd-shim-kata-v2";

/// For the shim's program to answer; it ends members within 20 s.
const ANSWER: Duration = Duration::from_secs(60);

/// For all VMs to boot.
const BOOTS: Duration = Duration::from_secs(600);

/// Between two looks at VMs that boot.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Why the pool cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FactoryError {
    /// There is no shim's program.
    #[error("no {SHIM} beside kata-ctl or in PATH")]
    NoShim,
    /// It cannot be run.
    #[error("{}", shim.display())]
    Command {
        /// The program.
        shim: PathBuf,
        #[source]
        source: CommandError,
    },
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// Its answer is none.
    #[error("the answer of {SHIM} cannot be understood")]
    Answer(#[source] serde_json::Error),
    /// There is nothing to be filled.
    #[error("the configuration asks for no warm VMs (vm_cache_number in [factory])")]
    Off,
    /// Some did not come up.
    #[error("the pool is not full: {0}")]
    NotFull(String),
}

/// As the shim's program prints it.
#[derive(Debug, Default, Deserialize)]
struct Status {
    hits: u64,
    misses: u64,
    notice: String,
    members: Vec<Member>,
}

#[derive(Debug, Default, Deserialize)]
struct Member {
    slot: String,
    state: String,
    config: PathBuf,
    pid: i32,
    age: u64,
    memory: u64,
    #[serde(default)]
    promised: u64,
}

impl Status {
    fn count(&self, state: &str) -> usize {
        self.members.iter().filter(|member| member.state == state).count()
    }
}

/// Does what the command says.
pub(crate) async fn report(command: &FactoryCommand) -> Result<Report, FactoryError> {
    let text = match command {
        FactoryCommand::Init { config } => init(config.as_deref()).await?,
        FactoryCommand::Status { json: true } => format!("{}\n", ask("status", None).await?.trim_end()),
        FactoryCommand::Status { json: false } => shown(&status(None).await?),
        FactoryCommand::Destroy { config } => {
            let ended = ask("drain", config.as_deref()).await?;
            format!("ended {} warm VMs\n", ended.trim())
        }
    };
    Ok(Report { text, good: true })
}

async fn init(config: Option<&Path>) -> Result<String, FactoryError> {
    let number = ask("number", config).await?;
    let wanted = number.trim().parse().unwrap_or(0);
    if wanted == 0 {
        return Err(FactoryError::Off);
    }
    let started = ask("fill", config).await?;
    let end = Instant::now() + BOOTS;
    loop {
        let status = status(config).await?;
        if status.count("booting") == 0 || Instant::now() > end {
            return filled(wanted, started.trim(), &status);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// What came of it. Fewer than wanted are an error if there is a reason: one that was claimed meanwhile is none.
fn filled(wanted: usize, started: &str, status: &Status) -> Result<String, FactoryError> {
    let (ready, booting) = (status.count("ready"), status.count("booting"));
    let mut why = format!("{ready} of {wanted} warm VMs are ready");
    if booting > 0 {
        let _ = write!(why, ", {booting} still boot after {} s", BOOTS.as_secs());
    }
    if !status.notice.is_empty() {
        let _ = write!(why, "; the last problem: {}", status.notice);
    }
    if ready < wanted && (booting > 0 || !status.notice.is_empty()) {
        return Err(FactoryError::NotFull(why));
    }
    Ok(format!("started {started} warm VMs; {ready} are ready\n"))
}

async fn status(config: Option<&Path>) -> Result<Status, FactoryError> {
    serde_json::from_str(&ask("status", config).await?).map_err(FactoryError::Answer)
}

/// Runs the shim's program.
async fn ask(action: &str, config: Option<&Path>) -> Result<String, FactoryError> {
    let shim = shim().ok_or(FactoryError::NoShim)?;
    let path = config.map(|path| path.display().to_string());
    let mut arguments = vec!["-pool", action];
    if let Some(path) = &path {
        arguments.extend(["-config-path", path]);
    }
    let printed = command::run(&shim, &arguments, ANSWER).await;
    let printed = printed.map_err(|source| FactoryError::Command { shim, source })?;
    if printed.success {
        return Ok(printed.out);
    }
    let prefix = format!("{SHIM}: ");
    let said = printed.err.trim();
    Err(FactoryError::Failed(
        said.strip_prefix(&prefix).unwrap_or(said).to_owned(),
    ))
}

fn shim() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name(SHIM));
    let search = std::env::var_os("PATH");
    beside
        .filter(|path| path.exists())
        .or_else(|| command::find(Path::new(SHIM), search.as_deref()))
}

fn shown(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} ready, {} booting; starts since the pool was made: {} from the pool, {} cold",
        status.count("ready"),
        status.count("booting"),
        status.hits,
        status.misses
    );
    let promised: u64 = status.members.iter().map(|member| member.promised).sum();
    if promised > 0 {
        let _ = writeln!(text, "{} MiB are promised to VMs that boot", promised >> 20);
    }
    if !status.notice.is_empty() {
        let _ = writeln!(text, "last problem: {}", status.notice);
    }
    if !status.members.is_empty() {
        let _ = writeln!(
            text,
            "{:<24} {:<8} {:>8} {:>8} {:>8}  CONFIGURATION",
            "SLOT", "STATE", "PID", "AGE/s", "MiB"
        );
    }
    for member in &status.members {
        let _ = writeln!(
            text,
            "{:<24} {:<8} {:>8} {:>8} {:>8}  {}",
            member.slot,
            member.state,
            member.pid,
            member.age,
            member.memory >> 20,
            member.config.display()
        );
    }
    text
}

/// The pool's figures for Prometheus; nothing where it was never on, or cannot be asked.
pub(crate) async fn metrics() -> String {
    if !Path::new(crate::sandboxes::ROOT).join(crate::sandboxes::POOL).exists() {
        return String::new();
    }
    let Ok(status) = status(None).await else {
        return String::new();
    };
    let mut text = Text::default();
    text.family("tatami_pool_members", Kind::Gauge, "Warm VMs that wait for a sandbox.");
    for state in ["ready", "booting"] {
        text.sample(&[("state", state)], number(status.count(state)));
    }
    text.family(
        "tatami_pool_memory_bytes",
        Kind::Gauge,
        "What they take of the host's memory (PSS).",
    );
    let bytes: u64 = status.members.iter().map(|member| member.memory).sum();
    text.sample(&[], number(usize::try_from(bytes).unwrap_or(usize::MAX)));
    text.family(
        "tatami_pool_starts_total",
        Kind::Counter,
        "Starts of sandboxes since the pool was made.",
    );
    for (kind, count) in [("warm", status.hits), ("cold", status.misses)] {
        text.sample(&[("start", kind)], number(usize::try_from(count).unwrap_or(usize::MAX)));
    }
    text.finish()
}

/// Exact up to 2^53, beyond any count of starts or bytes that a node has.
fn number(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_shown_with_each_of_its_vms() {
        let json = r#"{"hits": 3, "misses": 1, "notice": "", "members": [
            {"slot": "00ff.0", "state": "ready", "config": "/etc/c.toml", "pid": 7, "age": 5, "memory": 104857600},
            {"slot": "00ff.1", "state": "booting", "config": "/etc/c.toml", "pid": 8, "age": 1, "memory": 0, "promised": 268435456}]}"#;
        let text = shown(&serde_json::from_str(json).unwrap());
        assert!(
            text.starts_with("1 ready, 1 booting; starts since the pool was made: 3 from the pool, 1 cold\n"),
            "{text}"
        );
        assert!(text.contains("\n256 MiB are promised to VMs that boot\n"), "{text}");
        let line = text.lines().find(|line| line.starts_with("00ff.0")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["00ff.0", "ready", "7", "5", "100", "/etc/c.toml"]);
    }

    #[test]
    fn a_pool_that_is_not_full_for_a_reason_is_an_error() {
        let status = |states: &[&str], notice: &str| Status {
            notice: notice.to_owned(),
            members: states
                .iter()
                .map(|state| Member {
                    state: (*state).to_owned(),
                    ..Member::default()
                })
                .collect(),
            ..Status::default()
        };
        assert!(filled(2, "2", &status(&["ready", "ready"], "an old problem")).is_ok());
        assert!(filled(2, "2", &status(&["ready"], "")).is_ok());
        let error = filled(2, "2", &status(&["ready"], "no memory")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pool is not full: 1 of 2 warm VMs are ready; the last problem: no memory"
        );
        assert!(filled(1, "1", &status(&["booting"], "")).is_err());
    }

    #[test]
    fn an_empty_pool_is_one_line() {
        assert_eq!(shown(&Status::default()).lines().count(), 1);
    }
}
