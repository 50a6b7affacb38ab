//! Logs which fixes the guest kernel lacks, once per sandbox: a warning for each fix that Linux has, and one message of
//! level info for those that only our kernel has. The operator has chosen the kernel, so it is no error.

use config::kernel::{self, Fix, Standing};

/// Logs what is known of a guest kernel by its release (`uname -r`), which comes from the guest.
pub(crate) fn warn_of(release: &str) {
    let judged = kernel::judge(release);
    for (fix, standing) in judged.iter().filter(|(fix, _)| fix.is_upstream()) {
        if let Some(warning) = warning(fix, *standing) {
            tracing::warn!(kernel = release, fix = fix.id, "{warning}");
        }
    }
    let ours: Vec<_> = judged
        .iter()
        .filter(|(fix, standing)| !fix.is_upstream() && *standing != Standing::Has)
        .map(|(fix, _)| fix.id.as_str())
        .collect();
    if !ours.is_empty() {
        let fixes = ours.join(", ");
        tracing::info!(
            kernel = release,
            fixes,
            "the guest kernel lacks fixes that only Tatami's has"
        );
    }
}

fn warning(fix: &Fix, standing: Standing) -> Option<String> {
    let lacks = match standing {
        Standing::Has => return None,
        Standing::Lacks => "lacks",
        Standing::Unknown => "may lack",
    };
    Some(format!(
        "the guest kernel {lacks} the fix \"{}\": {}; it is in Linux {} and in the kernel that comes with Tatami",
        fix.title,
        fix.symptom,
        fix.fixed().join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(release: &str) -> Vec<String> {
        kernel::judge(release)
            .into_iter()
            .filter_map(|(fix, standing)| warning(fix, standing))
            .collect()
    }

    #[test]
    fn a_kernel_without_the_fuse_fix_is_warned_of_with_the_issue_and_what_will_happen() {
        let all = warnings("6.1.69-custom").join("\n");
        for expected in [
            "lacks",
            "issue 8040",
            "host mounts turn EBADF",
            "memory pressure",
            "6.1.70",
        ] {
            assert!(all.contains(expected), "{expected} is not in {all}");
        }
        assert!(warnings("6.1.0-18-amd64")[0].contains("may lack"));
    }

    #[test]
    fn our_own_kernel_is_not_warned_of() {
        let ours = format!("6.12.117-tatami.{}", kernel::fixes().len());
        assert_eq!(warnings(&ours), Vec::<String>::new());
    }
}
