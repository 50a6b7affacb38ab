//! Whether a container uses Docker's name server, according to its resolv.conf (resolv.conf(5)).

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use node::host_ns::HostNamespace;
use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// What is read of a resolv.conf, in bytes; Docker's has some hundreds.
const LARGEST: u64 = 64 << 10;

/// The file of the host that a container has for its resolv.conf.
#[must_use]
pub fn of_container(spec: &Spec) -> Option<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    let mut mounts = mounts.filter(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
    // The last one is what the container sees.
    mounts.next_back()?.source().clone()
}

/// Whether it names Docker's server. One that cannot be read names nobody. Blocks.
#[must_use]
pub fn asks_docker(host: &HostNamespace, path: &Path) -> bool {
    let path = path.to_owned();
    let read = move || {
        // Whatever it is: a FIFO would be waited for.
        let file = open(
            &path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        let kind = FileType::from_raw_mode(fstat(&file).ok()?.st_mode);
        let mut bytes = Vec::new();
        let read = std::fs::File::from(file).take(LARGEST).read_to_end(&mut bytes);
        (kind == FileType::RegularFile && read.is_ok()).then_some(bytes)
    };
    let text = host.run(read).ok().flatten().unwrap_or_default();
    names_docker(&String::from_utf8_lossy(&text))
}

fn names_docker(text: &str) -> bool {
    let server = Ipv4Addr::from(protocol::DOCKER_NAME_SERVER);
    text.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some("nameserver") && words.next().is_some_and(|word| word.parse() == Ok(server))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_that_names_the_server_counts() {
        assert!(names_docker(
            "# Generated\nsearch x\nnameserver 127.0.0.11\noptions ndots:0\n"
        ));
        assert!(names_docker("nameserver 10.0.0.1\n nameserver\t127.0.0.11 # x"));
        for text in [
            "",
            "nameserver 127.0.0.1",
            "# nameserver 127.0.0.11",
            "options 127.0.0.11",
        ] {
            assert!(!names_docker(text), "{text}");
        }
    }

    #[test]
    fn the_last_mount_counts() {
        let spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "mounts": [
            {"destination": "/etc/resolv.conf", "source": "/a"}, {"destination": "/etc/hosts", "source": "/h"},
            {"destination": "/etc/resolv.conf", "source": "/b"}]}))
        .unwrap();
        assert_eq!(of_container(&spec), Some("/b".into()));
    }

    #[test]
    fn fuzz_resolv_conf() {
        fuzz::run("resolv-conf", |bytes| {
            let text = String::from_utf8_lossy(bytes);
            assert!(!names_docker(&text) || text.contains("127.0.0.11"));
        });
    }
}
