//! The index of the kernel's modules (guest-kernel/modules): the module for a name, its dependencies, and
//! its position in the archive. It opens no file.

use std::collections::BTreeMap;

/// A module of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module<'a> {
    /// With underscores, as in /proc/modules.
    pub(super) name: &'a str,
    /// Where its file begins, in bytes after the index.
    pub(super) offset: u64,
    /// Size of the file in bytes.
    pub(super) size: u64,
    needs: Vec<&'a str>,
}

/// A device node whose first opening loads a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device<'a> {
    /// Below /dev.
    pub(super) path: &'a str,
    /// A block device, otherwise a character device.
    pub(super) block: bool,
    /// Major and minor number.
    pub(super) number: (u32, u32),
}

/// What the text of an index says.
#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    modules: BTreeMap<&'a str, Module<'a>>,
    aliases: Vec<(&'a str, &'a str)>,
    builtin: Vec<&'a str>,
    devices: Vec<Device<'a>>,
}

impl<'a> Index<'a> {
    /// Reads the text. Lines of another form are left out: an index of another version is as good as its lines.
    pub(super) fn parse(text: &'a str) -> Self {
        let mut index = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["module", name, offset, size, needs] => {
                    if let (Ok(offset), Ok(size)) = (offset.parse(), size.parse()) {
                        let needs = needs.split(',').filter(|name| *name != "-").collect();
                        let module = Module {
                            name,
                            offset,
                            size,
                            needs,
                        };
                        index.modules.insert(name, module);
                    }
                }
                ["alias", pattern, name] => index.aliases.push((pattern, name)),
                ["builtin", name] => index.builtin.push(name),
                ["device", path, kind, major, minor] => {
                    if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
                        index.devices.push(Device {
                            path,
                            block: kind == "b",
                            number: (major, minor),
                        });
                    }
                }
                _ => {}
            }
        }
        index
    }

    /// The modules to be loaded for a name or an alias, in their order. None: nothing has that name. Nothing is to be loaded for
    /// what is built into the kernel.
    pub(super) fn find(&self, name: &str) -> Option<Vec<&Module<'a>>> {
        let name = name.replace('-', "_");
        let mut found: Vec<&str> = self
            .modules
            .get_key_value(name.as_str())
            .map(|(name, _)| *name)
            .into_iter()
            .collect();
        if found.is_empty() {
            let aliases = self.aliases.iter().filter(|(pattern, _)| matches(pattern, &name));
            found = aliases.map(|(_, module)| *module).collect();
        }
        if found.is_empty() && !self.builtin.contains(&name.as_str()) {
            return None;
        }
        let mut order = Vec::new();
        for module in found {
            self.add(module, &mut order);
        }
        Some(order)
    }

    fn add<'i>(&'i self, name: &str, order: &mut Vec<&'i Module<'a>>) {
        let Some(module) = self.modules.get(name) else {
            return;
        };
        if order.iter().any(|other| other.name == name) {
            return;
        }
        // Before what it needs, so that a circle ends, and then moved behind it.
        let place = order.len();
        order.push(module);
        for needed in &module.needs {
            self.add(needed, order);
        }
        order[place..].rotate_left(1);
    }

    /// The names of file systems for which the kernel asks (`fs-NAME`, get_fs_type in the kernel's fs/filesystems.c), with underscores.
    pub(super) fn file_systems(&self) -> impl Iterator<Item = &'a str> {
        self.aliases.iter().filter_map(|(alias, _)| alias.strip_prefix("fs_"))
    }

    pub(super) fn devices(&self) -> &[Device<'a>] {
        &self.devices
    }
}

/// Whether a name is that of the index, which may end with a `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "release 6.12.117-tatami.15\n\
        device ppp c 108 0\n\
        module sunrpc 0 100 -\nmodule lockd 100 50 grace,sunrpc\nmodule grace 150 10 -\nmodule nfs 160 200 lockd,sunrpc\n\
        module md_mod 360 5 -\nmodule ring 365 5 other\nmodule other 370 5 ring\n\
        alias fs_nfs4 nfs\nalias block_major_9_* md_mod\nalias ip_set_hash:mac ip_set_hash_mac\n\
        module utf8data 375 5 -\nalias symbol:utf8_data_table utf8data\n\
        builtin overlay\nof another version\n";

    fn order(name: &str) -> Option<Vec<String>> {
        let index = Index::parse(TEXT);
        let found = index.find(name)?;
        Some(found.iter().map(|module| module.name.to_owned()).collect())
    }

    fn names(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        assert_eq!(order("nfs"), names(&["grace", "sunrpc", "lockd", "nfs"]));
        assert_eq!(order("ring"), names(&["other", "ring"]));
    }

    #[test]
    fn a_name_is_found_by_its_aliases_and_a_dash_is_an_underscore() {
        assert_eq!(order("fs-nfs4"), order("nfs"));
        assert_eq!(order("block-major-9-127"), names(&["md_mod"]));
        assert_eq!(order("md-mod"), names(&["md_mod"]));
        assert_eq!(order("symbol:utf8_data_table"), names(&["utf8data"]));
        assert_eq!(order("block-major-90"), None);
        assert_eq!(order("net-pf-99"), None);
    }

    #[test]
    fn what_is_built_in_is_there_without_anything_to_load() {
        assert_eq!(order("overlay"), names(&[]));
    }

    #[test]
    fn file_systems_are_known_by_their_aliases() {
        assert_eq!(Index::parse(TEXT).file_systems().collect::<Vec<_>>(), ["nfs4"]);
    }

    #[test]
    fn a_device_has_the_numbers_of_its_node() {
        let index = Index::parse(TEXT);
        let ppp = Device {
            path: "ppp",
            block: false,
            number: (108, 0),
        };
        assert_eq!(index.devices(), [ppp]);
    }

    #[test]
    fn fuzz_module_index() {
        fuzz::run("module-index", |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let index = Index::parse(&text);
            for word in text.split_ascii_whitespace().take(64) {
                let found = index.find(word).unwrap_or_default();
                let names: std::collections::BTreeSet<_> = found.iter().map(|module| module.name).collect();
                assert_eq!(names.len(), found.len(), "a module is loaded twice");
            }
            let _ = index.devices();
        });
    }
}
