//! `kata-ctl collect-data`: one Markdown report with the data that a developer needs.
//!
//! It has the sections of Kata's script in the same order, and then further ones. The sections are independent: one that
//! fails or hangs says so and does not affect the others. All text passes through the redactor before it is written.

mod host;
mod logs;
mod managers;
mod page;
mod runtime;
mod sandboxes;
mod scope;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use page::Page;
use scope::Host;
use tokio::sync::oneshot;

use crate::arguments::CollectOptions;
use crate::check::finding::Verdict;
use crate::redact::Redactor;
use crate::report::Report;
use crate::{check, progress, sandboxes as found, time};

/// Timeout for one section of the report.
const SECTION: Duration = Duration::from_secs(60);

/// Timeout for a section to end what it has begun once its time is over.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    #[error("{0}")]
    Since(String),
    #[error("cannot write the report to {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub(crate) async fn report(options: &CollectOptions) -> Result<Report, CollectError> {
    let host = Host {
        search: std::env::var_os("PATH"),
        etc: "/etc".into(),
        var: "/var".into(),
        run: found::ROOT.into(),
        config: options.path.clone(),
        since: time::since(&options.since).map_err(CollectError::Since)?,
        limit: SECTION,
    };
    let Some(path) = &options.output else {
        let text = collect(&host).await;
        return Ok(Report { text, good: true });
    };
    let failed = |source| CollectError::Write {
        path: path.clone(),
        source,
    };
    // Before the work: a name that cannot be used must not cost it. Nobody else may read it.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let text = collect(&host).await;
    file.write_all(text.as_bytes()).map_err(failed)?;
    crate::report::print_message(&format!("the report is in {}", path.display()));
    Ok(Report {
        text: String::new(),
        good: true,
    })
}

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A section's title, and what fills its page.
type Section = (&'static str, for<'a> fn(&'a Page, &'a Host) -> Work<'a>);

const SECTIONS: [Section; 14] = [
    ("Meta details", |page, host| Box::pin(meta(page, host))),
    ("`kata-ctl env`", |page, host| {
        Box::pin(runtime::environment(page, host))
    }),
    ("Runtime config files", |page, host| {
        Box::pin(async { runtime::configuration(page, host) })
    }),
    ("Containerd shim v2", |page, host| Box::pin(runtime::shim(page, host))),
    ("KSM throttler", |page, host| Box::pin(runtime::throttler(page, host))),
    ("Image details", |page, _| Box::pin(async { runtime::image(page) })),
    ("Initrd details", |page, host| {
        Box::pin(async { runtime::initrd(page, host) })
    }),
    ("Logfiles", |page, host| Box::pin(logs::logs(page, host))),
    ("Container manager details", |page, host| {
        Box::pin(managers::managers(page, host))
    }),
    ("Packages", |page, host| Box::pin(managers::packages(page, host))),
    ("Kata Monitor", |page, _| Box::pin(managers::monitor(page))),
    ("Running sandboxes", |page, host| {
        Box::pin(sandboxes::sandboxes(page, host))
    }),
    ("Guest kernel", |page, host| {
        Box::pin(async { host::kernel(page, host) })
    }),
    ("Host state", |page, host| Box::pin(host::state(page, host))),
];

async fn collect(host: &Host) -> String {
    let (host, redactor) = (Arc::new(host.clone()), Arc::new(Redactor::default()));
    let mut text = String::new();
    for section in SECTIONS {
        let title = section.0;
        let page = Page::new(Arc::clone(&redactor));
        if !progress::said(title, fill(section, page.clone(), Arc::clone(&host))).await {
            let seconds = host.limit.as_secs();
            page.missing(&format!(
                "this section has not ended within {seconds} s; what there is of it is above"
            ));
        }
        let body = page.written();
        text.push_str(&format!(
            "<details>\n<summary>{title}</summary>\n<p>\n\n# {title}\n\n{}\n\n</p>\n</details>\n\n",
            body.trim()
        ));
    }
    text.push_str(&format!(
        "{} secrets were taken out of this report.\n",
        redactor.count()
    ));
    text
}

/// Fills a page on a thread of its own: what hangs may be a file, of which no program can be rid, and not only a program or a
/// socket. Says whether it came to its end.
async fn fill((_, fill): Section, page: Page, host: Arc<Host>) -> bool {
    let limit = host.limit;
    let (tell, told) = oneshot::channel();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let filled = match runtime {
            Ok(runtime) => {
                // In here, so that programs that it has started are ended.
                let filled = runtime.block_on(async { tokio::time::timeout(host.limit, fill(&page, &host)).await });
                runtime.shutdown_background();
                filled.is_ok()
            }
            Err(error) => {
                page.missing(&format!("all of it: no runtime: {error}"));
                true
            }
        };
        // Nobody waits any more where it came too late.
        let _ = tell.send(filled);
    };
    if let Err(error) = std::thread::Builder::new().spawn(work) {
        crate::report::print_message(&format!("no thread: {error}"));
        return false;
    }
    matches!(tokio::time::timeout(limit + GRACE, told).await, Ok(Ok(true)))
}

/// Version, date, and what is wrong at first sight.
async fn meta(page: &Page, host: &Host) {
    let (version, date) = (env!("CARGO_PKG_VERSION"), time::format(time::now()));
    page.line(&format!(
        "Running `kata-ctl collect-data` version `{version}` at `{date}`."
    ));
    page.line(&format!("Logs since `{}`.", time::format(host.since)));
    if !rustix::process::geteuid().is_root() {
        page.missing("this is not run as root: sandboxes, consoles and some logs cannot be read");
    }
    page.heading("Problems found");
    let findings = check::all(host.config.as_deref(), host.search.as_deref()).await;
    let mut lines: Vec<_> = findings
        .iter()
        .filter(|finding| finding.verdict != Verdict::Ok)
        .map(ToString::to_string)
        .collect();
    match found::all(&host.run) {
        Ok(all) => lines.extend(all.iter().filter_map(|sandbox| {
            let error = sandbox.shim().err()?;
            Some(format!("warn  sandbox {}: {error}", sandbox.id()))
        })),
        Err(error) => lines.push(format!("warn  sandboxes: {}", base::chain(&error))),
    }
    if lines.is_empty() {
        page.line("None: all that `kata-ctl check` looks at is as it should be.");
    } else {
        // What keeps sandboxes from starting comes first.
        lines.sort_by_key(|line| !line.starts_with("fail"));
        page.code("", &lines.join("\n"));
    }
}

#[cfg(test)]
mod tests;
