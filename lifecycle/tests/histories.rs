//! Short histories of what once went wrong, step by step.
// A test fails by a panic, in its helpers, too.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::time::SystemTime;

use lifecycle::id::{ContainerId, ExecId, ProcessName};
use lifecycle::{
    Answer, Core, Effect, Event, Exit, Failure, Fault, Input, Job, KILLED, Output, Refusal, Reply, Request, SIGKILL,
    Timer, View, Work,
};
use protocol::phase::Phase;

struct Sandbox {
    core: Core<&'static str>,
    replies: u64,
}

type Effects = Vec<Effect<&'static str>>;

fn init(id: &str) -> ProcessName {
    ProcessName::init(ContainerId::new(id).unwrap())
}

fn exec(id: &str) -> ProcessName {
    ProcessName {
        exec: Some(ExecId::new("e").unwrap()),
        ..init(id)
    }
}

fn job(effects: &[Effect<&'static str>], wanted: impl Fn(&Work) -> bool) -> Job {
    let jobs = effects.iter().filter_map(|effect| match effect {
        Effect::Do(job, work) if wanted(work) => Some(*job),
        _ => None,
    });
    jobs.last().unwrap_or_else(|| panic!("not begun: {effects:?}"))
}

fn answers(effects: &[Effect<&'static str>]) -> Vec<Answer<&'static str>> {
    let answers = effects.iter().filter_map(|effect| match effect {
        Effect::Answer(_, answer) => Some(answer.clone()),
        _ => None,
    });
    answers.collect()
}

impl Sandbox {
    fn new() -> Self {
        Self::with(Some(ContainerId::new("pod").unwrap()))
    }

    fn with(own: Option<ContainerId>) -> Self {
        let mut sandbox = Self {
            core: Core::new(own),
            replies: 0,
        };
        assert!(sandbox.step(Input::VmReady).is_empty());
        sandbox
    }

    fn step(&mut self, input: Input<&'static str>) -> Effects {
        self.core.step(SystemTime::UNIX_EPOCH, input)
    }

    fn ask(&mut self, request: Request) -> Effects {
        self.replies += 1;
        self.step(Input::Request(Reply(self.replies), request))
    }

    fn done(&mut self, job: Job) -> Effects {
        self.step(Input::Finished(job, Ok(())))
    }

    /// Does whatever is begun, at once, but for what `holds` says; all that follows.
    fn complete(&mut self, mut effects: Effects, holds: impl Fn(&Work) -> bool) -> Effects {
        let mut next = 0;
        while let Some(effect) = effects.get(next).cloned() {
            next += 1;
            if let Effect::Do(job, work) = effect
                && !holds(&work)
            {
                effects.extend(self.done(job));
            }
        }
        effects
    }

    fn run(&mut self, id: &str) -> Effects {
        for request in [Request::Create(init(id).container), Request::Start(init(id))] {
            let begun = self.ask(request);
            let effects = self.complete(begun, |work| matches!(work, Work::StartHooks(_)));
            if matches!(effects.last(), Some(Effect::Do(_, Work::StartHooks(_)))) {
                return effects;
            }
        }
        panic!("{id} does not run");
    }

    fn exits(&mut self, name: ProcessName) -> Effects {
        let exit = Exit {
            status: 0,
            at: SystemTime::UNIX_EPOCH,
        };
        let begun = self.step(Input::Exited(name, exit, Output::default()));
        self.complete(begun, |_| false)
    }
}

fn fails(fault: Fault) -> Result<(), Failure<&'static str>> {
    Err(Failure {
        fault,
        error: "no answer",
    })
}

fn unanswered() -> Result<(), Failure<&'static str>> {
    fails(Fault::Unanswered)
}

#[test]
fn hooks_that_follow_a_start_hold_up_no_deletion() {
    let mut sandbox = Sandbox::new();
    let started = sandbox.run("c");
    let hooks = job(&started, |work| matches!(work, Work::StartHooks(_)));
    sandbox.exits(init("c"));
    let begun = sandbox.ask(Request::Delete(init("c")));
    let deleted = sandbox.complete(begun, |_| false);
    assert!(deleted.contains(&Effect::Abandon(hooks)));
    let answers = answers(&deleted);
    assert!(matches!(answers[..], [Answer::Done, Answer::Deleted(_)]), "{answers:?}");
}

#[test]
fn hooks_that_follow_a_deletion_hold_it_up_for_a_bounded_time() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c");
    sandbox.exits(init("c"));
    let begun = sandbox.ask(Request::Delete(init("c")));
    let waits = sandbox.complete(begun, |work| matches!(work, Work::StopHooks(_)));
    assert!(answers(&waits).is_empty());
    let timer = waits.iter().find_map(|effect| match effect {
        Effect::Start(job, Timer::StopHooks) => Some(*job),
        _ => None,
    });
    let deleted = sandbox.step(Input::Elapsed(timer.unwrap()));
    // TaskDelete is published before the id is free.
    let told = |effect: &Effect<_>| matches!(effect, Effect::Forget(_, Some(Event::Deleted(_))));
    let answered = |effect: &Effect<_>| matches!(effect, Effect::Answer(_, Answer::Deleted(_)));
    let at = |wanted: &dyn Fn(&Effect<&'static str>) -> bool| deleted.iter().position(wanted).unwrap();
    assert!(at(&told) < at(&answered));
}

#[test]
fn an_exec_that_is_being_started_is_not_deleted_under_its_start() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c");
    sandbox.ask(Request::AddExec(exec("c")));
    let begun = sandbox.ask(Request::Start(exec("c")));
    let starting = sandbox.complete(begun, |work| matches!(work, Work::GuestExec(_)));
    let refused = answers(&sandbox.ask(Request::Delete(exec("c"))));
    assert!(
        matches!(refused[..], [Answer::Refused(Refusal::Phase { .. })]),
        "{refused:?}"
    );
    let begun = sandbox.done(job(&starting, |work| matches!(work, Work::GuestExec(_))));
    assert_eq!(answers(&sandbox.complete(begun, |_| false)), [Answer::Done]);
}

#[test]
fn a_creation_that_reaches_the_guest_after_it_was_undone_is_undone_again() {
    for (is_made, asked_first) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut sandbox = Sandbox::new();
        let begun = sandbox.ask(Request::Create(init("c").container));
        let creating = sandbox.complete(begun, |work| matches!(work, Work::GuestCreate(_)));
        let create = job(&creating, |work| matches!(work, Work::GuestCreate(_)));
        let undoing = sandbox.step(Input::ClientGone(Reply(1)));
        let deletes = |work: &Work| matches!(work, Work::GuestDelete(_));
        let missing = fails(Fault::Missing);
        let delete = Input::Finished(job(&undoing, deletes), missing);
        let create = Input::Finished(create, if is_made { Ok(()) } else { fails(Fault::Refused) });
        // Either report may come first, whatever came first in the guest.
        let (first, second) = if asked_first {
            (delete, create)
        } else {
            (create, delete)
        };
        assert_eq!(sandbox.step(first), []);
        let mut effects = sandbox.step(second);
        if is_made {
            let again = job(&effects, deletes);
            assert_eq!(effects.len(), 1, "{effects:?}");
            effects = sandbox.done(again);
        }
        let undone = sandbox.complete(effects, |_| false);
        assert!(
            matches!(answers(&undone)[..], [Answer::Refused(Refusal::Interrupted(_))]),
            "{undone:?}"
        );
    }
}

#[test]
fn a_sigkill_that_is_not_answered_costs_the_vm_only_if_a_ping_is_not_answered_either() {
    for (answers_ping, ends) in [(true, false), (false, true)] {
        let mut sandbox = Sandbox::new();
        sandbox.run("c");
        sandbox.ask(Request::AddExec(exec("c")));
        let begun = sandbox.ask(Request::Start(exec("c")));
        sandbox.complete(begun, |_| false);
        let (name, signal, all) = (exec("c"), SIGKILL, false);
        let killing = sandbox.ask(Request::Kill { name, signal, all });
        let timer = killing.iter().find_map(|effect| match effect {
            Effect::Start(job, Timer::KillAnswer) => Some(*job),
            _ => None,
        });
        let late = sandbox.step(Input::Elapsed(timer.unwrap()));
        let ping = job(&late, |work| *work == Work::Ping);
        let pinged = match answers_ping {
            true => sandbox.done(ping),
            false => sandbox.step(Input::Finished(ping, unanswered())),
        };
        let ended = pinged.iter().any(|effect| matches!(effect, Effect::EndVm(_)));
        assert_eq!(ended, ends);
    }
}

#[test]
fn a_pause_that_is_not_answered_is_undone() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c");
    let pausing = sandbox.ask(Request::Pause(init("c").container));
    let pause = job(&pausing, |work| matches!(work, Work::GuestPause(_)));
    let undoing = sandbox.step(Input::Finished(pause, unanswered()));
    assert!(answers(&undoing).is_empty());
    let undone = sandbox.done(job(&undoing, |work| matches!(work, Work::GuestResume(_))));
    assert_eq!(answers(&undone), [Answer::Failed("no answer")]);
}

#[test]
fn a_container_that_cannot_be_told_to_go_on_is_paused_and_can_be_resumed() {
    for (fault, paused) in [(Fault::Refused, true), (Fault::Unanswered, true), (Fault::Phase, false)] {
        let mut sandbox = Sandbox::new();
        sandbox.run("c");
        let pausing = sandbox.ask(Request::Pause(init("c").container));
        let pause = job(&pausing, |work| matches!(work, Work::GuestPause(_)));
        let undoing = sandbox.step(Input::Finished(pause, unanswered()));
        let undo = job(&undoing, |work| matches!(work, Work::GuestResume(_)));
        let told = sandbox.step(Input::Finished(undo, fails(fault)));
        let enters = |effect: &Effect<_>| matches!(effect, Effect::Enter(_, View::In(Phase::Paused), _));
        assert_eq!(told.iter().any(enters), paused, "{fault:?}: {told:?}");
        assert_eq!(answers(&told), [Answer::Failed("no answer")]);
        if paused {
            let resuming = sandbox.ask(Request::Resume(init("c").container));
            let resumed = sandbox.done(job(&resuming, |work| matches!(work, Work::GuestResume(_))));
            assert_eq!(answers(&resumed), [Answer::Done]);
        }
    }
}

#[test]
fn a_guest_that_holds_on_to_a_container_costs_the_vm_if_only_the_pods_own_container_lives_on() {
    // Without a pod the first container is one like others.
    for (is_pod, neighbour_lives, ends) in [(true, true, false), (true, false, true), (false, false, false)] {
        let own = ContainerId::new("pod").unwrap();
        let mut sandbox = Sandbox::with(is_pod.then_some(own));
        for id in ["pod", "c", "neighbour"] {
            sandbox.run(id);
        }
        sandbox.exits(init("c"));
        if !neighbour_lives {
            sandbox.exits(init("neighbour"));
        }
        let begun = sandbox.ask(Request::Delete(init("c")));
        let delete = job(&begun, |work| matches!(work, Work::GuestDelete(_)));
        let held = sandbox.step(Input::Finished(delete, unanswered()));
        let ended = held.iter().any(|effect| matches!(effect, Effect::EndVm(_)));
        assert_eq!(ended, ends, "{held:?}");
    }
}

#[test]
fn a_guest_that_does_not_answer_a_deletion_is_asked_whether_it_is_there_and_its_neighbour_goes_with_it_if_not() {
    for answers_ping in [true, false] {
        let mut sandbox = Sandbox::new();
        for id in ["pod", "c", "neighbour"] {
            sandbox.run(id);
        }
        sandbox.exits(init("c"));
        let begun = sandbox.ask(Request::Delete(init("c")));
        let delete = job(&begun, |work| matches!(work, Work::GuestDelete(_)));
        let held = sandbox.step(Input::Finished(delete, unanswered()));
        assert!(matches!(answers(&held)[..], [Answer::Failed(_)]), "{held:?}");
        let ping = job(&held, |work| *work == Work::Ping);
        let pinged = match answers_ping {
            true => sandbox.done(ping),
            false => sandbox.step(Input::Finished(ping, unanswered())),
        };
        let ended = pinged.iter().any(|effect| matches!(effect, Effect::EndVm(_)));
        assert_eq!(ended, !answers_ping, "{pinged:?}");
    }
}

#[test]
fn whoever_waits_for_an_exec_that_never_started_is_woken_by_its_containers_deletion() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c");
    sandbox.ask(Request::AddExec(exec("c")));
    sandbox.exits(init("c"));
    let begun = sandbox.ask(Request::Delete(init("c")));
    let deleted = sandbox.complete(begun, |_| false);
    let woken =
        |effect: &Effect<_>| matches!(effect, Effect::Enter(name, View::Stopped(_), None) if *name == exec("c"));
    assert!(deleted.iter().any(woken), "{deleted:?}");
}

#[test]
fn a_signal_to_an_exec_whose_container_has_ended_finds_it_finished() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c");
    sandbox.ask(Request::AddExec(exec("c")));
    let begun = sandbox.ask(Request::Start(exec("c")));
    sandbox.complete(begun, |_| false);
    let begun = sandbox.ask(Request::Kill {
        name: exec("c"),
        signal: SIGKILL,
        all: false,
    });
    let signal = job(&begun, |work| matches!(work, Work::Signal { .. }));
    let phase = Failure {
        fault: Fault::Phase,
        error: "its container has ended",
    };
    let answers = answers(&sandbox.step(Input::Finished(signal, Err(phase))));
    assert!(
        matches!(answers[..], [Answer::Refused(Refusal::Finished(_))]),
        "{answers:?}"
    );
}

fn sends(effects: &[Effect<&'static str>]) -> Vec<u32> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Do(_, Work::Signal { signal, .. }) => Some(*signal),
        _ => None,
    });
    sends.collect()
}

/// A signal to what is being started, whose start then ends as `done` says; all effects from the signal on.
fn signalled_at_start(name: &ProcessName, signal: u32, done: Result<(), Failure<&'static str>>) -> Effects {
    let mut sandbox = Sandbox::new();
    let begun = match name.exec {
        Some(_) => {
            sandbox.run("c");
            sandbox.ask(Request::AddExec(name.clone()));
            sandbox.ask(Request::Start(name.clone()))
        }
        None => {
            let begun = sandbox.ask(Request::Create(name.container.clone()));
            sandbox.complete(begun, |_| false);
            sandbox.ask(Request::Start(name.clone()))
        }
    };
    let in_guest = |work: &Work| matches!(work, Work::GuestExec(_) | Work::GuestStart(_));
    let waits = sandbox.complete(begun, in_guest);
    let start = job(&waits, in_guest);
    let mut effects = sandbox.ask(Request::Kill {
        name: name.clone(),
        signal,
        all: false,
    });
    let begun = sandbox.step(Input::Finished(start, done));
    let held = |work: &Work| matches!(work, Work::Signal { .. } | Work::StartHooks(_));
    effects.extend(sandbox.complete(begun, held));
    effects
}

const SIGINT: u32 = 2;

#[test]
fn a_signal_to_what_is_being_started_is_sent_once_it_runs() {
    for (name, signal) in [(init("c"), SIGINT), (init("c"), SIGKILL), (exec("c"), SIGINT)] {
        let effects = signalled_at_start(&name, signal, Ok(()));
        let runs = effects
            .iter()
            .position(|effect| matches!(effect, Effect::Enter(_, _, Some(Event::Started))));
        let sent = effects
            .iter()
            .position(|effect| matches!(effect, Effect::Do(_, Work::Signal { .. })));
        assert_eq!(sends(&effects), [signal], "{name}");
        // SIGKILL ends a container's first process at any time.
        assert_eq!(sent < runs, signal == SIGKILL, "{name} {signal}: {effects:?}");
    }
}

#[test]
fn sigkill_ends_the_start_of_an_exec_and_does_not_wait_for_it() {
    for held in [
        Work::OpenStreams(exec("c")),
        Work::GuestExec(exec("c")),
        Work::ConnectExec(exec("c")),
    ] {
        let mut sandbox = Sandbox::new();
        sandbox.run("c");
        sandbox.ask(Request::AddExec(exec("c")));
        let begun = sandbox.ask(Request::Start(exec("c")));
        let waits = sandbox.complete(begun, |work| *work == held);
        let start = job(&waits, |work| *work == held);
        let killed = sandbox.ask(Request::Kill {
            name: exec("c"),
            signal: SIGKILL,
            all: false,
        });
        let answers = answers(&killed);
        assert!(
            matches!(answers[..], [Answer::Refused(Refusal::Interrupted(_)), Answer::Done]),
            "{held:?}: {answers:?}"
        );
        // The guest's answer to its call is waited for: see the next test.
        assert_eq!(
            killed.contains(&Effect::Abandon(start)),
            !matches!(held, Work::GuestExec(_))
        );
        let stopped =
            |effect: &Effect<_>| matches!(effect, Effect::Enter(_, View::Stopped(exit), None) if exit.status == KILLED);
        assert!(killed.iter().any(stopped), "{held:?}: {killed:?}");
        // The guest knows it from the second step on.
        let in_guest = !matches!(held, Work::OpenStreams(_));
        assert_eq!(sends(&killed).len(), usize::from(in_guest), "{held:?}");
        let told = |effect: &Effect<_>| matches!(effect, Effect::Enter(_, _, Some(_)));
        assert!(!killed.iter().any(told), "{killed:?}");
    }
}

/// An exec whose start SIGKILL has ended, and for whose deletion the client asks: the guest knows no such process. Then it
/// answers the call to start it; all effects from then on, and the jobs of the deletion in the guest before.
fn overtaken(done: Result<(), Failure<&'static str>>) -> (Effects, Effects) {
    let mut sandbox = Sandbox::new();
    sandbox.run("c");
    sandbox.ask(Request::AddExec(exec("c")));
    let begun = sandbox.ask(Request::Start(exec("c")));
    let waits = sandbox.complete(begun, |work| matches!(work, Work::GuestExec(_)));
    let start = job(&waits, |work| matches!(work, Work::GuestExec(_)));
    let killed = sandbox.ask(Request::Kill {
        name: exec("c"),
        signal: SIGKILL,
        all: false,
    });
    let kill = job(&killed, |work| matches!(work, Work::Signal { .. }));
    let missing = Failure {
        fault: Fault::Missing,
        error: "no such process",
    };
    let mut before = sandbox.step(Input::Finished(kill, Err(missing)));
    before.extend(sandbox.ask(Request::Delete(exec("c"))));
    let timer = before.iter().find_map(|effect| match effect {
        Effect::Start(job, Timer::Death) => Some(*job),
        _ => None,
    });
    if let Some(timer) = timer {
        before.extend(sandbox.step(Input::Elapsed(timer)));
    }
    (before, sandbox.step(Input::Finished(start, done)))
}

#[test]
fn sigkill_that_reaches_the_guest_before_the_exec_is_sent_again() {
    for done in [Ok(()), unanswered()] {
        let (before, after) = overtaken(done);
        let deletes = |effect: &Effect<_>| matches!(effect, Effect::Do(_, Work::GuestDelete(_)));
        assert!(!before.iter().any(deletes), "{before:?}");
        assert!(answers(&before).is_empty(), "{before:?}");
        assert_eq!(sends(&after), [SIGKILL], "{after:?}");
    }
    let refused = Failure {
        fault: Fault::Refused,
        error: "killed",
    };
    let (_, after) = overtaken(Err(refused));
    assert!(sends(&after).is_empty(), "{after:?}");
    job(&after, |work| matches!(work, Work::GuestDelete(_)));
}

#[test]
fn a_signal_to_an_exec_that_does_not_start_is_refused() {
    let refused = Failure {
        fault: Fault::Refused,
        error: "no such program",
    };
    let effects = signalled_at_start(&exec("c"), SIGINT, Err(refused));
    let answers = answers(&effects);
    assert!(sends(&effects).is_empty());
    assert_eq!(
        answers,
        [
            Answer::Failed("no such program"),
            Answer::Refused(Refusal::Finished(exec("c")))
        ]
    );
}
