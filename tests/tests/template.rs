//! Starts from a template: VMs that are copies of one that has booted (`enable_template`).

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use framework::{Error, NetNs, Node, Pool, Result, leftovers, locate, wait};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Timeout for a template to be made, and what follows from it.
const LIMIT: Duration = Duration::from_secs(120);

/// Seconds by which a guest's clock may differ: the emulated clock of a guest that waits for a CPU is late until the agent corrects it.
const CLOCK: f64 = 2.0;

const LOOK: Duration = Duration::from_millis(10);

/// Where the pool is, and what belongs to the templates.
const POOL: &str = "/run/tatami/pool";

/// A node whose VMs are copies, with `more` in its table, and where its templates are.
fn node(more: &str) -> Result<(Node, Pool, TempDir)> {
    let templates = tempfile::tempdir()?;
    let path = templates.path().join("templates");
    let node = Node::start_configured(&format!(
        "[factory]\nenable_template = true\ntemplate_path = \"{}\"\nvm_cache_number = 0\n{more}",
        path.display()
    ))?;
    let pool = Pool::of(&node.configuration());
    Ok((node, pool, templates))
}

fn only(templates: &TempDir) -> Result<PathBuf> {
    let mut all = entries(templates);
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(Error::unexpected(format!("one template, and not {all:?}"))),
    }
}

fn entries(templates: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(templates.path().join("templates")).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Seconds since the epoch, by the host's clock.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// The pids of the processes that make a template for a configuration file.
fn makers(configuration: &Path) -> Vec<u32> {
    let is_its_maker = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let named = [&line, &environment]
            .into_iter()
            .any(|text| holds(text, configuration.as_os_str().as_bytes()));
        named && holds(&line, b"\0-pool\0template\0")
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // What a maker starts has its command line until it runs its own program.
    let of_a_maker = |pid| leftovers::parent(pid).is_some_and(is_its_maker);
    pids.filter(|pid| is_its_maker(*pid) && !of_a_maker(*pid)).collect()
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Does the work, and says which processes made a template meanwhile.
fn makers_during(configuration: &Path, work: impl FnOnce() -> Result<()>) -> Result<BTreeSet<u32>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                seen.extend(makers(configuration));
                thread::sleep(LOOK);
            }
            seen
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let seen = watching
            .join()
            .map_err(|_| Error::unexpected("the watch has panicked".to_owned()))?;
        done.map(|()| seen)
    })
}

/// Starts a container, says whether its VM is a copy, and removes it.
fn is_copy(node: &Node, name: &str) -> Result<bool> {
    node.run(name).arg("-d").limit(LIMIT).program(["sleep", "1000"]).ok()?;
    let copy = node
        .processes(name)
        .iter()
        .any(|process| process.command.contains("-incoming"));
    assert_eq!(node.exec(name, "more").program(["echo", "more"]).ok()?, "more\n");
    node.remove(name)?;
    Ok(copy)
}

/// Waits until there is a template again: a start has it made.
fn await_template(pool: &Pool) -> Result<()> {
    eventually("a template", || {
        let all = pool.templates().ok()?;
        all.iter().any(|template| template["state"] == "whole").then_some(())
    })
}

/// Waits for something that has no event: the directory of the pool may not be there yet.
fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + wait::patience(LIMIT);
    loop {
        if let Some(found) = done() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::unexpected(format!("{what} does not come")));
        }
        thread::sleep(LOOK);
    }
}

#[test]
fn the_first_start_boots_and_has_the_template_made_of_which_later_ones_are_copies() -> Result<()> {
    let (node, pool, templates) = node("")?;
    assert!(!is_copy(&node, "cold")?);
    await_template(&pool)?;
    assert!(is_copy(&node, "copy")? && is_copy(&node, "again")?);
    assert!(pool.status()?["copies"].as_u64() >= Some(2));
    pool.empty()?;
    assert!(entries(&templates).is_empty(), "{:?}", entries(&templates));
    node.nothing_left()
}

/// With `TATAMI_STRESS` a hundred copies.
#[test]
fn no_two_copies_have_the_same_boot_id_or_random_numbers_and_all_have_the_hosts_time() -> Result<()> {
    let count = if env::var_os("TATAMI_STRESS").is_some() { 100 } else { 4 };
    let (node, pool, _templates) = node("")?;
    pool.again()?;
    let mut seen = BTreeSet::new();
    let script = "date +%s; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx8 | tr -d ' \\n'; echo; \
                  cat /proc/sys/kernel/random/uuid; echo up; read end; true";
    for round in 0..count / 2 {
        let names = [2 * round, 2 * round + 1].map(|number| format!("copy{number}"));
        let run = |name: &String| node.run(name).arg("--rm").limit(LIMIT).sh(script).spawn();
        let begun = now();
        let running: Vec<_> = names.iter().map(run).collect::<Result<_>>()?;
        for (mut running, name) in running.into_iter().zip(&names) {
            running.shows("up")?;
            let said = running.said();
            let words: Vec<_> = said.split_whitespace().collect();
            let [time, boot, random, uuid, ..] = words[..] else {
                return Err(Error::unexpected(said));
            };
            assert_eq!(random.len(), 32, "{said}");
            for value in [boot, random, uuid] {
                assert!(seen.insert(value.to_owned()), "{value} twice");
            }
            let time: f64 = time.parse().map_err(|_| Error::unexpected(said.clone()))?;
            // `date` cuts off what is less than a second. The template was saved before all of this.
            let (earliest, latest) = (begun - 1.0 - CLOCK, now() + CLOCK);
            assert!((earliest..latest).contains(&time), "{earliest} {time} {latest}");
            assert!(
                node.processes(name)
                    .iter()
                    .any(|process| process.command.contains("-incoming"))
            );
            running.close_stdin();
            running.wait()?.success()?;
        }
    }
    pool.empty()?;
    node.nothing_left()
}

/// What tells VMs apart that are copies at the same time: the addresses of their interfaces, which they get from their pods, and of their vsock devices
/// (docs/decisions/0063).
#[test]
fn copies_have_the_addresses_of_their_own_pods_and_their_own_vsock_devices() -> Result<()> {
    let (node, pool, _templates) = node("")?;
    pool.again()?;
    let pods = ["one", "two"]
        .into_iter()
        .map(|name| {
            let pod = NetNs::new(node.namespace(), name)?;
            let outside = NetNs::new(node.namespace(), &format!("out{name}"))?;
            pod.veth("eth0", &outside, "veth0")?;
            Ok((pod, outside))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut seen = BTreeSet::new();
    for (number, (pod, _)) in pods.iter().enumerate() {
        let name = format!("copy{number}");
        let run = node.run(&name).args(["-d", &pod.flag()]).limit(LIMIT);
        run.program(["sleep", "1000"]).ok()?;
        let address = |text: String| text.trim().to_owned();
        let inside = address(
            node.exec(&name, "mac")
                .program(["cat", "/sys/class/net/eth0/address"])
                .ok()?,
        );
        let outside = address(pod.exec(&["cat", "/sys/class/net/eth0/address"])?);
        assert_eq!(inside, outside);
        assert!(seen.insert(inside), "{seen:?}");
        let sockets = vsock_sockets(&node, &name);
        assert!(
            !sockets.is_empty() && sockets.into_iter().all(|socket| seen.insert(socket)),
            "{seen:?}"
        );
    }
    for number in 0..pods.len() {
        let name = format!("copy{number}");
        let is_incoming = node
            .processes(&name)
            .iter()
            .any(|process| process.command.contains("-incoming"));
        assert!(is_incoming, "{name}");
        node.remove(&name)?;
    }
    pool.empty()?;
    node.nothing_left()
}

/// What the vsock devices of a container's VM are connected to: the sockets of a daemon, or nothing but a CID of the kernel's.
fn vsock_sockets(node: &Node, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in node.processes(name) {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", process.pid))
            .into_iter()
            .flatten()
            .flatten();
        let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_daemon = process.program().ends_with("vhost-device-vsock");
        let links = links.map(|link| link.to_string_lossy().into_owned());
        found.extend(links.filter(|link| is_daemon && link.starts_with("socket:") || link == "/dev/vhost-vsock"));
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn members_of_the_pool_are_copies() -> Result<()> {
    let (node, pool, _templates) = node("")?;
    let dropin = node.dir().join("config.d/95-members.toml");
    fs::write(dropin, "[factory]\nvm_cache_number = 1\n")?;
    pool.again()?;
    let members = pool.members()?;
    let [member] = &members[..] else {
        return Err(Error::unexpected(format!("one member, and not {members:?}")));
    };
    node.run("warm")
        .arg("-d")
        .limit(LIMIT)
        .program(["sleep", "1000"])
        .ok()?;
    let processes = node.processes("warm");
    let is_member = |process: &leftovers::Process| member["pid"].as_u64() == Some(u64::from(process.pid));
    assert!(processes.iter().any(is_member), "{member} {processes:?}");
    let is_copy = |process: &leftovers::Process| process.command.contains("-incoming");
    assert!(processes.iter().any(is_copy), "{processes:?}");
    assert_eq!(node.exec("warm", "more").program(["echo", "more"]).ok()?, "more\n");
    node.remove("warm")?;
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_template_that_is_not_whole_is_not_used_but_made_again() -> Result<()> {
    let (node, pool, templates) = node("")?;
    pool.again()?;
    let vm = only(&templates)?.join("vm");
    fs::File::options()
        .write(true)
        .open(&vm)?
        .set_len(fs::metadata(&vm)?.len() / 2)?;
    assert!(!is_copy(&node, "truncated")?);
    await_template(&pool)?;
    assert!(is_copy(&node, "again")?);
    // Removed, under the eyes of those who start.
    let running: Vec<_> = (0..2)
        .map(|number| {
            let run = node.run(&format!("under{number}")).arg("--rm").limit(LIMIT);
            run.program(["true"]).spawn()
        })
        .collect::<Result<_>>()?;
    fs::remove_dir_all(only(&templates)?)?;
    for running in running {
        running.wait()?.success()?;
    }
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_template_that_qemu_cannot_load_is_removed_and_the_sandbox_boots() -> Result<()> {
    let (node, pool, templates) = node("")?;
    pool.again()?;
    let vm = only(&templates)?.join("vm");
    // As long as it was.
    fs::File::options().write(true).open(&vm)?.write_all(b"nonsense")?;
    assert!(!is_copy(&node, "nonsense")?);
    assert!(!vm.exists());
    let notices = pool.status()?["notices"].to_string();
    assert!(notices.contains("could not be a copy of the template"), "{notices}");
    pool.again()?;
    assert!(is_copy(&node, "again")?);
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_template_is_of_one_configuration() -> Result<()> {
    let (node, pool, templates) = node("")?;
    pool.again()?;
    let before = only(&templates)?;
    fs::write(
        node.dir().join("config.d/95-more.toml"),
        "[hypervisor.qemu]\ndefault_memory = 300\n",
    )?;
    assert!(!is_copy(&node, "another")?);
    await_template(&pool)?;
    pool.again()?;
    let after = only(&templates)?;
    assert_ne!(before, after);
    assert!(is_copy(&node, "again")?);
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn two_who_make_the_same_template_make_one() -> Result<()> {
    let (node, pool, templates) = node("")?;
    let both = || {
        thread::scope(|scope| {
            let wanted = [0, 1].map(|_| scope.spawn(|| pool.again()));
            wanted.into_iter().try_for_each(|wanted| match wanted.join() {
                Ok(made) => made,
                Err(_) => Err(Error::unexpected("one who waits has panicked".to_owned())),
            })
        })
    };
    let makers = makers_during(&node.configuration(), both)?;
    assert_eq!(makers.len(), 1, "{makers:?}");
    only(&templates)?;
    assert!(is_copy(&node, "copy")?);
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_template_in_another_place_replaces_the_one_that_is_left_behind() -> Result<()> {
    let (node, pool, templates) = node("")?;
    pool.again()?;
    let before = only(&templates)?;
    let elsewhere = templates.path().join("elsewhere");
    let path = format!("[factory]\ntemplate_path = \"{}\"\n", elsewhere.display());
    fs::write(node.dir().join("config.d/95-elsewhere.toml"), path)?;
    pool.again()?;
    assert!(!before.exists() && fs::read_dir(&elsewhere)?.count() == 1);
    assert!(is_copy(&node, "copy")?);
    pool.empty()?;
    assert_eq!(fs::read_dir(&elsewhere)?.count(), 0);
    node.nothing_left()
}

/// What `kata-ctl factory init` says if others have the slot of the template's maker: the first `vain` times that it asks for the template, somebody
/// seems to make it, and nobody has made it.
fn asked_in_vain(vain: u32) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    let program = locate::built("bin/kata-ctl", "build")?;
    fs::copy(program, directory.path().join("kata-ctl"))?;
    let asked = directory.path().join("asked").display().to_string();
    let shim = directory.path().join("containerd-shim-kata-v2");
    let whole = r#"{"key": "t", "state": "whole", "config": "/c", "directory": "/t", "age": 0, "bytes": 0}"#;
    let text = format!(
        r#"#!/bin/sh
case $2 in
number) echo 0 template ;;
init) echo >> {asked}; echo 0 k t ;;
status)
    templates=
    if [ "$(wc -l < {asked})" -gt {vain} ]; then templates='{whole}'; fi
    echo '{{"hits": 0, "misses": 0, "notice": "", "members": [], "templates": ['"$templates"']}}' ;;
esac
"#
    );
    fs::write(&shim, text)?;
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755))?;
    let ctl = Command::new(directory.path().join("kata-ctl"))
        .args(["factory", "init"])
        .output();
    Ok(ctl?)
}

#[test]
fn a_template_that_the_owner_of_its_slot_did_not_make_is_asked_for_again() -> Result<()> {
    let said = asked_in_vain(2)?;
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "the template is there\n",
        "{said:?}"
    );
    let said = asked_in_vain(100)?;
    assert!(
        !said.status.success() && String::from_utf8_lossy(&said.stderr).contains("there is no template"),
        "{said:?}"
    );
    Ok(())
}

/// The pid of the process that makes the template.
fn maker(pool: &Pool) -> Option<i32> {
    let all = pool.templates().ok()?;
    let making = all.iter().find(|template| template["state"] == "making")?;
    let slot = format!("{POOL}/{}.maker/member.json", making["key"].as_str()?);
    let notes: serde_json::Value = serde_json::from_slice(&fs::read(slot).ok()?).ok()?;
    i32::try_from(notes["process"]["pid"].as_i64()?).ok()
}

#[test]
fn a_maker_that_is_killed_leaves_no_template_and_the_next_one_makes_it() -> Result<()> {
    let (node, pool, templates) = node("")?;
    node.run("cold").arg("--rm").limit(LIMIT).program(["true"]).ok()?;
    let pid = eventually("a maker", || maker(&pool))?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|error| Error::io("killing a maker")(error.into()))?;
    wait::gone(u32::try_from(pid).unwrap_or(0), LIMIT)?;
    let whole = |path: &PathBuf| !path.to_string_lossy().ends_with(".new");
    assert!(!entries(&templates).iter().any(whole), "{:?}", entries(&templates));
    pool.again()?;
    only(&templates)?;
    assert!(is_copy(&node, "copy")?);
    pool.empty()?;
    node.nothing_left()
}

#[test]
fn a_full_disk_is_said_and_the_sandbox_boots() -> Result<()> {
    let (node, pool, templates) = node("")?;
    let path = templates.path().join("templates");
    fs::create_dir(&path)?;
    let failed = |error: nix::Error| Error::io("mounting a small disk")(error.into());
    mount(
        Some("small"),
        &path,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=8m,mode=700"),
    )
    .map_err(failed)?;
    let said = pool.fails();
    let left = entries(&templates);
    let copy = is_copy(&node, "cold");
    umount2(&path, MntFlags::MNT_DETACH).map_err(failed)?;
    let said = said?;
    assert!(
        said.contains("there is no template") && said.contains("No space left"),
        "{said}"
    );
    assert!(left.is_empty(), "{left:?}");
    assert!(!copy?);
    pool.empty()?;
    node.nothing_left()
}

/// Whoever starts a sandbox may be killed at any moment.
#[test]
fn a_shim_that_is_killed_while_its_vm_becomes_a_copy_leaves_nothing() -> Result<()> {
    let (node, pool, _templates) = node("")?;
    pool.again()?;
    for (number, later) in [0, 60, 150, 300].into_iter().enumerate() {
        let name = format!("killed{number}");
        let running = node.run(&name).limit(LIMIT).program(["true"]).spawn()?;
        let shim = || {
            node.processes(&name)
                .iter()
                .any(|process| process.program().ends_with(SHIM))
                .then_some(())
        };
        eventually("a shim", shim)?;
        thread::sleep(Duration::from_millis(later));
        // It may have ended by itself.
        let _ = node.kill_process(&name, SHIM);
        let _ = running.wait()?;
        node.discard(&name)?;
    }
    assert!(is_copy(&node, "copy")?);
    pool.empty()?;
    node.nothing_left()
}

const SHIM: &str = "containerd-shim-kata-v2";
