//! The guest's clock follows the host's: the kernel's own clock source stands still while the VM is stopped (a suspended host, a
//! paused VMM), and under emulation it also loses time.
//!
//! The host is asked every few seconds. A guest that is late by much has been stopped, and is put forward at once; all else is
//! made up for by running faster or slower: the clock never goes backwards. It knows nothing of containers: one that sets the
//! clock (CAP_SYS_TIME) finds it right again a little later.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::agent::Empty;
use protocol::agent_ttrpc::HostClient;
use tokio::time::{sleep, timeout};
use ttrpc::context::Context;

use crate::sys;

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
        /// Microseconds a tick.
        tick: i64,
        /// Parts per million, beside the tick.
        ppm: i64,
    },
}

/// `offset` is how late the guest is, in microseconds.
fn correct(offset: i64) -> Correction {
    if offset > STEP {
        return Correction::Step(offset);
    }
    // Half of it, as an answer's time on the way is not known exactly.
    let a_second = offset / 2 / i64::try_from(INTERVAL.as_secs()).unwrap_or(1);
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

/// Follows for ever.
pub(crate) async fn follow(host: HostClient) {
    loop {
        sleep(INTERVAL).await;
        let Some(offset) = ask(&host).await else { continue };
        let correction = correct(offset);
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

/// How late the guest is, in microseconds; none where the host did not answer in time.
async fn ask(host: &HostClient) -> Option<i64> {
    let asked = Instant::now();
    let question = Empty::default();
    let answer = timeout(ANSWER, host.clock(Context::default(), &question)).await;
    let theirs = answer.ok()?.ok()?.now_ns;
    let on_the_way = asked.elapsed() / 2;
    let own = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let theirs = Duration::from_nanos(theirs).checked_add(on_the_way)?;
    let micros = |time: Duration| i64::try_from(time.as_micros()).ok();
    Some(micros(theirs)? - micros(own)?)
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

    #[test]
    fn who_was_stopped_is_put_forward_and_who_is_ahead_waits() {
        assert_eq!(correct(20_000_000), Correction::Step(20_000_000));
        assert_eq!(correct(0), Correction::Pace { tick: TICK, ppm: 0 });
        assert_eq!(correct(2_000), Correction::Pace { tick: TICK, ppm: 200 });
        assert_eq!(correct(100_000), Correction::Pace { tick: 10_100, ppm: 0 });
        assert_eq!(correct(-100_000), Correction::Pace { tick: 9_900, ppm: 0 });
        // A year ahead: as slow as the kernel allows.
        assert_eq!(correct(-31_536_000_000_000), Correction::Pace { tick: 9_000, ppm: 0 });
    }

    proptest! {
        #[test]
        fn the_clock_never_goes_backwards_and_the_kernel_takes_every_pace(offset: i64) {
            match correct(offset) {
                Correction::Step(by) => prop_assert!(by > 0),
                Correction::Pace { tick, ppm } => {
                    prop_assert!((9_000..=11_000).contains(&tick));
                    prop_assert!((-500..=500).contains(&ppm));
                }
            }
        }
    }
}
