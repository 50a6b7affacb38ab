//! `emptydir_mode = "block-plain"`: an emptyDir is a disk of the guest, in an image that goes with it.

use framework::{Node, Result, disk::RawImage};

mod kata_only {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    };

    use super::*;

    #[test]
    fn containers_of_a_pod_share_a_disk_and_the_host_has_its_image() -> Result<()> {
        let node = Node::start_configured("[runtime]\nemptydir_mode = \"block-plain\"\n")?;
        let volume = node.dir().join("kubernetes.io~empty-dir/cache");
        // As the kubelet makes them: with the pod's group, and the directory of a subPath.
        fs::create_dir_all(volume.join("part"))?;
        chown(&volume, None, Some(2000))?;
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777))?;
        let pod = node.spec("pod", &["unused"])?.of_pod(&node, "sandbox")?;
        node.run_spec("pod", &pod)?.arg("-d").ok()?;
        for (name, source) in [("one", volume.clone()), ("two", volume.join("part"))] {
            let spec = node.spec(name, &["sleep", "1000"])?.of_pod(&node, "container")?;
            let spec = spec.bind(&source, "/cache", &["rw"])?;
            node.run_spec(name, &spec)?.arg("-d").ok()?;
        }
        let script = "stat -c '%a %g' /cache; grep ' /cache ' /proc/mounts | cut -d' ' -f3; ls -A /cache; \
                      echo shared > /cache/part/file; head -c 20000000 /dev/urandom > /cache/large; sync; rm /cache/large; sync";
        let said = node.exec("one", "write").sh(script).ok()?;
        assert_eq!(said, "2777 2000\next4\npart\n");
        assert_eq!(node.exec("two", "read").sh("cat /cache/file").ok()?, "shared\n");
        let names: Vec<_> = fs::read_dir(&volume)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        assert_eq!(names.len(), 2, "{names:?}");
        let path = volume.join("disk.img");
        // What the guest has discarded is not there.
        let taken = fs::metadata(&path)?.blocks() * 512;
        assert!(taken < 20_000_000, "{taken} bytes");
        // It stays as long as the volume does, whatever becomes of the containers.
        node.remove("two")?;
        node.remove("one")?;
        let image = RawImage::existing(&path);
        assert!(image.is_clean()?);
        assert_eq!(image.file("part/file")?, "shared\n");
        let again = node
            .spec("again", &["cat", "/cache/part/file"])?
            .of_pod(&node, "container")?;
        let again = again.bind(&volume, "/cache", &["ro"])?;
        assert_eq!(node.run_spec("again", &again)?.arg("--rm").ok()?, "shared\n");
        node.remove("pod")?;
        node.nothing_left()
    }
}
