//! The guest agent.

use std::process::ExitCode;

use tatami_agent::launch;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|verb| verb == launch::VERB) {
        return launch::child_main();
    }
    ExitCode::FAILURE
}
