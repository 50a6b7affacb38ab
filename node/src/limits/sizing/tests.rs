//! Tests of the VM's size for given limits.

use super::*;
use proptest::prelude::*;

fn size(vcpus: u32, memory: u32) -> Size {
    Size {
        vcpus: NonZeroU32::new(vcpus).unwrap(),
        memory: Mebibytes(memory),
    }
}

fn limits(milli: u64, bytes: u64) -> Limits {
    let json = serde_json::json!({
        "cpu": { "quota": milli * 100, "period": 100_000 },
        "memory": { "limit": bytes },
    });
    Limits::of(&serde_json::from_value(json).unwrap())
}

const MIB: u64 = 1 << 20;
const HOST: HostRule = HostRule {
    kubelet: false,
    overhead: Mebibytes(128),
    threads: 100,
};

fn sizing(fixed: bool, pod: Limits, first: Limits) -> Sizing {
    Sizing::before_the_boot(size(1, 256), size(8, 16_384), pod, first, HOST).at_boot(fixed)
}

#[test]
fn with_an_overhead_a_vm_is_its_limits_and_that_as_in_katas_runtime_rs() {
    let of = |milli, memory, pod: Limits| {
        let free = Sizing::before_the_boot(size(2, 1024), size(8, 16_384), pod, Limits::default(), HOST);
        let overhead = Some(Overhead {
            milli,
            memory: Mebibytes(memory),
        });
        Sizing { overhead, ..free }.at_boot(true).boot()
    };
    let only_memory = Limits::of(&serde_json::from_str(r#"{"memory":{"limit":536870912}}"#).unwrap());
    let only_cpus = Limits::of(&serde_json::from_str(r#"{"cpu":{"quota":150000}}"#).unwrap());
    for (milli, memory, limits, expected) in [
        // The examples of its how-to-size-sandbox-overhead-runtime-rs.md.
        (500, 128, limits(1500, 600 * MIB), size(2, 728)),
        (500, 128, only_memory, size(1, 640)),
        (500, 128, only_cpus, size(2, 128)),
        (0, 0, limits(1500, 600 * MIB), size(2, 600)),
        (500, 128, Limits::default(), size(2, 1024)),
        // Where there would be none, and where there would be too little.
        (0, 0, only_cpus, size(2, 1024)),
        (0, 1, limits(1, MIB), size(1, 64)),
    ] {
        let boot = of(milli, memory, limits);
        assert_eq!(
            (boot.size, boot.beyond),
            (expected, None),
            "{milli} {memory} {limits:?}"
        );
    }
    let beyond = of(500, 128, limits(9000, MIB));
    assert_eq!((beyond.size, beyond.beyond), (size(8, 129), Some(size(10, 129))));
}

#[test]
fn without_limits_a_vm_is_what_the_configuration_says() {
    let sizing = sizing(false, Limits::default(), Limits::default());
    assert_eq!(sizing.boot().size, size(1, 256));
    assert_eq!(sizing.wanted([]).size, size(1, 256));
    assert!(!sizing.is_fixed());
}

#[test]
fn a_containers_limits_are_there_at_the_boot() {
    let sizing = sizing(false, Limits::default(), limits(1500, 640 * MIB));
    assert_eq!(sizing.boot().size, size(2, 256 + 640 + 10));
    assert_eq!(sizing.boot().beyond, None);
}

#[test]
fn containers_of_a_pod_come_one_by_one_and_the_pods_own_word_counts_from_the_start() {
    let plain = sizing(false, Limits::default(), Limits::default());
    let pair = [limits(500, 64 * MIB), limits(700, 128 * MIB)];
    assert_eq!(plain.wanted(pair).size, size(2, 256 + 192 + 3));
    let pod = sizing(false, limits(1200, 192 * MIB), Limits::default());
    assert_eq!(pod.boot().size, size(2, 256 + 192 + 3));
    assert_eq!(pod.wanted([pair[0]]).size, pod.boot().size);
    assert_eq!(pod.wanted([pair[0], pair[1], pair[1]]).size, size(2, 256 + 320 + 5));
}

#[test]
fn more_than_the_most_is_cut_and_told() {
    let plain = sizing(false, Limits::default(), Limits::default());
    let wanted = plain.wanted([limits(9000, 16_384 * MIB)]);
    assert_eq!(wanted.size, size(8, 16_384));
    assert_eq!(wanted.beyond, Some(size(9, 256 + 16_384 + 256)));
}

#[test]
fn a_fixed_vm_stays_as_it_booted() {
    let sizing = sizing(true, limits(2000, 256 * MIB), Limits::default());
    assert_eq!(sizing.boot().size, size(2, 256 + 256 + 4));
    assert!(sizing.is_fixed());
    let wanted = sizing.wanted([limits(3000, 1024 * MIB)]);
    assert_eq!(wanted.size, sizing.boot().size);
    let mut config = Config::default();
    sizing.apply(&mut config);
    assert_eq!(config.hypervisor.default_memory, Mebibytes(516));
    assert_eq!(config.hypervisor.default_maxmemory, Some(Mebibytes(516)));
    assert_eq!(config.hypervisor.default_maxvcpus, config.hypervisor.default_vcpus);
}

#[test]
fn memory_grows_for_who_has_no_limit_up_to_the_configurations_and_never_on_huge_pages() {
    let of = |change: fn(&mut Config)| {
        let mut config = Config::default();
        config.hypervisor.default_maxmemory = Some(Mebibytes(4096));
        change(&mut config);
        Sizing::new(&config, &Spec::default())
    };
    let sizing = of(|_| {});
    assert_eq!(sizing.growth(), Mebibytes(2048 - 256));
    assert_eq!(
        sizing.wanted_with([limits(0, 64 * MIB)], Mebibytes(512)).size.memory,
        Mebibytes(256 + 65 + 512)
    );
    assert_eq!(sizing.wanted_with([], Mebibytes(u32::MAX)).size.memory, Mebibytes(4096));
    for off in [
        |config: &mut Config| config.hypervisor.default_memory_limit = None,
        |config: &mut Config| config.hypervisor.default_memory = Mebibytes(2048),
        |config: &mut Config| config.hypervisor.default_maxmemory = Some(Mebibytes(256)),
        |config: &mut Config| config.hypervisor.enable_hugepages = true,
        |config: &mut Config| config.runtime.static_sandbox_resource_mgmt = true,
    ] {
        assert_eq!(of(off).growth(), Mebibytes(0));
    }
    assert_eq!(
        of(|config| config.hypervisor.default_maxmemory = Some(Mebibytes(320))).growth(),
        Mebibytes(64)
    );
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (0..20_000u64, 0..1u64 << 36).prop_map(|(milli, bytes)| limits(milli, bytes))
}

proptest! {
    #[test]
    fn what_is_wanted_lies_between_the_boot_and_the_most_and_grows_with_each_container(
        pod in any_limits(), first in any_limits(), fixed: bool,
        all in prop::collection::vec(any_limits(), 0..6), one in any_limits(),
    ) {
        let sizing = sizing(fixed, pod, first);
        let few = sizing.wanted(all.clone());
        let more = sizing.wanted(all.into_iter().chain([one]));
        for wanted in [few, more] {
            prop_assert!(wanted.size.vcpus >= sizing.boot().size.vcpus && wanted.size.memory >= sizing.boot().size.memory);
            prop_assert!(wanted.size.vcpus.get() <= 8 && wanted.size.memory.0 <= 16_384);
        }
        prop_assert!(more.size.vcpus >= few.size.vcpus && more.size.memory >= few.size.memory);
    }

    #[test]
    fn a_container_fits_into_what_it_gets_unless_it_is_told(one in any_limits()) {
        let wanted = sizing(false, Limits::default(), Limits::default()).wanted([one]);
        let (bytes, milli) = (wanted.size.memory.bytes(), u64::from(wanted.size.vcpus.get()) * 1000);
        let fits = bytes >= one.memory_bytes() + one.memory_bytes() / 64 + (256 << 20) && milli >= one.cpu_milli();
        prop_assert!(fits || wanted.beyond.is_some());
    }
}
