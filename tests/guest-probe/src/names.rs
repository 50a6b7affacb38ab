//! Asks a name server as a resolver does (RFC 1035): one question of type A, with a random number.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use serde_json::json;

use crate::error::Result;

/// How long an answer may take, as with resolv.conf(5)'s `timeout`, twice.
const ANSWERS: Duration = Duration::from_secs(20);

/// Prints the response codes and addresses that came, each once, whether an answer was cut, and how many were right in form.
pub(crate) fn ask(transport: &str, server: &str, name: &str, count: &str) -> Result<()> {
    let mut asking = Vec::new();
    for number in 0..count.parse::<u16>()? {
        let (tcp, server) = (transport == "tcp", server.to_owned());
        let question = question(number, name);
        asking.push(thread::spawn(move || -> Option<Vec<u8>> {
            let answer = if tcp {
                by_tcp(&server, &question)
            } else {
                by_udp(&server, &question)
            };
            let right = |answer: &Vec<u8>| answer.len() >= 12 && answer[..2] == question[..2] && answer[2] & 0x80 != 0;
            answer.map_err(|error| eprintln!("{error}")).ok().filter(right)
        }));
    }
    let answers: Vec<_> = asking
        .into_iter()
        .filter_map(|thread| thread.join().ok().flatten())
        .collect();
    let codes: BTreeSet<_> = answers.iter().map(|answer| answer[3] & 0xf).collect();
    let cut = answers.iter().any(|answer| answer[2] & 2 != 0);
    let addresses: BTreeSet<_> = answers.iter().flat_map(|answer| addresses(answer)).collect();
    let longest = answers.iter().map(Vec::len).max();
    println!(
        "{}",
        json!({ "answers": answers.len(), "codes": codes, "addresses": addresses, "cut": cut, "longest": longest })
    );
    Ok(())
}

fn question(number: u16, name: &str) -> Vec<u8> {
    let mut question = number.to_be_bytes().to_vec();
    // Recursion desired; one question.
    question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}

/// By a connected socket, as glibc, and refuses what comes from elsewhere.
fn by_udp(server: &str, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(ANSWERS))?;
    // Unconnected, as musl: the answer's source is looked at.
    socket.send_to(question, (server, 53))?;
    let mut buffer = vec![0; 1 << 16];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from.to_string() != format!("{server}:53") {
        return Err(std::io::Error::other(format!("an answer from {from}")));
    }
    socket.connect((server, 53))?;
    if socket.peer_addr()?.port() != 53 {
        return Err(std::io::Error::other("another peer"));
    }
    socket.send(question)?;
    let again = socket.recv(&mut buffer[length..])?;
    if again < 12 {
        return Err(std::io::Error::other("no answer by a connected socket"));
    }
    buffer.truncate(length);
    Ok(buffer)
}

fn by_tcp(server: &str, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((server, 53))?;
    stream.set_read_timeout(Some(ANSWERS))?;
    let mut message = (question.len() as u16).to_be_bytes().to_vec();
    message.extend(question);
    stream.write_all(&message)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// The addresses of the answer's records of type A.
fn addresses(answer: &[u8]) -> Vec<String> {
    let number = |at: usize| {
        let bytes = answer.get(at..at + 2).map_or([0; 2], |bytes| [bytes[0], bytes[1]]);
        usize::from(u16::from_be_bytes(bytes))
    };
    let skip_name = |mut at: usize| loop {
        match answer.get(at) {
            None | Some(0) => return at + 1,
            Some(length) if length & 0xc0 != 0 => return at + 2,
            Some(length) => at += 1 + usize::from(*length),
        }
    };
    let mut at = 12;
    for _ in 0..number(4) {
        at = skip_name(at) + 4;
    }
    let mut found = Vec::new();
    for _ in 0..number(6) {
        at = skip_name(at);
        let length = number(at + 8);
        if let (1, Some([a, b, c, d])) = (number(at), answer.get(at + 10..at + 10 + length)) {
            found.push(format!("{a}.{b}.{c}.{d}"));
        }
        at += 10 + length;
    }
    found
}
