//! Redirects packets for Docker's name server, port 53, to a socket of the agent at the same address.
//!
//! BPF programs of the cgroup rewrite the port. A socket that listens on port 53 itself would block a container's own name server,
//! and rules of a packet filter would interfere with a container's own rules.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use base::bpf::{self, Attachment, CONTEXT, EXIT, IF_NOT_EQUAL, Instruction, LOAD, MOVE, STORE, from, instruction};

/// The cgroup whose programs are asked about everybody in the guest.
const ROOT: &str = "/sys/fs/cgroup";

/// The port of name servers.
const PORT: u16 = 53;

// `struct bpf_sock_addr` (linux/bpf.h): addresses and ports are as on the network.
const IP4: i16 = 4;
const IP6: [i16; 4] = [8, 12, 16, 20];
const USER_PORT: i16 = 24;

const SCRATCH: u8 = 2;

/// The redirection. Closing it ends it.
#[derive(Debug)]
pub(super) struct Redirect {
    _links: Vec<OwnedFd>,
}

impl Redirect {
    /// Everybody who sends to port 53 of the name server reaches `port`, TCP and UDP, and sees the answer come from port 53.
    ///
    /// # Errors
    /// The kernel does not take the programs.
    pub(super) fn new(port: u16) -> io::Result<Self> {
        let root = File::open(ROOT)?;
        // IPv6: sockets of it reach IPv4 by mapped addresses (::ffff:127.0.0.11), for which sendmsg(2) asks the program of IPv4.
        let to = [Attachment::Connect4, Attachment::Send4, Attachment::Connect6];
        let back = [
            Attachment::Receive4,
            Attachment::Peer4,
            Attachment::Receive6,
            Attachment::Peer6,
        ];
        let to = to.map(|at| (at, PORT, port));
        let back = back.map(|at| (at, port, PORT));
        let mut links = Vec::new();
        for (at, before, after) in to.into_iter().chain(back) {
            let ipv6 = matches!(at, Attachment::Connect6 | Attachment::Receive6 | Attachment::Peer6);
            let program = bpf::load(at, "", &program(ipv6, before, after))?;
            links.push(bpf::link(at, root.as_fd(), program.as_fd())?);
        }
        Ok(Self { _links: links })
    }
}

/// Puts one port of the name server in the place of another. Whatever it is asked about is allowed.
fn program(ipv6: bool, before: u16, after: u16) -> Vec<Instruction> {
    let address = u32::from_ne_bytes(protocol::DOCKER_NAME_SERVER);
    let mapped = [0, 0, u32::from_be(0xffff), address];
    let mut conditions = match ipv6 {
        false => vec![(IP4, address)],
        true => IP6.into_iter().zip(mapped).collect(),
    };
    conditions.push((USER_PORT, before.to_be().into()));
    let mut program = Vec::new();
    // The conditions that are left, two instructions each, and what is done if they hold, also two.
    let mut left = i16::try_from(2 * conditions.len()).unwrap_or(i16::MAX);
    for (offset, value) in conditions {
        program.push(from(LOAD, SCRATCH, CONTEXT, offset));
        program.push(instruction(IF_NOT_EQUAL, SCRATCH, left, value));
        left -= 2;
    }
    program.push(instruction(MOVE, SCRATCH, 0, after.to_be().into()));
    program.push(from(STORE, CONTEXT, SCRATCH, USER_PORT));
    program.push(instruction(MOVE, bpf::ANSWER, 0, 1));
    program.push(instruction(EXIT, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_that_fails_leads_to_the_answer() {
        for ipv6 in [false, true] {
            let program = program(ipv6, 53, 4000);
            let answer = program.len() - 2;
            assert_eq!(program[answer], instruction(MOVE, bpf::ANSWER, 0, 1));
            let jumps = program.iter().enumerate().filter(|(_, one)| one.code == IF_NOT_EQUAL);
            for (at, jump) in jumps {
                assert_eq!(at + 1 + usize::try_from(jump.offset).unwrap(), answer);
            }
        }
    }
}
