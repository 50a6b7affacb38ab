//! A table of cases, and properties that hold in all of them.

use config::{CapIpcLock, Memlock};
use proptest::prelude::*;

use super::*;

const UNLIMITED: u64 = u64::MAX;

fn rlimit(soft: u64, hard: u64) -> PosixRlimit {
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitMemlock)
        .soft(soft)
        .hard(hard)
        .build()
        .unwrap()
}

fn parsed(text: &str) -> LockLimit {
    LockLimit::parse(text).unwrap()
}

fn annotations(memlock: &str, cap_ipc_lock: &str) -> Annotations {
    let value = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Annotations {
        memlock: value(memlock),
        cap_ipc_lock: value(cap_ipc_lock),
    }
}

fn rules(default: &str, max: &str, on_excess: OnExcess) -> Rules {
    Rules {
        memlock: Memlock {
            default: parsed(default),
            max: parsed(max),
            on_excess,
            ..Memlock::default()
        },
        cap_ipc_lock: CapIpcLock::default(),
    }
}

fn limit_of(given: &[PosixRlimit], rules: &Rules, container: &str, pod: &str) -> Result<(u64, u64), String> {
    let process = Described {
        rlimits: given,
        capabilities: None,
    };
    let decision = decide(process, rules, &annotations(container, ""), &annotations(pod, ""));
    let decision = decision.map_err(|error| error.to_string())?;
    Ok((decision.soft.as_rlimit(), decision.hard.as_rlimit()))
}

#[test]
fn the_limit_comes_from_the_first_place_that_has_one() {
    let shipped = Rules::default();
    let other = rules("64KiB", "1GiB", OnExcess::Deny);
    let given = [rlimit(1, 2)];
    let none: [PosixRlimit; 0] = [];
    for (given, rules, container, pod, expected) in [
        (&none[..], &shipped, "", "", (8 << 20, 8 << 20)),
        (&none, &other, "", "", (65536, 65536)),
        (&none, &shipped, "", "1MiB", (1 << 20, 1 << 20)),
        (&none, &shipped, "4096:2MiB", "1MiB", (4096, 2 << 20)),
        (&none, &shipped, "unlimited", "", (UNLIMITED, UNLIMITED)),
        (&none, &shipped, "0:unlimited", "", (0, UNLIMITED)),
        (&given, &shipped, "1MiB", "2MiB", (1, 2)),
        (&none, &other, "1GiB", "", (1 << 30, 1 << 30)),
    ] {
        assert_eq!(
            limit_of(given, rules, container, pod),
            Ok(expected),
            "{container} {pod}"
        );
    }
    // Another limit is none of its business.
    assert_eq!(
        limit_of(&[PosixRlimit::default()], &shipped, "", ""),
        Ok((8 << 20, 8 << 20))
    );
}

#[test]
fn a_limit_above_the_ceiling_is_refused_or_cut_wherever_it_comes_from() {
    let (deny, clamp) = (
        rules("1MiB", "4MiB", OnExcess::Deny),
        rules("1MiB", "4MiB", OnExcess::Clamp),
    );
    let ceiling = "must be at most 4MiB, which is runtime.memlock.max (runtime.memlock.on_excess is deny)";
    let given = [rlimit(1, UNLIMITED)];
    let by_annotation = "annotation io.katacontainers.container.resource.memlock of the container";
    assert_eq!(
        limit_of(&[], &deny, "8MiB", ""),
        Err(format!("{by_annotation} = 8MiB: {ceiling}"))
    );
    assert_eq!(
        limit_of(&[], &deny, "1MiB:4194305", ""),
        Err(format!("{by_annotation} = 1MiB:4194305: {ceiling}"))
    );
    assert_eq!(
        limit_of(&given, &deny, "", ""),
        Err(format!("process.rlimits RLIMIT_MEMLOCK = 1:unlimited: {ceiling}"))
    );
    assert_eq!(limit_of(&[], &deny, "4MiB", ""), Ok((4 << 20, 4 << 20)));
    assert_eq!(limit_of(&[], &clamp, "8MiB", ""), Ok((4 << 20, 4 << 20)));
    assert_eq!(limit_of(&[], &clamp, "1MiB:unlimited", ""), Ok((1 << 20, 4 << 20)));
    assert_eq!(limit_of(&given, &clamp, "", ""), Ok((1, 4 << 20)));
    let low = rules("8MiB", "4MiB", OnExcess::Deny);
    assert_eq!(
        limit_of(&[], &low, "", ""),
        Err(format!("runtime.memlock.default = 8MiB: {ceiling}"))
    );
}

#[test]
fn what_means_nothing_is_refused_also_where_another_place_counts() {
    let shipped = Rules::default();
    let size = "SIZE or SOFT:HARD, each of them \"unlimited\", or a whole number of bytes, or one of KiB, MiB, GiB or TiB \
                as in \"64MiB\"";
    let name = "annotation io.katacontainers.container.resource.memlock of the";
    for value in ["8MB", "-1", "1:2:3", ":", "8MiB:", "x", "8 MiB", "99999999TiB"] {
        assert_eq!(
            limit_of(&[rlimit(1, 1)], &shipped, value, "1MiB"),
            Err(format!("{name} container = \"{value}\": must be {size}"))
        );
        assert_eq!(
            limit_of(&[], &shipped, "1MiB", value),
            Err(format!("{name} pod = \"{value}\": must be {size}"))
        );
    }
    assert_eq!(
        limit_of(&[], &shipped, "2MiB:1MiB", ""),
        Err(format!(
            "{name} container = 2MiB:1MiB: the soft limit must be at most the hard one"
        ))
    );
    assert_eq!(
        limit_of(&[rlimit(2, 1)], &shipped, "", ""),
        Err("process.rlimits RLIMIT_MEMLOCK = 2:1: the soft limit must be at most the hard one".to_owned())
    );
}

#[test]
fn of_the_same_limit_twice_the_last_one_counts_and_one_is_left() {
    let decision = decide(
        Described {
            rlimits: &[rlimit(4, 4), rlimit(1, 2)],
            capabilities: None,
        },
        &Rules::default(),
        &Annotations::default(),
        &Annotations::default(),
    )
    .unwrap();
    assert_eq!((decision.soft.as_rlimit(), decision.hard.as_rlimit()), (1, 2));
    let mut rlimits = vec![rlimit(4, 4), rlimit(1, 2)];
    decision.limit(&mut rlimits);
    assert_eq!(rlimits, [rlimit(1, 2)]);
}

#[test]
fn an_annotation_that_the_configuration_does_not_allow_is_refused() {
    let mut rules = Rules::default();
    rules.memlock.allow_annotation = false;
    rules.cap_ipc_lock.allow_annotation = false;
    let process = Described {
        rlimits: &[],
        capabilities: None,
    };
    for (written, key) in [
        (
            annotations("1MiB", ""),
            "resource.memlock of the pod = \"1MiB\" is not allowed: runtime.memlock.allow_annotation is false",
        ),
        (
            annotations("", "drop"),
            "cap_ipc_lock of the pod = \"drop\" is not allowed: runtime.cap_ipc_lock.allow_annotation is false",
        ),
    ] {
        let error = decide(process, &rules, &Annotations::default(), &written).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("annotation io.katacontainers.container.{key}")
        );
    }
}

/// The sets in which the capability is, by their first letters: bounding, permitted, effective, inheritable, ambient.
fn letters(sets: Option<&LinuxCapabilities>) -> String {
    let has = |set: &Option<Capabilities>| set.as_ref().is_some_and(|set| set.contains(&Capability::IpcLock));
    let Some(sets) = sets else { return "none".to_owned() };
    [
        ('b', sets.bounding()),
        ('p', sets.permitted()),
        ('e', sets.effective()),
        ('i', sets.inheritable()),
        ('a', sets.ambient()),
    ]
    .into_iter()
    .filter(|(_, set)| has(set))
    .map(|(letter, _)| letter)
    .collect()
}

/// Sets that hold CAP_CHOWN everywhere, and CAP_IPC_LOCK where the letters say.
fn sets(letters: &str) -> LinuxCapabilities {
    let set = |letter: char| {
        let mut set = Capabilities::from([Capability::Chown]);
        if letters.contains(letter) {
            set.insert(Capability::IpcLock);
        }
        Some(set)
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(set('b'))
        .set_permitted(set('p'))
        .set_effective(set('e'))
        .set_inheritable(set('i'))
        .set_ambient(set('a'));
    sets
}

fn with_policy(policy: CapPolicy, ambient: bool) -> Rules {
    Rules {
        cap_ipc_lock: CapIpcLock {
            policy,
            ambient,
            ..CapIpcLock::default()
        },
        ..Rules::default()
    }
}

#[test]
fn an_annotation_gives_nothing_to_who_has_dropped_all_unless_the_operator_says_so() {
    let dropped = |kept: &[Capability]| {
        let mut sets = sets("");
        sets.set_bounding(Some(kept.iter().copied().collect()));
        sets
    };
    let none = Annotations::default();
    for kept in [&[][..], &[Capability::NetBindService]] {
        let sets = dropped(kept);
        let process = Described {
            rlimits: &[],
            capabilities: Some(&sets),
        };
        let allowed = |rules: &Rules, wish: &str| decide(process, rules, &annotations("", wish), &none);
        for wish in ["grant", "ambient"] {
            let error = allowed(&Rules::default(), wish).unwrap_err().to_string();
            let key = "is not allowed: runtime.cap_ipc_lock.grant_to_dropped is false";
            assert!(error.contains(wish) && error.ends_with(key), "{error}");
            assert!(decide(process, &Rules::default(), &none, &annotations("", wish)).is_err());
            let mut rules = Rules::default();
            rules.cap_ipc_lock.grant_to_dropped = true;
            assert!(letters(allowed(&rules, wish).unwrap().capabilities.as_ref()).contains("bpe"));
            // Where the policy itself grants, or drops, the annotation is no matter.
            for policy in [CapPolicy::Grant, CapPolicy::Drop] {
                assert!(allowed(&with_policy(policy, false), wish).is_ok());
            }
        }
        for wish in ["spec", "drop"] {
            assert!(allowed(&Rules::default(), wish).is_ok());
        }
    }
    let some = dropped(&[Capability::NetBindService, Capability::Chown]);
    let process = Described {
        rlimits: &[],
        capabilities: Some(&some),
    };
    assert!(decide(process, &Rules::default(), &annotations("", "grant"), &none).is_ok());
}

#[test]
fn the_capability_is_as_specified_granted_or_dropped() {
    use CapPolicy::{Drop, Grant, Spec};
    for (policy, ambient, container, pod, given, expected) in [
        (Spec, false, "", "", "", ""),
        (Spec, false, "", "", "bpe", "bpe"),
        (Spec, false, "", "", "bpeia", "bpeia"),
        // What is held becomes ambient; what is not held is not granted by that.
        (Spec, true, "", "", "bpe", "bpeia"),
        (Spec, true, "", "", "b", "bpeia"),
        (Spec, true, "", "", "", ""),
        (Spec, true, "", "", "i", "i"),
        (Grant, false, "", "", "", "bpe"),
        (Grant, true, "", "", "", "bpeia"),
        (Drop, false, "", "", "bpeia", ""),
        (Drop, true, "", "", "bpeia", ""),
        (Spec, false, "grant", "", "", "bpe"),
        (Spec, false, "ambient", "", "", "bpeia"),
        (Spec, true, "grant", "", "", "bpeia"),
        (Spec, false, "drop", "", "bpe", ""),
        (Grant, false, "spec", "", "", ""),
        (Grant, true, "spec", "", "bpe", "bpeia"),
        // The container's own annotation comes before the pod's, but a drop before all.
        (Spec, false, "grant", "ambient", "", "bpe"),
        (Spec, false, "", "ambient", "", "bpeia"),
        (Spec, false, "ambient", "drop", "bpe", ""),
        (Spec, false, "drop", "ambient", "bpe", ""),
        (Grant, true, "", "drop", "bpe", ""),
        (Drop, true, "ambient", "grant", "bpe", ""),
        (Drop, false, "spec", "spec", "bpe", ""),
    ] {
        let given = sets(given);
        let process = Described {
            rlimits: &[],
            capabilities: Some(&given),
        };
        let rules = with_policy(policy, ambient);
        let decision = decide(process, &rules, &annotations("", container), &annotations("", pod)).unwrap();
        let case = format!("{policy} {ambient} {container:?} {pod:?}");
        assert_eq!(letters(decision.capabilities.as_ref()), expected, "{case}");
        let bounding = decision.capabilities.unwrap().bounding().clone().unwrap();
        assert!(bounding.contains(&Capability::Chown), "{case}: the others stay");
        let asks = ["grant", "ambient"].iter().any(|wish| [container, pod].contains(wish));
        assert_eq!(!decision.notes.is_empty(), policy == Drop && asks, "{case}");
    }
}

#[test]
fn a_process_without_sets_gets_none_but_what_is_granted() {
    let process = Described {
        rlimits: &[],
        capabilities: None,
    };
    for (wish, expected) in [("", "none"), ("drop", "none"), ("grant", "bpe"), ("ambient", "bpeia")] {
        let decision = decide(
            process,
            &Rules::default(),
            &annotations("", wish),
            &Annotations::default(),
        )
        .unwrap();
        assert_eq!(letters(decision.capabilities.as_ref()), expected, "{wish}");
        if let Some(sets) = decision.capabilities {
            assert_eq!(
                sets.bounding().as_ref().unwrap().len(),
                1,
                "nothing of the crate's defaults"
            );
        }
    }
}

#[test]
fn a_wish_that_is_none_is_refused() {
    let process = Described {
        rlimits: &[],
        capabilities: None,
    };
    let error = decide(
        process,
        &Rules::default(),
        &annotations("", "yes"),
        &Annotations::default(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "annotation io.katacontainers.container.cap_ipc_lock of the container = \"yes\": must be \"spec\", \"grant\", \
         \"drop\" or \"ambient\""
    );
}

prop_compose! {
    fn any_limit()(bytes in prop_oneof![Just(UNLIMITED), 0..=(16_u64 << 20)]) -> LockLimit {
        LockLimit::from_rlimit(bytes)
    }
}

prop_compose! {
    fn any_rules()(
        default in any_limit(),
        max in any_limit(),
        clamp: bool,
        policy in prop::sample::select(CapPolicy::ALL),
        ambient: bool,
    ) -> Rules {
        let on_excess = if clamp { OnExcess::Clamp } else { OnExcess::Deny };
        Rules {
            memlock: Memlock { default, max, on_excess, ..Memlock::default() },
            ..with_policy(policy, ambient)
        }
    }
}

prop_compose! {
    fn any_annotations()(
        limits in prop::option::of((any_limit(), any_limit())),
        wish in prop::option::of(prop::sample::select(&["spec", "grant", "drop", "ambient"][..])),
    ) -> Annotations {
        Annotations {
            memlock: limits.map(|(soft, hard)| format!("{soft}:{hard}")),
            cap_ipc_lock: wish.map(str::to_owned),
        }
    }
}

prop_compose! {
    fn any_process()(
        limit in prop::option::of((any_limit(), any_limit())),
        letters in prop::option::of("[bpeia]{0,5}"),
    ) -> (Vec<PosixRlimit>, Option<LinuxCapabilities>) {
        let limit = limit.map(|(soft, hard)| rlimit(soft.as_rlimit(), hard.as_rlimit()));
        (limit.into_iter().collect(), letters.as_deref().map(sets))
    }
}

proptest! {
    #[test]
    fn no_limit_is_above_the_ceiling_and_no_soft_one_above_its_hard_one(
        (rlimits, capabilities) in any_process(),
        rules in any_rules(),
        container in any_annotations(),
        pod in any_annotations(),
    ) {
        let process = Described { rlimits: &rlimits, capabilities: capabilities.as_ref() };
        if let Ok(decision) = decide(process, &rules, &container, &pod) {
            prop_assert!(decision.soft <= decision.hard);
            prop_assert!(decision.hard <= rules.memlock.max);
        }
    }

    #[test]
    fn a_drop_anywhere_leaves_no_set_with_the_capability(
        (rlimits, capabilities) in any_process(),
        rules in any_rules(),
        container in any_annotations(),
        pod in any_annotations(),
    ) {
        let process = Described { rlimits: &rlimits, capabilities: capabilities.as_ref() };
        let drops = [&container, &pod].iter().any(|written| written.cap_ipc_lock.as_deref() == Some("drop"));
        if let Ok(decision) = decide(process, &rules, &container, &pod)
            && (drops || rules.cap_ipc_lock.policy == CapPolicy::Drop)
        {
            let letters = letters(decision.capabilities.as_ref());
            prop_assert!(matches!(letters.as_str(), "" | "none"), "{}", letters);
        }
    }

    #[test]
    fn applying_it_twice_changes_nothing(
        (mut rlimits, capabilities) in any_process(),
        rules in any_rules(),
        container in any_annotations(),
        pod in any_annotations(),
    ) {
        let process = Described { rlimits: &rlimits, capabilities: capabilities.as_ref() };
        if let Ok(first) = decide(process, &rules, &container, &pod) {
            first.limit(&mut rlimits);
            let process = Described { rlimits: &rlimits, capabilities: first.capabilities.as_ref() };
            let second = decide(process, &rules, &container, &pod).unwrap();
            prop_assert_eq!((second.soft, second.hard), (first.soft, first.hard));
            prop_assert_eq!(&second.capabilities, &first.capabilities);
            let mut again = rlimits.clone();
            second.limit(&mut again);
            prop_assert_eq!(again, rlimits);
        }
    }

    #[test]
    fn every_refusal_names_the_key_and_what_is_allowed(
        (rlimits, capabilities) in any_process(),
        rules in any_rules(),
        container in any_annotations(),
        pod in any_annotations(),
    ) {
        let process = Described { rlimits: &rlimits, capabilities: capabilities.as_ref() };
        if let Err(error) = decide(process, &rules, &container, &pod) {
            let text = error.to_string();
            prop_assert!(["RLIMIT_MEMLOCK", MEMLOCK, "runtime.memlock.default"].iter().any(|key| text.contains(key)));
            prop_assert!(text.contains("must be at most "), "{}", text);
        }
    }
}
