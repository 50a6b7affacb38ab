//! Programs that talk to a service by a Unix socket.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixDatagram, UnixStream},
    },
    thread,
    time::Instant,
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, recvmsg,
    send, sendmsg, socket,
};
use serde_json::json;

use crate::error::Result;

/// Sizes of messages.
const SIZES: [usize; 6] = [1, 100, 4096, 65_536, 150_000, 7];

/// How many different blocks are sent, in turns.
const BLOCKS: u64 = 17;

pub(crate) fn run(verb: &str, path: &str, args: &[&str]) -> Result<()> {
    match (verb, args) {
        ("echo", [bytes]) => echo(path, bytes.parse()?),
        ("many", [count]) => many(path, count.parse()?),
        ("packets", []) => packets(path),
        ("send", words) => send_words(path, words),
        ("ends", []) => ends(path),
        ("pass", [word]) => pass(path, word),
        ("upload", [bytes]) => upload(path, bytes.parse()?),
        ("download", [bytes]) => download(path, bytes.parse()?),
        _ => Err(format!("unknown: unix {verb} {args:?}").into()),
    }
}

/// Bytes that are not the same at any two places near each other.
fn pattern(at: u64) -> [u8; 8] {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn block(number: u64) -> Vec<u8> {
    (0..8192_u64).flat_map(|word| pattern(number * 8192 + word)).collect()
}

/// Both directions at once. The service echoes until the end, which is said before all has come back.
fn echo(path: &str, bytes: u64) -> Result<()> {
    let began = Instant::now();
    let stream = UnixStream::connect(path)?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || -> io::Result<()> {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut number = 0;
        while left > 0 {
            let block = block(number);
            let part = &block[..left.min(block.len())];
            writer.write_all(part)?;
            left -= part.len();
            number += 1;
        }
        writer.shutdown(Shutdown::Write)
    });
    let mut reader = stream;
    let (mut received, mut equal) = (0_u64, true);
    let mut buffer = vec![0; 1 << 16];
    let mut wanted = (0, block(0));
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            let (number, at) = (received >> 16, (received & 0xffff) as usize);
            if number != wanted.0 {
                wanted = (number, block(number));
            }
            equal &= wanted.1[at] == *byte;
            received += 1;
        }
    }
    sender.join().map_err(|_| "the sender failed")??;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "received": received, "equal": equal, "seconds": seconds })
    );
    Ok(())
}

/// All are connected before the first says anything.
fn many(path: &str, count: usize) -> Result<()> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(UnixStream::connect(path)?);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        writeln!(stream, "connection {number}")?;
        stream.shutdown(Shutdown::Write)?;
    }
    let mut right = 0;
    for (number, mut stream) in streams.into_iter().enumerate() {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        right += usize::from(answer == format!("connection {number}\n"));
    }
    println!("{right}");
    Ok(())
}

fn packets(path: &str) -> Result<()> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let mut right = 0;
    let mut buffer = vec![0; 1 << 20];
    for (number, size) in SIZES.into_iter().enumerate() {
        let message = vec![number as u8; size];
        send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        right += usize::from(buffer[..length] == message);
    }
    println!("{right} of {}", SIZES.len());
    Ok(())
}

fn send_words(path: &str, words: &[&str]) -> Result<()> {
    let socket = UnixDatagram::unbound()?;
    for word in words {
        socket.send_to(word.as_bytes(), path)?;
    }
    Ok(())
}

/// Sends a word and a descriptor with it, and prints the answer and how many descriptors came with it.
fn pass(path: &str, word: &str) -> Result<()> {
    let stream = UnixStream::connect(path)?;
    let file = File::open("/dev/null")?;
    let passed = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&passed)];
    let message = [IoSlice::new(word.as_bytes())];
    sendmsg::<()>(stream.as_raw_fd(), &message, &rights, MsgFlags::empty(), None)?;
    let mut buffer = [0; 256];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let answer = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let descriptors = answer.cmsgs()?.filter_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors.len()),
        _ => None,
    });
    let descriptors: usize = descriptors.sum();
    let said: Vec<u8> = answer.iovs().flatten().copied().collect();
    println!(
        "{}",
        json!({ "answer": String::from_utf8_lossy(&said), "descriptors": descriptors })
    );
    Ok(())
}

/// Prints how many bytes came before the end, and the errno of a write after it.
fn ends(path: &str) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    println!("connected");
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    let written = loop {
        match stream.write_all(b"x") {
            Ok(()) => thread::yield_now(),
            Err(error) => break error.raw_os_error(),
        }
    };
    let read = read.err().and_then(|error| error.raw_os_error());
    println!("{}", json!({ "said": said.len(), "read": read, "written": written }));
    Ok(())
}

/// A sum that tells places apart: Fletcher's, over words of 64 bits.
#[derive(Default)]
struct Sum {
    plain: u64,
    placed: u64,
    bytes: u64,
    /// Of a word that is not complete.
    rest: Vec<u8>,
}

impl Sum {
    fn add(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        if !self.rest.is_empty() {
            let (first, others) = data.split_at(data.len().min(8 - self.rest.len()));
            self.rest.extend(first);
            data = others;
            if self.rest.len() < 8 {
                return;
            }
            let word = std::mem::take(&mut self.rest);
            self.words(&word);
        }
        let whole = data.len() / 8 * 8;
        self.words(&data[..whole]);
        self.rest.extend(&data[whole..]);
    }

    fn words(&mut self, data: &[u8]) {
        for word in data.chunks_exact(8) {
            let word = word.try_into().map(u64::from_le_bytes).unwrap_or_default();
            self.plain = self.plain.wrapping_add(word);
            self.placed = self.placed.wrapping_add(self.plain);
        }
    }

    /// As the service says it.
    fn said(&self) -> [u8; 24] {
        let mut said = [0; 24];
        for (at, part) in [self.bytes, self.plain, self.placed].into_iter().enumerate() {
            said[at * 8..][..8].copy_from_slice(&part.to_le_bytes());
        }
        said
    }
}

/// Sends so many bytes; the service says how many it has got, and their sum.
fn upload(path: &str, bytes: u64) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(&0_u64.to_le_bytes())?;
    let blocks: Vec<_> = (0..BLOCKS).map(block).collect();
    let mut sum = Sum::default();
    let began = Instant::now();
    for block in blocks.iter().cycle() {
        let left = usize::try_from(bytes - sum.bytes).unwrap_or(usize::MAX);
        if left == 0 {
            break;
        }
        let part = &block[..left.min(block.len())];
        stream.write_all(part)?;
        sum.add(part);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    report(&sum, &said, began)
}

/// Asks for so many bytes. Their number and sum follow them.
fn download(path: &str, bytes: u64) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(&bytes.to_le_bytes())?;
    let began = Instant::now();
    let (mut sum, mut buffer) = (Sum::default(), vec![0; 1 << 16]);
    while sum.bytes < bytes {
        let room = usize::try_from(bytes - sum.bytes)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = stream.read(&mut buffer[..room])?;
        if count == 0 {
            break;
        }
        sum.add(&buffer[..count]);
    }
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    report(&sum, &said, began)
}

fn report(sum: &Sum, said: &[u8], began: Instant) -> Result<()> {
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "bytes": sum.bytes, "equal": said == sum.said(), "seconds": seconds })
    );
    Ok(())
}
