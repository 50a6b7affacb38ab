//! What annotations may change, and what is said about those that may not.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use config::annotations::{AnnotationError, apply};
use config::{Config, InterNetworking, Mebibytes, NamePattern, PathPattern, Vcpus, VirtioFsCache, Warning};
use proptest::prelude::*;

const PREFIX: &str = "io.katacontainers.config.hypervisor.";

use support::allowing;

#[cfg(test)]
mod support {
    use config::{Config, NamePattern};

    /// The defaults, with these annotations enabled.
    pub(super) fn allowing(names: &[&str]) -> Config {
        let mut config = Config::default();
        config.hypervisor.enable_annotations = names.iter().map(|name| NamePattern::new(name).unwrap()).collect();
        config
    }
}

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let key = |name: &str| {
        if name.contains('.') {
            name.to_owned()
        } else {
            format!("{PREFIX}{name}")
        }
    };
    pairs
        .iter()
        .map(|(name, value)| (key(name), (*value).to_owned()))
        .collect()
}

fn applied(config: &mut Config, pairs: &[(&str, &str)]) -> Result<Vec<Warning>, AnnotationError> {
    apply(config, &annotations(pairs))
}

#[test]
fn what_is_allowed_is_honoured() {
    let mut config = allowing(&[".*"]);
    config.hypervisor.kernel_params = String::from("quiet");
    let warnings = applied(
        &mut config,
        &[
            ("default_vcpus", "1.5"),
            ("default_max_vcpus", "8"),
            ("default_memory", "1024"),
            ("default_memory_limit", "0"),
            ("kernel_params", "debug"),
            ("virtio_fs_cache", "never"),
            ("virtio_fs_queue_size", "256"),
            (
                "virtio_fs_extra_args",
                "[\"--log-level=debug\", \"--thread-pool-size=1\"]",
            ),
            ("enable_iothreads", "true"),
            ("rootless", "true"),
        ],
    );
    assert_eq!(warnings, Ok(vec![]));
    let hypervisor = &config.hypervisor;
    assert_eq!(hypervisor.default_vcpus, Vcpus::Count(NonZeroU32::new(2).unwrap()));
    assert_eq!(hypervisor.default_maxvcpus, Vcpus::Count(NonZeroU32::new(8).unwrap()));
    assert_eq!(hypervisor.default_memory, Mebibytes(1024));
    assert_eq!(hypervisor.default_memory_limit, None);
    assert_eq!(hypervisor.kernel_params, "quiet debug");
    assert_eq!(hypervisor.virtio_fs_cache, VirtioFsCache::Never);
    assert_eq!(hypervisor.virtio_fs_queue_size, 256);
    assert_eq!(
        hypervisor.virtio_fs_extra_args,
        ["--log-level=debug", "--thread-pool-size=1"]
    );
    assert!(hypervisor.enable_iothreads && hypervisor.rootless);
}

#[test]
fn annotations_of_runtime_and_agent_need_no_entry_as_in_kata() {
    let mut config = allowing(&[]);
    config.runtime.disable_guest_seccomp = true;
    let warnings = applied(
        &mut config,
        &[
            ("io.katacontainers.config.runtime.create_container_timeout", "7"),
            ("io.katacontainers.config.runtime.disable_guest_seccomp", "false"),
            ("io.katacontainers.config.runtime.internetworking_model", "macvtap"),
            ("io.katacontainers.config.runtime.kernel_debug", "true"),
            ("io.katacontainers.config.runtime.disable_new_netns", "false"),
            ("io.katacontainers.config.runtime.enable_pprof", "true"),
            ("io.katacontainers.config.agent.enable_tracing", "false"),
            (
                "io.katacontainers.config.agent.kernel_modules",
                "bonding max_bonds=1,2; nbd ;",
            ),
        ],
    )
    .unwrap();
    assert_eq!(config.runtime.create_container_timeout, Duration::from_secs(7));
    assert_eq!(config.runtime.internetworking_model, InterNetworking::Macvtap);
    assert!(!config.runtime.disable_guest_seccomp);
    assert!(config.runtime.kernel_debug);
    assert_eq!(config.agent.kernel_modules, ["bonding max_bonds=1,2", "nbd"]);
    let said: Vec<_> = warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(said, ["io.katacontainers.config.runtime.enable_pprof"]);
}

#[test]
fn a_pod_has_its_agent_traced_only_if_the_shim_is() {
    let asks = [("io.katacontainers.config.agent.enable_tracing", "true")];
    let mut config = allowing(&[]);
    let warnings = applied(&mut config, &asks).unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].key, asks[0].0);
    let mut config = allowing(&[]);
    config.runtime.enable_tracing = true;
    assert!(applied(&mut config, &asks).unwrap().is_empty());
    assert!(config.agent.enable_tracing);
}

#[test]
fn no_annotation_weakens_what_the_configuration_gives() {
    let mut config = allowing(&[".*"]);
    config.hypervisor.rootless = true;
    config.hypervisor.disable_vhost_net = true;
    let before = config.clone();
    for (name, value, key) in [
        ("rootless", "false", "hypervisor.qemu.rootless"),
        ("disable_vhost_net", "false", "hypervisor.qemu.disable_vhost_net"),
        (
            "io.katacontainers.config.runtime.disable_guest_seccomp",
            "true",
            "runtime.disable_guest_seccomp",
        ),
    ] {
        let error = applied(&mut config, &[(name, value)]).unwrap_err().to_string();
        assert!(
            error.contains("would weaken") && error.contains(&format!("set {key} = {value}")),
            "{error}"
        );
    }
    let error = applied(&mut config, &[("virtio_fs_extra_args", "--modcaps=+sys_admin")]).unwrap_err();
    assert!(error.to_string().contains("--modcaps=+sys_admin"), "{error}");
    assert_eq!(config, before);
    // What the configuration says already is no weakening.
    config.runtime.disable_guest_seccomp = true;
    let same = ("io.katacontainers.config.runtime.disable_guest_seccomp", "true");
    assert_eq!(applied(&mut config, &[same]), Ok(vec![]));
}

#[test]
fn what_would_be_taken_for_granted_is_refused() {
    for (name, value) in [
        ("kernel_hash", "a4f5"),
        ("cc_init_data", "H4sI"),
        ("confidential_guest", "true"),
        ("io.katacontainers.config_path", "/etc/other.toml"),
    ] {
        let error = applied(&mut allowing(&[".*"]), &[(name, value)]).unwrap_err();
        assert!(matches!(error, AnnotationError::Value { .. }), "{name}: {error}");
    }
    let swap = ("io.katacontainers.container.resource.swappiness", "60");
    assert_eq!(applied(&mut allowing(&[]), &[swap]).unwrap().len(), 1);
}

#[test]
fn arguments_may_have_commas_between_them() {
    let mut config = allowing(&["virtio_fs_extra_args"]);
    applied(&mut config, &[("virtio_fs_extra_args", "--log-level=info, --xattr")]).unwrap();
    assert_eq!(config.hypervisor.virtio_fs_extra_args, ["--log-level=info", "--xattr"]);
}

#[test]
fn nothing_is_allowed_unless_the_configuration_says_so() {
    let error = applied(&mut allowing(&[]), &[("default_memory", "1024")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "annotation io.katacontainers.config.hypervisor.default_memory is not allowed: no entry of \
         hypervisor.qemu.enable_annotations matches \"default_memory\""
    );
}

#[test]
fn an_entry_has_to_match_the_whole_name() {
    for pattern in ["memory", "default_mem", "default_memory|x y", "^default"] {
        let result = applied(&mut allowing(&[pattern]), &[("default_memory_x", "1024")]);
        assert!(matches!(result, Err(AnnotationError::NotEnabled { .. })), "{pattern}");
    }
    applied(
        &mut allowing(&["a|default_(memory|vcpus)"]),
        &[("default_memory", "1024")],
    )
    .unwrap();
}

#[test]
fn a_path_has_to_be_in_its_own_list() {
    let mut config = allowing(&["path", "kernel", "initrd", "virtio_fs_daemon"]);
    config.hypervisor.valid_hypervisor_paths = vec![PathPattern::new("/opt/*/qemu-[0-9]*").unwrap()];
    config.hypervisor.valid_boot_paths = vec![PathPattern::new("/opt/kernels/*").unwrap()];
    applied(&mut config, &[("path", "/opt/a/qemu-10"), ("kernel", "/opt/kernels/k")]).unwrap();
    assert_eq!(config.hypervisor.path, Path::new("/opt/a/qemu-10"));
    assert_eq!(config.hypervisor.kernel, Path::new("/opt/kernels/k"));

    let before = config.clone();
    for (name, path, key) in [
        ("path", "/opt/a/b/qemu-10", "valid_hypervisor_paths"),
        ("path", "qemu-10", "valid_hypervisor_paths"),
        ("path", "/opt/../qemu-1", "valid_hypervisor_paths"),
        ("kernel", "/opt/kernels/..", "valid_boot_paths"),
        ("initrd", "/etc/shadow", "valid_boot_paths"),
        ("virtio_fs_daemon", "/opt/a/qemu-10", "valid_virtio_fs_daemon_paths"),
    ] {
        let error = applied(&mut config, &[(name, path)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "annotation {PREFIX}{name}: the path \"{path}\" is not allowed: no entry of hypervisor.qemu.{key} matches it"
            )
        );
    }
    assert_eq!(config, before);
}

#[test]
fn a_value_out_of_range_is_refused_and_changes_nothing() {
    let mut config = allowing(&[".*"]);
    let before = config.clone();
    let error = applied(&mut config, &[("default_max_vcpus", "3"), ("default_memory", "1")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "annotation io.katacontainers.config.hypervisor.default_memory = \"1\": must be a whole number of MiB from 64 \
         to 1048576"
    );
    assert_eq!(config, before);
}

#[test]
fn parameters_that_do_not_fit_together_are_refused() {
    let mut config = allowing(&["kernel_params"]);
    config.hypervisor.kernel_params = "a".repeat(1000);
    let error = applied(&mut config, &[("kernel_params", &"b".repeat(1000))]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("must be at most 1536 bytes with what the configuration says"),
        "{error}"
    );
}

#[test]
fn an_annotation_without_effect_is_a_warning() {
    let warnings = applied(
        &mut allowing(&[".*"]),
        &[("cold_plug_vfio", "root-port"), ("default_memroy", "1")],
    )
    .unwrap();
    let said: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "annotation io.katacontainers.config.hypervisor.cold_plug_vfio is not supported and has no effect: host devices are \
             not passed through",
            "annotation io.katacontainers.config.hypervisor.default_memroy is unknown and has no effect; did you mean \
             default_memory?",
        ]
    );
}

#[test]
fn the_lists_themselves_cannot_be_changed() {
    let mut config = allowing(&[".*"]);
    let before = config.clone();
    applied(
        &mut config,
        &[("enable_annotations", "[\".*\"]"), ("valid_boot_paths", "[\"/*\"]")],
    )
    .unwrap();
    assert_eq!(config, before);
}

#[test]
fn other_annotations_are_none_of_our_business() {
    let pairs = [
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.katacontainers.pkg.oci.bundle_path", "/"),
    ];
    assert_eq!(applied(&mut Config::default(), &pairs), Ok(vec![]));
}

proptest! {
    #[test]
    fn any_annotation_is_taken_or_refused(name: String, value: String) {
        let _ = applied(&mut allowing(&[".*"]), &[(&format!("{PREFIX}{name}"), &value)]);
    }

    #[test]
    fn any_value_of_a_supported_annotation_is_taken_or_refused(
        name in prop::sample::select(vec!["path", "default_vcpus", "default_memory", "kernel_params",
            "virtio_fs_extra_args", "virtio_fs_queue_size", "enable_iothreads", "machine_type"]),
        value in "\\PC{0,20}|[0-9.e-]{1,12}|\\[.{0,12}\\]",
    ) {
        let mut config = allowing(&[".*"]);
        config.hypervisor.valid_hypervisor_paths = vec![PathPattern::new("/*").unwrap()];
        let _ = applied(&mut config, &[(name, &value)]);
    }

    #[test]
    fn any_pattern_compiles_or_is_refused(text: String) {
        let _ = NamePattern::new(&text);
        let _ = PathPattern::new(&text);
    }

    #[test]
    fn a_path_matches_itself(path in "(/[a-z0-9+(){}|^$ -]{1,8}){1,4}") {
        prop_assert!(PathPattern::new(&path).unwrap().matches(Path::new(&path)));
    }
}

#[test]
fn sockets_of_the_host_are_chosen_among_those_that_are_listed() {
    const NAME: &str = "io.katacontainers.config.runtime.share_host_sockets";
    let pattern = |text: &str| PathPattern::new(text).unwrap();
    let chosen = |value: &str| {
        let mut config = Config::default();
        config.runtime.share_host_sockets = ["/run/spire/*.sock", "/run/log"].map(pattern).to_vec();
        let annotations = BTreeMap::from([(NAME.to_owned(), value.to_owned())]);
        apply(&mut config, &annotations).map(|_| config.runtime.share_host_sockets)
    };
    for value in [
        "/run/log",
        "/run/spire/agent.sock",
        "/run/spire/*.sock",
        "[\"/run/log\", \"/run/spire/a.sock\"]",
        "",
    ] {
        assert!(chosen(value).is_ok(), "{value}");
    }
    assert_eq!(
        chosen("/run/log, /run/spire/a.sock").unwrap(),
        ["/run/log", "/run/spire/a.sock"].map(pattern)
    );
    for value in [
        "/run/docker.sock",
        "/run/*",
        "/run/spire/a*.sock",
        "/run/spire/x/y.sock",
        "/run/spire/[a].sock",
    ] {
        let refused = chosen(value).unwrap_err().to_string();
        assert!(
            refused.contains(NAME) && refused.contains("runtime.share_host_sockets"),
            "{refused}"
        );
    }
    assert!(chosen("run/log").unwrap_err().to_string().contains("absolute"));
}
