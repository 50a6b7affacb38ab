//! hugetlb.

use oci_spec::runtime::LinuxHugepageLimit;

use super::{Error, Setting, limit};

/// The size (`2MB`) becomes part of a file's name.
pub(super) fn setting(page: &LinuxHugepageLimit) -> Result<Setting, Error> {
    let size = page.page_size();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Error::Invalid(format!("{size:?} is no size of a huge page")));
    }
    Ok(Setting::new(format!("hugetlb.{size}.max"), limit(page.limit())))
}
