//! FUSE as a file system's client speaks it, with any node and any name (the kernel's include/uapi/linux/fuse.h).

use std::io;

use super::device::{BATCH, Device};

/// The node that every file system begins at.
pub(super) const ROOT: u64 = 1;

/// Requests, by their numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Lookup = 1,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Create = 35,
    BatchForget = 42,
    SetupMapping = 48,
}

/// What the host says to a request: data, or an error number.
pub(super) type Answer = Result<Vec<u8>, i32>;

/// A file that the host has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) inode: u64,
}

pub(super) struct Client {
    device: Device,
    unique: u64,
}

impl Client {
    /// Begins anew: what the kernel had opened is forgotten.
    pub(super) fn begin(device: Device) -> io::Result<Self> {
        let mut client = Self { device, unique: 0 };
        // Version 7.38, 64 KiB of read-ahead, and that submounts are understood (bit 27).
        let init = words(&[7, 38, 65536, 1 << 27]);
        match client.ask(Op::Init, ROOT, &init)? {
            Ok(_) => Ok(client),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    pub(super) fn ask(&mut self, op: Op, node: u64, body: &[u8]) -> io::Result<Answer> {
        let length = 40 + body.len() as u32;
        self.claim(length, op as u32, node, body)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, format!("no answer to {op:?}")))
    }

    /// A request that says of its length and kind what it likes. It need not be answered.
    pub(super) fn claim(&mut self, length: u32, op: u32, node: u64, body: &[u8]) -> io::Result<Option<Answer>> {
        let request = self.request(length, op, node, body);
        Ok(self.device.exchange(&request)?.map(|reply| answer(&reply)))
    }

    fn request(&mut self, length: u32, op: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let mut request = words(&[length, op]);
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        // As root, from no process in particular.
        request.extend(words(&[0, 0, 0, 0]));
        request.extend(body);
        request
    }

    /// Short requests of one kind, each to its node, as many at a time as fit. Gives each answer to `each`, in the order of the requests.
    pub(super) fn ask_many(
        &mut self,
        op: Op,
        requests: impl IntoIterator<Item = (u64, Vec<u8>)>,
        mut each: impl FnMut(Answer),
    ) -> io::Result<()> {
        let mut requests = requests.into_iter();
        loop {
            let some: Vec<_> = requests
                .by_ref()
                .take(BATCH)
                .map(|(node, body)| self.request(40 + body.len() as u32, op as u32, node, &body))
                .collect();
            if some.is_empty() {
                return Ok(());
            }
            let replies = self.device.exchange_short(&some)?;
            let replies =
                replies.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, format!("no answer to {op:?}")))?;
            replies.iter().for_each(|reply| each(answer(reply)));
        }
    }

    /// LOOKUP.
    pub(super) fn look_up(&mut self, parent: u64, name: &str) -> io::Result<Result<Node, i32>> {
        let answer = self.ask(Op::Lookup, parent, &string(name))?;
        Ok(answer.map(|entry| Node {
            id: number(&entry, 0),
            inode: number(&entry, 40),
        }))
    }

    /// The inode of a node, by GETATTR.
    pub(super) fn inode(&mut self, node: u64) -> io::Result<Result<u64, i32>> {
        let answer = self.ask(Op::Getattr, node, &[0; 16])?;
        Ok(answer.map(|attributes| number(&attributes, 16)))
    }

    /// OPEN; the handle.
    pub(super) fn open(&mut self, node: u64, flags: i32) -> io::Result<Result<u64, i32>> {
        let answer = self.ask(Op::Open, node, &words(&[flags.cast_unsigned(), 0]))?;
        Ok(answer.map(|open| number(&open, 0)))
    }

    /// READ or READDIR of the first bytes.
    pub(super) fn read(&mut self, op: Op, node: u64, handle: u64) -> io::Result<Answer> {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend([0; 8]);
        body.extend(words(&[2048, 0, 0, 0, 0, 0]));
        self.ask(op, node, &body)
    }
}

/// What a reply says (fuse_out_header): an error, or what follows.
fn answer(reply: &[u8]) -> Answer {
    let error = reply.get(4..8).and_then(|bytes| bytes.try_into().ok());
    match error.map_or(0, i32::from_le_bytes) {
        0 => Ok(reply[16..].to_vec()),
        error => Err(-error),
    }
}

/// The node of LOOKUP's answer.
pub(super) fn node(entry: &[u8]) -> u64 {
    number(entry, 0)
}

/// 32-bit numbers in their order.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A name as FUSE has it.
pub(super) fn string(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}
