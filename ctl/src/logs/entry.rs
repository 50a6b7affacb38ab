//! Parses one line of a log: the shim's and the agent's JSON, containerd's `time=… level=… msg=…`, the guest's console.
//! Any other line is one message.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::time;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Nanoseconds since the epoch.
    pub(crate) time: Option<i128>,
    pub(crate) level: String,
    pub(crate) sandbox: String,
    /// "shim", "agent", "containerd", "console"; empty where that cannot be told.
    pub(crate) source: String,
    pub(crate) message: String,
    pub(crate) fields: BTreeMap<String, String>,
    /// The log that it is from.
    pub(crate) origin: String,
    /// Whether it was of a known form.
    pub(crate) understood: bool,
}

impl Entry {
    /// Reads a line. It may be anything.
    pub(crate) fn parse(line: &str) -> Self {
        // What syslog or journalctl have put before it.
        let start = [line.find("{\""), line.find("time=")].into_iter().flatten().min();
        let found = start.and_then(|start| {
            let rest = &line[start..];
            Self::from_json(rest).or_else(|| Self::from_pairs(rest))
        });
        found.or_else(|| Self::from_console(line)).unwrap_or_else(|| Self {
            message: line.to_owned(),
            ..Self::default()
        })
    }

    fn from_json(text: &str) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_str(text).ok()?;
        let fields = object.into_iter().map(|(name, value)| {
            let value = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            (name, value)
        });
        Some(Self::from_fields(fields.collect(), "shim"))
    }

    /// `name=value name="quoted \" value"` (logfmt).
    fn from_pairs(text: &str) -> Option<Self> {
        let mut fields = BTreeMap::new();
        let mut rest = text.trim();
        while let Some((name, behind)) = rest.split_once('=') {
            let name = name.trim();
            if name.is_empty() || name.contains(char::is_whitespace) || name.contains('"') {
                break;
            }
            let (value, more) = if let Some(quoted) = behind.strip_prefix('"') {
                unquote(quoted)
            } else {
                let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
                (behind[..end].to_owned(), &behind[end..])
            };
            fields.insert(name.to_owned(), value);
            rest = more.trim_start();
        }
        let known = fields.contains_key("level") || fields.contains_key("msg");
        known.then(|| Self::from_fields(fields, "containerd"))
    }

    /// `[    2.353901] text`: seconds since the guest's boot, which is no time of the host.
    fn from_console(line: &str) -> Option<Self> {
        let (stamp, message) = line.strip_prefix('[')?.split_once("] ")?;
        let _: f64 = stamp.trim().parse().ok()?;
        Some(Self {
            source: "console".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::from([("uptime".to_owned(), stamp.trim().to_owned())]),
            understood: true,
            ..Self::default()
        })
    }

    fn from_fields(mut fields: BTreeMap<String, String>, writer: &str) -> Self {
        let mut take = |names: &[&str]| names.iter().find_map(|name| fields.remove(*name));
        let stamp = take(&["time", "timestamp", "ts"]);
        let time = stamp.as_deref().and_then(time::parse);
        let level = take(&["level", "severity"]).unwrap_or_default().to_ascii_lowercase();
        let message = take(&["msg", "message"]).unwrap_or_default();
        let sandbox = take(&["sandbox", "sandbox_id", "sandboxID"]).unwrap_or_default();
        let source = take(&["source"]).unwrap_or_else(|| writer.to_owned());
        if let (None, Some(stamp)) = (time, stamp) {
            fields.insert("time".to_owned(), stamp);
        }
        Self {
            time,
            level,
            sandbox,
            source,
            message,
            fields,
            understood: true,
            ..Self::default()
        }
    }

    /// Whether it tells of something that went wrong.
    pub(crate) fn is_problem(&self) -> bool {
        const WORDS: [&str; 12] = [
            "abort",
            "cannot",
            "could not",
            "critical",
            "denied",
            "error",
            "fail",
            "fatal",
            "killed",
            "panic",
            "refused",
            "unable",
        ];
        match self.level.as_str() {
            "error" | "warning" | "warn" | "fatal" | "panic" | "critical" => true,
            "" => {
                let message = self.message.to_ascii_lowercase();
                WORDS.iter().any(|word| message.contains(word))
            }
            _ => false,
        }
    }

    pub(crate) fn fields_as_text(&self) -> String {
        let pairs = self.fields.iter().map(|(name, value)| {
            if value.contains(|c: char| c.is_whitespace() || c == '"' || c == '=') {
                format!("{name}={value:?}")
            } else {
                format!("{name}={value}")
            }
        });
        pairs.collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn as_json(&self) -> Value {
        json!({
            "time": self.time.map(time::format),
            "level": self.level,
            "sandbox": self.sandbox,
            "source": self.source,
            "message": self.message,
            "fields": self.fields,
            "origin": self.origin,
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        let time = self.time.map(time::format).unwrap_or_default();
        write!(
            formatter,
            "{} {} {} {}: {}",
            or(&time),
            or(&self.level),
            or(&self.sandbox),
            or(&self.source),
            self.message
        )?;
        if !self.fields.is_empty() {
            write!(formatter, " {}", self.fields_as_text())?;
        }
        Ok(())
    }
}

/// The inside of a quoted value, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, other)) => value.push(other),
                None => {}
            },
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_syslog_puts_before_a_line_does_not_hide_it() {
        let line =
            "Nov 21 10:00:00 host containerd[7]: time=\"2026-11-21T10:00:00.5Z\" level=error msg=\"a \\\"b\\\"\" id=x";
        let entry = Entry::parse(line);
        assert_eq!((entry.level.as_str(), entry.message.as_str()), ("error", "a \"b\""));
        assert_eq!(entry.fields["id"], "x");
        assert_eq!(entry.time, time::parse("2026-11-21T10:00:00.5Z"));
    }

    #[test]
    fn a_console_has_its_own_clock() {
        let entry = Entry::parse("[    2.354158] Kernel panic - not syncing");
        assert_eq!(
            (entry.source.as_str(), entry.fields["uptime"].as_str()),
            ("console", "2.354158")
        );
        assert!(entry.is_problem() && entry.time.is_none());
    }

    #[test]
    fn any_other_line_is_a_message() {
        let entry = Entry::parse("{\"not json");
        assert_eq!(entry.message, "{\"not json");
        assert!(!entry.understood);
    }
}
