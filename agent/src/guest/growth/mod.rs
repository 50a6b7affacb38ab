//! Memory for containers without a memory limit: gets more from the host when they need it, and returns it when they do not (docs/sizing.md).
//!
//! ```text
//! the mark is reached, or they wait for memory ─► plan ─► Host.ScaleMemory ─► memory blocks come online ─► the mark is raised
//! for a while they have needed less            ─► plan ─► the mark is lowered ─► Host.ScaleMemory
//! ```
//! The mark is memory.high of the cgroup above all containers ([`crate::cgroup`]): a process that allocates beyond it is slowed down, and not
//! killed. [`plan`] decides; this module asks the host, and sets the marks. It knows no container.

mod plan;

use std::io;
use std::time::{Duration, Instant};

use protocol::agent::{MemoryDemand, MemoryGranted};
use protocol::agent_ttrpc::HostClient;
use tokio::time::sleep;
use ttrpc::context::Context;

use self::plan::{Cause, LOOK, Plan};
use crate::cgroup::{self, Stalls, Usage, Watch};
use crate::common::blocking;
use crate::guest::uevents::Uevents;

/// Containers that have waited so long for memory within so long may need more: of pages that are read again and again no other event tells.
const STALLED: Duration = Duration::from_millis(200);
const WINDOW: Duration = Duration::from_secs(1);

/// How long it is not looked again where the mark is reached by what the kernel can take back: it is reached all the time then.
const PAUSE: Duration = Duration::from_millis(20);

/// What tells that more may be needed.
struct Signs {
    events: Watch,
    /// None where the kernel has none: without it pages that are read again and again are no reason.
    stalls: Option<Stalls>,
}

impl Signs {
    fn new() -> Result<Self, cgroup::Error> {
        let stalls = cgroup::memory_stalls(STALLED, WINDOW).inspect_err(|error| {
            tracing::warn!(
                error = base::chain(error),
                "it is not seen when containers wait for memory"
            );
        });
        Ok(Self {
            events: cgroup::memory_events()?,
            stalls: stalls.ok(),
        })
    }

    /// Waits for the next one. `grown`: there may be too much.
    async fn next(&self, grown: bool) -> io::Result<Option<Cause>> {
        let stalled = async {
            match &self.stalls {
                Some(stalls) => stalls.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.events.changed() => changed.map(|()| Some(Cause::Full)),
            stalled = stalled => stalled.map(|()| Some(Cause::Stalled)),
            () = sleep(LOOK), if grown => Ok(Some(Cause::Quiet)),
            () = cgroup::limits_changed() => Ok(None),
        }
    }
}

/// Sees to the containers' memory for ever. `most`: bytes that the VM can have beyond what it booted with; 0: it does not grow.
pub(crate) async fn follow(host: HostClient, most: u64) {
    if most == 0 {
        return;
    }
    let signs = match Signs::new() {
        Ok(signs) => signs,
        Err(error) => {
            tracing::warn!(error = base::chain(&error), "the VM's memory does not grow");
            set_marks(0).await;
            return;
        }
    };
    let mut growth = Growth {
        host,
        plan: Plan::new(most),
        next_look: Instant::now(),
    };
    loop {
        match signs.next(growth.plan.extra > 0).await {
            Ok(Some(cause)) => growth.look(cause).await,
            Ok(None) => growth.forgive().await,
            Err(error) => {
                tracing::warn!(%error, "the VM's memory does not grow any more");
                set_marks(0).await;
                return;
            }
        }
    }
}

struct Growth {
    host: HostClient,
    plan: Plan,
    /// When it is looked whether there is too much: other signs do not put it off.
    next_look: Instant,
}

impl Growth {
    async fn look(&mut self, cause: Cause) {
        let now = Instant::now();
        // The kernel sums up the figures of all cgroups.
        let usage = match blocking::run(Usage::read).await {
            Ok(Ok(usage)) => usage,
            failed => {
                say(
                    failed.map(|read| read.map(drop)),
                    "what the containers use cannot be read",
                );
                sleep(WINDOW).await;
                return;
            }
        };
        let mut wanted = self.plan.decide(cause, usage, now);
        let due = self.plan.extra > 0 && now >= self.next_look;
        if wanted.is_none() && cause != Cause::Quiet && due {
            wanted = self.plan.decide(Cause::Quiet, usage, now);
        }
        if due {
            self.next_look = now + LOOK;
        }
        match wanted {
            Some(extra) => self.ask(extra, usage).await,
            None if cause == Cause::Full => sleep(PAUSE).await,
            None => {}
        }
    }

    async fn forgive(&mut self) {
        self.plan.forgive();
        set_marks(self.plan.more()).await;
    }

    async fn ask(&mut self, extra: u64, usage: Usage) {
        let before = self.plan.extra;
        let began = Instant::now();
        let answer = if extra > before {
            self.grow(extra).await
        } else {
            give_back(before - extra).await;
            self.scale(extra).await
        };
        let now = Instant::now();
        match answer {
            Ok(granted) => {
                self.plan.granted(extra, granted.extra_bytes, now);
                let ms = now.duration_since(began).as_millis();
                tracing::info!(
                    needed = usage.needed >> 20,
                    of = usage.limit >> 20,
                    before = before >> 20,
                    extra = granted.extra_bytes >> 20,
                    ms,
                    "the host has been asked for memory (MiB)"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "the host does not give the memory that the containers need");
                self.plan.refused(now);
            }
        }
        self.next_look = now + LOOK;
        if self.plan.extra < before && self.plan.more() > 0 {
            // The memory has yet to go: the host tells when it has, and the mark is right until then.
            let more = self.plan.more();
            // It waits for who sets the marks.
            let noted = blocking::run(move || cgroup::may_grow(more)).await;
            say(noted.map(Ok), "what the VM may still get is not taken note of");
        } else {
            set_marks(self.plan.more()).await;
        }
    }

    /// Asks, and raises the mark with each piece of memory that comes: the answer may be late.
    async fn grow(&self, extra: u64) -> ttrpc::Result<MemoryGranted> {
        let blocks = Uevents::listen().inspect_err(|error| {
            tracing::warn!(%error, "it is not seen when memory comes: it is used when all of it has come");
        });
        let more = self.plan.more();
        let answer = self.scale(extra);
        tokio::pin!(answer);
        loop {
            let come = async {
                match &blocks {
                    Ok(blocks) => blocks.next().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = &mut answer => return answer,
                _ = come => set_marks(more).await,
            }
        }
    }

    async fn scale(&self, extra: u64) -> ttrpc::Result<MemoryGranted> {
        let demand = MemoryDemand {
            extra_bytes: extra,
            ..MemoryDemand::default()
        };
        self.host.scale_memory(Context::default(), &demand).await
    }
}

/// Sets what the containers may have anew, on a thread: the kernel may have to reclaim what is beyond.
async fn set_marks(more: u64) {
    let setting = blocking::run(move || {
        cgroup::may_grow(more);
        crate::guest::inherited::renew();
        cgroup::renew_reserve()
    });
    say(setting.await, "what the containers may have is not set anew");
}

async fn give_back(bytes: u64) {
    let lowering = blocking::run(move || cgroup::prepare_to_give_back(bytes));
    say(lowering.await, "memory is not made free before it is given back");
}

fn say(result: io::Result<Result<(), cgroup::Error>>, what: &str) {
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = base::chain(&error), "{what}"),
        Err(error) => tracing::warn!(%error, "{what}"),
    }
}
