//! What a file system does that programs take for granted: mappings, locks, extended attributes, access lists.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    libc,
};
use rustix::{
    event::epoll,
    fs::{FallocateFlags, Mode, OFlags, XattrFlags},
};
use serde_json::{Map, Value, json};

use crate::{
    acl,
    child::child,
    mapping::{PAGE, Shared},
};

/// Tries everything in a directory that may be written to, and prints an object from each try to its errno, 0 for success,
/// or to what was found.
pub(crate) fn report(directory: &str) -> crate::error::Result<()> {
    let directory = Path::new(directory);
    let mut said = Map::new();
    let mut say = |what: &str, value: Value| drop(said.insert(what.to_owned(), value));
    let path = directory.join("probed");
    fs::write(&path, [b'a'; PAGE])?;
    say("mmap shared", json!(mapped(&path, false)?));
    say("mmap private", json!(mapped(&path, true)?));
    say("fsync", errno(&File::options().write(true).open(&path)?.sync_all()));
    say("second flock", second(&path, "flock", || flock(&path).map(drop_later))?);
    say("second lock", second(&path, "lock", || lock(&path).map(drop_later))?);
    for name in ["user.probe", "trusted.probe", "security.capability"] {
        say(name, json!(attribute(&path, name)));
    }
    let direct = rustix::fs::open(&path, OFlags::RDWR | OFlags::DIRECT, Mode::empty());
    say(
        "O_DIRECT",
        json!(direct.err().map_or(0, rustix::io::Errno::raw_os_error)),
    );
    let file = File::options().write(true).open(&path)?;
    let grown = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20);
    say(
        "fallocate",
        json!(grown.err().map_or(0, rustix::io::Errno::raw_os_error)),
    );
    say("access list", acl::on_a_file(directory)?);
    println!("{}", Value::Object(said));
    Ok(())
}

/// Tries what few file systems have, and prints an object from each to its errno, 0 for success.
pub(crate) fn rare(directory: &str) -> crate::error::Result<()> {
    let path = Path::new(directory).join("rare");
    fs::write(&path, vec![b'a'; 4 * PAGE])?;
    let file = File::options().read(true).write(true).open(&path)?;
    let code = |done: rustix::io::Result<()>| done.err().map_or(0, rustix::io::Errno::raw_os_error);
    let nameless = rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR).map(drop);
    let page = PAGE as u64;
    let direct = rustix::fs::open(&path, OFlags::RDWR | OFlags::DIRECT, Mode::empty());
    let said = json!({
        "O_TMPFILE": code(nameless),
        "collapse": code(rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, page)),
        "insert": code(rustix::fs::fallocate(&file, FallocateFlags::INSERT_RANGE, 0, page)),
        "punch": code(rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, page)),
        "flags": code(rustix::fs::ioctl_getflags(&file).map(drop)),
        "birth time": file.metadata()?.created().is_ok(),
        "epoll": code(watched(&file)),
        "O_DIRECT of 3 bytes": code(direct.and_then(|direct| rustix::io::write(direct, b"odd").map(drop))),
    });
    println!("{said}");
    Ok(())
}

/// Has epoll(7) watch a regular file.
fn watched(file: &File) -> rustix::io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(epoll, file, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
}

fn errno<T>(result: &io::Result<T>) -> Value {
    json!(
        result
            .as_ref()
            .err()
            .map_or(0, |error| error.raw_os_error().unwrap_or(-1))
    )
}

/// Writes by a mapping: the errno, or what the file has afterwards.
fn mapped(path: &Path, private: bool) -> io::Result<Value> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mapping = match Shared::file(&file, private) {
        Ok(mapping) => mapping,
        Err(error) => return Ok(errno::<()>(&Err(error))),
    };
    mapping.write(0, if private { b'p' } else { b's' });
    file.sync_all()?;
    let mut first = [0];
    file.rewind()?;
    file.read_exact(&mut first)?;
    Ok(json!(String::from_utf8_lossy(&first)))
}

type Held = Box<dyn std::any::Any>;

fn drop_later<T: 'static>(held: T) -> Held {
    Box::new(held)
}

/// The errno of another process that asks for a lock which we have.
fn second(path: &Path, verb: &str, first: impl FnOnce() -> io::Result<Held>) -> crate::error::Result<Value> {
    let _held = first()?;
    child(None, verb, path)
}

/// Takes the whole file's lock without waiting.
pub(crate) fn flock(path: &Path) -> io::Result<Flock<File>> {
    let file = File::options().read(true).write(true).open(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// The same of a file that may only be read.
pub(crate) fn flock_to_read(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Takes a lock of POSIX's on the whole file without waiting: it ends with the file.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&all)).map_err(|errno: Errno| io::Error::from(errno))?;
    Ok(file)
}

/// Sets an attribute and reads it back: the errno of what failed first.
fn attribute(path: &Path, name: &str) -> i32 {
    // A capability is a structure of its own (capability.h): version 2, CAP_NET_BIND_SERVICE, effective.
    let value: Vec<u8> = match name {
        "security.capability" => [0x0200_0001_u32, 1 << 10, 0, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
        _ => b"value".to_vec(),
    };
    let mut back = [0; 64];
    let done = rustix::fs::setxattr(path, name, &value, XattrFlags::empty())
        .and_then(|()| rustix::fs::getxattr(path, name, &mut back));
    match done {
        Ok(length) if back[..length] == value => 0,
        Ok(_) => -1,
        Err(errno) => errno.raw_os_error(),
    }
}
