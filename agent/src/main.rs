//! The guest agent. The program is `/init`; as `launch`, the child that becomes a container's process; as
//! `memlock-probe`, a child that maps perf buffers as a process would; as `/pause`, the process of a pod's sandbox; and as
//! `/sbin/modprobe`, the kernel's helper that loads modules.

mod cgroup;
mod common;
mod connections;
mod container;
mod error;
mod files;
mod guest;
mod init;
mod network;
mod server;

use std::process::ExitCode;

use tatami_agent::{launch, memlock};

fn main() -> ExitCode {
    // Before anything else: the child must stay single-threaded.
    match std::env::args_os().nth(1) {
        Some(verb) if verb == launch::VERB => return launch::child_main(),
        Some(verb) if verb == memlock::VERB => return memlock::child_main(),
        Some(_) | None => {}
    }
    if guest::pause::is_pause(std::env::args_os().next().as_deref()) {
        return guest::pause::main(std::env::args().skip(1));
    }
    if guest::modules::is_helper(std::env::args_os().next().as_deref()) {
        return guest::modules::main(std::env::args().skip(1));
    }
    if std::process::id() == 1 {
        init::run();
    } else {
        eprintln!("this program is the first process of a guest; it does nothing here");
    }
    ExitCode::FAILURE
}
