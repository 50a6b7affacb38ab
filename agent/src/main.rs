//! The guest agent. The program is `/init`; as `launch`, the child that becomes a container's process; as
//! `memlock-probe`, a child that maps perf buffers as a process would; as `/pause`, the process of a pod's sandbox; and as
//! `/sbin/modprobe`, the kernel's helper that loads modules.

mod blocking;
mod boot;
mod cgroup;
mod clock;
mod container;
mod cpus;
mod dial;
mod error;
mod events;
mod growth;
mod host_sockets;
mod ids;
mod init;
mod log;
mod metrics;
mod modules;
mod names;
mod network;
mod oom;
mod pause;
mod process;
mod reaper;
mod relays;
mod rpc;
mod sandbox;
mod setup;
mod storage;
mod streams;
mod sys;
mod timeouts;
mod uevents;
mod volumes;

use std::process::ExitCode;

use tatami_agent::{launch, memlock};

fn main() -> ExitCode {
    // Before anything else: the child must stay single-threaded.
    match std::env::args_os().nth(1) {
        Some(verb) if verb == launch::VERB => return launch::child_main(),
        Some(verb) if verb == memlock::VERB => return memlock::child_main(),
        Some(_) | None => {}
    }
    if pause::is_pause(std::env::args_os().next().as_deref()) {
        return pause::main(std::env::args().skip(1));
    }
    if modules::is_helper(std::env::args_os().next().as_deref()) {
        return modules::main(std::env::args().skip(1));
    }
    if std::process::id() == 1 {
        init::run();
    } else {
        eprintln!("this program is the first process of a guest; it does nothing here");
    }
    ExitCode::FAILURE
}
