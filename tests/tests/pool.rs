//! Warm starts: containers from VMs that have booted in advance (`vm_cache_number`).

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use framework::{Error, Node, Pool, Result, leftovers, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, send, sendmsg, socket_with,
};
use serde_json::json;

/// Timeout for a member to boot or to end, and what follows from it.
const LIMIT: Duration = Duration::from_secs(120);

/// Timeout for containerd to run `start`.
const SEEN: Duration = Duration::from_secs(5);

fn node(members: u32) -> Result<(Node, Pool)> {
    let node = Node::start_configured(&format!("[factory]\nvm_cache_number = {members}\n"))?;
    let pool = Pool::fill(&node.configuration())?;
    Ok((node, pool))
}

/// The pid of a member that is ready, and the slot's directory.
fn a_member(pool: &Pool) -> Result<(Pid, String)> {
    let members = pool.members()?;
    let member = members.iter().find(|member| member["state"] == "ready");
    let member = member.ok_or_else(|| Error::unexpected(format!("no member is ready: {members:?}")))?;
    let pid = member["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .unwrap_or(0);
    Ok((
        Pid::from_raw(pid),
        member["slot"].as_str().unwrap_or_default().to_owned(),
    ))
}

fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).map_err(|error| Error::io("signalling a member")(error.into()))
}

fn number(pid: Pid) -> u32 {
    u32::try_from(pid.as_raw()).unwrap_or(0)
}

fn is_shim_of(node: &Node, name: &str, member: Pid) -> bool {
    node.processes(name).iter().any(|process| process.pid == number(member))
}

/// The processes that a member has started.
fn children(member: Pid) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{member}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let list = lists.collect::<String>();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills the QEMU of a member, and waits for its end.
fn kill_vm(member: Pid) -> Result<()> {
    for pid in children(member) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.starts_with("qemu") {
            let pid = Pid::from_raw(pid);
            signal(pid, Signal::SIGKILL)?;
            wait::gone(number(pid), LIMIT)?;
        }
    }
    Ok(())
}

fn failed(error: rustix::io::Errno) -> Error {
    Error::io("claiming a member")(error.into())
}

/// A connection to a member that has said hello.
fn greeted(slot: &str) -> Result<OwnedFd> {
    let path = Path::new("/run/tatami/pool").join(slot).join("claim");
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed)?;
    connect(&socket, &SocketAddrUnix::new(&path).map_err(failed)?).map_err(failed)?;
    recv(&socket, &mut [0; 100][..], RecvFlags::empty()).map_err(failed)?;
    Ok(socket)
}

/// Claims a member as `start` does. Who drops the connection does as one that is killed then.
fn claimed(node: &Node, slot: &str, name: &str) -> Result<OwnedFd> {
    let socket = greeted(slot)?;
    let claim = json!({ "Claim": {
        "namespace": node.namespace(), "sandbox": node.id(name), "bundle": node.dir(), "config_path": null, "debug": false,
        "environment": [], "cgroups": "", "oom_score_adj": 0,
    } });
    let lock = fs::File::open("/dev/null")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [lock.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let claim = claim.to_string();
    sendmsg(
        &socket,
        &[IoSlice::new(claim.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map_err(failed)?;
    Ok(socket)
}

/// Runs a container that says which VM it has.
fn boot_id(node: &Node, name: &str) -> Result<String> {
    node.run(name)
        .arg("--rm")
        .program(["cat", "/proc/sys/kernel/random/boot_id"])
        .ok()
}

/// Waits until the start of a container has had the pool filled again: with a member that is not this one.
fn await_another(pool: &Pool, than: Pid) -> Result<()> {
    let pids = || -> Option<Vec<i64>> {
        Some(
            pool.members()
                .ok()?
                .iter()
                .filter_map(|member| member["pid"].as_i64())
                .collect(),
        )
    };
    let other = || pids()?.iter().any(|pid| *pid != i64::from(than.as_raw())).then_some(());
    wait::changed(Path::new("/run/tatami/pool"), LIMIT, other)
}

#[test]
fn a_container_gets_a_vm_that_had_booted_before_and_the_pool_is_filled_again() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, _) = a_member(&pool)?;
    node.run("warm").arg("-d").program(["sleep", "1000"]).ok()?;
    assert!(is_shim_of(&node, "warm", member), "{:?}", node.processes("warm"));
    assert_eq!(node.exec("warm", "more").program(["echo", "more"]).ok()?, "more\n");
    await_another(&pool, member)?;
    // Its shim's children are the sandbox's.
    for child in children(member) {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains("-slot"), "{child} is a member");
    }
    node.remove("warm")?;
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_member_has_run_a_container_for_nobody_of_which_nothing_is_left() -> Result<()> {
    let node = Node::start_configured("[factory]\nvm_cache_number = 1\n[agent.kata]\ndebug_console_enabled = true\n")?;
    let pool = Pool::fill(&node.configuration())?;
    let (member, slot) = a_member(&pool)?;
    let console = fs::read_to_string(Path::new("/run/tatami/pool").join(slot).join("console.log"))?;
    assert!(
        console.contains("has rehearsed") && console.contains("\"has_share\":true"),
        "{console}"
    );
    node.run("warm").arg("-d").program(["sleep", "1000"]).ok()?;
    assert!(is_shim_of(&node, "warm", member));
    let id = node.id("warm");
    let seen = node
        .diagnose()?
        .args(["exec", &id, "--", "ls", "/sys/fs/cgroup/containers"])
        .ok()?;
    assert!(!seen.contains("rehearsal") && seen.contains(&id), "{seen}");
    node.remove("warm")?;
    pool.empty()?;
    // What somebody waits for is not delayed by it.
    node.run("cold").arg("-d").program(["sleep", "1000"]).ok()?;
    let line = node.exec("cold", "line").program(["cat", "/proc/cmdline"]).ok()?;
    assert!(!line.contains("tatami.rehearsal"), "{line}");
    node.remove("cold")?;
    pool.empty()?;
    node.nothing_left()
}

/// With `TATAMI_STRESS` twenty from a pool of twenty, otherwise more starts than the pool has VMs.
#[test]
fn no_vm_is_given_twice_however_many_start_at_once() -> Result<()> {
    let (starts, members) = if env::var_os("TATAMI_STRESS").is_some() {
        (20, 20)
    } else {
        (6, 3)
    };
    let (node, pool) = node(members)?;
    let warm = ready_members(&pool)?;
    let begun = Instant::now();
    let names: Vec<String> = (0..starts).map(|number| format!("many{number}")).collect();
    let given = started_at_once(&node, &names, &warm)?;
    let hits = given.iter().filter(|given| given.hit).count();
    eprintln!(
        "{starts} starts at once, {hits} of them from the pool, took {:?}",
        begun.elapsed()
    );
    let mut seen = BTreeSet::new();
    for given in given {
        for value in given.random {
            assert!(seen.insert(value), "twice");
        }
    }
    assert!(hits * 2 >= warm.len(), "{hits} hits with {} VMs", warm.len());
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_member_that_dies_leaves_nothing_and_the_next_start_is_cold() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, slot) = a_member(&pool)?;
    signal(member, Signal::SIGKILL)?;
    wait::gone(number(member), LIMIT)?;
    let first = boot_id(&node, "cold")?;
    pool.again()?;
    assert_ne!(a_member(&pool)?.0, member);
    assert_ne!(boot_id(&node, "warm")?, first);
    pool.empty()?;
    for path in ["/run/tatami/pool", "/sys/fs/cgroup/memory"] {
        let left = fs::read_dir(path).into_iter().flatten().flatten();
        let left: Vec<_> = left
            .filter(|entry| entry.file_name().to_string_lossy().contains(&slot))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    node.nothing_left()
}

#[test]
fn a_member_whose_vm_dies_ends() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, _) = a_member(&pool)?;
    kill_vm(member)?;
    wait::gone(number(member), LIMIT)?;
    assert_eq!(pool.ready()?, 0);
    node.nothing_left()
}

#[test]
fn a_member_that_nobody_claims_ends_after_the_configured_time() -> Result<()> {
    let node = Node::start_configured("[factory]\nvm_cache_number = 1\nvm_cache_idle_timeout = 20\n")?;
    let pool = Pool::fill(&node.configuration())?;
    let ended = || pool.members().ok()?.is_empty().then_some(());
    wait::changed(Path::new("/run/tatami/pool"), LIMIT, ended)?;
    node.nothing_left()
}

#[test]
fn a_member_that_is_stopped_holds_up_no_start_and_is_replaced() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, _) = a_member(&pool)?;
    signal(member, Signal::SIGSTOP)?;
    node.run("cold").arg("-d").program(["sleep", "1000"]).ok()?;
    assert!(!is_shim_of(&node, "cold", member));
    wait::gone(number(member), LIMIT)?;
    node.remove("cold")?;
    pool.again()?;
    let (member, _) = a_member(&pool)?;
    signal(member, Signal::SIGSTOP)?;
    pool.empty()?;
    wait::gone(number(member), LIMIT)?;
    node.nothing_left()
}

#[test]
fn who_dies_before_its_claim_leaves_the_member_to_the_next_one() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, slot) = a_member(&pool)?;
    for words in [&b""[..], b"{}", b"\"Nonsense\"", b"{\"Claim\":"] {
        let socket = greeted(&slot)?;
        if !words.is_empty() {
            send(&socket, words, SendFlags::NOSIGNAL).map_err(failed)?;
        }
    }
    node.run("warm").arg("-d").program(["sleep", "1000"]).ok()?;
    assert!(is_shim_of(&node, "warm", member));
    node.remove("warm")?;
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn who_dies_after_its_claim_leaves_nothing() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, slot) = a_member(&pool)?;
    // Once while the member adopts, or after: who is first is not known.
    drop(claimed(&node, &slot, "dead")?);
    wait::gone(number(member), LIMIT)?;
    pool.again()?;
    let (member, slot) = a_member(&pool)?;
    let socket = claimed(&node, &slot, "dead")?;
    recv(&socket, &mut [0; 100][..], RecvFlags::empty()).map_err(failed)?;
    // After it has adopted.
    drop(socket);
    wait::gone(number(member), LIMIT)?;
    assert_eq!(pool.ready()?, 0);
    node.run("dead").arg("--rm").program(["true"]).ok()?;
    pool.empty()?;
    node.nothing_left()
}

/// What a container found in its VM.
struct Given {
    /// The boot's id and 16 bytes of the kernel's random numbers.
    random: Vec<String>,
    /// The VM's address on vsock, where the host's kernel connects it.
    cid: Option<String>,
    /// It came from the pool.
    hit: bool,
}

fn ready_members(pool: &Pool) -> Result<Vec<Pid>> {
    let members = pool.members()?;
    let ready = members.iter().filter(|member| member["state"] == "ready");
    let pids = ready.filter_map(|member| i32::try_from(member["pid"].as_i64()?).ok());
    Ok(pids.map(Pid::from_raw).collect())
}

/// Runs containers until all of them are up, and says what each was given. `warm`: the members before.
fn started_at_once(node: &Node, names: &[String], warm: &[Pid]) -> Result<Vec<Given>> {
    let run = |name: &String| {
        let run = node.run(name).arg("--rm").limit(LIMIT);
        run.sh("cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; echo up; read end; true")
            .spawn()
    };
    let running: Vec<_> = names.iter().map(run).collect::<Result<_>>()?;
    let mut given = Vec::new();
    for (running, name) in running.iter().zip(names) {
        running.shows("up")?;
        let said = running.said();
        let processes = node.processes(name);
        let argument = |process: &leftovers::Process| {
            let (_, rest) = process.command.split_once("guest-cid=")?;
            rest.split([',', ' ']).next().map(str::to_owned)
        };
        given.push(Given {
            random: said.split_whitespace().take(2).map(str::to_owned).collect(),
            cid: processes.iter().find_map(argument),
            hit: warm
                .iter()
                .any(|member| processes.iter().any(|process| process.pid == number(*member))),
        });
    }
    let cids: Vec<_> = given.iter().filter_map(|given| given.cid.clone()).collect();
    assert_eq!(cids.iter().collect::<BTreeSet<_>>().len(), cids.len(), "{cids:?}");
    for mut running in running {
        running.close_stdin();
        running.wait()?.success()?;
    }
    Ok(given)
}

/// What happens to the pool before a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    MemberKilled,
    VmKilled,
    ClaimGivenUp,
    MemberStopped,
    StartKilled,
}

const FAULTS: [Fault; 5] = [
    Fault::MemberKilled,
    Fault::VmKilled,
    Fault::ClaimGivenUp,
    Fault::MemberStopped,
    Fault::StartKilled,
];

/// A linear congruential generator (Knuth's MMIX): the same history for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn parameter(name: &str, default: u64) -> u64 {
    let text = env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Does it, to a member that is ready. False if it came too late.
fn inject(fault: Fault, node: &Node, pool: &Pool, name: &str, random: &mut Random) -> Result<bool> {
    if fault == Fault::StartKilled {
        return kill_start(node, name, Duration::from_millis(random.below(51)));
    }
    if pool.ready()? == 0 {
        pool.again()?;
    }
    let (member, slot) = a_member(pool)?;
    let injected = match fault {
        Fault::MemberKilled => signal(member, Signal::SIGKILL),
        Fault::VmKilled => kill_vm(member),
        Fault::ClaimGivenUp => claimed(node, &slot, &format!("dead-{name}")).map(drop),
        Fault::MemberStopped | Fault::StartKilled => signal(member, Signal::SIGSTOP),
    };
    if injected.is_err() {
        // It was ending, for an earlier fault: it is tried again when that member is gone.
        wait::gone(number(member), LIMIT)?;
    }
    Ok(injected.is_ok())
}

/// Starts a container and kills its `start` after a while. False if that had ended, or was too short to be seen.
fn kill_start(node: &Node, name: &str, after: Duration) -> Result<bool> {
    let before: BTreeSet<i32> = pids().collect();
    let running = node.run(name).arg("--rm").limit(LIMIT).program(["true"]).spawn()?;
    let deadline = Instant::now() + SEEN;
    let id = node.id(name);
    let is_start = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.ends_with(b"\0start\0") && String::from_utf8_lossy(&line).contains(&id)
    };
    let mut start = None;
    while start.is_none() && Instant::now() < deadline {
        start = pids().find(|pid| !before.contains(pid) && is_start(pid));
    }
    let mut killed = false;
    if let Some(start) = start {
        thread::sleep(after);
        killed = is_start(&start) && kill(Pid::from_raw(start), Signal::SIGKILL).is_ok();
    }
    // It fails if the start did.
    running.wait()?;
    node.discard(name)?;
    Ok(killed)
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Starts while members, their VMs, claims and starts die: `make pool-life` has a thousand of them.
#[test]
fn no_vm_is_given_twice_and_nothing_is_left_whatever_dies() -> Result<()> {
    const TRIES: usize = 20;
    let starts = parameter("TATAMI_POOL_STARTS", 8);
    let mut random = Random(parameter("TATAMI_SEED", 1));
    let (node, pool) = node(2)?;
    let mut seen = BTreeSet::new();
    let mut done = BTreeMap::new();
    let (mut started, mut hits) = (0, 0);
    for start in 0..starts {
        let name = format!("start{start}");
        // Each once, and then every second time one of them.
        let next = FAULTS.get(usize::try_from(start).unwrap_or(usize::MAX)).copied();
        let drawn = FAULTS
            .get(usize::try_from(random.below(10)).unwrap_or_default())
            .copied();
        if let Some(fault) = next.or(drawn) {
            for _ in 0..TRIES {
                if inject(fault, &node, &pool, &name, &mut random)? {
                    *done.entry(fault).or_insert(0) += 1;
                    break;
                }
            }
        }
        // Most starts find a VM.
        if random.below(8) != 0 && ready_members(&pool)?.is_empty() {
            pool.again()?;
        }
        let mut names = vec![name];
        if start % 10 == 9 {
            names.push(format!("beside{start}"));
        }
        let warm = ready_members(&pool)?;
        for given in started_at_once(&node, &names, &warm)? {
            (started, hits) = (started + 1, hits + usize::from(given.hit));
            for value in given.random {
                assert!(seen.insert(value), "start {start} has the VM of an earlier one");
            }
        }
        if start % 50 == 49 {
            eprintln!("{} starts, {hits} of {started} from the pool, {done:?}", start + 1);
        }
        if start % 100 == 99 {
            pool.empty()?;
            node.nothing_left()?;
            pool.again()?;
        }
    }
    pool.empty()?;
    node.nothing_left()?;
    eprintln!("{hits} of {started} containers from the pool; {done:?}");
    let wanted = FAULTS.iter().take(usize::try_from(starts).unwrap_or(usize::MAX));
    assert!(wanted.clone().all(|fault| done.contains_key(fault)), "{done:?}");
    assert!(
        hits * 2 >= started,
        "{hits} of {started} containers had a VM of the pool"
    );
    Ok(())
}

#[test]
fn a_changed_configuration_finds_no_vm_of_the_old_one() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, _) = a_member(&pool)?;
    let dropin = node.dir().join("config.d/95-changed.toml");
    fs::write(dropin, "[hypervisor.qemu]\nkernel_params = \"tatami.changed=1\"\n")?;
    let line = node.run("cold").arg("--rm").program(["cat", "/proc/cmdline"]).ok()?;
    assert!(line.contains("tatami.changed=1"), "{line}");
    // The old one ends by itself when it looks again.
    wait::gone(number(member), LIMIT)?;
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn limits_are_as_from_cold() -> Result<()> {
    let (node, pool) = node(1)?;
    let (member, _) = a_member(&pool)?;
    let limited = |name: &str| {
        node.run(name)
            .args(["-d", "--memory-limit", "104857600", "--cpus", "1.5"])
            .program(["sleep", "1000"])
            .ok()?;
        let cpus = node.exec(name, "cpus").program(["nproc"]).ok()?;
        let bytes = node.host_memory(name)?.limit()?;
        Ok::<_, Error>((cpus.trim().to_owned(), bytes))
    };
    let warm = limited("warm")?;
    assert!(is_shim_of(&node, "warm", member));
    pool.empty()?;
    assert_eq!(warm, limited("cold")?);
    assert_eq!(warm.0, "2");
    for name in ["warm", "cold"] {
        node.remove(name)?;
    }
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn an_emptied_pool_is_empty_and_the_status_says_so() -> Result<()> {
    let (node, pool) = node(2)?;
    assert_eq!(pool.ready()?, 2);
    let status = node.kata_ctl(&["factory", "status"])?.success()?;
    assert!(status.stdout().contains("ready"), "{}", status.stdout());
    let metrics = node.kata_ctl(&["metrics"])?.success()?;
    assert!(
        metrics.stdout().contains("tatami_pool_members{state=\"ready\"}"),
        "{}",
        metrics.stdout()
    );
    pool.empty()?;
    assert_eq!(pool.members()?, Vec::<serde_json::Value>::new());
    node.nothing_left()
}
