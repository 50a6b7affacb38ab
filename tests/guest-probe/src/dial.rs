//! Dials a vsock port as any program may, says what it was told to say, and waits for the other side to end it.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket},
};
use serde_json::json;

use crate::error::Result;

/// The host's address (`VMADDR_CID_HOST`, vsock(7)).
const HOST: u32 = 2;

/// Prints the errno of connect(2), 0 for success, and how many bytes came before the end.
pub(crate) fn dial(cid: &str, port: &str) -> Result<()> {
    let mut words = Vec::new();
    io::stdin().read_to_end(&mut words)?;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let connected = connect(socket.as_raw_fd(), &VsockAddr::new(cid.parse()?, port.parse()?));
    let answered = match connected {
        Ok(()) => converse(File::from(socket), &words)?,
        Err(_) => 0,
    };
    let errno = connected.err().map_or(0, |errno: Errno| errno as i32);
    println!("{}", json!({ "errno": errno, "answered": answered }));
    Ok(())
}

/// The other side may have gone at any moment: then that was the end.
fn converse(mut socket: File, words: &[u8]) -> io::Result<usize> {
    let said = socket.write_all(words);
    let heard = said.and_then(|()| socket.read_to_end(&mut Vec::new()));
    match heard {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
            ) =>
        {
            Ok(0)
        }
        heard => heard,
    }
}

/// Bytes of a write to vsock: as the agent's (`agent/src/connections/dial.rs`).
const BLOCK: usize = 28 << 10;
/// Bytes of a write to a pipe.
const PIPE_BLOCK: usize = 64 << 10;

/// Sends so many MiB to a port of the host, and ends the connection when the host has.
pub(crate) fn pour(port: &str, mebibytes: &str) -> Result<()> {
    let mut socket = File::from(connected(&VsockAddr::new(HOST, port.parse()?))?);
    write_blocks(&mut socket, BLOCK, mebibytes)?;
    socket.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// `guest-probe pour MIB`: writes so many MiB to its standard output.
pub(crate) fn pour_out(mebibytes: &str) -> Result<()> {
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    write_blocks(&mut stdout, PIPE_BLOCK, mebibytes)
}

/// Writes the same block again and again: to make it costs nothing.
fn write_blocks(to: &mut File, length: usize, mebibytes: &str) -> Result<()> {
    let block = vec![0x5a; length];
    let mut left = mebibytes.parse::<usize>()? << 20;
    while left > 0 {
        let length = left.min(block.len());
        to.write_all(&block[..length])?;
        left -= length;
    }
    Ok(())
}

/// Keeps so many connections open on which nothing is said: one that the other side ends is replaced by another.
pub(crate) fn silence(cid: &str, port: &str, count: &str) -> Result<()> {
    let address = VsockAddr::new(cid.parse()?, port.parse()?);
    let count: usize = count.parse()?;
    let mut silent = Vec::with_capacity(count);
    for _ in 0..count {
        silent.push(connected(&address)?);
    }
    println!("silent");
    loop {
        let mut ends: Vec<_> = silent
            .iter()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut ends, PollTimeout::NONE)?;
        let ended: Vec<_> = ends.iter().map(|end| end.any().unwrap_or(true)).collect();
        for (place, _) in ended.iter().enumerate().filter(|(_, ended)| **ended) {
            silent[place] = connected(&address)?;
        }
    }
}

/// `guest-probe knock CID PORT SECONDS`: connects as fast as it can, and hangs up at once. Prints how many connections were made, and how
/// many were refused.
pub(crate) fn knock(cid: &str, port: &str, seconds: &str) -> Result<()> {
    let address = VsockAddr::new(cid.parse()?, port.parse()?);
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    let (mut made, mut refused) = (0, 0);
    println!("begun");
    while Instant::now() < end {
        match connected(&address) {
            Ok(_) => made += 1,
            Err(_) => refused += 1,
        }
    }
    println!("{}", json!({ "made": made, "refused": refused }));
    Ok(())
}

fn connected(address: &VsockAddr) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), address)?;
    Ok(socket)
}
