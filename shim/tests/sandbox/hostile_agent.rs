//! An agent that has been taken over answers what it likes: every call of containerd's is answered all the same, every container's
//! end is told once, and the shim's memory stays what it is.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::future::join_all;
use protocol::diagnostics::HealthRequest;
use tokio::time::timeout;
use ttrpc::Code;

use crate::support::liar::Lie;
use crate::support::{Shim, refusal};

/// What is called, and whose answer is a lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    CreateContainer,
    StartContainer,
    Exec,
    Signal,
    Stats,
    GuestMetrics,
    Delete,
}

const CALLS: [Call; 7] = [
    Call::CreateContainer,
    Call::StartContainer,
    Call::Exec,
    Call::Signal,
    Call::Stats,
    Call::GuestMetrics,
    Call::Delete,
];

const VICTIM: &str = "victim";

/// What a call may take, and some for a busy machine.
const LONGEST: Duration = Duration::from_secs(50);

/// Timeout for the creation and the start of a process.
const CREATION: Duration = Duration::from_millis(1500);

/// Later than any answer of the guest is waited for.
const LATE: Duration = Duration::from_secs(3);

impl Call {
    fn method(self) -> &'static str {
        match self {
            Call::CreateContainer => "CreateContainer",
            Call::StartContainer => "StartContainer",
            Call::Exec => "Exec",
            Call::Signal => "Signal",
            Call::Stats => "Stats",
            Call::GuestMetrics => "GuestMetrics",
            Call::Delete => "Delete",
        }
    }

    /// The field of its answer that is a list of messages; where there is none, one that nobody knows.
    fn list(self) -> u8 {
        match self {
            Call::Stats => 4,
            Call::GuestMetrics => 3,
            _ => 15,
        }
    }

    /// All that comes before the call.
    async fn prepare(self, shim: &Shim) {
        if self == Call::CreateContainer {
            return;
        }
        shim.create(VICTIM, &["sleep"]).await.unwrap();
        if self == Call::StartContainer {
            return;
        }
        shim.start(VICTIM, "").await.unwrap();
        match self {
            Call::Exec => shim.exec(VICTIM, "e", &["sleep"]).await.unwrap(),
            Call::Delete => {
                shim.kill(VICTIM, "", 9).await.unwrap();
                shim.wait(VICTIM, "").await.unwrap();
            }
            _ => {}
        }
    }

    async fn make(self, shim: &Shim) -> ttrpc::Result<()> {
        match self {
            Call::CreateContainer => shim.create(VICTIM, &["sleep"]).await.map(drop),
            Call::StartContainer => shim.start(VICTIM, "").await.map(drop),
            Call::Exec => shim.start(VICTIM, "e").await.map(drop),
            Call::Signal => shim.kill(VICTIM, "", 9).await,
            Call::Stats => shim.stats(VICTIM).await,
            Call::GuestMetrics => {
                let context = ttrpc::context::with_duration(LONGEST);
                let asked = shim.diagnostics().await;
                let health = asked.health(context, &HealthRequest::new()).await?;
                match health.agent_answers {
                    true => Ok(()),
                    false => Err(ttrpc::Error::Others(health.agent_error)),
                }
            }
            Call::Delete => shim.delete(VICTIM, "").await.map(drop),
        }
    }
}

/// A sandbox with a container that has nothing to do with the lie, and whatever the call needs.
async fn lied_to(call: Call, lie: Lie) -> Shim {
    let shim = Shim::with_creations_of(CREATION).await;
    shim.run("other", &["sleep"]).await;
    call.prepare(&shim).await;
    let container = if call == Call::GuestMetrics { "" } else { VICTIM };
    shim.guest.liar.lie(call.method(), container, lie);
    shim
}

/// An answer that breaks the protocol ends the connection, and the sandbox with it.
async fn ends_the_sandbox(call: Call, lie: Lie) {
    let what = format!("{call:?} {lie:?}");
    let shim = lied_to(call, lie).await;
    // A call that waits for nothing of the agent's, and one that does.
    let (made, waited) = tokio::join!(
        timeout(LONGEST, call.make(&shim)),
        timeout(LONGEST, shim.wait("other", ""))
    );
    // The first of two answers is a good one.
    assert!(made.is_ok(), "{what}: it is not answered");
    assert_eq!(waited.unwrap().unwrap(), 137, "{what}");
    assert_eq!(shim.containerd.exit("other").await.exit_status, 137, "{what}");
    let late = timeout(LONGEST, shim.create("late", &["sleep"])).await.unwrap();
    assert_eq!(refusal(late).0, Code::UNAVAILABLE, "{what}");
    if let Ok(victim) = timeout(LONGEST, shim.wait(VICTIM, "")).await.unwrap() {
        assert_eq!(victim, 137, "{what}");
        shim.containerd.exit(VICTIM).await;
    }
    assert!(shim.delete("other", "").await.is_ok(), "{what}");
    assert_eq!(shim.containerd.exits("other"), 1, "{what}");
    assert!(shim.containerd.exits(VICTIM) <= 1, "{what}");
}

/// An answer that does not come in time costs its own call alone.
async fn costs_its_own_call(call: Call, lie: Lie) {
    let what = format!("{call:?} {lie:?}");
    let shim = lied_to(call, lie).await;
    let neighbour = async {
        for number in 0..3 {
            let exec = format!("e{number}");
            shim.exec("other", &exec, &["exit", "0"]).await.unwrap();
            shim.start("other", &exec).await.unwrap();
            assert_eq!(shim.wait("other", &exec).await.unwrap(), 0, "{what}");
        }
    };
    let (made, neighbour) = tokio::join!(timeout(LONGEST, call.make(&shim)), timeout(LONGEST, neighbour));
    let made = made.unwrap_or_else(|_| panic!("{what}: it is not answered"));
    assert!(neighbour.is_ok(), "{what}: its neighbour waits");
    assert!(made.is_err(), "{what}");
    // Whatever comes late is nobody's, and harms nobody.
    tokio::time::sleep(LATE).await;
    shim.exec("other", "last", &["exit", "3"]).await.unwrap();
    shim.start("other", "last").await.unwrap();
    assert_eq!(shim.wait("other", "last").await.unwrap(), 3, "{what}");
}

/// An answer of which a part does not come keeps all others from coming: each call fails in its time.
async fn costs_every_call_its_time(call: Call, lie: Lie) {
    let what = format!("{call:?} {lie:?}");
    let shim = lied_to(call, lie).await;
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tokio::join!(shim.stats("other"), shim.kill("other", "", 9))
    };
    let (made, later) = tokio::join!(timeout(LONGEST, call.make(&shim)), timeout(LONGEST, later));
    assert!(made.is_ok(), "{what}: it is not answered");
    assert!(later.is_ok(), "{what}: the next calls are not answered");
    // By the report of its exit, on the agent's other connection.
    let ended = timeout(LONGEST, shim.wait("other", "")).await;
    assert_eq!(ended.unwrap().unwrap(), 137, "{what}");
}

/// All at once: they wait, and do not work.
async fn each<'a>(cases: impl Iterator<Item = Pin<Box<dyn Future<Output = ()> + 'a>>>) {
    join_all(cases).await;
}

fn boxed<'a>(case: impl Future<Output = ()> + 'a) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(case)
}

#[tokio::test]
async fn an_answer_that_breaks_the_protocol_ends_the_sandbox_once_and_every_call_is_answered() {
    let lies = [
        Lie::TooLong,
        Lie::Twice,
        Lie::OfAnother,
        Lie::Asks,
        Lie::WrongKind,
        Lie::HeaderLies(u32::MAX),
    ];
    for lie in lies {
        each(CALLS.into_iter().map(|call| boxed(ends_the_sandbox(call, lie)))).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_late_or_never_comes_costs_its_own_call_alone() {
    let lies = [Lie::Late(LATE), Lie::Never];
    // A deletion that is answered late has been answered, and a kill is over with the exit.
    let cases = lies.into_iter().flat_map(|lie| CALLS.map(|call| (call, lie)));
    let cases = cases.filter(|(call, lie)| !(*call == Call::Delete && matches!(lie, Lie::Late(_))));
    each(cases.map(|(call, lie)| boxed(costs_its_own_call(call, lie)))).await;
}

#[tokio::test]
async fn an_answer_that_stops_half_way_has_every_call_fail_in_its_time() {
    let lies = [Lie::Trickle(Duration::from_secs(20)), Lie::HeaderLies(60_000)];
    let cases = lies.into_iter().flat_map(|lie| CALLS.map(|call| (call, lie)));
    each(cases.map(|(call, lie)| boxed(costs_every_call_its_time(call, lie)))).await;
}

/// The most memory that this process has had, in KiB.
fn high_water() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn lists_of_empty_messages_cost_the_shim_little() {
    // As long as an answer may be: two bytes each.
    const MESSAGES: usize = 32_000;
    for call in CALLS {
        let shim = lied_to(call, Lie::EmptyList(call.list(), MESSAGES)).await;
        let before = high_water();
        let made = timeout(LONGEST, call.make(&shim)).await;
        assert!(made.is_ok(), "{call:?}: it is not answered");
        let grown = high_water() - before;
        assert!(grown < 16 << 10, "{call:?}: {grown} KiB");
        shim.stop().await;
    }
}
