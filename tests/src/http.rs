//! One HTTP request on one connection, as a scraper or a tool of Kata's makes it.

use std::io::{Read, Write};

use crate::{Error, Result};

/// The head and the body of an answer to a GET.
pub fn get(stream: impl Read + Write, target: &str) -> Result<(String, String)> {
    ask(stream, "GET", target, b"")
}

/// The head and the body of an answer. The head of the request has what Go's client sends.
pub fn ask(mut stream: impl Read + Write, method: &str, target: &str, body: &[u8]) -> Result<(String, String)> {
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: shim\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept-Encoding: gzip\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let parts = text.split_once("\r\n\r\n");
    parts
        .map(|(head, body)| (head.to_owned(), body.to_owned()))
        .ok_or_else(|| Error::unexpected(format!("no answer to {method} {target}: {text:?}")))
}
