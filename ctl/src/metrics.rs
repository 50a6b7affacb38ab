//! `kata-ctl metrics`: merges the Prometheus texts of all shims. A shim that has ended or hangs counts as down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use scrape::text::{Kind, Text};

use crate::report::Report;
use crate::sandboxes::{self, FindError, Found, Shim, ShimError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// There is no such sandbox, or none can be looked for.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The one that was asked for does not answer.
    #[error(transparent)]
    Shim(#[from] ShimError),
}

/// The figures of one sandbox, or of all.
pub(crate) async fn report(wanted: Option<&str>) -> Result<Report, MetricsError> {
    let root = Path::new(sandboxes::ROOT);
    let text = match wanted {
        Some(wanted) => of(root, wanted).await?,
        None => all(root).await? + &crate::factory::metrics().await,
    };
    Ok(Report { text, good: true })
}

/// The figures of one sandbox.
pub(crate) async fn of(root: &Path, wanted: &str) -> Result<String, MetricsError> {
    Ok(one(&sandboxes::named(root, wanted)?).await?)
}

/// The figures of all sandboxes below a directory. All are asked at once: one that hangs costs its own time.
pub(crate) async fn all(root: &Path) -> Result<String, FindError> {
    let found = sandboxes::all(root)?;
    let mut asked = tokio::task::JoinSet::new();
    for found in found {
        asked.spawn(async move { (found.id().to_owned(), one(&found).await) });
    }
    let mut answers = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        // A task that panicked has no id either.
        if let Ok((id, text)) = answer {
            answers.insert(id, text);
        }
    }
    Ok(merged(&answers))
}

async fn one(found: &Found) -> Result<String, ShimError> {
    Shim::connect(found).await?.metrics().await
}

fn merged(answers: &BTreeMap<String, Result<String, ShimError>>) -> String {
    let mut families = Families::default();
    for text in answers.values().flatten() {
        families.add(text);
    }
    let mut text = Text::default();
    let number = u32::try_from(answers.len()).map_or(f64::INFINITY, f64::from);
    text.family(
        "kata_sandboxes",
        Kind::Gauge,
        "Sandboxes whose shims have left a run directory.",
    );
    text.sample(&[], number);
    // kata-monitor's name for it.
    text.family("kata_monitor_running_shim_count", Kind::Gauge, "The same.");
    text.sample(&[], number);
    text.family("kata_shim_up", Kind::Gauge, "Whether the sandbox's shim has answered.");
    for (id, answer) in answers {
        text.sample(&[("sandbox", id)], if answer.is_ok() { 1.0 } else { 0.0 });
    }
    text.finish() + &families.finish()
}

/// Samples by family: each family has to be in one piece (the text format's rule).
#[derive(Default)]
struct Families(BTreeMap<String, (String, String)>);

impl Families {
    fn add(&mut self, text: &str) {
        let mut family = String::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let name = comment.split(' ').nth(1).unwrap_or_default();
                if family != name {
                    name.clone_into(&mut family);
                }
                let (head, samples) = self.0.entry(family.clone()).or_default();
                if samples.is_empty() && !head.lines().any(|known| known == line) {
                    let _ = writeln!(head, "{line}");
                }
            } else if !line.is_empty() {
                let (_, samples) = self.0.entry(family.clone()).or_default();
                let _ = writeln!(samples, "{line}");
            }
        }
    }

    fn finish(self) -> String {
        let families = self.0.into_values().filter(|(_, samples)| !samples.is_empty());
        families.flat_map(|(head, samples)| [head, samples]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sandbox: &str) -> String {
        format!(
            "# HELP kata_a A.\n# TYPE kata_a counter\nkata_a{{sandbox=\"{sandbox}\",mode=\"x y\"}} 1.5\n\
             # HELP kata_b B.\n# TYPE kata_b gauge\nkata_b{{sandbox=\"{sandbox}\"}} 2\n"
        )
    }

    #[test]
    fn several_texts_are_one_that_a_parser_of_prometheus_reads() {
        let hung = Err(ShimError::Refused("no".to_owned()));
        let answers = BTreeMap::from([
            ("one".to_owned(), Ok(text("one"))),
            ("two".to_owned(), Ok(text("two"))),
            ("dead\"\n".to_owned(), hung),
        ]);
        let merged = merged(&answers);
        assert_eq!(merged.matches("# TYPE kata_a counter\n").count(), 1, "{merged}");
        let lines = merged.lines().map(|line| Ok(line.to_owned()));
        let scrape = prometheus_parse::Scrape::parse(lines).unwrap();
        let of = |name: &str| scrape.samples.iter().filter(|sample| sample.metric == name).count();
        assert_eq!(
            (of("kata_a"), of("kata_b"), of("kata_shim_up"), of("kata_sandboxes")),
            (2, 2, 3, 1)
        );
        // In one piece.
        let first = merged.find("kata_a{").unwrap();
        assert!(merged[first..].starts_with("kata_a{sandbox=\"one\",mode=\"x y\"} 1.5\nkata_a{sandbox=\"two\""));
    }

    #[tokio::test]
    async fn a_sandbox_without_a_shim_is_down_and_holds_nobody_up() {
        let root = tempfile::tempdir().unwrap();
        sandboxes::tests::make(
            root.path(),
            "gone",
            r#"{"id":"gone","shim":{"pid":2147483646,"start_time":1}}"#,
        );
        let text = all(root.path()).await.unwrap();
        assert!(text.contains("kata_shim_up{sandbox=\"gone\"} 0\n"), "{text}");
    }
}
