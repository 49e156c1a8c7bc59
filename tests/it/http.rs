//! HTTP as a client sees it on the wire: bytes there, bytes back. No library's idea of what is right stands in between.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long a test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of the field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Its body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Connects to a port of this host.
#[track_caller]
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to the gateway");
    stream.set_read_timeout(Some(PATIENCE)).expect("have a reading end");
    stream
}

/// Sends these bytes and reads until the other side closes.
pub(crate) fn exchange(port: u16, sent: &[u8]) -> Vec<u8> {
    let mut stream = connect(port);
    // Whoever is refused early may find the connection closed.
    stream.write_all(sent).unwrap_or_default();
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    answer
}

/// Asks once, with these further fields, and closes.
#[track_caller]
pub(crate) fn ask(port: u16, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: 127.0.0.1:{port}\r\n"));
    }
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let answer = exchange(port, format!("{head}\r\n{body}").as_bytes());
    parse(&answer).unwrap_or_else(|| panic!("no answer to {method} {path}: {}", answer.escape_ascii()))
}

/// `GET`, without a token.
#[track_caller]
pub(crate) fn get(port: u16, path: &str) -> Answer {
    ask(port, "GET", path, &[], "")
}

/// The status that `GET` of what may be a stream without end begins with, without a token.
#[track_caller]
pub(crate) fn status(port: u16, path: &str) -> u16 {
    let mut stream = connect(port);
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).expect("ask");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("read the head of an answer");
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).expect("text");
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"))
}

/// Reads one answer whose end is the connection's, or a length's, or a last chunk's.
pub(crate) fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let fields: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, fields, body: answer[end + 4..].to_vec() };
    if answer.field("transfer-encoding") == Some("chunked") {
        answer.body = dechunk(&answer.body)?;
    }
    Some(answer)
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        rest = rest.get(end + 2..)?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
