//! Prometheus's text format, version 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! It knows nothing of what is measured. Every sample carries the sandbox's id.

use std::fmt::Write as _;

/// Longest label value, in bytes: some are the guest's.
const LABEL: usize = 128;

/// What a figure does over time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A text in the making: families one after the other, each with its samples.
pub(super) struct Text {
    sandbox: String,
    family: String,
    text: String,
}

impl Text {
    pub(super) fn new(sandbox: &str) -> Self {
        Self {
            sandbox: escaped(sandbox),
            family: String::new(),
            text: String::new(),
        }
    }

    /// Begins a family. Its name and its help are ours and need no escapes.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        name.clone_into(&mut self.family);
    }

    /// A sample of the family that was begun last.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.text, "{}{{sandbox=\"{}\"", self.family, self.sandbox);
        for (name, label) in labels {
            let _ = write!(self.text, ",{name}=\"{}\"", escaped(label));
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
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
        let mut text = Text::new("p");
        text.family("kata_x", Kind::Gauge, "X.");
        text.sample(&[("a", "b\"} 1\nkata_y 2\\")], 3.25);
        assert_eq!(
            text.finish(),
            "# HELP kata_x X.\n# TYPE kata_x gauge\nkata_x{sandbox=\"p\",a=\"b\\\"} 1\\nkata_y 2\\\\\"} 3.25\n"
        );
    }
}
