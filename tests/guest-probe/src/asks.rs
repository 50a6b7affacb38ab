//! Asks for what a kernel may have as a module, as programs do, and says what came of it: the errno, 0 for success.

use std::{
    fs::File,
    io,
    net::TcpListener,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, IFlags, Mode, makedev, mknodat},
    io::Errno,
    mount::{MountFlags, mount},
    net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, send, socket},
};
use serde_json::{Map, Value, json};

use crate::{error::Result, sys};

/// Protocols of sockets (linux/in.h).
const SCTP: u32 = 132;
const MPTCP: u32 = 262;

/// Tries each of the names; prints an object from the name to its errno.
pub(crate) fn ask(names: &[&str]) -> Result<()> {
    let mut answers = Map::new();
    for name in names {
        let answer = match try_one(name) {
            Ok(()) => json!(0),
            Err(error) => error
                .raw_os_error()
                .map_or_else(|| json!(error.to_string()), |errno| json!(errno)),
        };
        answers.insert((*name).to_owned(), answer);
    }
    println!("{}", Value::from(answers));
    Ok(())
}

fn try_one(name: &str) -> io::Result<()> {
    match name.split_once(':') {
        Some(("socket", "sctp")) => stream(SCTP),
        Some(("socket", "mptcp")) => stream(MPTCP),
        Some(("mount", kind)) => mount_one(kind),
        Some(("target", kind)) => target(kind),
        Some(("dm", kind)) => sys::device_mapper_target(&node("mapper-control", false, 10, 236)?, kind),
        Some(("block", major)) => open(&node(&format!("block-{major}"), true, number(major)?, 0)?),
        Some(("char", major)) => open(&node(&format!("char-{major}"), false, number(major)?, 0)?),
        Some(("ipset", kind)) => ipset(kind),
        Some(("family", name)) => family(name),
        _ => Err(io::Error::other("the probe does not know it")),
    }
}

fn stream(protocol: u32) -> io::Result<()> {
    let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
    Ok(socket(AddressFamily::INET, SocketType::STREAM, protocol).map(drop)?)
}

/// A port of this host on which nobody listens.
fn closed_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn mount_one(kind: &str) -> io::Result<()> {
    let port = closed_port()?;
    let (source, options) = match kind {
        "nfs" => (
            "127.0.0.1:/x",
            format!(
                "addr=127.0.0.1,vers=3,mountvers=3,proto=tcp,mountproto=tcp,port={port},mountport={port},soft,nolock"
            ),
        ),
        "nfs4" => (
            "127.0.0.1:/x",
            format!("addr=127.0.0.1,clientaddr=127.0.0.1,vers=4.1,proto=tcp,port={port},soft,timeo=1,retrans=0"),
        ),
        "cifs" => (
            "//127.0.0.1/x",
            format!("ip=127.0.0.1,port={port},user=a,pass=b,vers=3.0"),
        ),
        "9p" => ("127.0.0.1", format!("trans=tcp,port={port}")),
        _ => ("/nonexistent", String::new()),
    };
    let place = Path::new("/tmp/ask");
    std::fs::create_dir_all(place)?;
    let options = std::ffi::CString::new(options)?;
    Ok(mount(source, place, kind, MountFlags::empty(), options.as_c_str())?)
}

/// Whether iptables would find the target.
fn target(name: &str) -> io::Result<()> {
    let raw = socket(
        AddressFamily::INET,
        SocketType::RAW,
        std::num::NonZeroU32::new(255).map(Protocol::from_raw),
    )?;
    sys::xtables_target(raw.as_fd(), name)
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(io::Error::other)
}

/// A device node of the container's own.
fn node(name: &str, block: bool, major: u32, minor: u32) -> io::Result<PathBuf> {
    let path = Path::new("/dev").join(name);
    let kind = if block {
        FileType::BlockDevice
    } else {
        FileType::CharacterDevice
    };
    match mknodat(
        rustix::fs::CWD,
        &path,
        kind,
        Mode::from_raw_mode(0o600),
        makedev(major, minor),
    ) {
        Ok(()) | Err(Errno::EXIST) => Ok(path),
        Err(errno) => Err(errno.into()),
    }
}

fn open(path: &Path) -> io::Result<()> {
    File::options().read(true).write(true).open(path).map(drop)
}

/// Whether `ipset create` would find the type (linux/netfilter/ipset/ip_set.h: IPSET_CMD_TYPE).
fn ipset(kind: &str) -> io::Result<()> {
    const NETLINK_NETFILTER: u32 = 12;
    // IPSET_ATTR_PROTOCOL, IPSET_ATTR_TYPENAME, IPSET_ATTR_FAMILY, after a nfgenmsg.
    let name = [kind.as_bytes(), &[0]].concat();
    netlink(
        NETLINK_NETFILTER,
        6 << 8 | 13,
        &[0; 4],
        &[(1, &[7]), (3, &name), (5, &[0])],
    )
}

/// Whether a program finds a family of generic netlink (linux/genetlink.h: CTRL_CMD_GETFAMILY).
fn family(name: &str) -> io::Result<()> {
    const NETLINK_GENERIC: u32 = 16;
    let name = [name.as_bytes(), &[0]].concat();
    netlink(NETLINK_GENERIC, 16, &[3, 1, 0, 0], &[(2, &name)])
}

/// Sends a request with attributes and waits for the answer (netlink(7)).
fn netlink(protocol: u32, kind: u16, header: &[u8], attributes: &[(u16, &[u8])]) -> io::Result<()> {
    const REQUEST: u16 = 1;
    let mut body = header.to_vec();
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
        body.extend_from_slice(&length.to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = Vec::new();
    message.extend_from_slice(&u32::try_from(16 + body.len()).map_err(io::Error::other)?.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);
    let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, protocol)?;
    send(&netlink, &message, SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = recv(&netlink, &mut answer[..], RecvFlags::empty())?;
    // NLMSG_ERROR: the errno follows the header.
    match answer.get(..length) {
        Some(&[_, _, _, _, 2, 0, _, _, _, _, _, _, _, _, _, _, a, b, c, d, ..]) => {
            Err(io::Error::from_raw_os_error(-i32::from_ne_bytes([a, b, c, d])))
        }
        Some(_) => Ok(()),
        None => Err(io::Error::other("no answer")),
    }
}

/// Asks for sockets of families that no kernel has; prints how many processes were made meanwhile.
pub(crate) fn flood(count: &str) -> Result<()> {
    let before = processes()?;
    for number in 0..count.parse::<u32>()? {
        let family = AddressFamily::from_raw(u16::try_from(46 + number % 100)?);
        if socket(family, SocketType::STREAM, None).is_ok() {
            return Err("a socket of no family".into());
        }
    }
    println!("{}", processes()? - before);
    Ok(())
}

/// How many processes there have been (proc_stat(5)).
fn processes() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("processes "));
    Ok(line.ok_or("no count of processes")?.parse()?)
}

/// Loads a file as a module of the kernel, with all the rights that there are; prints the errno.
pub(crate) fn load(file: &str) -> Result<()> {
    let errno = match rustix::system::init_module(&std::fs::read(file)?, c"") {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error(),
    };
    println!("{errno}");
    Ok(())
}

/// Has a directory take names without regard to case, and looks for a file by another one.
pub(crate) fn casefold(directory: &str) -> Result<()> {
    let place = Path::new(directory).join("folded");
    std::fs::create_dir(&place)?;
    let handle = File::open(&place)?;
    let flags = rustix::fs::ioctl_getflags(&handle)?;
    // FS_CASEFOLD_FL (linux/fs.h).
    rustix::fs::ioctl_setflags(&handle, flags | IFlags::from_bits_retain(0x4000_0000))?;
    std::fs::write(place.join("Straße"), "folded")?;
    println!("{}", std::fs::read_to_string(place.join("STRASSE"))?);
    Ok(())
}
