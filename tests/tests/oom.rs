//! Whatever runs out of memory, the host's mounts stay, the end is told once, and nothing hangs.

use std::{fs, time::Duration};

use framework::{Node, Result, Spec};
use serde_json::json;

/// Twenty rounds on a machine that emulates the guest.
const ROUNDS: u32 = 20;
const LONG: Duration = Duration::from_secs(240);

fn limited(spec: Spec, bytes: u64) -> Result<Spec> {
    spec.set("/linux/resources/memory/limit", bytes)?
        .set("/linux/resources/memory/swap", bytes)
}

#[test]
fn each_kill_is_announced_once() -> Result<()> {
    let node = Node::start()?;
    // The shell lives on when its child is killed, and itself ends with what killed the last one.
    let eat = "guest-probe touch-memory 200000000";
    let script = format!("{eat}; {eat}; {eat}; exit $?");
    let spec = limited(node.spec("thrice", &["sh", "-c", &script])?, 32 << 20)?;
    node.run_spec("thrice", &spec)?.arg("-d").ok()?;
    assert_eq!(node.await_end("thrice")?, (137, 3));
    node.forget("thrice")?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// Programs with everything that a guest's root can have: the guest is theirs.
    fn all_powerful(spec: Spec) -> Result<Spec> {
        let all = [
            "SYS_ADMIN",
            "SYS_PTRACE",
            "SYS_CHROOT",
            "DAC_OVERRIDE",
            "DAC_READ_SEARCH",
            "CHOWN",
            "FOWNER",
            "KILL",
        ];
        let all: Vec<_> = all.iter().map(|name| format!("CAP_{name}")).collect();
        let mut spec = spec;
        for set in ["bounding", "effective", "permitted"] {
            spec = spec.set(&format!("/process/capabilities/{set}"), all.clone())?;
        }
        Ok(spec)
    }

    /// What the user of kata-containers' issue 8040 typed.
    const EAT: &str = "sh -c 'X=$(printf \"%*s\" 100000000)'";

    /// What a shell is run with that must not be the one to be killed: with a megabyte, all shells are about as big.
    fn spared(spec: Spec) -> Result<Spec> {
        spec.set("/process/oomScoreAdj", -1000)
    }

    /// In a child of such a shell: that one may be killed.
    const NOT_SPARED: &str = "echo 0 > /proc/self/oom_score_adj";

    #[test]
    fn the_users_case_word_for_word() -> Result<()> {
        let node = Node::start()?;
        let shared = node.dir().join("x");
        fs::create_dir(&shared)?;
        fs::write(shared.join("file"), "still here")?;
        let mount = format!("type=bind,src={},dst=/x,options=rbind:ro", shared.display());
        // Now and then the kernel picks the shell that is typed into, and the container ends: then the user begins again.
        for container in ["t1", "t2", "t3", "t4", "t5"] {
            let mut terminal = node
                .run(container)
                .args(["--mount", &mount, "--memory-limit", "1000000", "--rm", "-t"])
                .program(["sh"])
                .limit(LONG)
                .terminal(24, 80)?;
            terminal.types(&format!("{EAT}; echo code $?\n"))?;
            // Two terminals are in between, `ctr`'s and the container's.
            if terminal.shows("code 137\r").is_err() {
                assert_eq!(terminal.wait()?, Some(137));
                continue;
            }
            terminal.types("ls /x && read X < /x/file; echo $X\n")?;
            terminal.shows("still here\r")?;
            terminal.types("exit\n")?;
            terminal.wait()?;
            return node.nothing_left();
        }
        Err(framework::Error::unexpected(
            "the shell that was typed into was killed five times",
        ))
    }

    #[test]
    fn a_shell_with_a_megabyte_is_killed_twenty_times_and_keeps_its_mount() -> Result<()> {
        let node = Node::start()?;
        let shared = node.dir().join("x");
        fs::create_dir(&shared)?;
        fs::write(shared.join("file"), "")?;
        let script = format!(
            "n=0; while [ $n -lt {ROUNDS} ]; do sh -c '{NOT_SPARED}; X=$(printf \"%*s\" 100000000)'; [ $? = 137 ] || exit 2; \
             ls /x/file > /dev/null || exit 3; n=$((n + 1)); done; echo $n rounds"
        );
        let spec = spared(node.spec("small", &["sh", "-c", &script])?)?.bind(&shared, "/x", &["ro"])?;
        let said = node
            .run_spec("small", &limited(spec, 1_000_000)?)?
            .arg("--rm")
            .limit(LONG)
            .output()?
            .success()?;
        assert_eq!(said.stdout(), format!("{ROUNDS} rounds\n"));
        node.nothing_left()
    }

    #[test]
    fn a_neighbour_reads_on_while_a_container_of_its_pod_runs_out_of_memory_twenty_times() -> Result<()> {
        let node = Node::start()?;
        let shared = node.dir().join("x");
        fs::create_dir(&shared)?;
        fs::write(shared.join("file"), "")?;
        let member = |spec: Spec, kind: &str| spec.of_pod(&node, kind)?.bind(&shared, "/x", &["ro"]);
        let pod = member(node.spec("pod", &["sleep", "1000"])?, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        let reading = member(node.spec("reading", &["sleep", "1000"])?, "container")?;
        node.run_spec("reading", &reading)?.arg("-d").ok()?;
        let read = "echo begun; while [ -e /x/file ]; do :; done; echo LOST";
        let mut readers = Vec::new();
        for name in ["r1", "r2"] {
            let reader = node.exec("reading", name).sh(read).limit(LONG).spawn()?;
            reader.shows("begun")?;
            readers.push(reader);
        }
        let script = format!(
            "n=0; while [ $n -lt {ROUNDS} ]; do sh -c '{NOT_SPARED}; exec guest-probe touch-memory 100000000'; \
             [ $? = 137 ] || exit 2; \
             [ -e /x/file ] || exit 3; ls /x > /dev/null || exit 4; n=$((n + 1)); done; echo $n rounds"
        );
        let app = spared(member(node.spec("app", &["sh", "-c", &script])?, "container")?)?;
        let app = limited(app, 8 << 20)?;
        let said = node
            .run_spec("app", &app)?
            .arg("--rm")
            .limit(LONG)
            .output()?
            .success()?;
        assert_eq!(said.stdout(), format!("{ROUNDS} rounds\n"));
        node.remove("reading")?;
        node.remove("pod")?;
        for reader in readers {
            let read = reader.wait()?;
            assert!(!read.stdout().contains("LOST"), "{}", read.stdout());
        }
        node.nothing_left()
    }

    #[test]
    fn pruned_dentries_do_not_take_a_mount_away_twenty_times_with_readers() -> Result<()> {
        let node = Node::start()?;
        let shared = node.dir().join("x");
        fs::create_dir_all(shared.join("deep/deeper"))?;
        fs::write(shared.join("deep/deeper/file"), "")?;
        let spec = all_powerful(node.spec("prune", &["sleep", "1000"])?.bind(&shared, "/x", &["ro"])?)?;
        // In the guest's own process namespace: PID 1 is the agent, and its mounts can be entered.
        let spec = spec.set(
            "/linux/namespaces",
            json!([{ "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }]),
        )?;
        node.run_spec("prune", &spec)?.arg("-d").ok()?;
        let share = format!("/run/tatami/shared/{}", node.id("prune"));
        let volume = "/run/tatami/shared/.volumes/1";
        let busybox = format!("{share}/rootfs/bin/busybox");
        let read = "echo begun; while [ -e /x/deep/deeper/file ]; do :; done; echo LOST";
        let mut readers = Vec::new();
        for name in ["r1", "r2"] {
            let reader = node.exec("prune", name).sh(read).limit(LONG).spawn()?;
            reader.shows("begun")?;
            readers.push(reader);
        }
        // What made Kata lose the mount: the guest's own automount goes, and the dentries of the shared tree with it. Each `ls`
        // makes the automount again.
        let script = format!(
            "in_guest() {{ nsenter -t 1 -m {busybox} \"$@\"; }}; n=0; while [ $n -lt {ROUNDS} ]; do \
             in_guest umount -l {volume} || exit 2; echo 2 > /proc/sys/vm/drop_caches; \
             ls -R /x > /dev/null || exit 3; [ -e /x/deep/deeper/file ] || exit 4; \
             in_guest ls {volume} > /dev/null || exit 5; n=$((n + 1)); done; echo $n rounds"
        );
        let said = node
            .exec("prune", "rounds")
            .sh(&script)
            .limit(LONG)
            .output()?
            .success()?;
        assert_eq!(said.stdout(), format!("{ROUNDS} rounds\n"));
        node.task("kill", "prune").args(["--signal", "9", "--all"]).ok()?;
        assert_eq!(node.await_stopped("prune")?, 137);
        for reader in readers {
            let read = reader.wait()?;
            assert!(!read.stdout().contains("LOST"), "{}", read.stdout());
        }
        node.forget("prune")?;
        node.nothing_left()
    }

    #[test]
    fn the_sandboxs_own_container_is_announced_as_any_other() -> Result<()> {
        let node = Node::start()?;
        // The one that the VM was started for. Of a pod that is the guest's own program, which takes no memory.
        let spec = limited(
            node.spec("pod", &["guest-probe", "touch-memory", "200000000"])?,
            32 << 20,
        )?;
        node.run_spec("pod", &spec)?.arg("-d").ok()?;
        assert_eq!(node.await_end("pod")?, (137, 1));
        node.forget("pod")?;
        node.nothing_left()
    }

    #[test]
    fn the_agent_survives_a_container_that_takes_all_memory_and_says_so() -> Result<()> {
        // A VM that grows has more.
        let node = Node::start_configured("[hypervisor.qemu]\ndefault_memory_limit = 0\n")?;
        // Without a limit of its own.
        let spec = node.spec("hungry", &["sleep", "1000"])?;
        node.run_spec("hungry", &spec)?.arg("-d").ok()?;
        // Nearly all that the machine has: more would be refused at once and not be taken page by page.
        let eat = ["guest-probe", "touch-memory", "220000000"];
        let eaten = node.exec("hungry", "eat").program(eat).limit(LONG).output()?;
        eaten.code(137)?;
        node.await_oom("hungry")?;
        node.await_log(&["the guest's memory is used up"])?;
        assert_eq!(node.exec("hungry", "after").program(["echo", "alive"]).ok()?, "alive\n");
        node.remove("hungry")?;
        node.nothing_left()
    }

    #[test]
    fn a_fork_bomb_without_a_limit_can_still_be_killed() -> Result<()> {
        let node = Node::start()?;
        let spec = node.spec("bomb", &["sleep", "1000"])?;
        node.run_spec("bomb", &spec)?.arg("-d").ok()?;
        let bomb = "bomb() { bomb | bomb & }; echo lit; while :; do bomb; done";
        let lit = node.exec("bomb", "bomb").sh(bomb).limit(LONG).spawn()?;
        lit.shows("lit")?;
        // It reaches its end at some point: then a shell cannot start a child any more.
        node.task("kill", "bomb").args(["--signal", "9"]).limit(LONG).ok()?;
        assert_eq!(node.await_stopped("bomb")?, 137);
        lit.wait()?;
        node.forget("bomb")?;
        node.nothing_left()
    }

    #[test]
    fn a_vm_that_the_host_kills_for_its_memory_is_announced_and_said_to_be() -> Result<()> {
        let node = Node::start()?;
        let spec = node.spec("big", &["sleep", "1000"])?;
        node.run_spec("big", &spec)?.arg("-d").ok()?;
        // What the VM has now, and a little: the guest has not touched most of its memory yet.
        node.host_memory("big")?.leave(16 << 20)?;
        // The connection ends with the VM, and how `ctr` takes that is its own affair.
        node.exec("big", "eat")
            .program(["guest-probe", "touch-memory", "150000000"])
            .limit(LONG)
            .output()?;
        assert_eq!(node.await_end("big")?, (137, 1));
        node.await_log(&["SIGKILL", "the host has killed it for want of memory"])?;
        node.forget("big")?;
        node.nothing_left()
    }

    /// The container ends with 137 and an event, and why is in the log.
    fn tells_why(victim: &str, reason: &str) -> Result<()> {
        let node = Node::start()?;
        node.run("why").arg("-d").program(["sleep", "1000"]).ok()?;
        node.kill_process("why", victim)?;
        assert_eq!(node.await_stopped("why")?, 137);
        node.await_log(&[reason, "SIGKILL"])?;
        node.forget("why")?;
        node.nothing_left()
    }

    #[test]
    fn why_a_container_ended_with_its_qemu_is_in_the_log() -> Result<()> {
        tells_why("qemu-system", "QEMU ended with signal: 9")
    }

    #[test]
    fn why_a_container_ended_with_its_virtiofsd_is_in_the_log() -> Result<()> {
        tells_why("virtiofsd", "virtiofsd ended with")
    }

    #[test]
    fn a_virtiofsd_that_hangs_holds_no_removal_up_for_ever() -> Result<()> {
        let node = Node::start()?;
        let spec = node.spec("hang", &["sh", "-c", "while :; do ls -R / > /dev/null; done"])?;
        node.run_spec("hang", &spec)?.arg("-d").ok()?;
        node.signal_process("hang", "virtiofsd", nix::sys::signal::Signal::SIGSTOP)?;
        // The program waits for a file system that does not answer, and no signal reaches it.
        node.task("kill", "hang").args(["--signal", "9"]).limit(LONG).ok()?;
        assert_eq!(node.await_stopped("hang")?, 137);
        node.forget("hang")?;
        node.nothing_left()
    }
}
