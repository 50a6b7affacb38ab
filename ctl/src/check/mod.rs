//! `kata-ctl check`: whether this host can run sandboxes, with one line for each requirement.
//!
//! Only a problem has a consequence and a remedy. Nothing is changed, and no VM is started.

pub(crate) mod finding;
mod host;
mod images;
pub(crate) mod kernel;
pub(crate) mod parts;
mod sockets;

use std::ffi::OsStr;
use std::path::Path;

use base::chain;

use finding::{Finding, Verdict, render};

use crate::report::Report;

/// Checks everything and says it, in colour or not. If it is strict a warning is no less than a failure.
pub(crate) async fn report(named: Option<&Path>, colours: bool, strict: bool) -> Report {
    let findings = all(named, std::env::var_os("PATH").as_deref()).await;
    let report = render(&findings, colours);
    let warned = findings.iter().any(|finding| finding.verdict != Verdict::Ok);
    Report {
        good: report.good && !(strict && warned),
        ..report
    }
}

/// What is checked on this host, one a line.
pub(crate) async fn names(named: Option<&Path>) -> Report {
    let findings = all(named, std::env::var_os("PATH").as_deref()).await;
    let mut names: Vec<_> = findings.iter().map(|finding| format!("{}\n", finding.what)).collect();
    names.dedup();
    Report {
        text: names.concat(),
        good: true,
    }
}

/// Checks everything. Without a configuration only what does not depend on it.
pub(crate) async fn all(named: Option<&Path>, search: Option<&OsStr>) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let path = crate::config::path(named);
    let mut findings = Vec::new();
    match config::load(&path) {
        Ok(loaded) => {
            let of = |kind: fn(&config::Reason) -> bool| loaded.warnings.iter().filter(move |one| kind(&one.reason));
            let replaced = of(|reason| matches!(reason, config::Reason::Replaced(_)));
            let weakens = of(|reason| matches!(reason, config::Reason::Weakens(_)));
            let lost = loaded.warnings.len() - replaced.clone().count() - weakens.clone().count();
            findings.push(configuration(&path, lost));
            findings.extend(replaced.map(other_parts));
            findings.extend(weakens.map(less_confined));
            findings.extend(parts::parts(&loaded.config, search).await);
            findings.extend(sockets::shared(&loaded.config));
            findings.extend(kernel::of_file(&loaded.config.guest_kernel()));
        }
        Err(error) => findings.push(Finding::fail(
            "configuration",
            chain(&error),
            "correct the file, or name another in KATA_CONF_FILE or the runtime's options",
        )),
    }
    let virtualization = host::virtualization(&read("/proc/cpuinfo"), std::env::consts::ARCH);
    let capable = virtualization.verdict == Verdict::Ok;
    findings.extend([virtualization, host::kvm(Path::new("/dev/kvm"), capable)]);
    findings.push(host::cgroups(&read("/proc/self/mounts")));
    findings.push(host::shim(search));
    findings.push(host::containerd(search).await);
    findings.extend(host::runtime_class(search).await);
    findings
}

fn configuration(path: &Path, warnings: usize) -> Finding {
    let found = path.display().to_string();
    if warnings == 0 {
        return Finding::ok("configuration", found);
    }
    let settings = if warnings == 1 { "setting" } else { "settings" };
    let found = format!("{found} has {warnings} {settings} without effect");
    Finding::warn(
        "configuration",
        found,
        "sandboxes are not as it says",
        "`kata-ctl config` names them",
    )
}

/// Kata's defaults, written down in its files.
fn less_confined(warning: &config::Warning) -> Finding {
    Finding::warn(
        "confinement",
        warning.to_string(),
        "less stands between a guest and the host",
        "take these keys out of the file, or set them otherwise in config.d/",
    )
}

/// Kata's configuration names another guest, and programs that are not there.
fn other_parts(warning: &config::Warning) -> Finding {
    Finding::warn(
        "replaced",
        warning.to_string(),
        "sandboxes have these parts instead of those that the file names",
        "take the keys out of the file, or name what is to be used",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_follows_and_what_to_do_only_if_something_is_wrong() {
        let findings = [
            Finding::ok("a", "here"),
            Finding::warn("b", "half", "it is slow", "buy another"),
            Finding::fail("c", "gone", "find it"),
        ];
        let report = render(&findings, false);
        assert_eq!(
            report.text,
            "ok    a: here\nwarn  b: half; it is slow; buy another\nfail  c: gone; no sandbox can start; find it\n"
        );
        assert!(!report.good);
        assert!(render(&findings[..2], false).good);
        let plain = render(&findings, true).text.replace("\x1b[0m", "");
        assert_eq!(plain.matches("\x1b[3").count(), 3);
    }

    #[tokio::test]
    async fn a_configuration_that_cannot_be_read_costs_no_more_than_what_depends_on_it() {
        let findings = all(Some(Path::new("/nonexistent/configuration.toml")), None).await;
        let of = |what: &str| findings.iter().find(|finding| finding.what == what);
        assert!(of("configuration").unwrap().failed());
        assert!(of("cgroups").is_some() && of("virtualization").is_some() && of("QEMU").is_none());
    }
}
