//! perf_mmap's charges: who is charged for a buffer, how much, and who gets it back.
//!
//! A buffer is charged to its user up to an allowance (`kernel.perf_event_mlock_kb` for each CPU), and beyond it to the
//! process that maps it first, where it shows as `VmPin`. A test with an allowance of 0 has everything in `VmPin`.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    sys::resource::{Resource, setrlimit},
    unistd::{Uid, setuid},
};

use super::{
    peer::{Link, Peer},
    verdict::Verdict,
};
use crate::{
    error::Result,
    fill::Filled,
    sys::{self, Mapping, PAGE},
};

const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
/// kB of a page.
const PAGE_KB: i64 = 4;
/// The limit under which the tests run, far above what they map.
const LIMIT: u64 = 64 << 20;
const USER: u32 = 1000;
const OTHER_USER: u32 = 1001;
/// How long a race is tried. A kernel that has it shows it within a second.
const TRIED: Duration = Duration::from_secs(10);

/// Every 3-page buffer beyond the allowance adds 12 kB, however many there are.
pub(super) fn growth() -> Result<Verdict> {
    allow(64)?;
    become_user(USER)?;
    let mut kept = Vec::new();
    let mut verdict = Verdict::Right(String::new());
    for number in 1..=100 {
        let before = pinned()?;
        let event = software_event()?;
        match Mapping::new(&event, 3, 0) {
            Ok(mapping) => kept.push((event, mapping)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Ok(Verdict::Wrong(format!(
                    "the {number}. 3-page buffer was refused with VmPin at {before} kB of {} kB",
                    LIMIT >> 10
                )));
            }
            Err(error) => return Err(error.into()),
        }
        verdict = Verdict::figure(&format!("the {number}. 3-page buffer added"), pinned()? - before, 12);
    }
    Ok(verdict)
}

/// A small buffer for each of many events is granted until allowance and limit are used up, to the page.
pub(super) fn limit_used_up() -> Result<Verdict> {
    const ALLOWED: u32 = 64;
    const LIMITED: u64 = 4 << 20;
    allow(ALLOWED)?;
    become_user(USER)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, LIMITED, LIMITED)?;
    let cpus = i64::try_from(std::thread::available_parallelism()?.get())?;
    let right = i64::from(ALLOWED) * cpus + i64::try_from(LIMITED / 1024)?;
    let filled = Filled::new()?;
    let mapped = i64::try_from(filled.pages)? * PAGE_KB;
    let what = format!("until the limit was used up {} buffers were granted,", filled.buffers);
    Ok(Verdict::figure(&what, mapped, right))
}

/// The allowance is lowered while it is in use: what is mapped then counts once, and everything is given back.
pub(super) fn lowered() -> Result<Verdict> {
    allow(512)?;
    let mut peer = Peer::start(|link| {
        become_user(USER)?;
        let first = map(software_event()?, 65)?;
        link.tell(pinned()?)?;
        link.wait()?;
        let second = map(software_event()?, 3)?;
        link.tell(pinned()?)?;
        drop(first);
        link.tell(pinned()?)?;
        drop(second);
        link.tell(pinned()?)?;
        link.wait()?;
        let third = map(software_event()?, 65)?;
        link.tell(pinned()?)?;
        drop(third);
        Ok(())
    })?;
    let within = peer.link.hear()?;
    allow(0)?;
    peer.link.go()?;
    let (second, first_gone, all_gone) = (peer.link.hear()?, peer.link.hear()?, peer.link.hear()?);
    allow(512)?;
    peer.link.go()?;
    let again = peer.link.hear()?;
    peer.end()?;
    Ok(Verdict::all([
        Verdict::figure("VmPin of a buffer within the allowance", within, 0),
        Verdict::figure("VmPin of 3 more pages with the allowance lowered to 0", second, 12),
        Verdict::figure("VmPin once the first buffer was unmapped", first_gone, 12),
        Verdict::figure("VmPin once both were unmapped", all_gone, 0),
        Verdict::figure("VmPin of a buffer within the allowance, raised again", again, 0),
    ]))
}

/// A maps, B maps, A unmaps, B unmaps last: A gets its charge back, and B is given nothing.
pub(super) fn unmapped_by_other() -> Result<Verdict> {
    let event = prepared_event(SOFTWARE)?;
    let buffer = Mapping::new(&event, 257, 0)?;
    let mapped = pinned()?;
    let mut peer = Peer::start(|link| {
        let shared = Mapping::new(&event, 257, 0)?;
        link.go()?;
        link.wait()?;
        drop(shared);
        report_last(link)
    })?;
    peer.link.wait()?;
    drop(buffer);
    peer.link.go()?;
    judge_pair(peer, mapped, 257 * PAGE_KB)
}

/// A maps, B maps, A ends, B unmaps: B is given nothing, and can map as before.
pub(super) fn charged_ends_first() -> Result<Verdict> {
    let event = prepared_event(SOFTWARE)?;
    let mut first = Peer::start(|link| {
        let buffer = Mapping::new(&event, 257, 0)?;
        link.tell(pinned()?)?;
        link.wait()?;
        drop(buffer);
        Ok(())
    })?;
    let mapped = first.link.hear()?;
    let shared = Mapping::new(&event, 257, 0)?;
    first.link.go()?;
    first.end()?;
    drop(shared);
    Ok(Verdict::all([
        Verdict::figure("VmPin of the one that mapped first", mapped, 257 * PAGE_KB),
        Verdict::figure("VmPin of the one that unmapped last", pinned()?, 0),
        can_map()?,
    ]))
}

/// Like `unmapped_by_other`, but B maps an event of its own whose output goes to A's buffer.
pub(super) fn redirected() -> Result<Verdict> {
    let event = prepared_event(SOFTWARE)?;
    let second = software_event()?;
    let buffer = Mapping::new(&event, 257, 0)?;
    let mapped = pinned()?;
    sys::set_output(&second, &event)?;
    let mut peer = Peer::start(|link| {
        let shared = Mapping::new(&second, 257, 0)?;
        link.go()?;
        link.wait()?;
        drop(shared);
        report_last(link)
    })?;
    peer.link.wait()?;
    drop(buffer);
    peer.link.go()?;
    judge_pair(peer, mapped, 257 * PAGE_KB)
}

/// Like `unmapped_by_other`, with an AUX area of 64 pages beside the data area of 1 + 8.
pub(super) fn aux_unmapped_by_other() -> Result<Verdict> {
    let event = prepared_event(test_pmu()?)?;
    let both = map_both(&event, 8, 64)?;
    let mapped = pinned()?;
    let mut peer = Peer::start(|link| {
        let shared = map_both(&event, 8, 64)?;
        link.go()?;
        link.wait()?;
        drop(shared);
        report_last(link)
    })?;
    peer.link.wait()?;
    drop(both);
    peer.link.go()?;
    judge_pair(peer, mapped, (9 + 64) * PAGE_KB)
}

/// One user maps the data area and another the AUX area: each gets back what it was charged, so that afterwards each can
/// map a buffer within its allowance.
pub(super) fn aux_user() -> Result<Verdict> {
    allow(512)?;
    limit()?;
    let event = sys::perf_event(test_pmu()?, 0)?;
    let mut data_user = Peer::start(|link| {
        become_user(USER)?;
        let mut data = Mapping::new(&event, 9, 0)?;
        data.announce_aux(9, 64);
        link.tell(pinned()?)?;
        link.wait()?;
        drop(data);
        within_allowance(link)
    })?;
    data_user.link.hear()?;
    let mut aux_user = Peer::start(|link| {
        become_user(OTHER_USER)?;
        let aux = Mapping::new(&event, 64, 9)?;
        // Given back before the other looks at its allowance.
        drop(aux);
        link.go()?;
        link.wait()?;
        within_allowance(link)
    })?;
    aux_user.link.wait()?;
    data_user.link.go()?;
    let of_data = data_user.link.hear()?;
    aux_user.link.go()?;
    let of_aux = aux_user.link.hear()?;
    data_user.end()?;
    aux_user.end()?;
    Ok(Verdict::all([
        Verdict::figure(
            "within the allowance of the AUX area's user afterwards: VmPin",
            of_aux,
            0,
        ),
        Verdict::figure(
            "within the allowance of the data area's user afterwards: VmPin",
            of_data,
            0,
        ),
    ]))
}

/// B's mappings of an AUX area fail, late and all the time, while A maps and unmaps the data area: A always gets its charge
/// back.
pub(super) fn aux_failed() -> Result<Verdict> {
    // The event of the test PMU whose AUX areas fail.
    const FAILS: u64 = 1;
    const AUX_PAGES: usize = 2048;
    let pmu = test_pmu()?;
    allow(0)?;
    become_user(USER)?;
    let event = sys::perf_event(pmu, FAILS)?;
    let mut peer = Peer::start(|link| {
        while !link.may_go()? {
            if Mapping::new(&event, AUX_PAGES, 2).is_ok() {
                return Err("an AUX area that was to fail did not".into());
            }
        }
        Ok(())
    })?;
    let begun = Instant::now();
    let mut rounds = 0;
    let mut verdict = Verdict::Right(String::new());
    while begun.elapsed() < TRIED && matches!(verdict, Verdict::Right(_)) {
        let mut data = Mapping::new(&event, 2, 0)?;
        data.announce_aux(2, AUX_PAGES);
        // Time for B to find the buffer and to begin with the AUX area.
        let mapped = Instant::now();
        while mapped.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        drop(data);
        rounds += 1;
        verdict = Verdict::figure(
            &format!("VmPin with nothing mapped after {rounds} rounds"),
            pinned()?,
            0,
        );
    }
    peer.link.go()?;
    peer.end()?;
    Ok(verdict)
}

/// A and B map and unmap one event at the same time: once neither has it mapped, neither is charged.
pub(super) fn replaced_buffer() -> Result<Verdict> {
    const ROUNDS: u32 = 500;
    let event = prepared_event(SOFTWARE)?;
    let map_often = || -> Result<i64> {
        for _ in 0..ROUNDS {
            Mapping::new(&event, 2, 0)?;
        }
        Ok(0)
    };
    let mut peer = Peer::start(|link| {
        while link.hear()? != 0 {
            map_often()?;
            link.go()?;
            link.wait()?;
            link.tell(pinned()?)?;
        }
        Ok(())
    })?;
    let begun = Instant::now();
    let mut times = 0;
    let mut verdict = Verdict::Right(String::new());
    while begun.elapsed() < TRIED && matches!(verdict, Verdict::Right(_)) {
        peer.link.tell(1)?;
        map_often()?;
        peer.link.wait()?;
        peer.link.go()?;
        times += 1;
        let rounds = times * ROUNDS;
        verdict = Verdict::figure(
            &format!("VmPin of both with nothing mapped after {rounds} rounds"),
            pinned()? + peer.link.hear()?,
            0,
        );
    }
    peer.link.tell(0)?;
    peer.end()?;
    Ok(verdict)
}

/// The verdict on a pair of which A was charged, and B unmapped last and has reported.
fn judge_pair(mut peer: Peer, mapped: i64, right: i64) -> Result<Verdict> {
    let (of_b, b_refused) = (peer.link.hear()?, peer.link.hear()?);
    peer.end()?;
    Ok(Verdict::all([
        Verdict::figure("VmPin of the one that mapped first", mapped, right),
        Verdict::figure("VmPin of the one that unmapped last", of_b, 0),
        Verdict::figure(
            "VmPin of the one that mapped first, once both have unmapped",
            pinned()?,
            0,
        ),
        if b_refused == 0 {
            Verdict::Right("no charge was left, and the one that unmapped last can map again".to_owned())
        } else {
            Verdict::Wrong("the one that unmapped last cannot map again".to_owned())
        },
    ]))
}

fn report_last(link: &mut Link) -> Result<()> {
    link.tell(pinned()?)?;
    link.tell(i64::from(matches!(can_map()?, Verdict::Wrong(_))))
}

fn can_map() -> Result<Verdict> {
    match Mapping::new(software_event()?, 2, 0) {
        Ok(_) => Ok(Verdict::Right("a further buffer can be mapped".to_owned())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Ok(Verdict::Wrong(format!("a further buffer is refused: {error}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Maps as much as the allowance of one CPU and tells what of it went beyond.
fn within_allowance(link: &mut Link) -> Result<()> {
    let buffer = map(software_event()?, 65)?;
    link.tell(pinned()?)?;
    drop(buffer);
    Ok(())
}

/// An event of an unprivileged process that has no allowance, so that VmPin shows everything.
fn prepared_event(kind: u32) -> Result<OwnedFd> {
    allow(0)?;
    become_user(USER)?;
    Ok(sys::perf_event(kind, CPU_CLOCK)?)
}

fn software_event() -> io::Result<OwnedFd> {
    sys::perf_event(SOFTWARE, CPU_CLOCK)
}

fn map(event: OwnedFd, pages: usize) -> io::Result<(Mapping, OwnedFd)> {
    Ok((Mapping::new(&event, pages, 0)?, event))
}

/// A data area of 1 + `data` pages and an AUX area of `aux`.
fn map_both(event: &OwnedFd, data: usize, aux: usize) -> io::Result<(Mapping, Mapping)> {
    let mut first = Mapping::new(event, 1 + data, 0)?;
    first.announce_aux(1 + data, aux);
    Ok((Mapping::new(event, aux, 1 + data)?, first))
}

/// The type of the PMU that tests/kernel/test-pmu.patch adds.
fn test_pmu() -> Result<u32> {
    let file = "/sys/bus/event_source/devices/tatami_test/type";
    let text = fs::read_to_string(file).map_err(|error| format!("this kernel has no test PMU: {file}: {error}"))?;
    Ok(text.trim().parse()?)
}

/// Sets the allowance in kB for each CPU, and has limits hold for those who may not ignore them.
fn allow(kb: u32) -> io::Result<()> {
    fs::write("/proc/sys/kernel/perf_event_mlock_kb", kb.to_string())?;
    fs::write("/proc/sys/kernel/perf_event_paranoid", "1")
}

fn limit() -> Result<()> {
    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, LIMIT, LIMIT)?)
}

fn become_user(user: u32) -> Result<()> {
    limit()?;
    Ok(setuid(Uid::from_raw(user))?)
}

/// This process's pinned memory in kB; below zero if the kernel took more than it gave.
fn pinned() -> Result<i64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))
        .ok_or("/proc/self/status has no VmPin")?;
    let kb: u64 = line.trim().trim_end_matches(" kB").parse()?;
    // The kernel prints a count below zero as an unsigned number.
    Ok(kb.cast_signed())
}

const _: () = assert!(PAGE as i64 == PAGE_KB * 1024);
