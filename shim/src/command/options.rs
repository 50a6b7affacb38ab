//! The runtime options that containerd passes on stdin and in `CreateTask`. Only the path of the configuration is used.

use std::path::PathBuf;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, rt};

/// End of the type's name: `runtimeoptions.v1.Options`, with other prefixes in other versions of containerd.
const TYPE: &str = "runtimeoptions.v1.Options";
/// The field number of `config_path` in the message.
const CONFIG_PATH: u32 = 2;

#[derive(Debug, thiserror::Error)]
#[error("the runtime options cannot be decoded")]
pub struct OptionsError(#[from] protobuf::Error);

/// Reads what containerd writes on stdin: an encoded `Any`, or nothing.
///
/// # Errors
/// The bytes are no protobuf.
pub fn config_path_on_stdin(bytes: &[u8]) -> Result<Option<PathBuf>, OptionsError> {
    config_path(&Any::parse_from_bytes(bytes)?)
}

/// The configuration file that the options name. None where they are of another kind, or name none.
///
/// # Errors
/// The options are of the right kind, but no protobuf.
pub fn config_path(options: &Any) -> Result<Option<PathBuf>, OptionsError> {
    if !options.type_url.ends_with(TYPE) {
        return Ok(None);
    }
    let mut input = CodedInputStream::from_bytes(&options.value);
    let mut path = None;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Wire type 2: a length and that many bytes.
        if tag == CONFIG_PATH << 3 | 2 {
            path = Some(input.read_string()?)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from);
        } else {
            rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(value: &[u8]) -> Vec<u8> {
        let any = Any {
            type_url: format!("containerd.{TYPE}"),
            value: value.to_vec(),
            ..Any::default()
        };
        any.write_to_bytes().unwrap()
    }

    #[test]
    fn the_path_is_found_among_other_fields() {
        let bytes = options(b"\x0a\x01t\x12\x02/c\x1a\x01b");
        assert_eq!(config_path_on_stdin(&bytes).unwrap(), Some(PathBuf::from("/c")));
    }

    #[test]
    fn nothing_and_other_options_have_no_path() {
        assert_eq!(config_path_on_stdin(b"").unwrap(), None);
        let runc = Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: vec![255],
            ..Any::default()
        };
        assert_eq!(config_path(&runc).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = config_path_on_stdin(&bytes);
            let _ = config_path_on_stdin(&options(&bytes));
        }
    }

    #[test]
    fn fuzz_runtime_options() {
        fuzz::run("runtime-options", |bytes| drop(config_path_on_stdin(bytes)));
    }
}
