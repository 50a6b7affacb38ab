//! Dials a vsock port as any program may, says what it was told to say, and waits for the other side to end it.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket},
};
use serde_json::json;

use crate::Result;

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
