//! The guest agent: `/init`, and (as `launch`) the child that becomes a container's process.

mod boot;
mod cgroup;
mod container;
mod dial;
mod error;
mod events;
mod ids;
mod init;
mod log;
mod oom;
mod process;
mod reaper;
mod report;
mod rpc;
mod sandbox;
mod setup;
mod streams;
mod sys;

use std::process::ExitCode;

use tatami_agent::launch;

fn main() -> ExitCode {
    // Before anything else: the child must stay single-threaded.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == launch::VERB) {
        return launch::child_main();
    }
    if std::process::id() == 1 {
        init::run();
    } else {
        eprintln!("this program is the first process of a guest; it does nothing here");
    }
    ExitCode::FAILURE
}
