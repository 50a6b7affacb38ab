//! A VM from its boot to its end, with a real QEMU. Each test boots a guest of its own.
#![allow(missing_docs)]
// A test crate's helpers are tests too; clippy.toml's permission ends at functions that are marked as tests.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use hypervisor::{Cause, ChildName, Disk, DiskKind, HotplugError, boot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Sandbox, runs};

/// A runtime whose threads share the test's mount namespace.
fn run(test: impl AsyncFnOnce(&mut Sandbox)) {
    let mut sandbox = Sandbox::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(&mut sandbox));
}

fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn a_guest_dials_and_sees_the_share_and_what_is_mounted_later() {
    run(async |sandbox| {
        std::fs::write(sandbox.path("shared/early"), "early\n").unwrap();
        let started = Instant::now();
        let (vm, mut guest) = sandbox.boot().await;
        println!("ready after {:?}", started.elapsed());
        assert_eq!(guest.ask("read /share/early").await, "early");

        sandbox.mount_below_share("later", "mounted later\n");
        assert_eq!(guest.ask("read /share/later/file").await, "mounted later");

        assert_eq!(guest.ask("write /share/answer").await, "done");
        assert_eq!(
            std::fs::read_to_string(sandbox.path("shared/answer")).unwrap(),
            "from the guest\n"
        );

        assert!(vm.console_tail().contains("hello from the console"));
        let pids: Vec<u32> = vm.pids().collect();
        vm.stop().await;
        vm.stop().await;
        assert!(matches!(vm.ended().await.cause, Cause::Stopped));
        assert!(pids.iter().all(|pid| !runs(*pid)));
        drop((vm, guest));
        assert_eq!(sandbox.sockets(), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn a_guest_that_powers_off_has_shut_down_and_one_that_panics_shows_its_console() {
    run(async |sandbox| {
        let (vm, mut guest) = sandbox.boot().await;
        guest.tell("poweroff").await;
        let ended = vm.ended().await;
        assert!(
            matches!(&ended.cause, Cause::GuestShutdown { reason } if reason == "guest-shutdown"),
            "{ended}"
        );
        drop((vm, guest));

        let (vm, mut guest) = sandbox.boot().await;
        guest.tell("panic").await;
        let ended = vm.ended().await;
        assert!(
            matches!(&ended.cause, Cause::GuestShutdown { reason } if reason == "guest-reset"),
            "{ended}"
        );
        assert!(ended.console_tail.contains("Kernel panic"), "{ended}");
    });
}

#[test]
fn the_child_that_is_killed_is_named_and_takes_the_others_along() {
    run(async |sandbox| {
        for (index, name) in [ChildName::Qemu, ChildName::Virtiofsd, ChildName::VsockDaemon]
            .into_iter()
            .enumerate()
        {
            let (vm, _guest) = sandbox.boot().await;
            let pids: Vec<u32> = vm.pids().collect();
            kill_9(pids[index]);
            let ended = vm.ended().await;
            let Cause::ChildDied(death) = &ended.cause else {
                panic!("{ended}")
            };
            assert_eq!((death.child, death.status.signal()), (name, Some(9)), "{ended}");
            assert!(pids.iter().all(|pid| !runs(*pid)));
        }
    });
}

#[test]
fn a_boot_that_is_given_up_at_any_moment_leaves_nothing() {
    run(async |sandbox| {
        for milliseconds in [0, 2, 5, 10, 20, 40, 80, 160] {
            let limit = Duration::from_millis(milliseconds);
            // Elapsed or not, what there was is dropped here.
            let _ = tokio::time::timeout(limit, boot(&sandbox.config, sandbox.request())).await;
            assert_eq!(sandbox.sockets(), Vec::<std::path::PathBuf>::new());
        }
        // The directory and the host can be used again.
        let (vm, _guest) = sandbox.boot().await;
        vm.stop().await;
    });
}

#[test]
fn what_cannot_start_says_why_in_one_error() {
    run(async |sandbox| {
        let good = sandbox.config.clone();
        let garbage = sandbox.path("garbage");
        std::fs::write(&garbage, "this is no kernel").unwrap();
        sandbox.config.kernel = garbage;
        assert_error(sandbox, "garbage").await;

        sandbox.config.kernel = sandbox.path("missing");
        assert_error(sandbox, "missing").await;

        sandbox.config = good.clone();
        sandbox.config.virtio_fs_extra_args = vec![String::from("--no-such-option")];
        assert_error(sandbox, "--no-such-option").await;

        sandbox.config = good.clone();
        sandbox.config.vsock_daemon = "/bin/false".into();
        sandbox.config.vsock = config::Vsock::VhostUser;
        assert_error(sandbox, "vhost-device-vsock ended with exit status: 1").await;
    });
}

async fn assert_error(sandbox: &Sandbox, expected: &str) {
    let error = boot(&sandbox.config, sandbox.request()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(sandbox.sockets(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_guest_that_floods_its_console_fills_no_disk_and_still_stops() {
    run(async |sandbox| {
        let (vm, mut guest) = sandbox.boot().await;
        let log = sandbox.path("console.log");
        guest.tell("flood").await;
        // The second file appears when the first is full.
        let mut older = log.clone().into_os_string();
        older.push(".1");
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while !std::path::Path::new(&older).exists() {
            ticks.tick().await;
        }
        vm.pause().await.unwrap();
        vm.resume().await.unwrap();
        vm.stop().await;
        assert!(std::fs::metadata(&log).unwrap().len() < 1 << 20);
        assert!(std::fs::metadata(&older).unwrap().len() < 1 << 20);
    });
}

#[test]
fn disks_are_plugged_in_and_unplugged_and_nobody_has_them_afterwards() {
    run(async |sandbox| {
        let (vm, mut guest) = sandbox.boot().await;
        let image = sandbox.path("disk");
        std::fs::write(&image, [0; 1 << 20]).unwrap();
        let disk = |read_only: bool| Disk {
            file: std::fs::File::options()
                .read(true)
                .write(!read_only)
                .open(&image)
                .unwrap()
                .into(),
            kind: DiskKind::File,
            read_only,
            direct: false,
            sectors: None,
        };
        let first = vm.attach_disk(disk(false)).await.unwrap();
        assert_eq!(guest.ask("await /sys/block/vda/serial").await, first);
        assert_eq!(guest.ask("await /sys/block/vda/ro").await, "0");
        // QEMU's own lock: nobody else may read what is written to.
        let refused = vm.attach_disk(disk(true)).await.unwrap_err();
        assert!(matches!(refused, HotplugError::Step { .. }), "{refused}");
        vm.detach_disk(&first).await.unwrap();
        let second = vm.attach_disk(disk(true)).await.unwrap();
        // The guest may not have seen it yet.
        vm.detach_disk(&second).await.unwrap();
        let third = vm.attach_disk(disk(true)).await.unwrap();
        assert_eq!(guest.ask("await /sys/block/vda/serial").await, third);
        vm.detach_disk(&third).await.unwrap();
        let open = std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
        let open = open.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        assert_eq!(open.filter(|target| target == &image).count(), 0);
    });
}
