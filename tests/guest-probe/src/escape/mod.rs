//! What a guest can reach that its host cannot trust: it drives the virtio-fs device by itself, and asks for what no kernel
//! would ask for. It needs a container that may do everything in its guest, and runs from memory, for the container's own
//! files are behind that device.

mod chains;
mod device;
mod fuse;
mod hoard;
mod hostile;
mod lengths;
mod pci;
mod vsock;

pub(crate) use hoard::hoard;
pub(crate) use hostile::hostile;
pub(crate) use lengths::{fatal, lengths};
pub(crate) use vsock::flood;

use std::io;

use serde_json::{Map, Value, json};

use self::{
    device::Device,
    fuse::{Client, Node, Op, ROOT, string, words},
};

const O_RDONLY: i32 = 0;
const O_RDWR: i32 = 2;
/// The directory of the sandbox's volumes.
const VOLUMES: &str = ".volumes";
/// Node ids and handles that are tried.
const GUESSES: u64 = 512;

/// Prints an object from what was tried to the errno that came of it, 0 for success, or to what was found.
///
/// The sandbox has two volumes: `1` may be written to, and has links `absolute` (to `secret`) and `up` (to
/// `..` many times), and `2` is read-only, with a `file`. `secret` is a path of the host.
pub(crate) fn run(secret: &str) -> crate::error::Result<()> {
    let mut attempts = Attempts::begin()?;
    attempts.guess()?;
    attempts.names(secret)?;
    attempts.links(secret)?;
    attempts.read_only()?;
    attempts.special()?;
    println!("{}", Value::Object(attempts.said));
    Ok(())
}

struct Attempts {
    client: Client,
    said: Map<String, Value>,
}

fn errno<T>(answer: &Result<T, i32>) -> Value {
    json!(answer.as_ref().err().copied().unwrap_or(0))
}

impl Attempts {
    fn begin() -> crate::error::Result<Self> {
        if !device::present() {
            return Err("there is no virtio-fs here".into());
        }
        Ok(Self {
            client: Client::begin(Device::take()?)?,
            said: Map::new(),
        })
    }

    fn say(&mut self, what: &str, result: impl Into<Value>) {
        self.said.insert(what.to_owned(), result.into());
    }

    fn must(&mut self, parent: u64, name: &str) -> io::Result<Node> {
        self.client
            .look_up(parent, name)?
            .map_err(|errno| io::Error::other(format!("{name}: errno {errno}")))
    }

    fn walk(&mut self, names: &[&str]) -> io::Result<Node> {
        let mut node = Node { id: ROOT, inode: 0 };
        for name in names {
            node = self.must(node.id, name)?;
        }
        Ok(node)
    }

    /// Nodes and handles that nobody was given.
    fn guess(&mut self) -> io::Result<()> {
        let (mut nodes, mut handles) = (0, 0);
        for guess in (ROOT + 1..GUESSES).chain([1 << 32, 1 << 63, u64::MAX]) {
            nodes += u32::from(self.client.inode(guess)?.is_ok());
            nodes += u32::from(self.client.open(guess, O_RDONLY)?.is_ok());
        }
        for guess in 0..GUESSES {
            handles += u32::from(self.client.read(Op::Read, ROOT, guess)?.is_ok());
        }
        self.say("guessed nodes", nodes);
        self.say("guessed handles", handles);
        let mapping = self.client.ask(Op::SetupMapping, ROOT, &[0; 40])?;
        self.say("mapping", errno(&mapping));
        Ok(())
    }

    /// Names that lead somewhere else.
    fn names(&mut self, secret: &str) -> io::Result<()> {
        let root = self.client.inode(ROOT)?.unwrap_or_default();
        for name in ["..", "../..", "../../../../..", "/", "."] {
            let found = self.client.look_up(ROOT, name)?;
            // The root's parent is the root.
            let stays = found.is_ok_and(|node| node.inode == root);
            self.say(name, stays);
        }
        let up = "../".repeat(12);
        for (what, name) in [
            ("the secret", secret.to_owned()),
            ("the secret from above", format!("{up}{}", &secret[1..])),
            ("the secret by /proc", format!("proc/self/root{secret}")),
            ("the secret by the daemon's root", format!("{up}proc/1/root{secret}")),
            ("/proc", "/proc/self/fd".to_owned()),
            ("proc", "proc".to_owned()),
            ("passwd", format!("{up}etc/passwd")),
        ] {
            let found = self.client.look_up(ROOT, &name)?;
            self.say(what, errno(&found));
        }
        let opened = self.client.ask(Op::Opendir, ROOT, &words(&[0, 0]))?;
        let handle = opened
            .ok()
            .and_then(|open| open[..8].try_into().ok())
            .map_or(0, u64::from_le_bytes);
        let listed = self.client.read(Op::Readdir, ROOT, handle)?;
        self.say("the root's entries", listed.as_ref().map_or(0, |list| entries(list)));
        Ok(())
    }

    /// Links in what may be written to.
    fn links(&mut self, secret: &str) -> io::Result<()> {
        let directory = self.walk(&[VOLUMES, "1"])?;
        let link = self.must(directory.id, "absolute")?;
        let read = self.client.ask(Op::Readlink, link.id, &[])?;
        self.say("reading a link", read.is_ok_and(|target| target == secret.as_bytes()));
        for flags in [O_RDONLY, O_RDWR] {
            let opened = self.client.open(link.id, flags)?;
            self.say(&format!("opening a link with {flags}"), opened.is_ok());
        }
        for (what, name) in [
            ("through the absolute link", "absolute/".to_owned()),
            ("through the link upwards", format!("up{secret}")),
            ("above the mount", format!("../../../../..{secret}")),
        ] {
            let found = self.client.look_up(directory.id, &name)?;
            self.say(what, errno(&found));
        }
        let up = self.client.look_up(directory.id, "up/")?;
        let root = self.client.inode(ROOT)?.unwrap_or_default();
        let inside = up.is_ok_and(|node| node.inode == root || node.inode == directory.inode);
        self.say("the link upwards stays", inside);
        Ok(())
    }

    /// Everything that would change the directory that is read-only, or the shared directory itself.
    fn read_only(&mut self) -> io::Result<()> {
        let read_only = self.walk(&[VOLUMES, "2"])?.id;
        let file = self.must(read_only, "file")?.id;
        let writable = self.walk(&[VOLUMES, "1"])?.id;
        let mounts = self.walk(&[VOLUMES])?.id;
        let two = |first: &str, second: &str| [string(first), string(second)].concat();
        let to = |node: u64, names: Vec<u8>| [node.to_le_bytes().to_vec(), names].concat();
        // FATTR_MODE: bit 0 of a struct of 88 bytes, the mode at 68.
        let mut mode = vec![0; 88];
        mode[0] = 1;
        mode[68..72].copy_from_slice(&0o777_u32.to_le_bytes());
        let attribute = [words(&[1, 0]), two("user.x", "")].concat();
        let requests = [
            (
                "create",
                Op::Create,
                read_only,
                [words(&[0o102, 0o644, 0, 0]), string("new")].concat(),
            ),
            (
                "mknod",
                Op::Mknod,
                read_only,
                [words(&[0o100_644, 0, 0, 0]), string("new")].concat(),
            ),
            (
                "mkdir",
                Op::Mkdir,
                read_only,
                [words(&[0o755, 0]), string("new")].concat(),
            ),
            ("symlink", Op::Symlink, read_only, two("new", "/")),
            ("unlink", Op::Unlink, read_only, string("file")),
            ("unlink by a longer name", Op::Unlink, writable, string("../2/file")),
            (
                "rename inside",
                Op::Rename,
                read_only,
                to(read_only, two("file", "new")),
            ),
            ("rename out", Op::Rename, read_only, to(writable, two("file", "new"))),
            ("link inside", Op::Link, read_only, to(file, string("new"))),
            ("link out", Op::Link, writable, to(file, string("new"))),
            ("chmod", Op::Setattr, file, mode),
            ("setxattr", Op::Setxattr, file, attribute),
            ("open for writing", Op::Open, file, words(&[O_RDWR.cast_unsigned(), 0])),
            (
                "mkdir in the shared directory",
                Op::Mkdir,
                ROOT,
                [words(&[0o755, 0]), string("new")].concat(),
            ),
            ("link beside the volumes", Op::Symlink, mounts, two("3", "/")),
            ("link by an absolute name", Op::Symlink, writable, two("/link", "/")),
            ("rename of a volume", Op::Rename, mounts, to(mounts, two("1", "9"))),
        ];
        for (what, op, node, body) in requests {
            let answer = self.client.ask(op, node, &body)?;
            self.say(what, errno(&answer));
        }
        Ok(())
    }

    /// A device node, which the guest may make, is not one of the host's devices to it.
    fn special(&mut self) -> io::Result<()> {
        let writable = self.walk(&[VOLUMES, "1"])?.id;
        // /dev/zero: a character device, 1:5.
        let made = self.client.ask(
            Op::Mknod,
            writable,
            &[words(&[0o020_666, 1 << 8 | 5, 0, 0]), string("zero")].concat(),
        )?;
        self.say("making a device", errno(&made));
        let node = self.must(writable, "zero")?;
        let opened = self.client.open(node.id, O_RDONLY)?;
        self.say("opening a device", opened.is_ok());
        Ok(())
    }
}

/// How many names but `.` and `..` a READDIR's answer has: 24 bytes and a name each, padded to 8.
fn entries(mut list: &[u8]) -> u32 {
    let mut count = 0;
    while list.len() >= 24 {
        let length = u32::from_le_bytes([list[16], list[17], list[18], list[19]]) as usize;
        let Some(name) = list.get(24..24 + length) else { break };
        count += u32::from(!matches!(name, b"." | b".."));
        list = list.get((24 + length).next_multiple_of(8)..).unwrap_or_default();
    }
    count
}
