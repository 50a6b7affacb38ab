//! Shows the configuration in the format of a configuration file.

use toml::Table as TomlTable;
use toml::Value;

use crate::model::Config;
use crate::settings::{SETTINGS, Table};

impl Config {
    /// All supported keys with what holds, in Kata's layout: loading it gives the same configuration again.
    #[must_use]
    pub fn to_table(&self) -> TomlTable {
        let table = |wanted: Table| -> TomlTable {
            let settings = SETTINGS
                .iter()
                .filter(|setting| setting.table == wanted && !setting.alias);
            settings
                .map(|setting| (setting.key.to_owned(), (setting.show)(self)))
                .collect()
        };
        let mut shown = TomlTable::new();
        for wanted in Table::ALL {
            let settings = table(wanted);
            if !settings.is_empty() {
                put(&mut shown, wanted.name(), settings);
            }
        }
        shown
    }
}

/// Puts a table where its name, such as `runtime.memlock`, says.
fn put(into: &mut TomlTable, name: &str, table: TomlTable) {
    let Some((first, rest)) = name.split_once('.') else {
        into.insert(name.to_owned(), Value::Table(table));
        return;
    };
    let outer = into.entry(first).or_insert_with(|| Value::Table(TomlTable::new()));
    if let Value::Table(outer) = outer {
        put(outer, rest, table);
    }
}
