//! The child: it turns itself from instructions into a running program, in the order in which the steps are possible.
//!
//! It has one thread and may block anywhere. All its operations affect only itself.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use caps::Capability;
use nix::{
    sys::signal::SigSet,
    unistd::{ForkResult, sethostname},
};
use oci_spec::runtime::{Hook, Hooks, LinuxNamespaceType, Spec};
use rustix::process::{DumpableBehavior, PidfdFlags, pidfd_open, set_dumpable_behavior};

use super::{
    affinity, attributes, capabilities,
    channel::{ChildEnd, Order, Report},
    devices,
    fault::{Context, Fault, Result},
    filter::Filter,
    hooks::{self, Confinement},
    identity,
    instructions::{Instructions, Place, Transfer},
    masked, memory_policy,
    mounts::{self, Prepared},
    namespaces::{self, Fresh},
    program::Program,
    request::Stdio,
    rlimits, rootfs, seccomp, sys, sysctl, terminal,
    tree::Root,
};

/// Reads the instructions from standard input and carries them out.
pub(super) fn main() -> ExitCode {
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let channel = ChildEnd::new(socket);
    let Err(fault) = instructed(&channel).and_then(|told| carry_out(&channel, &told)) else {
        return ExitCode::SUCCESS;
    };
    // Nobody may be listening any more, and then nobody needs to know.
    let _ = channel.say(&Report::Failed(fault.bounded()));
    ExitCode::FAILURE
}

fn instructed(channel: &ChildEnd) -> Result<Instructions> {
    match channel.receive().or_fail(|| "cannot receive the instructions")? {
        Some((Order::Prepare, fds)) => Transfer::received(fds).unpack(),
        _ => Err(Fault::Internal("the child was started without instructions".to_owned())),
    }
}

/// What was taken from the guest before its tree and its privileges are out of reach.
struct Taken<'a> {
    root: OwnedFd,
    mounts: Vec<Prepared<'a>>,
    fresh: Fresh,
}

/// Enters the namespaces, makes the process in them, and ends; the process goes on in [`prepare_and_execute`].
fn carry_out(channel: &ChildEnd, told: &Instructions) -> Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .or_fail(|| "cannot open /dev/null")?;
    // Standard input was the channel; nothing of ours may read from or write to what the agent has there.
    let silence = [null.as_fd(), null.as_fd(), null.as_fd()].map(|fd| fd.try_clone_to_owned());
    let [Ok(stdin), Ok(stdout), Ok(stderr)] = silence else {
        return Err(Fault::Internal("cannot copy a descriptor".to_owned()));
    };
    attributes::place_streams(&[stdin, stdout, stderr])?;
    attributes::set_oom_score(&told.process)?;
    rlimits::make_room(told.process.rlimits().as_deref().unwrap_or_default())?;
    let streams = attributes::streams(&told.stdio, &null)?;

    let (taken, of_init) = match &told.place {
        Place::New(join) => (Some(take(told, join)?), None),
        Place::Of(init) => {
            affinity::set_initial(told.process.exec_cpu_affinity().as_ref())?;
            let of_init = namespaces::cgroup_of_init(init, &cgroup_directory(&told.cgroup)?)?;
            namespaces::join(init)?;
            (None, of_init)
        }
    };
    // From here on a process of the container may see ours: it must not reach our program's file (CVE-2019-5736).
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_fail(|| "cannot hide the process")?;

    let (announced, announce) = nix::unistd::pipe().or_fail(|| "cannot make a pipe")?;
    match sys::fork().or_refuse(|| "cannot make the process")? {
        ForkResult::Parent { child } => {
            drop(announced);
            // It is our child and not reaped: the number means nobody else.
            let pidfd = rustix::process::Pid::from_raw(child.as_raw())
                .ok_or(rustix::io::Errno::SRCH)
                .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
                .or_fail(|| "cannot hold the process")?;
            channel
                .send(&Report::Made(child.as_raw()), &[pidfd.as_fd()])
                .or_fail(|| "cannot announce the process")?;
            File::from(announce).write_all(b"!").or_fail(|| "the process has ended")
        }
        ForkResult::Child => {
            drop(announce);
            // Nobody knows of a process that was not announced: it ends with who should have.
            File::from(announced)
                .read_exact(&mut [0])
                .or_fail(|| "the process was not announced")?;
            prepare_and_execute(channel, told, taken.as_ref(), of_init.as_ref(), streams)
        }
    }
}

fn take<'a>(told: &'a Instructions, join: &[(LinuxNamespaceType, OwnedFd)]) -> Result<Taken<'a>> {
    let spec = &told.spec;
    let bundle = rootfs::bundle(spec)?;
    let root = rootfs::take(spec)?;
    let has = |kind| has_namespace(spec, kind) || join.iter().any(|(joined, _)| *joined == kind);
    let surroundings = mounts::Surroundings {
        bundle: &bundle,
        cgroup: &cgroup_directory(&told.cgroup)?,
        cgroup_namespace: has_namespace(spec, LinuxNamespaceType::Cgroup),
        sysfs_of_guest: has(LinuxNamespaceType::User) && !has(LinuxNamespaceType::Network),
    };
    let mounts = mounts::prepare(spec, surroundings)?;
    sysctl::set(spec, sysctl::Where::Guest, namespaces::makes_network(spec, join))?;
    let fresh = namespaces::make(spec, join, &told.cgroup, &told.agent_cgroup)?;
    Ok(Taken { root, mounts, fresh })
}

fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let listed = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    listed.iter().any(|namespace| namespace.typ() == kind)
}

/// Where the container's cgroup is in the guest's tree: the directory of its `cgroup.procs`.
fn cgroup_directory(procs: &OwnedFd) -> Result<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", procs.as_raw_fd()))
        .or_fail(|| "cannot tell where the container's cgroup is")?;
    Ok(path.parent().unwrap_or(Path::new("/")).to_owned())
}

/// The process itself. Returns only to say why the program does not run.
fn prepare_and_execute(
    channel: &ChildEnd,
    told: &Instructions,
    taken: Option<&Taken<'_>>,
    of_init: Option<&OwnedFd>,
    streams: [OwnedFd; 3],
) -> Result<()> {
    rustix::process::setsid().or_fail(|| "cannot begin a session")?;
    attributes::join_keyring(&told.id)?;
    let to_seal = taken.map(|taken| furnish(told, taken)).transpose()?;
    let (streams, master) = match &told.stdio {
        Stdio::Pipes { .. } => (streams, None),
        Stdio::Terminal => {
            let (streams, master) = open_terminal(told, taken.is_some())?;
            (streams, Some(master))
        }
    };
    if let Some(to_seal) = to_seal {
        finish_tree(told, &to_seal)?;
    }
    let environment = identity::environment(&told.process)?;
    let (program, filter) = assume_identity(told, &streams, &environment)?;
    wait_at_the_gate(channel, master.as_ref().map(AsFd::as_fd))?;
    drop(master);

    if taken.is_some() {
        let hooks = hooks_of(&told.spec, Hooks::start_container);
        let state = hooks::HookInput {
            spec: &told.spec,
            id: &told.id,
            bundle: &told.bundle,
            environment: &environment,
        };
        let confinement = Confinement {
            cgroup: &told.cgroup,
            filter: filter.as_ref(),
        };
        hooks::run(hooks, state, confinement)?;
    }
    attributes::place_streams(&streams)?;
    sys::close_on_exec_from(3).or_fail(|| "cannot close what is ours")?;
    reset_signals()?;
    // From here on the container pays, and its limits hold.
    namespaces::enter_cgroup_or(&told.cgroup, of_init)?;
    if taken.is_none() {
        affinity::set_final(told.process.exec_cpu_affinity().as_ref())?;
    }
    if let Some(filter) = &filter {
        filter.load()?;
    }
    // Where the filter forbids `write`, nobody hears why the program cannot be executed: exit status 1 is all there is.
    Err(program.execute())
}

/// Everything of a new container that needs the guest's tree, up to its root. The answer is what [`finish_tree`] seals.
fn furnish(told: &Instructions, taken: &Taken<'_>) -> Result<Vec<OwnedFd>> {
    let spec = &told.spec;
    if taken.fresh.uts {
        if let Some(name) = spec.hostname() {
            sethostname(name).or_refuse(|| format!("cannot set the hostname {name:?}"))?;
        }
        if let Some(name) = spec.domainname() {
            sys::set_domain_name(name).or_refuse(|| format!("cannot set the domainname {name:?}"))?;
        }
    }
    if taken.fresh.network {
        sys::loopback_up().or_refuse(|| "cannot bring the loopback interface up")?;
    }
    sysctl::set(spec, sysctl::Where::Container, taken.fresh.network)?;
    rootfs::place(&taken.root)?;
    let root = Root::new(taken.root.as_fd());
    // Modes are the specification's, not what is left of them by a mask.
    rustix::process::umask(rustix::fs::Mode::empty());
    let to_seal = mounts::carry_out(root, &taken.mounts)?;
    devices::make(root, spec, taken.fresh.user)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rootfs::enter(&taken.root)?;
    Ok(to_seal)
}

fn hooks_of(spec: &Spec, select: fn(&Hooks) -> &Option<Vec<Hook>>) -> &[Hook] {
    spec.hooks()
        .as_ref()
        .and_then(|hooks| select(hooks).as_deref())
        .unwrap_or_default()
}

fn open_terminal(told: &Instructions, is_first: bool) -> Result<([OwnedFd; 3], OwnedFd)> {
    let pair = terminal::open(&told.process)?;
    if is_first {
        terminal::show_as_console(&pair)?;
    }
    terminal::control(&pair.terminal)?;
    let copy = || pair.terminal.try_clone().or_fail(|| "cannot copy the terminal");
    Ok(([copy()?, copy()?, copy()?], pair.master))
}

/// What is left to do inside the new root while it can be written to.
fn finish_tree(told: &Instructions, to_seal: &[OwnedFd]) -> Result<()> {
    rootfs::make_cwd(told.process.cwd())?;
    mounts::seal(to_seal)?;
    if let Some(linux) = told.spec.linux() {
        masked::carry_out(linux)?;
    }
    rootfs::finish(&told.spec)
}

/// Limits, user and capabilities; the program is looked up by who will execute it.
fn assume_identity(
    told: &Instructions,
    streams: &[OwnedFd; 3],
    environment: &[String],
) -> Result<(Program, Option<Filter>)> {
    let process = &told.process;
    let linux = told.spec.linux().as_ref();
    identity::check_ids(process.user())?;
    attributes::set_personality(linux.and_then(|linux| linux.personality().as_ref()))?;
    attributes::set_scheduler(process.scheduler().as_ref())?;
    attributes::set_io_priority(process.io_priority().as_ref())?;
    memory_policy::set(linux.and_then(|linux| linux.memory_policy().as_ref()))?;
    rlimits::set(process.rlimits().as_deref().unwrap_or_default())?;
    attributes::give_streams(streams, process.user().uid());
    let filter = linux
        .and_then(|linux| linux.seccomp().as_ref())
        .map(seccomp::build)
        .transpose()?;
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);

    capabilities::bound(process.capabilities().as_ref())?;
    identity::assume(process)?;
    // A filter needs either: no_new_privs, or this capability at the moment when it is loaded (seccomp(2)).
    let also = (filter.is_some() && !no_new_privileges).then_some(Capability::CAP_SYS_ADMIN);
    capabilities::apply(process.capabilities().as_ref(), also)?;
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).or_fail(|| "cannot set no_new_privs")?;
    }
    let program = Program::find(process.args().as_deref().unwrap_or_default(), environment)?;
    Ok((program, filter))
}

/// Says that everything is ready and waits to be let go on.
fn wait_at_the_gate(channel: &ChildEnd, master: Option<BorrowedFd<'_>>) -> Result<()> {
    channel
        .send(&Report::Ready, master.as_slice())
        .or_fail(|| "cannot report")?;
    match channel.receive().or_fail(|| "cannot wait at the gate")? {
        Some((Order::Go, _)) => Ok(()),
        _ => Err(Fault::Internal("nobody wants the process any more".to_owned())),
    }
}

/// Blocked and ignored signals would stay so in the program.
fn reset_signals() -> Result<()> {
    sys::reset_signal_actions();
    SigSet::empty()
        .thread_set_mask()
        .or_fail(|| "cannot unblock the signals")
}
