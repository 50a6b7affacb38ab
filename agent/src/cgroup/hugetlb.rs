//! The hugetlb controller: limits of huge pages.

use oci_spec::runtime::LinuxHugepageLimit;

use super::error::Error;
use super::setting::{Setting, limit};

/// The size (`2MB`) becomes part of a file's name. Where the kernel counts reservations, the limit holds for those too (config-linux.md
/// "Huge page limits"): then mmap(2) fails, and nobody is killed by a page that cannot be had later.
pub(super) fn settings(page: &LinuxHugepageLimit) -> Result<[Setting; 2], Error> {
    let size = page.page_size();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Error::Invalid(format!("{size:?} is no size of a huge page")));
    }
    let value = limit(page.limit());
    Ok([
        Setting::new(format!("hugetlb.{size}.max"), value.clone()),
        Setting::new(format!("hugetlb.{size}.rsvd.max"), value).optional(),
    ])
}
