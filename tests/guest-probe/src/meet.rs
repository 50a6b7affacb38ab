//! What two programs can do with each other by a directory that both have: sockets, FIFOs, locks, mappings, watches, and
//! whether each sees at once what the other writes.
//!
//! One serves, and does what it is asked to by a socket in the directory, a line a request and a line an answer; the other one
//! calls, and says what came of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::Mode,
    },
    unistd::mkfifo,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value, json};

use crate::{
    files,
    mapping::{PAGE, Shared},
};

/// How often something is changed by one and looked at by the other.
const TIMES: usize = 100;

/// How long an event that should come at once is waited for before it is said that it does not come.
const EVENT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// Serves in all directories, and says so once it does; whoever calls does so in the same order.
pub(crate) fn serve(directories: &[&str]) -> crate::error::Result<()> {
    let mut served = Vec::new();
    for directory in directories {
        served.push(Server::new(Path::new(directory))?);
    }
    println!("serving");
    for server in served {
        server.run()?;
    }
    Ok(())
}

struct Server {
    directory: PathBuf,
    listener: UnixListener,
    mapping: Shared,
    inotify: Inotify,
    /// Locks, which end with this.
    _held: (nix::fcntl::Flock<File>, File, File),
}

impl Server {
    fn new(directory: &Path) -> io::Result<Self> {
        let path = |name: &str| directory.join(name);
        for name in ["flock", "fcntl", "ofd", "log", "note", "over"] {
            fs::write(path(name), "")?;
        }
        fs::write(path("mapped"), [0; PAGE])?;
        mkfifo(&path("fifo"), Mode::S_IRWXU)?;
        let mapped = File::options().read(true).write(true).open(path("mapped"))?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(directory, AddWatchFlags::IN_CREATE)?;
        Ok(Self {
            directory: directory.to_owned(),
            mapping: Shared::file(&mapped, false)?,
            inotify,
            _held: (
                files::flock(&path("flock"))?,
                files::lock(&path("fcntl"))?,
                open_file_lock(&path("ofd"))?,
            ),
            // Last: who calls finds all the rest.
            listener: UnixListener::bind(path("socket"))?,
        })
    }

    fn run(self) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        let mut answers = stream.try_clone()?;
        for request in BufReader::new(stream).lines() {
            let answer = self.answer(&request?)?;
            writeln!(answers, "{answer}")?;
        }
        Ok(())
    }

    fn answer(&self, request: &str) -> io::Result<String> {
        let path = |name: &str| self.directory.join(name);
        let (verb, argument) = request.split_once(' ').unwrap_or((request, ""));
        match verb {
            "fifo" => fs::write(path("fifo"), "through the fifo")?,
            "mapped" => return Ok(self.mapping.read::<u8>(0).to_string()),
            "watched" => return self.watched(argument),
            "append" => append(&path("log"), "s")?,
            "write" => fs::write(path("note"), argument)?,
            "replace" => {
                fs::write(path("new"), argument)?;
                fs::rename(path("new"), path("over"))?;
            }
            "make" => fs::write(path("there"), "")?,
            "remove" => fs::remove_file(path("there"))?,
            other => return Ok(format!("cannot {other}")),
        }
        Ok("done".to_owned())
    }

    /// Whether the watch has told that a name was made.
    fn watched(&self, name: &str) -> io::Result<String> {
        loop {
            if poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&EVENT))? == 0 {
                return Ok("nothing".to_owned());
            }
            let events = self.inotify.read_events()?;
            if events.iter().any(|event| event.name.as_deref() == Some(name.as_ref())) {
                return Ok("told".to_owned());
            }
        }
    }
}

/// Prints an object from each directory to what came of calling the one who serves there: errnos, 0 for success; and how many
/// of [`TIMES`] changes were not seen at once.
pub(crate) fn call(directories: &[&str]) -> crate::error::Result<()> {
    let mut said = Map::new();
    for directory in directories {
        said.insert((*directory).to_owned(), Value::Object(call_in(Path::new(directory))?));
    }
    println!("{}", Value::Object(said));
    Ok(())
}

fn call_in(directory: &Path) -> crate::error::Result<Map<String, Value>> {
    let path = |name: &str| directory.join(name);
    let mut said = Map::new();
    let locks: [(&str, io::Result<()>); 3] = [
        ("flock", files::flock(&path("flock")).map(drop)),
        ("fcntl", files::lock(&path("fcntl")).map(drop)),
        ("ofd", open_file_lock(&path("ofd")).map(drop)),
    ];
    for (what, result) in locks {
        said.insert(what.to_owned(), errno(&result));
    }
    let connected = UnixStream::connect(path("socket"));
    said.insert("socket".to_owned(), errno(&connected));
    let Ok(mut stream) = connected else {
        return Ok(said);
    };
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut ask = |request: &str| -> io::Result<String> {
        writeln!(stream, "{request}")?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    };
    // The one who serves opens it for writing, and waits for us.
    let fifo = path("fifo");
    let reader = thread::spawn(move || fs::read_to_string(fifo));
    ask("fifo")?;
    said.insert("fifo".to_owned(), json!(reader.join().map_err(|_| "no reader")??));
    let mapped = File::options().read(true).write(true).open(path("mapped"))?;
    Shared::file(&mapped, false)?.write(0, 7_u8);
    said.insert("mapped".to_owned(), json!(ask("mapped")?));
    fs::write(path("event"), "")?;
    said.insert("watched".to_owned(), json!(ask("watched event")?));
    for _ in 0..4 {
        ask("append")?;
        append(&path("log"), "c")?;
    }
    said.insert("appended".to_owned(), json!(fs::read_to_string(path("log"))?));
    said.insert("wrong".to_owned(), wrong(directory, &mut ask)?);
    Ok(said)
}

/// How often what was changed was not seen at once.
fn wrong(directory: &Path, ask: &mut dyn FnMut(&str) -> io::Result<String>) -> crate::error::Result<Value> {
    let path = |name: &str| directory.join(name);
    let (mut size, mut content, mut renamed, mut removed) = (0, 0, 0, 0);
    for number in 0..TIMES {
        // Longer and shorter in turns.
        let text = number.to_string().repeat(1 + number * 37 % 11);
        ask(&format!("write {text}"))?;
        size += usize::from(fs::metadata(path("note"))?.len() != text.len() as u64);
        content += usize::from(fs::read_to_string(path("note"))? != text);
        ask(&format!("replace {text}"))?;
        renamed += usize::from(fs::read_to_string(path("over"))? != text);
        ask("make")?;
        removed += usize::from(!path("there").exists());
        ask("remove")?;
        removed += usize::from(path("there").exists());
    }
    Ok(json!({ "size": size, "content": content, "renamed": renamed, "removed": removed }))
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())
}

/// Takes a lock of the open file (fcntl(2), F_OFD_SETLK) without waiting: it ends with the file.
fn open_file_lock(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&all)).map_err(io::Error::from)?;
    Ok(file)
}

fn errno<T>(result: &io::Result<T>) -> Value {
    let error = result.as_ref().err();
    json!(error.map_or(0, |error| error.raw_os_error().unwrap_or(-1)))
}
