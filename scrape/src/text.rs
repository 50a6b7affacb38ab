//! Prometheus's text format, version 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! It does not know what is measured. The shim and `kata-ctl` both use it.

use std::fmt::Write as _;

/// Longest label value, in bytes: some are the guest's.
const LABEL: usize = 128;

/// What a figure does over time.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A text in the making: families one after the other, each with its samples.
#[derive(Debug, Default)]
pub struct Text {
    labels: String,
    family: String,
    text: String,
}

impl Text {
    /// Every sample has these labels, before its own.
    #[must_use]
    pub fn with_labels(labels: &[(&str, &str)]) -> Self {
        Self {
            labels: joined(labels),
            ..Self::default()
        }
    }

    /// Begins a family. Its name and its help are ours and need no escapes.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        name.clone_into(&mut self.family);
    }

    /// Begins a family of histograms, whose samples are [`Text::part`]s.
    pub fn histogram(&mut self, name: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        name.clone_into(&mut self.family);
    }

    /// A sample of a histogram: its `bucket`, `sum` or `count`.
    pub fn part(&mut self, part: &str, labels: &[(&str, &str)], value: f64) {
        self.line(&format!("{}_{part}", self.family), labels, value);
    }

    /// A sample of the family that was begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line(&self.family.clone(), labels, value);
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let all = [self.labels.as_str(), &joined(labels)];
        let all: Vec<_> = all.into_iter().filter(|labels| !labels.is_empty()).collect();
        let _ = match all[..] {
            [] => writeln!(self.text, "{name} {value}"),
            _ => writeln!(self.text, "{name}{{{}}} {value}", all.join(",")),
        };
    }

    /// All of it.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

fn joined(labels: &[(&str, &str)]) -> String {
    let each = labels
        .iter()
        .map(|(name, label)| format!("{name}=\"{}\"", escaped(label)));
    each.collect::<Vec<_>>().join(",")
}

fn escaped(label: &str) -> String {
    let mut clean = String::with_capacity(label.len());
    for character in label.chars() {
        if clean.len() >= LABEL {
            break;
        }
        match character {
            '\\' => clean.push_str("\\\\"),
            '"' => clean.push_str("\\\""),
            '\n' => clean.push_str("\\n"),
            control if control.is_control() => clean.push(' '),
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_end_its_line_or_its_quotes() {
        let mut text = Text::with_labels(&[("sandbox", "p")]);
        text.family("kata_x", Kind::Gauge, "X.");
        text.sample(&[("a", "b\"} 1\nkata_y 2\\")], 3.25);
        assert_eq!(
            text.finish(),
            "# HELP kata_x X.\n# TYPE kata_x gauge\nkata_x{sandbox=\"p\",a=\"b\\\"} 1\\nkata_y 2\\\\\"} 3.25\n"
        );
    }

    #[test]
    fn a_sample_without_labels_has_no_braces() {
        let mut text = Text::default();
        text.family("kata_x", Kind::Counter, "X.");
        text.sample(&[], 1.0);
        assert!(text.finish().ends_with("\nkata_x 1\n"));
    }
}
