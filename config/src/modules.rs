//! The file of a kernel's modules: where it is on the host.

use std::path::{Path, PathBuf};

/// Its name beside the kernel that it belongs to (guest-kernel/build).
pub const MODULES: &str = "modules.img";

/// How the names of kernels begin; the rest tells kernels in one directory apart.
const KERNEL: &str = "vmlinuz";

/// Where the modules of this kernel are: beside the file itself, if it is a link. `vmlinuz-X` has `modules.img-X` if there is one, as
/// `make kernel ARCH=…` writes it.
#[must_use]
pub fn modules_beside(kernel: &Path) -> PathBuf {
    let file = kernel.canonicalize().unwrap_or_else(|_| kernel.to_owned());
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = name
        .strip_prefix(KERNEL)
        .map(|rest| file.with_file_name(format!("{MODULES}{rest}")));
    own.filter(|own| own.exists())
        .unwrap_or_else(|| file.with_file_name(MODULES))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_modules_of_a_linked_kernel_are_beside_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let [real, link] = ["share/vmlinuz", "etc/vmlinuz"].map(|path| directory.path().join(path));
        for path in [&real, &link] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let modules = directory.path().canonicalize().unwrap().join("share/modules.img");
        assert_eq!(modules_beside(&link), modules);
        assert_eq!(modules_beside(&real), modules);
        assert_eq!(
            modules_beside(Path::new("/nowhere/vmlinuz")),
            Path::new("/nowhere/modules.img")
        );
    }

    #[test]
    fn kernels_in_one_directory_have_modules_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        for name in ["vmlinuz", "vmlinuz-arm64", "modules.img", "modules.img-arm64"] {
            fs::write(at(name), "").unwrap();
        }
        assert_eq!(modules_beside(&at("vmlinuz-arm64")), at("modules.img-arm64"));
        assert_eq!(modules_beside(&at("vmlinuz")), at("modules.img"));
        assert_eq!(modules_beside(&at("vmlinuz-other")), at("modules.img"));
    }
}
