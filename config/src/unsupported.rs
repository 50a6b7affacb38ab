//! Kata's keys that have no effect here, and the messages about unknown keys.
//!
//! The keys are in `unsupported.txt`. A Kata file sets dozens of them to "off". The operator gets a warning only for a
//! key that requests a feature which is missing here.

use std::path::Path;

use toml::de::DeValue;

use crate::row::{Row, Status};
use crate::settings::{SETTINGS, Table};
use crate::warning::{Place, Reason, Warning};

static LIST: &str = include_str!("unsupported.txt");

/// The guest's image, of which a file's word is answered together with the other parts of the guest (`installation`).
pub(crate) const IMAGE: (Table, &str) = (Table::Hypervisor, "image");

/// Keys of one table that have no effect for the same reason.
struct Group {
    table: &'static str,
    neutral: Neutral,
    /// Whether any other value is an error.
    only: bool,
    why: &'static str,
    keys: &'static str,
}

/// Which value of an unsupported key asks for nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// Whatever it says, nothing is missing.
    Any,
    /// Whatever it says, what it asks for is there in another way.
    Otherwise,
    /// False, zero, an empty string or an empty list.
    Off,
    True,
    /// This string, or an empty one.
    Text(&'static str),
}

impl Neutral {
    fn allows(self, value: &DeValue<'_>) -> bool {
        match (self, value) {
            (Neutral::Any | Neutral::Otherwise, _)
            | (Neutral::Off, DeValue::Boolean(false))
            | (Neutral::True, DeValue::Boolean(true)) => true,
            (Neutral::Off, DeValue::Integer(number)) => number.as_str().bytes().all(|digit| digit == b'0'),
            (Neutral::Off, DeValue::Array(list)) => list.is_empty(),
            (Neutral::Off, DeValue::String(text)) => text.is_empty(),
            (Neutral::Text(neutral), DeValue::String(text)) => text.is_empty() || text == neutral,
            _ => false,
        }
    }

    /// As [`Neutral::allows`], of an annotation, which is text.
    fn allows_text(self, text: &str) -> bool {
        match self {
            Neutral::Any | Neutral::Otherwise => true,
            Neutral::Off => matches!(text.trim(), "" | "false" | "0" | "[]"),
            Neutral::True => matches!(text.trim(), "" | "true"),
            Neutral::Text(neutral) => text.is_empty() || text == neutral,
        }
    }

    /// What a value must be that asks for nothing.
    fn said(self) -> String {
        match self {
            Neutral::Any | Neutral::Otherwise => String::from("anything"),
            Neutral::Off => String::from("off"),
            Neutral::True => String::from("true"),
            Neutral::Text(text) => format!("\"{text}\""),
        }
    }
}

fn fields() -> impl Iterator<Item = Vec<&'static str>> {
    let lines = LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split(" | ").collect())
}

fn groups() -> impl Iterator<Item = Group> {
    fields().filter_map(|fields| {
        let [table, neutral, why, keys] = fields[..] else {
            return None;
        };
        let only = neutral.strip_prefix("only ");
        let neutral = match only.unwrap_or(neutral) {
            "any" => Neutral::Any,
            "otherwise" => Neutral::Otherwise,
            "off" => Neutral::Off,
            "true" => Neutral::True,
            text => Neutral::Text(text.trim_matches('"')),
        };
        Some(Group {
            table,
            neutral,
            only: only.is_some(),
            why,
            keys,
        })
    })
}

/// Tables that are not read, and why.
fn tables() -> impl Iterator<Item = (&'static str, &'static str)> {
    fields().filter_map(|fields| {
        if let [table, why] = fields[..] {
            Some((table, why))
        } else {
            None
        }
    })
}

/// What a key that is not supported must be, if what it asks for is refused.
pub(crate) fn refused(table: Table, key: &str, value: &DeValue<'_>) -> Option<String> {
    let group = known(table, key).filter(|group| group.only && !group.neutral.allows(value))?;
    Some(format!("{}: {}", group.neutral.said(), group.why))
}

/// As [`refused`], of an annotation.
pub(crate) fn refused_annotation(table: Table, name: &str, value: &str) -> Option<String> {
    let group = known(table, name).filter(|group| group.only && !group.neutral.allows_text(value))?;
    Some(format!("{}: {}", group.neutral.said(), group.why))
}

/// What to say about a key that is not supported: nothing if it asks for nothing.
pub(crate) fn key(path: &Path, line: usize, table: Table, key: &str, value: &DeValue<'_>) -> Option<Warning> {
    let reason = match known(table, key) {
        Some(group) if group.neutral.allows(value) => return None,
        Some(group) => Reason::Unsupported(group.why),
        None => Reason::Unknown {
            nearest: nearest(key, names(table)),
        },
    };
    Some(Warning {
        place: place(path, line),
        key: format!("{}.{key}", table.name()),
        reason,
    })
}

/// What to say about a table, or a key outside all tables, that is not read. An empty one has nothing to say.
pub(crate) fn table(path: &Path, line: usize, name: &str, value: &DeValue<'_>) -> Option<Warning> {
    if value.as_table().is_some_and(|table| table.is_empty()) {
        return None;
    }
    let reason = match tables().find(|(table, _)| *table == name) {
        Some((_, why)) => Reason::Unsupported(why),
        None => {
            let tables = tables().map(|(table, _)| table);
            Reason::Unknown {
                nearest: nearest(name, tables.chain(Table::ALL.map(Table::name))),
            }
        }
    };
    Some(Warning {
        place: place(path, line),
        key: name.to_owned(),
        reason,
    })
}

/// What to say about an annotation that does nothing: nothing if it asks for nothing.
pub(crate) fn annotation(annotation: &str, table: Table, name: &str, value: &str) -> Option<Warning> {
    let reason = match known(table, name) {
        Some(group) if group.neutral.allows_text(value) => return None,
        Some(group) => Reason::Unsupported(group.why),
        None => Reason::Unknown {
            nearest: nearest(
                name,
                SETTINGS
                    .iter()
                    .filter(|s| s.table == table)
                    .filter_map(|s| s.annotation()),
            ),
        },
    };
    Some(Warning {
        place: Place::Annotation,
        key: annotation.to_owned(),
        reason,
    })
}

/// What the manual says of the keys of a table.
pub(crate) fn rows(table: Table) -> impl Iterator<Item = Row> {
    let of_table = groups().filter(move |group| group.table == table.name());
    of_table.flat_map(move |group| {
        let status = match group.neutral {
            _ if group.only => Status::Refused,
            Neutral::Any => Status::Unneeded,
            Neutral::Otherwise => Status::Otherwise,
            Neutral::Off | Neutral::True | Neutral::Text(_) => Status::Warned,
        };
        group.keys.split(' ').map(move |key| Row {
            key: format!("{}.{key}", table.name()),
            // The one whose value is answered, and not only spoken of.
            status: if (table, key) == IMAGE {
                Status::Otherwise
            } else {
                status
            },
            annotated: false,
            note: group.why,
        })
    })
}

/// What becomes of an annotation of Kata's that is about no key.
pub(crate) enum Other {
    /// What it asks for is not done.
    Warned(Warning),
    /// It is an error.
    Refused(&'static str),
}

/// Kata's annotations that are about no key: name, whether they are an error, and why. Others are what Kata tells itself.
pub(crate) const OTHERS: [(&str, bool, &str); 3] = [
    (
        "io.katacontainers.config_path",
        true,
        "left out: the configuration is named by the runtime's entry in containerd (options.ConfigPath), and not by a pod",
    ),
    (
        "io.katacontainers.container.resource.swappiness",
        false,
        "the guest has no swap",
    ),
    (
        "io.katacontainers.container.resource.swap_in_bytes",
        false,
        "the guest has no swap",
    ),
];

/// What becomes of an annotation that is about no key.
pub(crate) fn other(annotation: &str) -> Option<Other> {
    let (_, refused, why) = OTHERS.into_iter().find(|(name, ..)| *name == annotation)?;
    Some(match refused {
        true => Other::Refused(why),
        false => Other::Warned(Warning {
            place: Place::Annotation,
            key: annotation.to_owned(),
            reason: Reason::Unsupported(why),
        }),
    })
}

fn place(path: &Path, line: usize) -> Place {
    Place::File {
        path: path.to_owned(),
        line,
    }
}

fn known(table: Table, key: &str) -> Option<Group> {
    let mut groups = groups().filter(|group| group.table == table.name());
    groups.find(|group| group.keys.split(' ').any(|known| known == key))
}

fn names(table: Table) -> impl Iterator<Item = &'static str> {
    let supported = SETTINGS
        .iter()
        .filter(move |setting| setting.table == table)
        .map(|setting| setting.key);
    let groups = groups().filter(move |group| group.table == table.name());
    supported.chain(groups.flat_map(|group| group.keys.split(' ')))
}

/// Longest name for which a similar one is looked for: no real one is longer, and the search costs their product.
const LONGEST_NAME: usize = 64;

/// The most similar name, if at most a third of it has to change.
fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    if name.len() > LONGEST_NAME {
        return None;
    }
    let rated = names.map(|candidate| (strsim::osa_distance(name, candidate), candidate));
    let (distance, candidate) = rated.min_by_key(|(distance, _)| *distance)?;
    (distance * 3 <= candidate.len()).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_line_of_the_list_is_read() {
        let known: BTreeSet<_> = Table::ALL.map(Table::name).into();
        for group in groups() {
            assert!(known.contains(group.table), "{}", group.table);
            if let Neutral::Text(text) = group.neutral {
                assert!(LIST.contains(&format!(" \"{text}\" | ")), "{text} is no kind of value");
            }
        }
        assert_eq!(groups().count() + tables().count(), fields().count());
    }

    #[test]
    fn every_key_is_listed_once_and_as_supported_or_not() {
        for table in Table::ALL {
            let mut seen = BTreeSet::new();
            for key in names(table) {
                assert!(seen.insert(key), "{}.{key} is listed twice", table.name());
            }
        }
    }

    #[test]
    fn a_name_is_suggested_only_if_it_is_similar() {
        assert_eq!(nearest("kernel_parms", names(Table::Hypervisor)), Some("kernel_params"));
        assert_eq!(nearest("colour", names(Table::Hypervisor)), None);
        assert_eq!(nearest(&"kernel_params".repeat(100), names(Table::Hypervisor)), None);
    }

    #[test]
    fn zero_is_neutral_however_it_is_written() {
        for (text, neutral) in [
            ("0", true),
            ("0x0", true),
            ("1", false),
            ("[]", true),
            ("false", true),
            ("''", true),
        ] {
            assert_eq!(
                Neutral::Off.allows(DeValue::parse(text).unwrap().get_ref()),
                neutral,
                "{text}"
            );
        }
    }
}
