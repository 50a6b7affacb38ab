//! Tests with shells as children.

use super::*;
use crate::helpers::{virtiofsd, vsock_daemon};
use crate::machine::accel::Accel;
use crate::process::rootless::Rootless;
use crate::process::rootless::User;

fn shell(script: &str) -> Program {
    Program {
        child: ChildName::Qemu,
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        network: Network::Inherited,
        root: None,
        user: None,
        capabilities: None,
        jail: None,
        limits: virtiofsd::LIMITS,
        cgroup_procs: Vec::new(),
        score: Score::Inherited,
        pass: Vec::new(),
    }
}

#[tokio::test]
async fn a_childs_last_words_come_with_its_status() {
    let child = spawn(shell("echo out; echo 'cannot go on' >&2; exit 7")).await.unwrap();
    let death = child.handle().death().await;
    assert_eq!(death.status.code(), Some(7));
    assert_eq!(death.to_string(), "QEMU ended with exit status: 7: cannot go on");
}

#[tokio::test]
async fn a_dropped_child_is_killed() {
    let child = spawn(shell("exec sleep 1000")).await.unwrap();
    let handle = child.handle().clone();
    drop(child);
    assert_eq!(handle.death().await.signal(), Some(9));
}

#[tokio::test]
async fn a_child_that_is_not_waited_for_any_more_is_killed() {
    let (held_by_the_child, theirs) = rustix::pipe::pipe().unwrap();
    let mut spawning = Box::pin(spawn(Program {
        pass: vec![theirs],
        ..shell("exec sleep 1000")
    }));
    // The job is sent, and its answer never taken.
    std::future::poll_fn(|cx| {
        // On a busy machine it may have been started by now: then it is dropped here.
        drop(spawning.as_mut().poll(cx));
        std::task::Poll::Ready(())
    })
    .await;
    drop(spawning);
    // Blocks until the last holder of the other end is gone.
    assert_eq!(stderr::read_rest(&held_by_the_child), "");
}

#[tokio::test]
async fn only_the_passed_descriptors_are_inherited() {
    let (ours, theirs) = rustix::pipe::pipe().unwrap();
    let (leaked, _other) = rustix::pipe::pipe().unwrap();
    let (passed, not_passed) = (
        crate::machine::descriptor::number(theirs.as_fd()),
        crate::machine::descriptor::number(leaked.as_fd()),
    );
    let script = format!("test ! -e /proc/self/fd/{not_passed} && echo here > /proc/self/fd/{passed}");
    let child = spawn(Program {
        pass: vec![theirs],
        ..shell(&script)
    })
    .await
    .unwrap();
    let death = child.handle().death().await;
    assert!(death.status.success(), "{death}");
    assert_eq!(stderr::read_rest(&ours), "here\n");
}

#[tokio::test]
async fn a_child_that_is_another_user_has_no_rights_and_no_groups() {
    let rootless = Rootless::prepare(Accel::Tcg).unwrap();
    let script = "grep -E '^(Uid|Gid|Groups|Cap(Prm|Eff|Amb)|NoNewPrivs):' /proc/self/status | tr -s '\\t' ' ' >&2";
    let child = spawn(Program {
        user: Some(rootless.user()),
        ..shell(script)
    })
    .await
    .unwrap();
    let number = rootless.user().number();
    let ids = format!("{number} {number} {number} {number}");
    let none = "0000000000000000";
    let told = child.handle().death().await.stderr_tail;
    let lines: Vec<_> = told.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            format!("Uid: {ids}"),
            format!("Gid: {ids}"),
            "Groups:".into(),
            format!("CapPrm: {none}"),
            format!("CapEff: {none}"),
            format!("CapAmb: {none}"),
            "NoNewPrivs: 1".into(),
        ]
    );
}

/// What a shell says of itself by the script, line by line.
async fn says(program: Program) -> Vec<String> {
    let child = spawn(program).await.unwrap();
    let told = child.handle().death().await.stderr_tail;
    told.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_child_has_the_score_that_it_is_given_no_core_dumps_and_room_for_many_files() {
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let script = "(cat /proc/self/oom_score_adj; ulimit -c; ulimit -n) >&2";
    let wanted = |score: i32| {
        // dash counts core files in blocks of 512 bytes.
        let files = hard.map_or(1 << 16, |hard| hard.min(1 << 16)).to_string();
        vec![score.to_string(), "0".to_owned(), files]
    };
    for score in [own + 7, own] {
        let told = says(Program {
            score: Score::Of(score),
            ..shell(script)
        })
        .await;
        assert_eq!(told, wanted(score));
    }
    // Nobody may go below -1000; below the own score only a process that has CAP_SYS_RESOURCE.
    let told = says(Program {
        score: Score::Of(-1),
        ..shell(script)
    })
    .await;
    assert!(told == wanted(-1) || told == wanted(own), "{told:?}");
}

#[tokio::test]
async fn a_child_has_the_memory_and_the_threads_that_it_is_given() {
    let script = "ulimit -d >&2; ulimit -Hd >&2; grep -E '^Max processes' /proc/self/limits | tr -s ' ' >&2";
    let limits = ProcessLimits {
        data: 64 << 20,
        threads: Some(7),
    };
    let told = says(Program {
        limits,
        ..shell(script)
    })
    .await;
    assert_eq!(told, ["65536", "65536", "Max processes 7 7 processes"]);
    let told = says(shell("ulimit -d >&2")).await;
    assert_eq!(told, ["1048576"]);
}

#[tokio::test]
async fn a_child_inherits_nothing_of_the_environment() {
    assert_ne!(std::env::vars_os().count(), 0);
    let told = says(shell("tr '\\0' '\\n' < /proc/$$/environ >&2")).await;
    assert_eq!(told, Vec::<String>::new());
}

#[tokio::test]
async fn a_root_child_has_only_the_capabilities_that_are_left_to_it() {
    let program = Program {
        capabilities: Some(CapabilitySet::DAC_READ_SEARCH),
        ..shell("grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs):' /proc/self/status | tr -s '\\t' ' ' >&2")
    };
    // The children of a thread that has one to inherit: root would have it again (capabilities(7)).
    let own = rustix::thread::capabilities(None).unwrap();
    let inheritable = own.permitted & CapabilitySet::CHOWN;
    let sets = rustix::thread::CapabilitySets { inheritable, ..own };
    rustix::thread::set_capabilities(None, sets).unwrap();
    let (one, none) = ("0000000000000004", "0000000000000000");
    let wanted = [
        format!("CapInh: {none}"),
        format!("CapPrm: {one}"),
        format!("CapEff: {one}"),
        format!("CapBnd: {one}"),
        format!("CapAmb: {none}"),
        "NoNewPrivs: 1".into(),
    ];
    assert_eq!(says(program).await, wanted);
}

/// A filter that lets every call pass.
fn everything() -> seccompiler::BpfProgram {
    use seccompiler::{SeccompAction, SeccompFilter};
    let here = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new([].into(), SeccompAction::Allow, SeccompAction::Errno(1), here);
    filter.unwrap().try_into().unwrap()
}

#[tokio::test]
async fn a_jailed_child_can_ask_the_kernel_only_for_what_is_on_its_list() {
    let directory = tempfile::tempdir().unwrap();
    let user = User::random().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let jail = Jail::of_vsock_daemon("/bin/sh".as_ref(), directory.path().to_owned(), user).unwrap();
    let program = Program {
        jail: Some(jail),
        ..shell("kill -0 $$")
    };
    // It may write, which is how this is known, and not send a signal.
    let told = says(program).await.pop().unwrap_or_default();
    assert!(
        told.contains("Operation not permitted") && !told.contains("getcwd"),
        "{told}"
    );
}

#[tokio::test]
async fn a_jailed_child_is_another_user_without_network_capabilities_or_much_memory() {
    let directory = tempfile::tempdir().unwrap();
    let user = User::random().unwrap();
    let jail = Jail::of_vsock_daemon("/bin/sh".as_ref(), directory.path().to_owned(), user).unwrap();
    assert!(!jail.is_root, "this machine's shell has a loader");
    let jail = Jail {
        filter: everything(),
        ..jail
    };
    let script = "pwd >&2; cd /; id -u >&2; ulimit -d >&2; wc -l < /proc/net/dev >&2; \
                  grep -E '^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs):' /proc/self/status | tr -s '\\t' ' ' >&2";
    let none = "0000000000000000";
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let told = says(Program {
        jail: Some(jail),
        limits: vsock_daemon::LIMITS,
        ..shell(script)
    })
    .await;
    let wanted = [
        directory.path().display().to_string(),
        user.number().to_string(),
        (256 << 10).to_string(),
        // Two lines of heading, and `lo`.
        "3".into(),
        format!("CapPrm: {none}"),
        format!("CapEff: {none}"),
        format!("CapBnd: {none}"),
        format!("CapAmb: {none}"),
        "NoNewPrivs: 1".into(),
    ];
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn a_jailed_child_keeps_no_mount_of_the_host_alive() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let directory = tempfile::tempdir().unwrap();
    let user = User::random().unwrap();
    let jail = Jail::of_vsock_daemon("/bin/sh".as_ref(), directory.path().to_owned(), user).unwrap();
    let jail = Jail {
        filter: everything(),
        ..jail
    };
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let host = tempfile::tempdir().unwrap();
    rustix::mount::mount("none", host.path(), "tmpfs", MountFlags::empty(), None).unwrap();
    rustix::mount::mount_change(host.path(), MountPropagationFlags::SHARED).unwrap();
    let told = says(Program {
        jail: Some(jail),
        ..shell(&format!(
            "grep -F ' {} ' /proc/self/mountinfo >&2",
            host.path().display()
        ))
    })
    .await;
    rustix::mount::unmount(host.path(), UnmountFlags::DETACH).unwrap();
    // It goes when the host's goes, and what is mounted on it stays here (mount_namespaces(7)).
    let [mount] = told.as_slice() else { panic!("{told:?}") };
    assert!(mount.contains(" master:") && !mount.contains(" shared:"), "{mount}");
}

#[tokio::test]
async fn a_program_that_is_none_is_named() {
    let error = spawn(Program {
        path: "/etc/passwd".into(),
        ..shell("")
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
}

#[tokio::test]
async fn a_missing_cgroup_is_named() {
    let error = spawn(Program {
        cgroup_procs: vec!["/nowhere/cgroup.procs".into()],
        ..shell("")
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains("/nowhere/cgroup.procs"), "{error}");
}

#[tokio::test]
async fn the_step_before_exec_that_failed_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = spawn(Program {
        network: Network::Entered(Arc::new(file.into_file().into())),
        ..shell("")
    })
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains("cannot enter the network namespace"),
        "{error}"
    );
}
