//! Specifications that runc runs right, each the member of a kind: what the program sees. The same through containerd, and on runc,
//! is `tests/tests/oci_*.rs`.

use serde_json::{Value, json};
use tatami_agent::launch::{LaunchError, Target};

use crate::bench::{Bench, piped, process, wait_for_init};

fn mount(spec: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

async fn refusal(bench: &Bench, change: impl FnOnce(&mut Value)) -> String {
    let spec = bench.spec("true", change);
    let refused = bench.run(Target::Container { spec, join: Vec::new() }).await;
    match refused.unwrap_err() {
        LaunchError::Refused(text) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_tmpfs_on_nothing_is_everybodys_and_one_on_a_directory_has_its_mode() {
    let bench = Bench::new();
    let script = "stat -c %a:%u:%g /scratch /deep/er /there /set; stat -c %a /deep";
    let root = bench.image.path().join("rootfs");
    std::fs::create_dir(root.join("there")).unwrap();
    std::os::unix::fs::chown(root.join("there"), Some(7), Some(8)).unwrap();
    std::fs::set_permissions(root.join("there"), std::os::unix::fs::PermissionsExt::from_mode(0o2750)).unwrap();
    let (text, code) = bench
        .run_script(script, |spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            for (destination, options) in [
                ("/scratch", &[] as &[&str]),
                ("/deep/er", &["nosuid"]),
                ("/there", &[]),
                ("/set", &["mode=700"]),
            ] {
                mount(spec, destination, "tmpfs", "tmpfs", options);
            }
        })
        .await;
    assert_eq!(
        (text.as_str(), code),
        ("1777:0:0\n1777:0:0\n2750:0:0\n700:0:0\n755\n", 0)
    );
}

#[tokio::test]
async fn a_device_that_a_mount_has_put_in_the_place_of_a_default_one_stays() {
    let bench = Bench::new();
    let script = "stat -Lc %t:%T /dev/random /dev/urandom; cat /dev/zero; echo $?";
    let (text, code) = bench
        .run_script(script, |spec| {
            mount(spec, "/dev/random", "bind", "/dev/urandom", &["rbind", "rprivate"]);
            mount(spec, "/dev/zero", "bind", "/dev/null", &["bind"]);
        })
        .await;
    assert_eq!((text.as_str(), code), ("1:9\n1:9\n0\n", 0));
}

#[tokio::test]
async fn a_read_only_dev_and_a_read_only_tmpfs_become_so_at_the_end() {
    let bench = Bench::new();
    std::fs::create_dir(bench.image.path().join("data")).unwrap();
    std::fs::write(bench.image.path().join("data/file"), "here\n").unwrap();
    let script = "echo x >/dev/null && cat /scratch/below/file; for f in /dev/new /scratch/new; do echo > $f; done; \
        echo yes >/scratch/below/new && cat /scratch/below/new";
    let (text, _) = bench
        .run_script(script, |spec| {
            spec["mounts"][1]["options"] = json!(["nosuid", "ro", "mode=755"]);
            mount(spec, "/scratch", "tmpfs", "tmpfs", &["ro"]);
            mount(spec, "/scratch/below", "bind", "data", &["rbind", "rw"]);
        })
        .await;
    assert!(text.starts_with("here\n") && text.ends_with("yes\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}

#[tokio::test]
async fn a_directory_that_is_bound_on_dev_is_left_alone_however_the_bind_is_written() {
    for kind in ["none", "bind", ""] {
        let bench = Bench::new();
        let data = bench.image.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let (text, code) = bench
            .run_script("ls -a /dev", |spec| {
                spec["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
                spec["linux"]["maskedPaths"] = json!([]);
                mount(spec, "/dev/", kind, "data", &["rbind"]);
            })
            .await;
        assert_eq!((text.as_str(), code), (".\n..\n", 0), "{kind}");
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "{kind}");
    }
}

#[tokio::test]
async fn capability_sets_are_those_of_one_capset() {
    let bench = Bench::new();
    let (text, _) = bench
        .run_script("grep Cap /proc/self/status", |spec| {
            spec["process"]["noNewPrivileges"] = true.into();
            spec["process"]["capabilities"] = json!({
                "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
                "effective": ["CAP_KILL"], "inheritable": ["CAP_CHOWN", "CAP_SYSLOG"],
                // Not permitted: the kernel does not raise it, and runc goes on without.
                "ambient": ["CAP_SYSLOG"],
            });
        })
        .await;
    for set in [
        "CapInh:\t0000000400000001",
        "CapPrm:\t0000000000000021",
        "CapBnd:\t0000000400000021",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(text.contains(set), "{set} in {text}");
    }
    let said = refusal(&bench, |spec| {
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"],
        });
    })
    .await;
    assert!(
        said.contains("capabilities") && said.contains("not permitted"),
        "{said}"
    );
}

#[tokio::test]
async fn proc_and_sysfs_are_not_mounted_where_a_link_of_the_image_leads() {
    let bench = Bench::new();
    let root = bench.image.path().join("rootfs");
    std::fs::create_dir_all(root.join("elsewhere/within")).unwrap();
    std::os::unix::fs::symlink("elsewhere", root.join("link")).unwrap();
    std::fs::write(root.join("file"), "").unwrap();
    for (kind, on) in [("proc", "/link"), ("sysfs", "/link"), ("proc", "/file")] {
        let said = refusal(&bench, |spec| mount(spec, on, kind, kind, &[])).await;
        assert!(said.contains("ordinary directory") && said.contains(on), "{said}");
    }
    // A directory behind a link is one, as with runc; and other file systems follow the link.
    let (text, code) = bench
        .run_script("cat /elsewhere/within/self/comm; stat -fc %T /elsewhere", |spec| {
            mount(spec, "/link/within", "proc", "proc", &[]);
        })
        .await;
    assert!(text.starts_with("cat\n") && code == 0, "{text}");
    let (text, _) = bench
        .run_script("stat -fc %T /elsewhere", |spec| {
            mount(spec, "/link", "tmpfs", "tmpfs", &[])
        })
        .await;
    assert_eq!(text, "tmpfs\n");
}

#[tokio::test]
async fn a_scheduler_and_an_io_priority_are_the_programs() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script("cat /proc/self/stat", |spec| {
            spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
            spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        })
        .await;
    // proc_pid_stat(5): after the name come nice, the 17th field, and policy, the 39th.
    let fields: Vec<_> = text.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!((fields[16], fields[38], code), ("5", "3", 0), "{text}");
}

#[tokio::test]
async fn a_user_namespace_may_have_parameters_of_the_network_that_it_shares() {
    let bench = Bench::new();
    for path in [bench.image.path().join("rootfs"), bench.image.path().to_owned()] {
        std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    let (text, code) = bench
        .run_script("cat /proc/sys/kernel/shm_rmid_forced", |spec| {
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({ "type": "user" }));
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            // Its own network: from inside, as its root.
            spec["linux"]["sysctl"] =
                json!({ "net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1" });
        })
        .await;
    assert_eq!((text.as_str(), code), ("1\n", 0));
}

#[tokio::test]
async fn who_may_use_every_device_has_those_of_the_guest() {
    let bench = Bench::new();
    let rules =
        |allow: bool| json!({ "devices": [{ "allow": false, "access": "rwm" }, { "allow": allow, "access": "rwm" }] });
    let script = "stat -c %t:%T /dev/kmsg";
    let (text, code) = bench
        .run_script(script, |spec| spec["linux"]["resources"] = rules(true))
        .await;
    assert_eq!((text.as_str(), code), ("1:b\n", 0));
    let (_, code) = bench
        .run_script(script, |spec| spec["linux"]["resources"] = rules(false))
        .await;
    assert_ne!(code, 0);
}

#[tokio::test]
async fn memory_is_where_the_policy_says_as_far_as_there_are_nodes() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script("head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2", |spec| {
            spec["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0,5-7" });
        })
        .await;
    assert_eq!((text.as_str(), code), ("bind:0\n", 0));
    let refused = refusal(&bench, |spec| {
        spec["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "one" });
    });
    assert!(refused.await.contains("memoryPolicy"));
}

/// The first process of a container has all CPUs, an exec those that it is to have, as far as there are such.
#[tokio::test]
async fn an_exec_runs_on_the_cpus_that_it_is_to_have() {
    let bench = Bench::new();
    let spec = bench.spec("exec sleep 1000", |_| ());
    let container = Target::Container {
        spec: spec.clone(),
        join: Vec::new(),
    };
    let first = bench.launch(container, piped().1).await.unwrap();
    first.gate.open().await.unwrap();
    let pid = rustix::process::Pid::from_raw(first.pid.as_raw()).unwrap();
    let on = async |affinity: Value| {
        let mut process = process("grep Cpus_allowed_list /proc/self/status | cut -f 2");
        process["execCPUAffinity"] = affinity;
        let exec = Target::Exec {
            spec: spec.clone(),
            process: Box::new(serde_json::from_value(process).unwrap()),
            init: rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap(),
        };
        bench.run(exec).await.unwrap().0
    };
    let all = on(json!({})).await;
    assert_eq!(on(json!({ "final": "0" })).await, "0\n");
    assert_eq!(on(json!({ "initial": "0", "final": "0,900" })).await, "0\n");
    assert_eq!(
        on(json!({ "initial": "0" })).await,
        all,
        "its own again in the container's cgroup"
    );
    assert_eq!(on(json!({ "final": "900-901" })).await, all, "there are none of these");
    nix::sys::signal::kill(first.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(wait_for_init(first.pid), 137);
}

#[tokio::test]
async fn proc_is_covered_by_nothing_but_a_proc() {
    let bench = Bench::new();
    let (text, code) = bench
        .run_script("test -e /proc/self/status && echo there", |spec| {
            mount(spec, "/proc", "bind", "/proc", &["rbind"]);
        })
        .await;
    assert_eq!((text.as_str(), code), ("there\n", 0));
    for (kind, source) in [("bind", "/usr"), ("tmpfs", "tmpfs")] {
        let said = refusal(&bench, |spec| {
            mount(
                spec,
                "/proc/../proc",
                kind,
                source,
                &["rbind"][..usize::from(kind == "bind")],
            )
        });
        let said = said.await;
        assert!(said.contains("it is not of type proc"), "{said}");
    }
    // Before there is a proc at all.
    let said = refusal(&bench, |spec| {
        spec["mounts"].as_array_mut().unwrap().clear();
        mount(spec, "/proc/x", "tmpfs", "tmpfs", &[]);
    });
    assert!(said.await.contains("it is inside /proc"));
}

/// In a user namespace, where the guest's own nodes are bound: by number.
#[tokio::test]
async fn a_device_is_bound_by_its_number_whatever_it_is_called() {
    let bench = Bench::new();
    for path in [bench.image.path().join("rootfs"), bench.image.path().to_owned()] {
        std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
    }
    let (text, code) = bench
        .run_script(
            "stat -c %t:%T /dev/random /dev/mine; test -p /dev/queue && echo queue",
            |spec| {
                let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
                spec["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "type": "user" }));
                spec["linux"]["uidMappings"] = map.clone();
                spec["linux"]["gidMappings"] = map;
                spec["linux"]["devices"] = json!([
                    { "path": "/dev/random", "type": "c", "major": 1, "minor": 9 },
                    { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5 },
                    { "path": "/dev/queue", "type": "p" },
                ]);
            },
        )
        .await;
    assert_eq!((text.as_str(), code), ("1:9\n1:5\nqueue\n", 0));
}

#[tokio::test]
async fn a_user_or_an_environment_that_runc_does_not_take_is_refused() {
    let bench = Bench::new();
    let users = [
        json!({ "uid": u32::MAX, "gid": 0 }),
        json!({ "uid": 0, "gid": 2_147_483_648_u32 }),
        json!({ "uid": 0, "gid": 0, "additionalGids": [u32::MAX] }),
    ];
    for user in users {
        let said = refusal(&bench, |spec| spec["process"]["user"] = user).await;
        assert!(said.contains("must be in range 0-2147483647"), "{said}");
    }
    for (variable, reason) in [
        ("NO_VALUE", "invalid environment variable"),
        ("=x", "can't be empty"),
        ("A=\0", "can't contain null"),
    ] {
        let said = refusal(&bench, |spec| spec["process"]["env"] = json!(["PATH=/bin", variable])).await;
        assert!(said.contains(reason), "{said}");
    }
    let (text, _) = bench
        .run_script("id -G", |spec| {
            spec["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7, 7, 6] });
        })
        .await;
    assert_eq!(text, "6 7\n");
}

#[tokio::test]
async fn a_directory_on_a_file_and_the_reverse_are_refused_as_mount_says_it() {
    let bench = Bench::new();
    let file = bench.image.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    for (source, destination) in [("/tmp", "/etc/a-file"), (file.to_str().unwrap(), "/etc")] {
        std::fs::create_dir_all(bench.image.path().join("rootfs/etc")).unwrap();
        std::fs::write(bench.image.path().join("rootfs/etc/a-file"), "").unwrap();
        let said = refusal(&bench, |spec| mount(spec, destination, "bind", source, &["bind"])).await;
        assert!(said.to_lowercase().contains("not a directory"), "{said}");
    }
}

#[tokio::test]
async fn the_root_may_be_among_the_read_only_paths() {
    let bench = Bench::new();
    let script = "touch /new 2>&1; touch /scratch/new && echo made";
    let (text, _) = bench
        .run_script(script, |spec| {
            spec["linux"]["readonlyPaths"] = json!(["/"]);
            mount(spec, "/scratch", "tmpfs", "tmpfs", &[]);
        })
        .await;
    assert!(
        text.contains("Read-only file system") && text.ends_with("made\n"),
        "{text}"
    );
}
