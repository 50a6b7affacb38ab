//! Keeps the guest's clock in step with the host's. The kernel's clock source stands still while the VM is stopped (a
//! suspended host, a paused VMM), and under emulation it also loses time.
//!
//! The agent asks the host every few seconds. A guest that is late by much was stopped, and its clock is set forward at
//! once. Other differences are corrected by a faster or slower clock; the clock never goes backwards. The module knows no
//! containers. If a container sets the clock (CAP_SYS_TIME), it is corrected a little later.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::agent::Empty;
use protocol::agent_ttrpc::HostClient;
use tokio::time::{sleep, timeout};
use ttrpc::context::Context;

use crate::common::sys;

/// How often the host is asked. A correction is spread over so long.
const INTERVAL: Duration = Duration::from_secs(5);

/// An answer that takes longer says nothing about the time.
const ANSWER: Duration = Duration::from_secs(2);

/// Who is later than this, in microseconds, was stopped and is put forward.
const STEP: i64 = 500_000;

/// What the kernel may be told to run faster or slower by: its tick of 10,000 µs is changed by a tenth at most (adjtimex(2)).
const MOST_TICK: i64 = 1_000;

/// The tick in microseconds, and how many there are in a second.
const TICK: i64 = 10_000;
const TICKS: i64 = 100;

/// Largest change of the frequency, in parts per million (adjtimex(2)).
const MOST_PPM: i64 = 500;

/// What is done about an offset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Correction {
    /// Put forward by so many microseconds.
    Step(i64),
    /// Run at another pace until the next answer.
    Pace {
        /// Microseconds per tick (adjtimex(2)).
        tick: i64,
        /// Parts per million, beside the tick.
        ppm: i64,
    },
}

/// The pace of the guest's own clock source.
const OWN_PACE: Correction = Correction::Pace { tick: TICK, ppm: 0 };

/// What one answer of the host says, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offset {
    /// How late the guest is, if the question and the answer took equally long.
    late: i64,
    /// How wrong that can be either way: half of what both took together, as one may have taken all of it.
    within: i64,
}

/// A step is never further than what is sure: the guest is not put ahead of the host by an answer that was slow. An answer that
/// does not tell whether the guest is late or ahead changes nothing: the guest runs at its own pace.
fn correct(offset: Offset) -> Correction {
    let surely = offset.late.saturating_sub(offset.within);
    if surely > STEP {
        return Correction::Step(surely);
    }
    if offset.late.saturating_abs() <= offset.within {
        return OWN_PACE;
    }
    // Half of it, as an answer's time on the way is not known exactly.
    let a_second = offset.late / 2 / i64::try_from(INTERVAL.as_secs()).unwrap_or(1);
    if a_second.abs() <= MOST_PPM {
        return Correction::Pace {
            tick: TICK,
            ppm: a_second,
        };
    }
    Correction::Pace {
        tick: TICK + (a_second / TICKS).clamp(-MOST_TICK, MOST_TICK),
        ppm: 0,
    }
}

/// Keeps the clock in step with the host's. Never returns.
pub(crate) async fn follow(host: HostClient) {
    loop {
        sleep(INTERVAL).await;
        // A correction is for one interval: without an answer it is not kept up.
        let correction = ask(&host).await.map_or(OWN_PACE, correct);
        if let Err(error) = carry_out(&correction) {
            tracing::warn!(%error, ?correction, "the clock cannot be set");
        }
        if let Correction::Step(by) = correction {
            tracing::warn!(
                late_ms = by / 1000,
                "the guest was stopped: its clock has been put forward"
            );
        }
    }
}

/// How late the guest is; none where the host did not answer in time.
async fn ask(host: &HostClient) -> Option<Offset> {
    let asked = Instant::now();
    let question = Empty::default();
    let answer = timeout(ANSWER, host.clock(Context::default(), &question)).await;
    let theirs = answer.ok()?.ok()?.now_ns;
    let took = asked.elapsed();
    let own = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    compare(Duration::from_nanos(theirs), own, took)
}

/// The host's clock when it answered, the guest's own when the answer was there, and what question and answer took.
fn compare(theirs: Duration, own: Duration, took: Duration) -> Option<Offset> {
    let micros = |time: Duration| i64::try_from(time.as_micros()).ok();
    let within = took / 2;
    Some(Offset {
        late: micros(theirs.checked_add(within)?)? - micros(own)?,
        within: micros(within)?,
    })
}

fn carry_out(correction: &Correction) -> io::Result<()> {
    match *correction {
        Correction::Step(by) => {
            sys::step_clock(by)?;
            sys::pace_clock(TICK, 0)
        }
        Correction::Pace { tick, ppm } => sys::pace_clock(tick, ppm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What an answer that came at once leads to.
    fn at_once(late: i64) -> Correction {
        correct(Offset { late, within: 0 })
    }

    #[test]
    fn who_was_stopped_is_put_forward_and_who_is_ahead_waits() {
        assert_eq!(at_once(20_000_000), Correction::Step(20_000_000));
        assert_eq!(at_once(0), OWN_PACE);
        assert_eq!(at_once(2_000), Correction::Pace { tick: TICK, ppm: 200 });
        assert_eq!(at_once(100_000), Correction::Pace { tick: 10_100, ppm: 0 });
        assert_eq!(at_once(-100_000), Correction::Pace { tick: 9_900, ppm: 0 });
        // A year ahead: as slow as the kernel allows.
        assert_eq!(at_once(-31_536_000_000_000), Correction::Pace { tick: 9_000, ppm: 0 });
    }

    /// What a guest `late` by so many milliseconds does, whose question and answer take so many.
    fn after(late: u64, question: u64, answer: u64) -> Correction {
        let asked = Duration::from_millis(1_000_000);
        let theirs = asked + Duration::from_millis(late + question);
        let took = Duration::from_millis(question + answer);
        correct(compare(theirs, asked + took, took).unwrap())
    }

    #[test]
    fn a_slow_way_is_not_taken_for_a_clock_that_is_late_or_ahead() {
        // A question that was read late, and an answer that was.
        assert_eq!(after(0, 1_900, 0), OWN_PACE);
        assert_eq!(after(0, 0, 1_900), OWN_PACE);
        assert_eq!(after(0, 900, 1_000), OWN_PACE);
        // A guest that was stopped is put forward by what is sure.
        assert_eq!(after(20_000, 1_900, 0), Correction::Step(20_000_000));
        assert_eq!(after(20_000, 0, 1_900), Correction::Step(18_100_000));
        assert_eq!(after(400, 1_000, 0), Correction::Pace { tick: 10_900, ppm: 0 });
    }

    proptest! {
        #[test]
        fn the_clock_never_goes_backwards_and_the_kernel_takes_every_pace(late: i64, within in 0..=i64::MAX) {
            match correct(Offset { late, within }) {
                Correction::Step(by) => prop_assert!(by > 0),
                Correction::Pace { tick, ppm } => {
                    prop_assert!((9_000..=11_000).contains(&tick));
                    prop_assert!((-500..=500).contains(&ppm));
                }
            }
        }

        #[test]
        fn whatever_the_way_takes_the_guest_is_not_put_ahead_of_the_host(late in 0..10_000_u64, question in 0..2_000_u64, answer in 0..2_000_u64) {
            if let Correction::Step(by) = after(late, question, answer) {
                prop_assert!(by <= i64::try_from(late * 1_000)?);
            }
        }
    }
}
