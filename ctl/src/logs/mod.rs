//! `kata-ctl log-parser`: merges the lines of several logs, sorted by time, in a common format.

mod entry;

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::command::harmless;
use crate::report::Report;
use crate::time;
pub(crate) use entry::Entry;

/// Longest line that is read, in bytes; the rest of it is left out.
const LINE: usize = 64 << 10;

/// Bytes that are read of all logs together.
const TOTAL: u64 = 512 << 20;

/// How the lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// RFC 4180, with a line of names.
    Csv,
}

#[derive(Debug)]
pub(crate) struct Request {
    /// The logs; none: standard input.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) format: Format,
    pub(crate) sandbox: Option<String>,
    /// Sandbox by sandbox, not mixed.
    pub(crate) group: bool,
    /// Only from this time on, in nanoseconds since the epoch.
    pub(crate) since: Option<i128>,
    /// What cannot be understood is an error.
    pub(crate) strict: bool,
    /// A log without a line is an error.
    pub(crate) no_empty_file: bool,
    /// No line in any log is an error.
    pub(crate) some_record: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A line is of no known form.
    #[error("{}:{line}: neither JSON nor key=value nor a console's line", path.display())]
    Form {
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    #[error("{}: there is no line in it", .0.display())]
    Empty(PathBuf),
    #[error("there is no line in any log")]
    Nothing,
}

pub(crate) fn report(request: &Request) -> Result<Report, LogError> {
    let mut entries = Vec::new();
    if request.files.is_empty() {
        read(&mut entries, io::stdin().lock(), Path::new("-"), request.strict)?;
    }
    for path in &request.files {
        let failed = |source| LogError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let before = entries.len();
        read(&mut entries, BufReader::new(file), path, request.strict)?;
        if request.no_empty_file && entries.len() == before {
            return Err(LogError::Empty(path.clone()));
        }
    }
    if request.some_record && entries.is_empty() {
        return Err(LogError::Nothing);
    }
    select(&mut entries, request);
    let text = write(&entries, request.format);
    Ok(Report { text, good: true })
}

fn read(entries: &mut Vec<Entry>, log: impl BufRead, path: &Path, strict: bool) -> Result<(), LogError> {
    let mut log = log.take(TOTAL);
    let mut before = None;
    for number in 1.. {
        let line = next_line(&mut log).map_err(|source| LogError::Read {
            path: path.to_owned(),
            source,
        })?;
        let Some(line) = line else { break };
        let text = harmless(&line);
        if text.trim().is_empty() {
            continue;
        }
        let mut entry = Entry::parse(text.trim_end());
        if strict && !entry.understood {
            return Err(LogError::Form {
                path: path.to_owned(),
                line: number,
            });
        }
        // A line without a time belongs behind the one before it.
        entry.time = entry.time.or(before);
        before = entry.time;
        entry.origin = path.display().to_string();
        entries.push(entry);
    }
    Ok(())
}

/// A line without its end, cut where it is too long.
fn next_line(log: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if log.by_ref().take(LINE as u64).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else {
        log.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

fn select(entries: &mut Vec<Entry>, request: &Request) {
    entries.retain(|entry| {
        let of = request.sandbox.as_ref().is_none_or(|wanted| entry.sandbox == *wanted);
        // What has no time at all may be from then.
        let late = request.since.zip(entry.time).is_none_or(|(since, time)| time >= since);
        of && late
    });
    // Stable: lines of the same moment keep their order.
    entries.sort_by(|a, b| {
        let group = if request.group {
            a.sandbox.cmp(&b.sandbox)
        } else {
            Ordering::Equal
        };
        group.then(a.time.cmp(&b.time))
    });
}

fn write(entries: &[Entry], format: Format) -> String {
    let mut text = String::new();
    if format == Format::Csv {
        text.push_str("time,level,sandbox,source,message,fields,origin\r\n");
    }
    for entry in entries {
        // Writing to a String cannot fail.
        let _ = match format {
            Format::Text => writeln!(text, "{entry}"),
            Format::Json => writeln!(text, "{}", entry.as_json()),
            Format::Csv => write!(text, "{}\r\n", as_csv(entry)),
        };
    }
    text
}

fn as_csv(entry: &Entry) -> String {
    let time = entry.time.map(time::format).unwrap_or_default();
    let fields = entry.fields_as_text();
    let columns = [
        time.as_str(),
        &entry.level,
        &entry.sandbox,
        &entry.source,
        &entry.message,
        &fields,
        &entry.origin,
    ];
    columns.map(quoted).join(",")
}

/// RFC 4180: what has a comma, a quote or a line's end is quoted.
fn quoted(column: &str) -> String {
    if column.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", column.replace('"', "\"\""))
    } else {
        column.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(format: Format) -> Request {
        Request {
            files: Vec::new(),
            format,
            sandbox: None,
            group: false,
            since: None,
            strict: false,
            no_empty_file: false,
            some_record: false,
        }
    }

    #[test]
    fn a_log_without_a_line_is_an_error_only_if_asked() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let files = vec![empty.path().to_owned()];
        let mut asked = Request {
            files,
            ..request(Format::Text)
        };
        assert!(report(&asked).unwrap().text.is_empty());
        asked.some_record = true;
        assert!(matches!(report(&asked), Err(LogError::Nothing)));
        asked.no_empty_file = true;
        assert!(matches!(report(&asked), Err(LogError::Empty(_))));
    }

    const SHIM: &str = "{\"level\":\"info\",\"time\":\"2026-11-21T10:00:02Z\",\"sandbox\":\"b\",\"msg\":\"second, \\\"b\\\"\"}\n\
        {\"level\":\"warning\",\"time\":\"2026-11-21T10:00:00Z\",\"sandbox\":\"a\",\"source\":\"agent\",\"msg\":\"first\",\"pid\":7}\n";
    const CONTAINERD: &str = "time=\"2026-11-21T11:00:01+01:00\" level=error msg=\"between\" id=c1\n  more of it\n";

    fn parsed(request: &Request) -> Vec<Entry> {
        let mut entries = Vec::new();
        read(&mut entries, SHIM.as_bytes(), Path::new("shim"), false).unwrap();
        read(&mut entries, CONTAINERD.as_bytes(), Path::new("containerd"), false).unwrap();
        select(&mut entries, request);
        entries
    }

    #[test]
    fn lines_of_several_logs_are_one_in_the_order_of_time() {
        let text = write(&parsed(&request(Format::Text)), Format::Text);
        assert_eq!(
            text,
            "2026-11-21T10:00:00.000000Z warning a agent: first pid=7\n\
             2026-11-21T10:00:01.000000Z error - containerd: between id=c1\n\
             2026-11-21T10:00:01.000000Z - - -:   more of it\n\
             2026-11-21T10:00:02.000000Z info b shim: second, \"b\"\n"
        );
    }

    #[test]
    fn csv_quotes_and_json_is_one_object_a_line() {
        let entries = parsed(&request(Format::Csv));
        let csv = write(&entries, Format::Csv);
        assert!(csv.ends_with("info,b,shim,\"second, \"\"b\"\"\",,shim\r\n"), "{csv}");
        for line in write(&entries, Format::Json).lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn one_sandbox_or_what_is_late_can_be_picked() {
        let mut wanted = request(Format::Text);
        wanted.sandbox = Some("a".to_owned());
        assert_eq!(parsed(&wanted).len(), 1);
        let mut late = request(Format::Text);
        late.since = time::parse("2026-11-21T10:00:02Z");
        assert_eq!(parsed(&late)[0].sandbox, "b");
    }

    #[test]
    fn strict_names_the_line_that_is_not_understood() {
        let error = read(&mut Vec::new(), CONTAINERD.as_bytes(), Path::new("log"), true).unwrap_err();
        assert!(error.to_string().starts_with("log:2: "), "{error}");
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let long = format!("{}\nnext\n", "x".repeat(3 * LINE));
        let mut entries = Vec::new();
        read(&mut entries, long.as_bytes(), Path::new("log"), false).unwrap();
        assert_eq!((entries[0].message.len(), entries[1].message.as_str()), (LINE, "next"));
    }

    proptest! {
        #[test]
        fn no_log_makes_it_panic_and_every_line_comes_out_as_json(log in "(\\{\"|\"|:|,|msg|time=|level=|=|\\[ *[0-9.]+\\]|\n|\\PC){0,80}") {
            let mut entries = Vec::new();
            read(&mut entries, log.as_bytes(), Path::new("log"), false).unwrap();
            for format in [Format::Text, Format::Csv] {
                let _ = write(&entries, format);
            }
            let json = write(&entries, Format::Json);
            prop_assert_eq!(json.lines().count(), entries.len());
            for line in json.lines() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(line).is_ok());
            }
        }
    }
}
