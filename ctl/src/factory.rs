//! `kata-ctl factory`: fills the pool of warm VMs, shows it, and empties it. The shim's program does it (docs/boot.md, "Warm starts"); this
//! asks it, and waits.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scrape::text::{Kind, Text};
use serde::Deserialize;

use crate::arguments::FactoryCommand;
use crate::command::{self, CommandError};
use crate::report::Report;
use crate::sandboxes::{self, FindError};

/// The shim's program, which is installed beside this one, or where containerd finds it.
const SHIM: &str = "containerd-shim-kata-v2";

/// Timeout for the shim's program to answer; it ends members within 20 s.
const ANSWER: Duration = Duration::from_secs(60);

/// Timeout for all VMs to boot.
const BOOTS: Duration = Duration::from_secs(600);

/// Timeout for a VM that was claimed to be counted.
const COUNTED: Duration = Duration::from_secs(1);

/// How often the pool is filled again if VMs or the template are missing for no reason.
const AGAIN: u32 = 3;

/// Pause between two looks at VMs that boot.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub(crate) enum FactoryError {
    /// The pool is below the sandboxes' directory. The shim's program takes one that it cannot read for an empty one.
    #[error(transparent)]
    Unreadable(#[from] FindError),
    #[error("no {SHIM} beside kata-ctl or in PATH")]
    NoShim,
    #[error("{}", shim.display())]
    Command {
        shim: PathBuf,
        #[source]
        source: CommandError,
    },
    #[error("{0}")]
    Failed(String),
    #[error("the answer of {SHIM} cannot be understood")]
    Answer(#[source] serde_json::Error),
    #[error("{SHIM} does not say which VMs it has started: it is of another version than kata-ctl")]
    NoKey,
    #[error(
        "the configuration asks for no warm VMs and no template (vm_cache_number and enable_template in [factory])"
    )]
    Off,
    #[error("there is no template{0}")]
    NoTemplate(String),
    #[error("the pool is not full: {0}")]
    NotFull(String),
}

/// As the shim's program prints it.
#[derive(Debug, Default, Deserialize)]
struct Status {
    hits: u64,
    #[serde(default)]
    copies: u64,
    misses: u64,
    notice: String,
    #[serde(default)]
    notices: BTreeMap<String, String>,
    members: Vec<Member>,
    #[serde(default)]
    templates: Vec<Template>,
}

#[derive(Debug, Default, Deserialize)]
struct Template {
    key: String,
    state: String,
    config: PathBuf,
    directory: PathBuf,
    age: u64,
    bytes: u64,
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
    /// The same of the VMs of one key.
    fn of(mut self, key: &str) -> Self {
        let has_key = |member: &Member| member.slot.rsplit_once('.').is_some_and(|(own, _)| own == key);
        self.members.retain(has_key);
        self.notice = self.notices.remove(key).unwrap_or_default();
        self
    }

    fn count(&self, state: &str) -> usize {
        self.members.iter().filter(|member| member.state == state).count()
    }
}

pub(crate) async fn report(command: &FactoryCommand) -> Result<Report, FactoryError> {
    sandboxes::all(Path::new(sandboxes::ROOT))?;
    let text = match command {
        FactoryCommand::Init { config } => init(config.as_deref()).await?,
        FactoryCommand::Status { json: true } => format!("{}\n", ask("status", None).await?.trim_end()),
        FactoryCommand::Status { json: false } => shown(&status().await?),
        FactoryCommand::Destroy { config } => {
            let ended = ask("drain", config.as_deref()).await?;
            let (ended, templates) = ended.trim().split_once(' ').unwrap_or((ended.trim(), "0"));
            format!("ended {ended} warm VMs, removed {templates} templates\n")
        }
    };
    Ok(Report { text, good: true })
}

async fn init(config: Option<&Path>) -> Result<String, FactoryError> {
    let number = ask("number", config).await?;
    let mut words = number.split_whitespace();
    let wanted = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let wants_template = words.next().is_some();
    if wanted == 0 && !wants_template {
        return Err(FactoryError::Off);
    }
    let end = Instant::now() + BOOTS;
    let mut text = String::new();
    if wants_template {
        text = template(config, end).await?;
    }
    if wanted > 0 {
        text += &members(config, wanted, end).await?;
    }
    Ok(text)
}

/// Has the template made if it is missing, and waits for it.
async fn template(config: Option<&Path>, end: Instant) -> Result<String, FactoryError> {
    let mut again = 0;
    loop {
        let answer = ask("init", config).await?;
        let key = answer.split_whitespace().nth(2).ok_or(FactoryError::NoKey)?;
        match await_template(key, end).await? {
            Awaited::Whole => return Ok("the template is there\n".to_owned()),
            // The slot's owner was not making this one: it was still filling the pool after a template that is gone.
            Awaited::Missing(None) if again < AGAIN && Instant::now() < end => again += 1,
            Awaited::Missing(why) => {
                let why = why.map(|why| format!(": {why}"));
                return Err(FactoryError::NoTemplate(why.unwrap_or_default()));
            }
        }
    }
}

/// What has become of a template when nobody makes it any more.
#[derive(Debug)]
enum Awaited {
    Whole,
    /// It is not there; the reason, if one was noted.
    Missing(Option<String>),
}

async fn await_template(key: &str, end: Instant) -> Result<Awaited, FactoryError> {
    loop {
        let mut status = status().await?;
        // One that is whole may be listed as being made, too: its maker still fills the pool.
        let of_key = || status.templates.iter().filter(|template| template.key == key);
        let whole = of_key().find(|template| template.state == "whole");
        match whole
            .or_else(|| of_key().next())
            .map(|template| template.state.as_str())
        {
            Some("whole") => return Ok(Awaited::Whole),
            Some(_) if Instant::now() < end => tokio::time::sleep(BETWEEN_LOOKS).await,
            Some(_) => return Err(FactoryError::NoTemplate(format!(" after {} s", BOOTS.as_secs()))),
            None => return Ok(Awaited::Missing(status.notices.remove(key))),
        }
    }
}

/// Fills the pool, and waits until it is full.
async fn members(config: Option<&Path>, wanted: usize, end: Instant) -> Result<String, FactoryError> {
    let before = status().await?.hits;
    let answer = ask("fill", config).await?;
    // The pool may have VMs of other configurations, and of other callers.
    let (mut started, key) = counted(&answer)?;
    let (mut booted, mut again) = (None, 0);
    loop {
        let status = status().await?;
        let claimed = usize::try_from(status.hits.saturating_sub(before)).unwrap_or(usize::MAX);
        let status = status.of(key);
        let now = Instant::now();
        if status.count("booting") > 0 {
            booted = None;
        }
        // One that was claimed goes before it is counted.
        let is_settled = now > *booted.get_or_insert(now) + COUNTED && status.count("booting") == 0;
        if status.count("ready") >= wanted || is_settled || now > end {
            let is_short = status.count("ready").saturating_add(claimed) < wanted;
            // One that was about to end had a place while the pool was filled.
            if is_short && status.notice.is_empty() && again < AGAIN && now < end {
                again += 1;
                booted = None;
                started += counted(&ask("fill", config).await?)?.0;
                continue;
            }
            return filled(wanted, started, &status, claimed);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// How many VMs a fill has started, and their key.
fn counted(answer: &str) -> Result<(usize, &str), FactoryError> {
    let parts = answer.trim().split_once(' ');
    parts
        .and_then(|(count, keys)| Some((count.parse().ok()?, keys.split(' ').next()?)))
        .ok_or(FactoryError::NoKey)
}

/// What came of it. Fewer than wanted are an error, unless the others were claimed meanwhile.
fn filled(wanted: usize, started: usize, status: &Status, claimed: usize) -> Result<String, FactoryError> {
    let (ready, booting) = (status.count("ready"), status.count("booting"));
    let mut why = format!("{ready} of {wanted} warm VMs are ready");
    if booting > 0 {
        let _ = write!(why, ", {booting} still boot after {} s", BOOTS.as_secs());
    }
    if !status.notice.is_empty() {
        let _ = write!(why, "; the last problem: {}", status.notice);
    }
    if ready.saturating_add(claimed) < wanted {
        return Err(FactoryError::NotFull(why));
    }
    Ok(format!("started {started} warm VMs; {ready} are ready\n"))
}

async fn status() -> Result<Status, FactoryError> {
    serde_json::from_str(&ask("status", None).await?).map_err(FactoryError::Answer)
}

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
        "{} ready, {} booting; starts since the pool was made: {} from the pool, {} from a template, {} cold",
        status.count("ready"),
        status.count("booting"),
        status.hits,
        status.copies,
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
    if !status.templates.is_empty() {
        let _ = writeln!(
            text,
            "{:<24} {:<8} {:>8} {:>8}  DIRECTORY, CONFIGURATION",
            "TEMPLATE", "STATE", "AGE/s", "MiB"
        );
    }
    for template in &status.templates {
        let _ = writeln!(
            text,
            "{:<24} {:<8} {:>8} {:>8}  {} {}",
            template.key,
            template.state,
            template.age,
            template.bytes >> 20,
            template.directory.display(),
            template.config.display()
        );
    }
    text
}

/// The pool's figures for Prometheus; nothing where it was never on, or cannot be asked.
pub(crate) async fn metrics() -> String {
    if !Path::new(sandboxes::ROOT).join(sandboxes::POOL).exists() {
        return String::new();
    }
    let Ok(status) = status().await else {
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
    for (kind, count) in [
        ("warm", status.hits),
        ("template", status.copies),
        ("cold", status.misses),
    ] {
        text.sample(&[("start", kind)], number(usize::try_from(count).unwrap_or(usize::MAX)));
    }
    text.family(
        "tatami_template_bytes",
        Kind::Gauge,
        "What the templates take where they are.",
    );
    let bytes: u64 = status.templates.iter().map(|template| template.bytes).sum();
    text.sample(&[], number(usize::try_from(bytes).unwrap_or(usize::MAX)));
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
        let json = r#"{"hits": 3, "copies": 2, "misses": 1, "notice": "", "templates": [
            {"key": "aa11", "state": "whole", "config": "/etc/c.toml", "directory": "/t/aa11", "age": 9, "bytes": 62914560}], "members": [
            {"slot": "00ff.0", "state": "ready", "config": "/etc/c.toml", "pid": 7, "age": 5, "memory": 104857600},
            {"slot": "00ff.1", "state": "booting", "config": "/etc/c.toml", "pid": 8, "age": 1, "memory": 0, "promised": 268435456}]}"#;
        let text = shown(&serde_json::from_str(json).unwrap());
        assert!(
            text.starts_with(
                "1 ready, 1 booting; starts since the pool was made: 3 from the pool, 2 from a template, 1 cold\n"
            ),
            "{text}"
        );
        assert!(text.contains("\n256 MiB are promised to VMs that boot\n"), "{text}");
        let line = text.lines().find(|line| line.starts_with("00ff.0")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["00ff.0", "ready", "7", "5", "100", "/etc/c.toml"]);
        let line = text.lines().find(|line| line.starts_with("aa11")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["aa11", "whole", "9", "60", "/t/aa11", "/etc/c.toml"]);
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
        assert!(filled(2, 2, &status(&["ready", "ready"], "an old problem"), 0).is_ok());
        assert!(filled(2, 2, &status(&["ready"], ""), 1).is_ok());
        assert!(filled(2, 2, &status(&["ready"], ""), 0).is_err());
        let error = filled(2, 2, &status(&["ready"], "no memory"), 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pool is not full: 1 of 2 warm VMs are ready; the last problem: no memory"
        );
        assert!(filled(1, 1, &status(&["booting"], ""), 0).is_err());
    }

    #[test]
    fn the_vms_and_the_problems_of_another_configuration_do_not_count() {
        let json = r#"{"hits": 0, "misses": 0, "notice": "no kernel", "notices": {"bb": "no kernel"}, "members": [
            {"slot": "aa.0", "state": "ready", "config": "/c", "pid": 7, "age": 5, "memory": 1},
            {"slot": "bb.0", "state": "ready", "config": "/c", "pid": 8, "age": 5, "memory": 1}]}"#;
        let status = || serde_json::from_str::<Status>(json).unwrap();
        assert!(filled(2, 2, &status(), 0).is_ok());
        let error = filled(2, 2, &status().of("bb"), 0).unwrap_err().to_string();
        assert!(error.contains("1 of 2") && error.contains("no kernel"), "{error}");
        let error = filled(2, 2, &status().of("aa"), 0).unwrap_err().to_string();
        assert!(!error.contains("no kernel"), "{error}");
    }

    #[test]
    fn an_empty_pool_is_one_line() {
        assert_eq!(shown(&Status::default()).lines().count(), 1);
    }
}
