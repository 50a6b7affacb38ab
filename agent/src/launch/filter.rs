//! A seccomp filter in the kernel's form.

/// A filter that is ready to be loaded, as the last thing before the program.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) program: Vec<libc::sock_filter>,
    /// SECCOMP_FILTER_FLAG_*.
    pub(super) flags: libc::c_ulong,
}
