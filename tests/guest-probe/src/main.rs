//! Runs inside containers, static, and reports what they really got. It knows nothing of the runtime.
//!
//! ```text
//! guest-probe report [SYSCTL…]      every fact as one JSON object
//! guest-probe try VERB PATH…        tries an operation on each path; prints each one's errno, 0 for success
//! guest-probe touch-memory BYTES    writes to that many bytes, then says so
//! guest-probe watch COUNT PATH…     says "watching", then that many inotify events: PATH EVENT NAME COOKIE CONTENT
//! guest-probe files DIR             mappings, locks, attributes and access lists of a file system, as one JSON object
//! guest-probe rare DIR             operations that few file systems have, as one JSON object
//! guest-probe act DIR              does with files what it is told on its standard input, a line an operation and a result
//! guest-probe meet serve DIR…      makes sockets, FIFOs, locks and so on in directories, and does what is asked by them
//! guest-probe meet call DIR…       tries all that from another container; prints what came of it, as one JSON object
//! guest-probe acl DIR               access lists in a directory, as one JSON object
//! guest-probe huge-pages FILE COUNT maps that many huge pages of a file, or of none (-), and writes to each; prints the errno
//! guest-probe escape PATH          drives the virtio-fs device by itself and tries to reach a path of the host
//! guest-probe lengths              the same with lengths that are not true; `fatal` with one that ends the conversation
//! guest-probe hostile ID ROUNDS SEED  drives the virtio device with that PCI id (0x1005) against its rules, by chance
//! guest-probe vsock-flood KIND PORT SECONDS  drives the vsock device by itself and sends to the host's port without end
//! guest-probe handles DIR PATH      opens files of a mount by guessed handles, and looks for a path of the host in them
//! guest-probe unix echo PATH BYTES  sends bytes on a Unix socket and reads as many back; prints what came of it, as one JSON object
//! guest-probe unix many PATH COUNT  has that many connections at once, and a word echoed on each; prints how many were right
//! guest-probe unix packets PATH     the same for messages of many sizes (SOCK_SEQPACKET); prints how many came back whole
//! guest-probe unix send PATH WORD…  sends a datagram for each word
//! guest-probe unix ends PATH        connects, says "connected", and waits for the other side's end
//! guest-probe unix pass PATH WORD   sends a word with a descriptor; prints the answer and how many descriptors came with it, as one JSON object
//! guest-probe names tcp|udp SERVER NAME COUNT  asks a name server for an address that many times at once; prints the answers
//! guest-probe dial CID PORT         says its standard input on a vsock connection; prints what came of it, as one JSON object
//! guest-probe silence CID PORT COUNT  keeps that many vsock connections open and says nothing on them
//! guest-probe pour MIB              writes that many MiB to its standard output, and does nothing else
//! guest-probe log-to FILE           containerd's binary logger: copies descriptors 3 and 4 to a file
//! guest-probe load DIR FILES MIB    file system load; prints rates
//! guest-probe times root|in ROUNDS COUNT DIR,DIR… PROGRAM…   seconds that a program takes from or in each directory, as JSON
//! guest-probe turns serve DIR…     answers the turns of `call`
//! guest-probe turns call COUNT DIR…   has a file in each directory in turns with the other program; prints turns a second
//! guest-probe first-program …       as /init of a guest without an agent
//! guest-probe fill-perf             maps perf buffers until the kernel refuses, and says how many there were
//! guest-probe ask NAME…             asks for what a kernel may have as a module; prints each one's errno, 0 for success
//! guest-probe ask-in-vain COUNT     asks that many times for sockets of families that there are not; prints how many processes were made
//! guest-probe load-module FILE      loads a file as a module of the kernel; prints the errno
//! guest-probe casefold DIR          has a directory of DIR take names without regard to case, and finds a file by another name
//! guest-probe traced PROGRAM…       asks its parent to trace it, gets a signal, asks again, and becomes that program
//! guest-probe tracing              the kernel's types, a program at a function's entry and the tracers, as one JSON object
//! guest-probe kernel TEST [PATH]    looks for one fault of the guest kernel, as root with every right
//! ```

mod acl;
mod act;
mod asks;
mod child;
mod dial;
mod error;
mod escape;
mod facts;
mod files;
mod fill;
mod handles;
mod kernel;
mod load;
mod mapping;
mod meet;
mod names;
mod storm;
mod sys;
mod times;
mod traced;
mod tracing;
mod unix;
mod watch;

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
    thread,
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Map, json};

use self::error::Result;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["report", sysctls @ ..] => report(sysctls),
        ["try", verb, paths @ ..] => try_paths(verb, paths),
        ["touch-memory", bytes] => touch_memory(bytes),
        ["files", directory] => files::report(directory),
        ["rare", directory] => files::rare(directory),
        ["act", directory] => act::act(directory),
        ["meet", "serve", directories @ ..] => meet::serve(directories),
        ["meet", "call", directories @ ..] => meet::call(directories),
        ["acl", directory] => acl::report(directory),
        ["huge-pages", file, count] => huge_pages(file, count),
        ["escape", secret] => escape::run(secret),
        ["lengths"] => escape::lengths(),
        ["fatal"] => escape::fatal(),
        ["hostile", device, rounds, seed] => escape::hostile(device, rounds, seed),
        ["hoard", files, requests] => escape::hoard(files, requests),
        ["rename-storm", directory] => storm::rename(directory),
        ["vsock-flood", kind, port, seconds] => escape::flood(kind, port, seconds),
        ["handles", directory, secret] => handles::report(directory, secret),
        ["unix", verb, path, args @ ..] => unix::run(verb, path, args),
        ["names", transport, server, name, count] => names::ask(transport, server, name, count),
        ["dial", cid, port] => dial::dial(cid, port),
        ["silence", cid, port, count] => dial::silence(cid, port, count),
        ["knock", cid, port, seconds] => dial::knock(cid, port, seconds),
        ["pour", mebibytes] => dial::pour_out(mebibytes),
        ["log-to", file] => log_to(file),
        ["watch", count, paths @ ..] => watch::watch(count, paths),
        ["load", dir, files, mebibytes] => load::load(dir, files, mebibytes),
        ["times", how, rounds, count, directories, program @ ..] => {
            times::times(how, rounds, count, directories, program)
        }
        ["time", how, count, directory, program @ ..] => times::time(how, count, directory, program),
        ["turns", "serve", directories @ ..] => times::serve_turns(directories),
        ["turns", "call", count, directories @ ..] => times::call_turns(count, directories),
        ["first-program", arguments @ ..] => load::first_program(arguments),
        ["fill-perf"] => fill_perf(),
        ["ask", names @ ..] => asks::ask(names),
        ["ask-in-vain", count] => asks::flood(count),
        ["load-module", file] => asks::load(file),
        ["casefold", directory] => asks::casefold(directory),
        ["traced", program @ ..] => traced::traced(program),
        ["tracing"] => tracing::report(),
        ["kernel", test, args @ ..] => kernel::run(test, args),
        other => Err(format!("unknown: {other:?}").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(sysctls: &[&str]) -> Result<()> {
    let mut out = io::stdout();
    serde_json::to_writer(&mut out, &facts::all(sysctls))?;
    Ok(writeln!(out)?)
}

/// Prints an object from path to errno, so that a test can ask for many refusals at once.
fn try_paths(verb: &str, paths: &[&str]) -> Result<()> {
    let mut results = Map::new();
    for path in paths {
        let result = match verb {
            "mkdir" => fs::create_dir(path),
            "read" => File::open(path).and_then(|mut file| file.read(&mut [0]).map(drop)),
            "write" => File::options()
                .write(true)
                .open(path)
                .and_then(|mut file| file.write(&[0]).map(drop)),
            "create" => File::create(path).map(drop),
            "connect" => UnixStream::connect(path).map(drop),
            "flock-read" => files::flock_to_read(path.as_ref()).map(drop),
            "flock" => files::flock(path.as_ref()).map(drop),
            "lock" => files::lock(path.as_ref()).map(drop),
            // Any device will do: /dev/null's numbers.
            "mknod" => mknod(*path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).map_err(io::Error::from),
            other => return Err(format!("cannot try {other}").into()),
        };
        let errno = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
        results.insert((*path).to_owned(), json!(errno));
    }
    println!("{}", serde_json::Value::Object(results));
    Ok(())
}

fn fill_perf() -> Result<()> {
    let filled = fill::Filled::new()?;
    let pinned = facts::status().get("VmPin").cloned();
    println!(
        "{}",
        json!({ "buffers": filled.buffers, "pages": filled.pages, "pinned": pinned })
    );
    Ok(())
}

fn touch_memory(bytes: &str) -> Result<()> {
    let count: usize = bytes.parse()?;
    // A value other than zero, because the kernel gives zeroed pages only when they are written.
    let memory = vec![1_u8; count];
    println!(
        "touched {}",
        memory.iter().map(|byte| usize::from(*byte)).sum::<usize>()
    );
    Ok(())
}

/// Prints what came of it, 0 for success. A page that the kernel cannot give ends the program (SIGBUS).
fn huge_pages(file: &str, count: &str) -> Result<()> {
    let length = count.parse::<usize>()? << 21;
    let mapping = match file {
        "-" => mapping::Shared::huge(length),
        path => {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            file.set_len(length as u64)?;
            mapping::Shared::file(&file, false)
        }
    };
    let errno = match mapping {
        Ok(mapping) => {
            for page in (0..length).step_by(1 << 21) {
                mapping.write(page, 1_u8);
            }
            0
        }
        Err(error) => error.raw_os_error().unwrap_or(-1),
    };
    println!("{errno}");
    Ok(())
}

/// The protocol of containerd's `binary://` loggers: 3 is the container's stdout, 4 its stderr, and closing 5 says that
/// the logger is ready (containerd, runtime/v2/logging).
fn log_to(file: &str) -> Result<()> {
    let log = File::options().create(true).append(true).open(file)?;
    let (mut out, mut err) = (File::open("/proc/self/fd/3")?, File::open("/proc/self/fd/4")?);
    nix::unistd::close(5)?;
    let mut first = log.try_clone()?;
    let mut second = log;
    let other = thread::spawn(move || io::copy(&mut err, &mut second));
    io::copy(&mut out, &mut first)?;
    other.join().map_err(|_| "the second copier failed")??;
    Ok(())
}
