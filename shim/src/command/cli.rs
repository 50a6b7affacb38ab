//! The command line that containerd uses: flags in the style of Go's `flag` package, then an action.
//!
//! containerd 1.6 to 2.1 send `-namespace N -address A -publish-binary B -id ID [-debug] start`, and for `delete` also
//! `-bundle D`; `-v` and `-info` come alone. Users of Kata call `--version`. Our own server is started without an action
//! and with `-socket`, and the process that runs the hooks of a dead sandbox with `-poststop`. `-pool fill|init|drain|status|number` controls
//! the pool of warm VMs, `-pool member` starts a member of it, and `-pool template` one that makes a template.

use std::path::PathBuf;

use crate::id::{ContainerId, IdError, Namespace};
use crate::program::arguments::Arguments;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start the sandbox's server, or find it, and print its address.
    Start(Arguments),
    /// Remove what a dead shim has left.
    Delete(Arguments),
    Serve(Arguments),
    /// Run the poststop hooks that are recorded in this directory, which `delete` has no time for.
    Poststop(PathBuf),
    /// Be a member of the pool of warm VMs, in this slot.
    Member {
        /// The name of the pool's slot: `KEY.N`.
        slot: String,
        /// The configuration that the runtime options named.
        config_path: Option<PathBuf>,
    },
    /// Make the template of this slot.
    Template {
        /// The name of the pool's slot: `KEY.maker`.
        slot: String,
        /// The configuration that the runtime options named.
        config_path: Option<PathBuf>,
    },
    Pool(PoolAction, Option<PathBuf>),
    Version,
    Info,
}

/// The argument of `-pool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolAction {
    /// Start what is missing, after a start.
    Fill,
    /// The same for an operator: also what has failed before.
    Init,
    /// End the VMs that no sandbox uses.
    Drain,
    /// Print what there is, as JSON.
    Status,
    /// Print how many there are to be.
    Number,
}

/// Why the command line cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    #[error("unknown flag {0:?}")]
    UnknownFlag(String),
    /// A flag that needs a value is the last word.
    #[error("flag -{0} has no value")]
    NoValue(String),
    /// A boolean flag with another value than true or false.
    #[error("flag -{flag} is true or false, not {value:?}")]
    Boolean { flag: String, value: String },
    #[error("unknown action {0:?}: expected start or delete")]
    UnknownAction(String),
    #[error("no action: expected start or delete, or one of the flags -v and -info")]
    NoAction,
    #[error("-pool is fill, init, drain, status, number, member or template, not {0:?}")]
    UnknownPool(String),
    #[error("unexpected argument {0:?} after the action")]
    Trailing(String),
    /// -id or -namespace are missing or wrong.
    #[error(transparent)]
    Id(#[from] IdError),
}

#[derive(Default)]
struct Flags {
    namespace: String,
    id: String,
    bundle: String,
    socket: String,
    config_path: String,
    poststop: String,
    pool: String,
    slot: String,
    debug: bool,
    version: bool,
    info: bool,
    /// containerd's GRPC socket and the binary that publishes events: they come, and events go by ttrpc. And what is there to be written over.
    unused: String,
}

impl Flags {
    fn value(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "id" => Some(&mut self.id),
            "address" | "publish-binary" | "room" => Some(&mut self.unused),
            "bundle" => Some(&mut self.bundle),
            "socket" => Some(&mut self.socket),
            "config-path" => Some(&mut self.config_path),
            "poststop" => Some(&mut self.poststop),
            "pool" => Some(&mut self.pool),
            "slot" => Some(&mut self.slot),
            _ => None,
        }
    }

    fn boolean(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            _ => None,
        }
    }
}

/// Reads the words after the program's name.
///
/// # Errors
/// A flag or an action that is not known, or an id that is none.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Command, CliError> {
    let mut words = words.into_iter();
    let mut flags = Flags::default();
    let mut action = None;
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            match action {
                None => action = Some(word),
                Some(_) => return Err(CliError::Trailing(word)),
            }
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if let Some(boolean) = flags.boolean(name) {
            *boolean = match value.as_deref() {
                None | Some("true" | "1") => true,
                Some("false" | "0") => false,
                Some(other) => {
                    return Err(CliError::Boolean {
                        flag: name.to_owned(),
                        value: other.to_owned(),
                    });
                }
            };
        } else if let Some(string) = flags.value(name) {
            *string = value
                .or_else(|| words.next())
                .ok_or_else(|| CliError::NoValue(name.to_owned()))?;
        } else {
            return Err(CliError::UnknownFlag(word));
        }
    }
    command(flags, action.as_deref())
}

fn command(flags: Flags, action: Option<&str>) -> Result<Command, CliError> {
    if flags.version {
        return Ok(Command::Version);
    }
    if flags.info {
        return Ok(Command::Info);
    }
    if !flags.poststop.is_empty() {
        return Ok(Command::Poststop(flags.poststop.into()));
    }
    let config_path = Some(flags.config_path)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    match flags.pool.as_str() {
        "" => {}
        "fill" => return Ok(Command::Pool(PoolAction::Fill, config_path)),
        "init" => return Ok(Command::Pool(PoolAction::Init, config_path)),
        "drain" => return Ok(Command::Pool(PoolAction::Drain, config_path)),
        "status" => return Ok(Command::Pool(PoolAction::Status, config_path)),
        "number" => return Ok(Command::Pool(PoolAction::Number, config_path)),
        "member" => {
            return Ok(Command::Member {
                slot: flags.slot,
                config_path,
            });
        }
        "template" => {
            return Ok(Command::Template {
                slot: flags.slot,
                config_path,
            });
        }
        other => return Err(CliError::UnknownPool(other.to_owned())),
    }
    let make: fn(Arguments) -> Command = match action {
        Some("start") => Command::Start,
        Some("delete") => Command::Delete,
        Some(other) => return Err(CliError::UnknownAction(other.to_owned())),
        None if flags.socket.is_empty() => return Err(CliError::NoAction),
        None => Command::Serve,
    };
    Ok(make(Arguments {
        namespace: Namespace::new(&flags.namespace)?,
        id: ContainerId::new(&flags.id)?,
        bundle: flags.bundle.into(),
        debug: flags.debug,
        config_path,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_containerd_sends_to_start() {
        let line = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start";
        let Ok(Command::Start(arguments)) = parse(words(line)) else {
            panic!("not start")
        };
        assert_eq!(arguments.id.as_str(), "a");
        assert_eq!(arguments.namespace.as_str(), "default");
        assert!(arguments.debug);
    }

    #[test]
    fn what_containerd_sends_to_delete() {
        let line = "-namespace k8s.io -address /c -publish-binary  -id a -bundle /b delete";
        let Ok(Command::Delete(arguments)) = parse(words(line)) else {
            panic!("not delete")
        };
        assert_eq!(arguments.bundle, PathBuf::from("/b"));
    }

    #[test]
    fn what_the_pool_is_asked_and_made_with() {
        let fill = Command::Pool(PoolAction::Fill, Some("/c".into()));
        assert_eq!(parse(words("-pool fill -config-path /c")), Ok(fill));
        let member = Command::Member {
            slot: "k.0".to_owned(),
            config_path: None,
        };
        assert_eq!(parse(words("-pool member -slot k.0")), Ok(member));
        assert_eq!(parse(words("-pool x")), Err(CliError::UnknownPool("x".to_owned())));
    }

    #[test]
    fn two_dashes_and_equals_signs_are_as_good() {
        assert_eq!(parse(words("--v")), Ok(Command::Version));
        assert_eq!(parse(words("-info=true")), Ok(Command::Info));
        assert!(matches!(
            parse(words("--namespace=a --id=b start")),
            Ok(Command::Start(_))
        ));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(words("-wrong")), Err(CliError::UnknownFlag("-wrong".to_owned())));
        assert_eq!(parse(words("-id")), Err(CliError::NoValue("id".to_owned())));
        assert_eq!(parse(words("stop")), Err(CliError::UnknownAction("stop".to_owned())));
        assert_eq!(parse([]), Err(CliError::NoAction));
        assert!(matches!(
            parse(words("-namespace a -id ../b start")),
            Err(CliError::Id(_))
        ));
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(words: Vec<String>) {
            let _ = parse(words);
        }
    }
}
