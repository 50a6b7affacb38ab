//! The pool and the templates as `kata-ctl factory status` has them.

use super::{place, report, template};

/// As JSON.
///
/// # Errors
/// It cannot be encoded.
pub(crate) fn status() -> Result<String, serde_json::Error> {
    report::status(&template::shown(&place::root()))
}
