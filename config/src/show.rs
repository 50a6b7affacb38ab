//! The configuration as it would be written in a file.

use toml::Table as TomlTable;
use toml::Value;

use crate::model::Config;
use crate::settings::{SETTINGS, Table};

impl Config {
    /// All supported keys with what holds, in Kata's layout: loading it gives the same configuration again.
    #[must_use]
    pub fn to_table(&self) -> TomlTable {
        let table = |wanted: Table| {
            let settings = SETTINGS
                .iter()
                .filter(|setting| setting.table == wanted && !setting.alias);
            Value::Table(
                settings
                    .map(|setting| (setting.key.to_owned(), (setting.show)(self)))
                    .collect(),
            )
        };
        let within = |kind: &str, value: Value| Value::Table(TomlTable::from_iter([(kind.to_owned(), value)]));
        TomlTable::from_iter([
            (String::from("hypervisor"), within("qemu", table(Table::Hypervisor))),
            (String::from("agent"), within("kata", table(Table::Agent))),
            (String::from("runtime"), table(Table::Runtime)),
        ])
    }
}
