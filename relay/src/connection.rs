//! A connection from its first byte to its end.
//!
//! ```text
//! program ── local socket ── relay ══ frames ══ relay ── local socket ── program
//!                        (dialled)           (accepted)
//! ```
//! Each direction is copied by itself and holds up only itself: a program that does not read stops its peer from sending, by the
//! stream's own flow control, and nothing else. A direction's end is passed on when all before it has been delivered. A program
//! that has gone is known at once on the other side.
//!
//! The stream is closed by the side that accepted it, once the other one has said that it has everything.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::Notify;

use crate::frame::{self, HEADER, Kind};
use crate::socket::Socket;

/// Timeout for the other side's last frame, after both sides have sent all their data.
const LAST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Which end of the stream this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It has dialled the stream: it says the last word.
    Dialled,
    /// It has accepted the stream: it closes it.
    Accepted,
}

/// Bytes that have been relayed.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the local socket.
    pub sent: AtomicU64,
    /// To the local socket.
    pub received: AtomicU64,
}

/// What one direction has to tell the other.
#[derive(Default)]
struct Signals {
    /// The local program takes nothing any more.
    stop: Notify,
    /// The far side has said its end.
    ended: Notify,
}

/// Continues the connection of a local socket over a stream until both directions have ended. Dropping the future breaks both.
///
/// # Errors
/// The stream ended before its time, or the other side does not keep to the protocol.
pub async fn relay(
    local: &Socket,
    far: impl AsyncRead + AsyncWrite + Unpin,
    side: Side,
    traffic: &Traffic,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(far);
    let signals = Signals::default();
    let outgoing = async {
        outgoing(local, &mut writer, &signals, traffic).await?;
        if side == Side::Dialled {
            writer.write_all(&frame::header(Kind::Done, 0)).await?;
        }
        tokio::time::sleep(LAST_FRAME_TIMEOUT).await;
        Ok(())
    };
    // What the other side has to say ends it, not what there is to be said to it.
    tokio::select! {
        biased;
        done = incoming(local, BufReader::with_capacity(local.largest().min(32 << 10), reader), side, &signals, traffic) => done,
        gone = outgoing => gone,
    }
}

/// Ends an accepted connection for which there is nobody, as one whose program has gone at once. A stream that is only closed may be closed
/// while the other side sends, and across vhost-user-vsock that side may then never learn of it.
///
/// # Errors
/// As [`relay`]; there is no socket to be had.
pub async fn refuse(kind: SocketType, far: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (local, program) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
    drop(program);
    relay(&Socket::new(local)?, far, Side::Accepted, &Traffic::default()).await
}

/// From the local socket to the stream, and what the other direction wants to be said. Ends once both directions have ended.
async fn outgoing(
    local: &Socket,
    far: &mut (impl AsyncWrite + Unpin),
    signals: &Signals,
    traffic: &Traffic,
) -> io::Result<()> {
    enum Next {
        Data(usize),
        End,
        Stop,
        FarEnd,
    }
    let mut buffer = vec![0; HEADER + local.largest()];
    let (mut reading, mut stopped, mut ended) = (true, false, false);
    while reading || !ended {
        let next = tokio::select! {
            () = signals.stop.notified(), if !stopped => Next::Stop,
            () = signals.ended.notified(), if !ended => Next::FarEnd,
            received = local.receive(&mut buffer[HEADER..]), if reading => match received {
                Ok(length @ 1..) => Next::Data(length),
                Ok(0) => Next::End,
                Err(_) => {
                    signals.stop.notify_one();
                    Next::End
                }
            },
            // Where it cannot be watched for, the next write tells.
            Ok(()) = local.hung_up(), if !reading && !stopped => Next::Stop,
        };
        match next {
            Next::Data(length) => {
                buffer[..HEADER].copy_from_slice(&frame::header(Kind::Data, length));
                far.write_all(&buffer[..HEADER + length]).await?;
                traffic.sent.fetch_add(length as u64, Ordering::Relaxed);
            }
            Next::End => {
                reading = false;
                far.write_all(&frame::header(Kind::End, 0)).await?;
            }
            Next::Stop => {
                stopped = true;
                far.write_all(&frame::header(Kind::Stop, 0)).await?;
            }
            Next::FarEnd => ended = true,
        }
    }
    Ok(())
}

/// From the stream to the local socket, until the stream's end.
async fn incoming(
    local: &Socket,
    mut far: impl AsyncRead + Unpin,
    side: Side,
    signals: &Signals,
    traffic: &Traffic,
) -> io::Result<()> {
    let mut payload = Vec::new();
    let (mut ended, mut stopped) = (false, false);
    loop {
        let kind = match frame::read(&mut far, &mut payload, local.largest()).await {
            Err(error) if ended && side == Side::Dialled && error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(());
            }
            kind => kind?,
        };
        match kind {
            Kind::Data if !ended => {
                if !stopped && local.send(&payload).await.is_err() {
                    stopped = true;
                    signals.stop.notify_one();
                }
                traffic.received.fetch_add(payload.len() as u64, Ordering::Relaxed);
            }
            Kind::End if !ended => {
                ended = true;
                local.end_writing();
                signals.ended.notify_one();
            }
            Kind::Stop => local.end_reading(),
            Kind::Done if side == Side::Accepted => return Ok(()),
            Kind::Data | Kind::End | Kind::Done => {
                let error = "the other side goes on after its end";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
