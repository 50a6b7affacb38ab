//! Decides which events are kept while containerd does not accept them. Pure.
//!
//! An exit is always kept. There is one for each process that containerd has requested, so the guest cannot create them.
//! OOM events are the only other ones that a guest can cause, in any number: if many events wait, an OOM event that
//! repeats a waiting one is left out. The rest are answers to containerd's own calls: if there are too many, the oldest
//! is dropped.

use std::collections::VecDeque;

use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics::{TASK_CREATE_EVENT_TOPIC, TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC};

/// Events other than exits that are kept.
pub(super) const OTHERS: usize = 4096;

/// From so many waiting events on, an OOM of a container is told once. Below that each is: clients count them.
pub(super) const MANY: usize = 64;

/// What waits, in the order in which it happened.
#[derive(Default)]
pub(super) struct Backlog {
    envelopes: VecDeque<Envelope>,
    /// Events that are not exits: the ones that may be dropped.
    others: usize,
    /// Number of events dropped since the start.
    lost: u64,
}

/// What adding an event has meant for the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    All,
    /// One that waits says the same already.
    Merged,
    /// One event was dropped.
    Without {
        topic: String,
        /// Number dropped since the start.
        lost: u64,
    },
}

impl Backlog {
    pub(super) fn add(&mut self, envelope: Envelope) -> Kept {
        if self.says(&envelope) {
            return Kept::Merged;
        }
        let exit = is_exit(&envelope);
        self.envelopes.push_back(envelope);
        if exit {
            return Kept::All;
        }
        self.others += 1;
        if self.others <= OTHERS {
            return Kept::All;
        }
        let oldest = self.envelopes.iter().position(|envelope| !is_exit(envelope));
        let topic = oldest
            .and_then(|at| self.envelopes.remove(at))
            .map(|envelope| envelope.topic);
        self.others -= 1;
        self.lost += 1;
        Kept::Without {
            topic: topic.unwrap_or_default(),
            lost: self.lost,
        }
    }

    /// Whether an OOM of the same container waits. Not across a creation: the id may be another container's since.
    fn says(&self, envelope: &Envelope) -> bool {
        let later = self.envelopes.iter().rev();
        envelope.topic == TASK_OOM_EVENT_TOPIC
            && self.others >= MANY
            && later
                .take_while(|waits| waits.topic != TASK_CREATE_EVENT_TOPIC)
                .any(|waits| waits.topic == envelope.topic && waits.event == envelope.event)
    }

    pub(super) fn front(&self) -> Option<&Envelope> {
        self.envelopes.front()
    }

    pub(super) fn len(&self) -> usize {
        self.envelopes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }

    /// containerd has this one. It may have been dropped while it was sent.
    pub(super) fn taken(&mut self, envelope: &Envelope) {
        if self.envelopes.front() == Some(envelope) {
            self.envelopes.pop_front();
            self.others -= usize::from(!is_exit(envelope));
        }
    }
}

impl Backlog {
    /// containerd refuses this one. An exit is offered again after the others: containerd would believe for ever that the process runs.
    pub(super) fn refused(&mut self, envelope: &Envelope) {
        let first = self.envelopes.front() == Some(envelope);
        self.taken(envelope);
        if first && is_exit(envelope) {
            self.envelopes.push_back(envelope.clone());
        }
    }
}

fn is_exit(envelope: &Envelope) -> bool {
    envelope.topic == TASK_EXIT_EVENT_TOPIC
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::well_known_types::any::Any;
    use containerd_shim_protos::topics::TASK_EXEC_ADDED_EVENT_TOPIC;
    use proptest::prelude::*;

    use super::*;

    fn event(topic: &str, of: u8) -> Envelope {
        Envelope {
            topic: topic.to_owned(),
            event: Some(Any {
                value: vec![of],
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    fn waiting(backlog: &Backlog) -> Vec<(&str, u8)> {
        let events = backlog.envelopes.iter();
        events
            .map(|event| (event.topic.as_str(), event.event.value[0]))
            .collect()
    }

    #[test]
    fn where_many_wait_an_oom_is_not_repeated_until_the_id_is_used_again() {
        let mut backlog = Backlog::default();
        for _ in 1..MANY {
            assert_eq!(backlog.add(event(TASK_OOM_EVENT_TOPIC, 1)), Kept::All);
        }
        assert_eq!(backlog.add(event(TASK_OOM_EVENT_TOPIC, 2)), Kept::All);
        for _ in 0..OTHERS * 2 {
            assert_eq!(backlog.add(event(TASK_OOM_EVENT_TOPIC, 1)), Kept::Merged);
        }
        backlog.add(event(TASK_EXIT_EVENT_TOPIC, 1));
        backlog.add(event(TASK_CREATE_EVENT_TOPIC, 1));
        assert_eq!(backlog.add(event(TASK_OOM_EVENT_TOPIC, 1)), Kept::All);
        assert_eq!(backlog.len(), MANY + 3);
    }

    #[test]
    fn the_oldest_that_is_no_exit_goes_and_is_counted() {
        let mut backlog = Backlog::default();
        backlog.add(event(TASK_EXIT_EVENT_TOPIC, 0));
        for _ in 0..OTHERS {
            assert_eq!(backlog.add(event(TASK_EXEC_ADDED_EVENT_TOPIC, 1)), Kept::All);
        }
        for lost in 1..4 {
            let kept = backlog.add(event(TASK_EXEC_ADDED_EVENT_TOPIC, 2));
            let topic = TASK_EXEC_ADDED_EVENT_TOPIC.to_owned();
            assert_eq!(kept, Kept::Without { topic, lost });
        }
        assert_eq!(
            (backlog.len(), waiting(&backlog)[0]),
            (OTHERS + 1, (TASK_EXIT_EVENT_TOPIC, 0))
        );
    }

    #[test]
    fn an_exit_that_is_refused_waits_behind_the_others_and_they_go() {
        let mut backlog = Backlog::default();
        backlog.add(event(TASK_EXIT_EVENT_TOPIC, 1));
        backlog.add(event(TASK_EXEC_ADDED_EVENT_TOPIC, 2));
        backlog.refused(&event(TASK_EXIT_EVENT_TOPIC, 1));
        assert_eq!(
            waiting(&backlog),
            [(TASK_EXEC_ADDED_EVENT_TOPIC, 2), (TASK_EXIT_EVENT_TOPIC, 1)]
        );
        backlog.refused(&event(TASK_EXEC_ADDED_EVENT_TOPIC, 2));
        assert_eq!(waiting(&backlog), [(TASK_EXIT_EVENT_TOPIC, 1)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn exits_are_never_lost_and_all_that_is_kept_is_in_order(
            kinds in prop::collection::vec((0_usize..8, any::<u8>(), any::<bool>()), 0..300),
            // What is there before, so that the bound is reached.
            before in 0..=OTHERS,
        ) {
            let topics = [TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC, TASK_CREATE_EVENT_TOPIC, TASK_EXEC_ADDED_EVENT_TOPIC];
            let mut backlog = Backlog::default();
            let mut all: Vec<Envelope> = (0..before).map(|_| event(TASK_EXEC_ADDED_EVENT_TOPIC, 0)).collect();
            for event in &all {
                backlog.add(event.clone());
            }
            let mut taken = Vec::new();
            for (kind, of, takes) in kinds {
                let next = event(topics[kind % topics.len()], of);
                all.push(next.clone());
                backlog.add(next);
                if takes && let Some(front) = backlog.front().cloned() {
                    backlog.taken(&front);
                    taken.push(front);
                }
                prop_assert!(backlog.others <= OTHERS);
            }
            let seen: Vec<_> = taken.iter().chain(&backlog.envelopes).collect();
            let exits = |events: &[&Envelope]| events.iter().filter(|event| is_exit(event)).count();
            prop_assert_eq!(exits(&seen), exits(&all.iter().collect::<Vec<_>>()));
            prop_assert_eq!(backlog.others, backlog.envelopes.iter().filter(|event| !is_exit(event)).count());
            let mut rest = all.iter();
            prop_assert!(seen.into_iter().all(|kept| rest.any(|one| one == kept)));
        }
    }
}
