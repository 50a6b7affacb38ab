//! A container's security context, as a pod's author writes it.

use std::fs;

use framework::{
    Node, Report, Result,
    cri::{
        Pod, PodNode, Sandboxer,
        messages::{
            Capability, ContainerConfig, Int64Value, LinuxSandboxSecurityContext, ProfileType, SecurityProfile,
        },
        pod::security,
    },
    locate::Version,
};
use serde_json::json;

const NET_ADMIN: u64 = 1 << 12;
const CHOWN: u64 = 1;

fn probe(pod: &Pod<'_>, name: &str, change: impl FnOnce(&mut ContainerConfig)) -> Result<Report> {
    let mut config = pod.container(name, &["guest-probe", "report"]);
    change(&mut config);
    pod.report(&config)
}

fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

#[test]
fn users_groups_capabilities_and_privileges_are_as_asked() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("users")?;
    let user = probe(&pod, "user", |config| {
        let security = security(config);
        security.run_as_user = number(1000);
        security.run_as_group = number(3000);
        security.supplemental_groups = vec![4000, 5000];
        security.no_new_privs = true;
        security.readonly_rootfs = true;
    })?;
    assert_eq!((user.fact("/uid"), user.fact("/gid")), (&json!(1000), &json!(3000)));
    let groups = user.fact("/groups").to_string();
    assert!(groups.contains("4000") && groups.contains("5000"), "{groups}");
    assert_eq!(user.status("NoNewPrivs")?, "1");
    assert_eq!(user.capabilities("CapEff")?, 0);
    assert!(user.mount("/")?["options"].to_string().contains("\"ro\""));

    let changed = probe(&pod, "capabilities", |config| {
        security(config).capabilities = Some(Capability {
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            drop_capabilities: vec!["CHOWN".to_owned()],
        });
    })?;
    let effective = changed.capabilities("CapEff")?;
    assert_eq!(
        (effective & NET_ADMIN, effective & CHOWN),
        (NET_ADMIN, 0),
        "{effective:x}"
    );
    assert_eq!(changed.status("NoNewPrivs")?, "0");
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn seccomp_profiles_filter_system_calls_and_paths_are_masked() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("seccomp")?;
    let unconfined = probe(&pod, "unconfined", |_| {})?;
    assert_eq!(unconfined.status("Seccomp")?, "0");
    let default = probe(&pod, "default", |config| {
        security(config).seccomp = Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        });
    })?;
    assert_eq!(default.status("Seccomp")?, "2");

    let profile = node.dir().join("profile.json");
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }],
    });
    fs::write(&profile, rules.to_string())?;
    let mut config = pod.container("localhost", &["guest-probe", "try", "mkdir", "/tmp/x"]);
    security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: format!("localhost/{}", profile.display()),
    });
    let refused = pod.report(&config)?;
    assert_eq!(refused.fact("/~1tmp~1x"), 38);

    let mut config = pod.container(
        "masked",
        &[
            "guest-probe",
            "try",
            "write",
            "/proc/sys/kernel/domainname",
            "/proc/keys",
        ],
    );
    security(&mut config).masked_paths = vec!["/proc/keys".to_owned()];
    security(&mut config).readonly_paths = vec!["/proc/sys".to_owned()];
    let paths = pod.report(&config)?;
    assert_eq!(paths.fact("/~1proc~1sys~1kernel~1domainname"), 30);
    let mut config = pod.script("masked-read", "wc -c < /proc/keys");
    security(&mut config).masked_paths = vec!["/proc/keys".to_owned()];
    let read = pod.start(&config)?;
    read.await_exit()?;
    assert_eq!(
        read.log()?.first().map(|line| line.text.trim().to_owned()).as_deref(),
        Some("0")
    );
    pod.remove()?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    #[test]
    fn a_privileged_container_has_everything_of_the_guest_and_nothing_of_the_host() -> Result<()> {
        let node = PodNode::start()?;
        let mut config = node.pod("privileged");
        config.linux.get_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
            privileged: true,
            ..LinuxSandboxSecurityContext::default()
        });
        let pod = node.run(&config)?;
        let report = probe(&pod, "all", |config| security(config).privileged = true)?;
        assert_ne!(report.capabilities("CapEff")? & NET_ADMIN, 0);
        assert_eq!(report.status("Seccomp")?, "0");
        assert!(report.mount("/sys")?["options"].to_string().contains("\"rw\""));
        // /dev/kvm is there on the host, and the host's disks; in the guest there is neither.
        let devices = report.fact("/dev").to_string();
        assert!(!devices.contains("kvm") && !devices.contains("vhost"), "{devices}");
        pod.remove()?;
        node.nothing_left()
    }

    /// containerd 1.6 gives it the default devices alone.
    #[test]
    fn a_privileged_container_opens_the_guests_devices() -> Result<()> {
        let node = PodNode::start_with(Version::V2_1, Sandboxer::Podsandbox, None)?;
        let mut config = node.pod("devices");
        config.linux.get_or_insert_default().security_context = Some(LinuxSandboxSecurityContext {
            privileged: true,
            ..LinuxSandboxSecurityContext::default()
        });
        let pod = node.run(&config)?;
        let open =
            "for name in fuse net/tun kmsg loop-control; do (: <>/dev/$name) && echo opened $name; done; echo end";
        let mut config = pod.script("opens", open);
        security(&mut config).privileged = true;
        let opens = pod.start(&config)?;
        opens.await_line("end")?;
        let lines: Vec<_> = opens.log()?.into_iter().map(|line| line.text).collect();
        let wanted = ["fuse", "net/tun", "kmsg", "loop-control"].map(|name| format!("opened {name}"));
        assert_eq!(lines[..4], wanted, "{lines:?}");
        pod.remove()?;
        node.nothing_left()
    }

    #[test]
    fn labels_of_security_modules_that_the_guest_does_not_have_are_left_out_with_a_warning() -> Result<()> {
        // By `ctr`: a containerd on a host without these modules does not pass the labels on.
        let node = Node::start()?;
        let spec = node
            .spec("labelled", &["guest-probe", "report"])?
            .set("/process/apparmorProfile", "a-profile")?
            .set("/process/selinuxLabel", "system_u:system_r:container_t:s0:c1,c2")?;
        assert_eq!(node.report("labelled", &spec)?.fact("/uid"), 0);
        let log = node.log();
        for warning in [
            "process.apparmorProfile is left out: the guest has no AppArmor",
            "process.selinuxLabel is left out: the guest has no SELinux",
        ] {
            assert!(log.contains(warning), "{warning}: {log}");
        }
        node.nothing_left()
    }
}
