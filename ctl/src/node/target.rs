//! The node that is meant, and the name that the runtime has there.

use std::path::PathBuf;

use clap::Args;

use super::programs::Release;

/// Where the runtime reads its configuration if nothing names another file.
pub(super) const CONFIGURATION: &str = "/etc/kata-containers/configuration.toml";

/// Which node, and which name on it.
#[derive(Args)]
pub(crate) struct Target {
    /// The node's root directory, where a container sees it
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    pub(super) root: PathBuf,
    /// The handler's name, which RuntimeClasses refer to
    #[arg(long, value_name = "NAME", default_value = "kata", value_parser = handler_name)]
    pub(super) handler: String,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    pub(super) containerd_config: PathBuf,
    /// containerd's version, where it cannot be asked
    #[arg(long, value_name = "VERSION", value_parser = super::programs::version)]
    pub(super) containerd_version: Option<Release>,
}

/// A path of the node, which another process uses from another directory.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err("must be an absolute path".to_owned()),
    }
}

/// A RuntimeClass' handler is a DNS label (RFC 1123).
fn handler_name(text: &str) -> Result<String, String> {
    let good = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-');
    match good {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 63 small letters, digits and dashes".to_owned()),
    }
}
