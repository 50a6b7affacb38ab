//! Files, drop-ins, and what is said about what is wrong in them.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use config::{CapPolicy, MAX_FILE_SIZE, Mebibytes, OnExcess, SharedFs, Vcpus};
use proptest::prelude::*;

const NEEDED: &str = "[hypervisor.qemu]\nkernel = \"/k\"\ninitrd = \"/i\"\n";

use files::{Files, error_in, warnings_in};

#[cfg(test)]
mod files {
    use std::path::PathBuf;

    use config::{ConfigError, Loaded};
    use tempfile::TempDir;

    use super::NEEDED;

    /// A configuration in a directory of its own.
    pub(super) struct Files(TempDir);

    impl Files {
        pub(super) fn new(main: &str) -> Self {
            let files = Files(tempfile::tempdir().unwrap());
            std::fs::write(files.path(), main).unwrap();
            files
        }

        pub(super) fn path(&self) -> PathBuf {
            self.0.path().join("configuration.toml")
        }

        pub(super) fn drop_in(&self, name: &str, text: &str) -> PathBuf {
            let directory = self.0.path().join("config.d");
            std::fs::create_dir_all(&directory).unwrap();
            let directory = directory.canonicalize().unwrap();
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        pub(super) fn load(&self) -> Result<Loaded, ConfigError> {
            config::load_for(&self.path(), None)
        }

        /// What an error or warning says, without the temporary directory.
        pub(super) fn said(&self, text: &dyn ToString) -> String {
            text.to_string().replace(&format!("{}/", self.0.path().display()), "")
        }
    }

    pub(super) fn error_in(text: &str) -> String {
        let files = Files::new(text);
        let error = files.load().unwrap_err();
        files.said(&error)
    }

    pub(super) fn warnings_in(text: &str) -> Vec<String> {
        let files = Files::new(&format!("{NEEDED}{text}"));
        files
            .load()
            .unwrap()
            .warnings
            .iter()
            .map(|warning| files.said(warning))
            .collect()
    }
}

#[test]
fn a_wrong_value_is_named_with_line_key_value_and_what_is_allowed() {
    let table = [
        (
            "default_memory = 12",
            "default_memory = 12: must be a whole number of MiB from 64 to 1048576",
        ),
        (
            "default_memory = -1",
            "default_memory = -1: must be a whole number of MiB from 64 to 1048576",
        ),
        (
            "default_memory = 0x10",
            "default_memory = 0x10: must be a whole number of MiB from 64 to 1048576",
        ),
        (
            "default_memory = \"512\"",
            "default_memory = \"512\": must be a whole number of MiB from 64 to 1048576",
        ),
        (
            "default_vcpus = \"all\"",
            "default_vcpus = \"all\": must be a number of CPUs; negative for all of the host's",
        ),
        (
            "default_vcpus = nan",
            "default_vcpus = nan: must be a number of CPUs; negative for all of the host's",
        ),
        (
            "default_maxvcpus = -1",
            "default_maxvcpus = -1: must be a whole number of CPUs; 0 for all of the host's",
        ),
        (
            "default_maxmemory = 63",
            "default_maxmemory = 63: must be 0 for all of the host's, or a whole number of MiB from 64 to 1048576",
        ),
        (
            "default_memory_limit = 63",
            "default_memory_limit = 63: must be 0 for memory that does not grow, or a whole number of MiB from 64 to 1048576",
        ),
        ("machine_type = \"pc\"", "machine_type = \"pc\": must be \"q35\""),
        (
            "shared_fs = \"virtio-9p\"",
            "shared_fs = \"virtio-9p\": must be \"virtio-fs\" or \"none\"",
        ),
        (
            "virtio_fs_cache = \"none\"",
            "virtio_fs_cache = \"none\": must be \"auto\" or \"always\" or \"never\" or \"metadata\"",
        ),
        (
            "virtio_fs_cache_size = 1024",
            "virtio_fs_cache_size = 1024: must be off: QEMU's vhost-user-fs device has no window by which the host's files could \
             be mapped into the guest (DAX)",
        ),
        (
            "virtio_fs_queue_size = 1000",
            "virtio_fs_queue_size = 1000: must be a power of two from 2 to 1024",
        ),
        (
            "accelerator = \"xen\"",
            "accelerator = \"xen\": must be \"auto\" or \"kvm\" or \"tcg\"",
        ),
        (
            "vsock = true",
            "vsock = true: must be \"auto\" or \"vhost\" or \"vhost-user\"",
        ),
        ("enable_debug = 1", "enable_debug = 1: must be true or false"),
        ("kernel = \"vmlinuz\"", "kernel = \"vmlinuz\": must be an absolute path"),
        (
            "path = \"./qemu\"",
            "path = \"./qemu\": must be an absolute path, or a name without a slash, which is looked up in PATH",
        ),
        (
            "kernel_params = \"a\\nb\"",
            "kernel_params = \"a\\nb\": must be one line of at most 1536 bytes",
        ),
        (
            "seccompsandbox = \"on,spawn=maybe\"",
            "seccompsandbox = \"on,spawn=maybe\": must be \"off\", or \"on\" followed by options such as \
             \",spawn=deny\" (qemu(1), -sandbox)",
        ),
    ];
    for (line, said) in table {
        let expected = format!("configuration.toml:3: hypervisor.qemu.{said}");
        assert_eq!(error_in(&format!("[hypervisor.qemu]\n\n{line}\n")), expected);
    }
}

#[test]
fn a_factor_of_timeouts_is_a_number_within_bounds() {
    for wrong in ["0.01", "101", "\"2\"", "inf"] {
        let expected =
            format!("configuration.toml:3: runtime.timeout_factor = {wrong}: must be a number from 0.1 to 100");
        assert_eq!(error_in(&format!("[runtime]\n\ntimeout_factor = {wrong}\n")), expected);
    }
    let files = Files::new(&format!("{NEEDED}[runtime]\ntimeout_factor = 2.5\n"));
    let factor = files.load().unwrap().config.runtime.timeout_factor;
    assert!((factor.get() - 2.5).abs() < 1e-9);
}

#[test]
fn an_argument_that_the_runtime_sets_itself_is_refused() {
    for argument in [
        "--shared-dir=/",
        "--socket-path=/x",
        "--fd=3",
        "--shared-dir",
        "--sandbox=none",
        "--seccomp=none",
        "x",
    ] {
        let said = error_in(&format!("[hypervisor.qemu]\nvirtio_fs_extra_args = [\"{argument}\"]\n"));
        assert!(said.ends_with(&format!("{argument:?} is not one")), "{said}");
    }
}

#[test]
fn an_expression_that_is_none_is_refused_in_the_file() {
    for expression in ["(", "a)|(?:b"] {
        let said = error_in(&format!("[hypervisor.qemu]\nenable_annotations = ['{expression}']\n"));
        assert!(
            said.contains(&format!("a list of regular expressions; {expression:?} is none")),
            "{said}"
        );
    }
}

#[test]
fn a_file_that_is_not_toml_is_named_with_its_line() {
    let said = error_in("[hypervisor.qemu]\nkernel = \"/k\"\ninitrd\n");
    assert!(said.starts_with("configuration.toml:3: not valid TOML: "), "{said}");
}

#[test]
fn a_key_that_is_given_twice_is_not_toml() {
    let said = error_in("[runtime]\nenable_debug = true\nenable_debug = true\n");
    assert!(
        said.starts_with("configuration.toml:3: not valid TOML: duplicate key"),
        "{said}"
    );
}

#[test]
fn tables_within_runtime_are_read_and_their_mistakes_named() {
    let files = Files::new(&format!(
        "{NEEDED}[runtime]\nenable_debug = true\n[runtime.memlock]\ndefault = 65536\nmax = \"1GiB\"\n\
         on_excess = \"clamp\"\nperf_event_mlock_kb = 0\n[runtime.cap_ipc_lock]\npolicy = \"drop\"\nambient = true\n"
    ));
    let loaded = files.load().unwrap();
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert!(config.runtime.enable_debug && config.memlock.allow_annotation && config.cap_ipc_lock.ambient);
    assert_eq!(config.memlock.default.to_string(), "64KiB");
    assert_eq!(config.memlock.max.to_string(), "1GiB");
    assert_eq!(config.memlock.on_excess, OnExcess::Clamp);
    assert_eq!(config.memlock.perf_event_mlock_kb.get(), 0);
    assert_eq!(config.cap_ipc_lock.policy, CapPolicy::Drop);

    let size = "\"unlimited\", or a whole number of bytes, or one of KiB, MiB, GiB or TiB as in \"64MiB\"";
    for (table, line, allowed) in [
        ("memlock", "default = \"8MB\"", size),
        ("memlock", "max = -1", size),
        ("memlock", "on_excess = \"ignore\"", "\"deny\" or \"clamp\""),
        (
            "memlock",
            "perf_event_mlock_kb = 2147483648",
            "a whole number of KiB from 0 to 2147483647",
        ),
        (
            "cap_ipc_lock",
            "policy = \"ambient\"",
            "\"spec\" or \"grant\" or \"drop\"",
        ),
        ("cap_ipc_lock", "ambient = \"yes\"", "true or false"),
    ] {
        let said = error_in(&format!("{NEEDED}[runtime.{table}]\n{line}\n"));
        assert_eq!(
            said,
            format!("configuration.toml:5: runtime.{table}.{line}: must be {allowed}")
        );
    }
    assert_eq!(
        error_in(&format!("{NEEDED}[runtime]\nmemlock = 1\n")),
        "configuration.toml:5: runtime.memlock = 1: must be a table"
    );
}

#[test]
fn a_value_where_a_table_belongs_is_refused() {
    assert_eq!(
        error_in("runtime = 3\n"),
        "configuration.toml:1: runtime = 3: must be a table"
    );
    assert_eq!(
        error_in("hypervisor.qemu = []\n"),
        "configuration.toml:1: hypervisor.qemu = []: must be a table"
    );
}

#[test]
fn kernel_and_initrd_have_no_default() {
    assert_eq!(
        error_in(""),
        "configuration.toml: hypervisor.qemu.kernel is not set: the VM needs a kernel"
    );
    assert_eq!(
        error_in("[hypervisor.qemu]\nkernel = \"/k\"\nimage = \"/kata.img\"\n"),
        "configuration.toml: hypervisor.qemu.initrd is not set: the VM boots from an initrd, not from an image"
    );
}

#[test]
fn a_missing_key_is_recognized_in_a_misspelt_one() {
    assert_eq!(
        error_in("[hypervisor.qemu]\nkernal = \"/k\"\n"),
        "configuration.toml: hypervisor.qemu.kernel is not set: the VM needs a kernel (configuration.toml:2: \
         hypervisor.qemu.kernal is unknown and has no effect; did you mean kernel?)"
    );
}

#[test]
fn a_file_that_is_not_there_or_too_large_is_an_error() {
    let error = config::load(Path::new("/nonexistent/configuration.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration /nonexistent/configuration.toml"
    );
    let error = config::load(Path::new("/dev/null")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration /dev/null: not a regular file"
    );
    let large = format!("#{}", "x".repeat(usize::try_from(MAX_FILE_SIZE).unwrap()));
    assert_eq!(error_in(&large), "configuration.toml: larger than 1048576 bytes");
}

#[test]
fn an_unknown_key_is_a_warning_with_the_nearest_one() {
    assert_eq!(
        warnings_in("default_vcpu = 2\nzzz = 1\n[agent.kata]\ndial_timeuot = 3\n"),
        [
            "configuration.toml:4: hypervisor.qemu.default_vcpu is unknown and has no effect; did you mean default_vcpus?",
            "configuration.toml:5: hypervisor.qemu.zzz is unknown and has no effect",
            "configuration.toml:7: agent.kata.dial_timeuot is unknown and has no effect; did you mean dial_timeout?",
        ]
    );
}

#[test]
fn a_known_key_is_a_warning_only_if_it_asks_for_something() {
    assert_eq!(
        warnings_in(
            "enable_iommu = false\nmsize_9p = 8192\npflashes = []\nfirmware = \"\"\nvirtio_fs_cache_size = 0\n"
        ),
        [""; 0]
    );
    assert_eq!(
        warnings_in("enable_iommu = true\n[runtime]\nenable_pprof = true\n"),
        [
            "configuration.toml:4: hypervisor.qemu.enable_iommu is not supported and has no effect: the guest has no \
             IOMMU",
            "configuration.toml:6: runtime.enable_pprof is not supported and has no effect: the shim has no profiler",
        ]
    );
}

#[test]
fn a_table_that_nobody_has_is_a_warning_and_an_empty_one_is_nothing() {
    assert_eq!(
        warnings_in("[factory]\n[nonsense]\n[runtimes]\na = 1\n[hypervisor.clh]\npath = \"/c\"\n"),
        [
            "configuration.toml:6: runtimes is unknown and has no effect; did you mean runtime?",
            "configuration.toml:8: hypervisor.clh is not supported and has no effect: the hypervisor is QEMU",
        ]
    );
}

#[test]
fn a_drop_in_replaces_single_keys_in_the_order_of_the_names() {
    let files = Files::new(&format!("{NEEDED}default_memory = 512\ndefault_vcpus = 1\n"));
    let second = files.drop_in("20.toml", "[hypervisor.qemu]\ndefault_memory = 2048\n");
    let first = files.drop_in(
        "10.toml",
        "[hypervisor.qemu]\ndefault_memory = 1024\ndefault_vcpus = 2\n",
    );
    files.drop_in("30.toml.off", "this is not read");
    let loaded = files.load().unwrap();
    assert_eq!(loaded.files, [files.path(), first, second]);
    assert_eq!(loaded.config.hypervisor.default_memory, Mebibytes(2048));
    assert_eq!(
        loaded.config.hypervisor.default_vcpus,
        Vcpus::Count(NonZeroU32::new(2).unwrap())
    );
    assert_eq!(loaded.config.hypervisor.kernel, Path::new("/k"));
}

#[test]
fn drop_ins_belong_to_the_file_that_a_link_points_to() {
    let files = Files::new(NEEDED);
    let drop_in = files.drop_in("10.toml", "[hypervisor.qemu]\ndefault_memory = 1024\n");
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("configuration.toml");
    std::os::unix::fs::symlink(files.path(), &link).unwrap();
    let loaded = config::load(&link).unwrap();
    assert_eq!(loaded.files, [link, drop_in]);
    assert_eq!(loaded.config.hypervisor.default_memory, Mebibytes(1024));
}

#[test]
fn an_error_in_a_drop_in_names_the_drop_in() {
    let files = Files::new(NEEDED);
    files.drop_in("10.toml", "\n[agent.kata]\ndial_timeout = 0\n");
    let error = files.load().unwrap_err();
    assert_eq!(
        files.said(&error),
        "config.d/10.toml:3: agent.kata.dial_timeout = 0: must be a whole number of seconds from 1 to 3600"
    );
}

#[test]
fn vcpus_are_read_as_kata_reads_them() {
    for (text, expected) in [
        ("-1", Vcpus::Host),
        ("-0.5", Vcpus::Host),
        ("0", one()),
        ("0.5", one()),
        ("1", one()),
        ("1e99", most()),
    ] {
        let files = Files::new(&format!("{NEEDED}default_vcpus = {text}\n"));
        assert_eq!(
            files.load().unwrap().config.hypervisor.default_vcpus,
            expected,
            "{text}"
        );
    }
}

fn one() -> Vcpus {
    Vcpus::Count(NonZeroU32::MIN)
}

fn most() -> Vcpus {
    Vcpus::Count(NonZeroU32::MAX)
}

#[test]
fn an_empty_string_leaves_a_key_unset_as_in_kata() {
    let files = Files::new(&format!(
        "{NEEDED}machine_type = \"\"\nshared_fs = \"\"\nseccompsandbox = \"\"\n"
    ));
    let config = files.load().unwrap().config;
    assert_eq!(config.hypervisor.shared_fs, SharedFs::VirtioFs);
    assert_eq!(config.hypervisor.seccompsandbox, None);
}

#[test]
fn the_agents_table_may_have_the_timeout_of_a_create_as_in_runtime_rs() {
    let files = Files::new(&format!("{NEEDED}[agent.kata]\ncreate_container_timeout = 30\n"));
    assert_eq!(
        files.load().unwrap().config.runtime.create_container_timeout,
        Duration::from_secs(30)
    );
}

#[test]
fn the_runtimes_options_come_before_the_environment() {
    let (options, environment) = (Path::new("/options.toml"), Path::new("/environment.toml"));
    assert_eq!(config::locate(Some(options), Some(environment)), options);
    assert_eq!(config::locate(None, Some(environment)), environment);
    assert_eq!(config::locate(Some(Path::new("")), Some(environment)), environment);
    let default = config::locate(None, None);
    assert!(config::DEFAULT_PATHS.iter().any(|path| default == Path::new(path)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_loaded_or_refused(text: String) {
        let _ = Files::new(&text).load();
    }

    #[test]
    fn any_value_of_any_key_is_taken_or_refused(key in "[a-z_]{1,30}", value in "\\PC{0,40}") {
        let _ = Files::new(&format!("{NEEDED}{key} = {value}\n")).load();
    }

    #[test]
    fn any_number_of_a_supported_key_is_taken_or_refused(
        key in prop::sample::select(vec!["default_vcpus", "default_maxvcpus", "default_memory", "default_maxmemory",
            "virtio_fs_queue_size", "enable_annotations", "path"]),
        value in "-?(0x[0-9a-f]{1,20}|[0-9]{1,25}|[0-9]{1,5}\\.[0-9]{1,5}|inf|\\[\\[[0-9]\\]\\])",
    ) {
        let _ = Files::new(&format!("{NEEDED}{key} = {value}\n")).load();
    }
}

#[test]
fn what_reaches_the_guest_by_the_shared_directory_is_refused_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configuration.toml");
    for (table, key, value) in [
        ("agent.kata", "kernel_modules", "nfs"),
        ("runtime", "sandbox_bind_mounts", "/srv"),
    ] {
        let text = format!("{NEEDED}shared_fs = \"none\"\n[{table}]\n{key} = [\"{value}\"]\n");
        std::fs::write(&path, text).unwrap();
        let said = config::load(&path).unwrap_err().to_string();
        assert!(
            said.contains(&format!("{table}.{key} needs")) && said.contains("shared_fs"),
            "{said}"
        );
    }
}

#[test]
fn what_the_guest_itself_has_of_the_host_has_a_name_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configuration.toml");
    let load = |value: &str| {
        std::fs::write(&path, format!("{NEEDED}[runtime]\nsandbox_bind_mounts = {value}\n")).unwrap();
        config::load(&path)
    };
    let config = load("[\"/srv/a\", \"/srv/b:rw\"]").unwrap().config;
    let shown = config.to_table()["runtime"]["sandbox_bind_mounts"].to_string();
    assert_eq!(shown, "[\"/srv/a\", \"/srv/b:rw\"]");
    for value in ["[\"/srv/a\", \"/opt/a:rw\"]", "[\"srv\"]", "\"/srv\""] {
        let said = load(value).unwrap_err().to_string();
        assert!(said.contains("whose last parts differ"), "{said}");
    }
}

#[test]
fn tracing_says_what_it_does_otherwise_than_katas() {
    let on = "[runtime]\nenable_tracing = true\n";
    assert_eq!(warnings_in(on), [""; 0]);
    assert_eq!(
        warnings_in(&format!("{on}jaeger_endpoint = \"http://c:4318/v1/traces\"\n")),
        [""; 0]
    );
    // Of Kata's own default nothing is said while nothing is traced.
    let kata = "jaeger_endpoint = \"http://localhost:14268/api/traces\"\n";
    assert_eq!(warnings_in(&format!("[runtime]\n{kata}")), [""; 0]);
    let said = warnings_in(&format!("{on}{kata}"));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("runtime.jaeger_endpoint: spans are not sent there"),
        "{said:?}"
    );
    let said = warnings_in("[agent.kata]\nenable_tracing = true\n");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("runtime.enable_tracing: without runtime.enable_tracing"),
        "{said:?}"
    );
    for (key, value) in [
        ("jaeger_endpoint", "https://c/v1/traces"),
        ("jaeger_endpoint", "http:///v1/traces"),
        ("jaeger_endpoint", "http://c /v1/traces"),
        ("jaeger_user", "a:b"),
    ] {
        let error = error_in(&format!("{NEEDED}[runtime]\n{key} = \"{value}\"\n"));
        assert!(error.contains(&format!("runtime.{key}")), "{error}");
    }
}
