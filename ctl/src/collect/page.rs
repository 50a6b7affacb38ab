//! One section of the report: Markdown from which every secret is removed when it is written.
//!
//! Written text stays, even if the section is not completed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::scope::Host;
use crate::command;
use crate::redact::Redactor;

/// Bytes of a file that are shown.
const FILE: u64 = 128 << 10;

/// Timeout for a program whose output is shown, unless it is given more.
pub(super) const COMMAND: Duration = Duration::from_secs(10);

/// A section. Clones share it: one fills it, another waits for no longer than it will.
#[derive(Clone)]
pub(super) struct Page {
    redactor: Arc<Redactor>,
    text: Arc<Mutex<String>>,
}

impl Page {
    pub(super) fn new(redactor: Arc<Redactor>) -> Self {
        Self {
            redactor,
            text: Arc::default(),
        }
    }

    fn text(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn written(&self) -> String {
        self.text().clone()
    }

    pub(super) fn heading(&self, title: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.text(), "\n## {title}\n\n");
    }

    /// A paragraph. What is not ours in it goes between backticks.
    pub(super) fn line(&self, line: &str) {
        let clean = self.redactor.clean(line);
        let _ = write!(self.text(), "{clean}\n\n");
    }

    /// What could not be found out.
    pub(super) fn missing(&self, line: &str) {
        self.line(&format!("**Missing:** {line}"));
    }

    /// A text as it is, in a fence that it does not close.
    pub(super) fn code(&self, language: &str, text: &str) {
        let text = self.redactor.clean(text.trim_end());
        let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
        let fence = "`".repeat(longest.max(2) + 1);
        let _ = write!(self.text(), "{fence}{language}\n{text}\n{fence}\n\n");
    }

    /// A program's output, if it is there. False where it is not.
    pub(super) async fn command(&self, host: &Host, program: &str, arguments: &[&str]) -> bool {
        self.command_within(host, program, arguments, COMMAND).await
    }

    /// A program's output, bounded in time.
    pub(super) async fn command_within(&self, host: &Host, program: &str, arguments: &[&str], limit: Duration) -> bool {
        let Some(path) = command::find(Path::new(program), host.search.as_deref()) else {
            return false;
        };
        let words: Vec<_> = std::iter::once(program).chain(arguments.iter().copied()).collect();
        let words = words.join(" ");
        match command::run(&path, arguments, limit).await {
            Ok(printed) => {
                self.line(&format!("Output of `{words}`:"));
                self.code("", &printed.all());
            }
            Err(error) => self.missing(&format!("`{words}` {}", base::chain(&error))),
        }
        true
    }

    /// A file's contents, if it is there. False where it is not.
    pub(super) fn file(&self, path: &Path, language: &str) -> bool {
        let shown = path.display();
        match read(path) {
            Ok(text) => {
                self.line(&format!("`{shown}`:"));
                self.code(language, &text);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
            Err(error) => self.missing(&format!("`{shown}` cannot be read: {error}")),
        }
        true
    }
}

/// The beginning of a regular file: a pipe could keep us for ever.
pub(super) fn read(path: &Path) -> std::io::Result<String> {
    if !path.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE).read_to_end(&mut bytes)?;
    let mut text = command::harmless(&bytes);
    if bytes.len() as u64 == FILE {
        text.push_str("\n[the rest is left out]");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_leave_its_fence_and_loses_its_secrets() {
        let redactor = Arc::new(Redactor::default());
        let page = Page::new(Arc::clone(&redactor));
        page.code("toml", "```\npassword = \"hunter2\"\n````x\n");
        let text = page.written();
        assert_eq!(text, "`````toml\n```\npassword = \"[REDACTED]\"\n````x\n`````\n\n");
        assert_eq!(redactor.count(), 1);
    }

    #[test]
    fn a_file_that_is_none_is_said_and_one_that_is_not_there_is_not() {
        let redactor = Arc::new(Redactor::default());
        let page = Page::new(Arc::clone(&redactor));
        assert!(!page.file(Path::new("/nonexistent/x"), ""));
        assert!(page.file(Path::new("/dev/null"), ""));
        assert!(page.written().contains("not a regular file"));
    }
}
