//! The pool of warm VMs, or the template, under a node of a test: `TATAMI_TEST_START=pool` or `template` runs any end-to-end test with it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Ctr, Error, Result, locate};

/// Timeout for all VMs of a pool to boot: as long as `kata-ctl` waits.
const BOOTS: Duration = Duration::from_secs(600);

/// Members, unless a test has a number of its own: a test's first container takes one, and its next one another.
const MEMBERS: u32 = 2;

/// The drop-in for what containers start from, as `TATAMI_TEST_START` asks for; none: they start cold. `templates` is where the node may have templates.
pub(crate) fn dropin(templates: &Path) -> Result<Option<String>> {
    match env::var("TATAMI_TEST_START").as_deref() {
        Err(_) | Ok("" | "cold") => Ok(None),
        Ok("pool") => Ok(Some(format!("[factory]\nvm_cache_number = {MEMBERS}\n"))),
        Ok("template") => Ok(Some(format!(
            "[factory]\nenable_template = true\ntemplate_path = \"{}\"\n",
            templates.display()
        ))),
        Ok(other) => Err(Error::unexpected(format!(
            "TATAMI_TEST_START={other}: it is cold, pool or template"
        ))),
    }
}

/// The pool of one configuration file. Emptied when it is dropped.
#[derive(Debug)]
pub struct Pool {
    configuration: PathBuf,
}

impl Pool {
    /// One that nobody has filled.
    #[must_use]
    pub fn of(configuration: &Path) -> Self {
        Self {
            configuration: configuration.to_owned(),
        }
    }

    /// Fills it, and waits until it is full.
    pub fn fill(configuration: &Path) -> Result<Self> {
        let pool = Self::of(configuration);
        pool.again()?;
        Ok(pool)
    }

    /// Fills it again, and waits until it is full.
    pub fn again(&self) -> Result<()> {
        self.factory("init").limit(BOOTS).ok().map(drop)
    }

    fn factory(&self, action: &str) -> Ctr {
        // The build is there: it was asked for the configuration.
        let program = locate::built("bin/kata-ctl", "build").unwrap_or_else(|_| "kata-ctl".into());
        Ctr::kata_ctl(program)
            .args(["factory", action, "--config"])
            .arg(&self.configuration)
    }

    /// Ends all members.
    pub fn empty(&self) -> Result<()> {
        self.factory("destroy").ok().map(drop)
    }

    /// Its members, as `kata-ctl factory status --json` has them.
    pub fn members(&self) -> Result<Vec<serde_json::Value>> {
        self.entries("members")
    }

    /// Its templates, as `kata-ctl factory status --json` has them.
    pub fn templates(&self) -> Result<Vec<serde_json::Value>> {
        self.entries("templates")
    }

    /// What `kata-ctl factory status --json` says of all pools.
    pub fn status(&self) -> Result<serde_json::Value> {
        let program = locate::built("bin/kata-ctl", "build")?;
        let status = Ctr::kata_ctl(program).args(["factory", "status", "--json"]).ok()?;
        Ok(serde_json::from_str(&status)?)
    }

    fn entries(&self, kind: &str) -> Result<Vec<serde_json::Value>> {
        let own = self.configuration.display().to_string();
        let entries = self.status()?[kind].as_array().cloned().unwrap_or_default();
        Ok(entries
            .into_iter()
            .filter(|entry| entry["config"] == own.as_str())
            .collect())
    }

    /// Fills it, which has to fail. The answer is the reason.
    pub fn fails(&self) -> Result<String> {
        self.factory("init").limit(BOOTS).fails()
    }

    /// How many wait for a sandbox, booted.
    pub fn ready(&self) -> Result<usize> {
        Ok(self
            .members()?
            .iter()
            .filter(|member| member["state"] == "ready")
            .count())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.empty() {
            eprintln!("the pool of {} stays: {error}", self.configuration.display());
        }
    }
}

/// The pool of a configuration that has it on.
pub(crate) fn of(configuration: &Path) -> Result<Option<Pool>> {
    let dropin = configuration.with_file_name("config.d").join(NAME);
    if fs::exists(dropin)? {
        Pool::fill(configuration).map(Some)
    } else {
        Ok(None)
    }
}

pub(crate) const NAME: &str = "80-pool.toml";
