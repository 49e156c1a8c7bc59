//! The strict grammar of requests, held before the library's parser sees them (RFC 9112): what two parsers could understand in
//! two ways is not a request. One violation ends the connection; what came before it is answered.
//!
//! Owns the framing only: where a head ends, and where its body does. What a request means is for others.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upgrade::names_upgrade;

/// The longest head, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most fields in a head.
const FIELDS_MAX: usize = 100;
/// The longest extension of a chunk, in bytes.
const EXTENSION_BYTES_MAX: usize = 64;
/// The longest size of a chunk, in hexadecimal digits.
const SIZE_DIGITS_MAX: usize = 15;
/// The longest length of a body, in decimal digits: every parser can count so far.
const LENGTH_DIGITS_MAX: usize = 18;
/// The longest trailer, in bytes.
const TRAILER_BYTES_MAX: usize = 1_024;
/// What no parser takes for a request: the library answers it with 400 and closes.
const NO_REQUEST: &[u8] = b"\0\r\n\r\n";
const READ_BYTES: usize = 16 * 1024;

/// Why bytes are no request, or no body of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a request: {0}")]
pub(crate) struct Violation(&'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
}

/// What comes behind a request without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Request,
    /// Perhaps another protocol.
    Unknown,
}

#[derive(Debug)]
enum State {
    /// Within a head, of which this has come.
    Head(Vec<u8>),
    /// So many bytes of a body, or of a chunk's data, are still to come; `true` for a chunk.
    Data(u64, bool),
    /// The line that says how long a chunk is.
    Size(Vec<u8>),
    /// The end of a chunk's data: so many of its two bytes have come.
    SizeEnd(usize),
    /// Lines behind the last chunk.
    Trailer(Vec<u8>),
    /// A request has asked for another protocol: what comes behind it is no request, and is kept as it is until that is
    /// decided. Where it stays HTTP the connection ends with the answer.
    Held(Vec<u8>),
}

/// Follows what a client sends, and gives out what may be given to a parser.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
}

impl Scanner {
    pub(crate) const fn new() -> Self {
        Self { state: State::Head(Vec::new()) }
    }

    /// Takes bytes in, and puts what is sound into `out`: heads only when they are whole.
    ///
    /// # Errors
    /// [`Violation`]; nothing after it is to be believed.
    pub(crate) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Violation> {
        while !bytes.is_empty() {
            bytes = match &mut self.state {
                State::Head(head) => {
                    let (taken, whole) = take_to(head, bytes, b"\r\n\r\n", HEAD_BYTES_MAX)?;
                    if whole {
                        let (body, follows) = check_head(head)?;
                        out.extend_from_slice(head);
                        self.state = match body {
                            Body::None | Body::Length(0) if follows == Follows::Unknown => State::Held(Vec::new()),
                            Body::None | Body::Length(0) => State::Head(Vec::new()),
                            Body::Length(length) => State::Data(length, false),
                            Body::Chunked => State::Size(Vec::new()),
                        };
                    }
                    bytes.get(taken..).unwrap_or_default()
                }
                State::Data(left, chunk) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (data, rest) = bytes.split_at(count);
                    out.extend_from_slice(data);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = if *chunk { State::SizeEnd(0) } else { State::Head(Vec::new()) };
                    }
                    rest
                }
                State::SizeEnd(came) => {
                    let (first, rest) = bytes.split_at(1);
                    if b"\r\n".get(*came) != first.first() {
                        return Err(Violation("a chunk is longer than it says"));
                    }
                    out.extend_from_slice(first);
                    *came += 1;
                    if *came == 2 {
                        self.state = State::Size(Vec::new());
                    }
                    rest
                }
                State::Size(line) => {
                    let most = SIZE_DIGITS_MAX + EXTENSION_BYTES_MAX + 2;
                    let (taken, whole) = take_to(line, bytes, b"\r\n", most)?;
                    if whole {
                        let size = chunk_size(line)?;
                        out.extend_from_slice(line);
                        self.state = if size == 0 { State::Trailer(Vec::new()) } else { State::Data(size, true) };
                    }
                    bytes.get(taken..).unwrap_or_default()
                }
                State::Trailer(lines) => {
                    let (taken, ended) = take_trailer(lines, bytes)?;
                    if ended {
                        // What it says is nobody's business: only its end is passed on.
                        out.extend_from_slice(b"\r\n");
                        self.state = State::Head(Vec::new());
                    }
                    bytes.get(taken..).unwrap_or_default()
                }
                State::Held(held) => {
                    held.extend_from_slice(bytes);
                    &[]
                }
            };
        }
        Ok(())
    }

    /// What came behind a request for another protocol, if there was one.
    const fn held(&self) -> Option<&Vec<u8>> {
        if let State::Held(held) = &self.state { Some(held) } else { None }
    }
}

/// Takes bytes up to `end` and with it; how many, and whether it has come.
fn take_to(held: &mut Vec<u8>, bytes: &[u8], end: &[u8], most: usize) -> Result<(usize, bool), Violation> {
    for (at, byte) in bytes.iter().enumerate() {
        let after_cr = held.last() == Some(&b'\r');
        match (byte, after_cr) {
            (b'\n', false) => return Err(Violation("a line ends without CR")),
            (b'\n', true) => {}
            (_, true) => return Err(Violation("a CR stands within a line")),
            (0, false) => return Err(Violation("there is a NUL in it")),
            (_, false) => {}
        }
        if held.len() >= most {
            return Err(Violation("it is too long"));
        }
        held.push(*byte);
        if held.ends_with(end) {
            return Ok((at + 1, true));
        }
    }
    Ok((bytes.len(), false))
}

fn take_trailer(lines: &mut Vec<u8>, bytes: &[u8]) -> Result<(usize, bool), Violation> {
    let mut taken = 0;
    loop {
        let rest = bytes.get(taken..).unwrap_or_default();
        if rest.is_empty() {
            return Ok((taken, false));
        }
        let mut line = std::mem::take(lines);
        let begin = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (count, whole) = take_to(&mut line, rest, b"\r\n", TRAILER_BYTES_MAX)?;
        taken += count;
        let is_end = whole && line.get(begin..) == Some(b"\r\n");
        *lines = line;
        if is_end {
            return Ok((taken, true));
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let digits = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    if extension.len() > EXTENSION_BYTES_MAX || extension.iter().any(|byte| !(0x20..0x7f).contains(byte)) {
        return Err(Violation("the extension of a chunk is none"));
    }
    let wrong = Violation("the size of a chunk is none");
    if size.is_empty() || size.len() > SIZE_DIGITS_MAX || !size.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong);
    }
    let text = std::str::from_utf8(size).ok().ok_or(wrong)?;
    u64::from_str_radix(text, 16).ok().ok_or(wrong)
}

/// Whether a byte can stand in the name of a field or of a method (RFC 9110, 5.6.2).
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

fn check_head(head: &[u8]) -> Result<(Body, Follows), Violation> {
    let head = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_newer = check_request_line(lines.next().unwrap_or_default())?;
    let (mut length, mut chunked, mut hosts) = (None, false, 0);
    let mut follows = Follows::Request;
    for (count, line) in lines.enumerate() {
        if count >= FIELDS_MAX {
            return Err(Violation("there are too many fields"));
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let is_short =
                |text: &&str| text.len() <= LENGTH_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
            let digits = std::str::from_utf8(value).ok().filter(is_short);
            let number = digits.and_then(|digits| digits.parse::<u64>().ok());
            if number.is_none() || length.is_some() {
                return Err(Violation("its length is none"));
            }
            length = number;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !is_newer || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation("its encoding is none"));
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Violation("what it expects is nothing"));
        } else if name.eq_ignore_ascii_case(b"connection") && is_newer && names_upgrade(value) {
            follows = Follows::Unknown;
        }
    }
    if hosts != 1 {
        return Err(Violation("it has not one host"));
    }
    match (length, chunked) {
        (Some(_), true) => Err(Violation("it has two lengths")),
        (Some(length), false) => Ok((Body::Length(length), follows)),
        (None, true) => Ok((Body::Chunked, follows)),
        (None, false) => Ok((Body::None, follows)),
    }
}

/// Checks the first line; whether it is of HTTP/1.1, and not of 1.0.
fn check_request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Violation("its first line has not three words"));
    };
    // A tunnel has no body, whatever it says of one; and nobody is asked as a proxy.
    if method.is_empty() || method.len() > 32 || !method.iter().copied().all(is_token) || method == b"CONNECT" {
        return Err(Violation("its method is none"));
    }
    // A fragment is never sent, and what no address has in it neither.
    let is_none = |byte: &u8| !(0x21..0x7f).contains(byte) || matches!(byte, b'#' | b'<' | b'>' | b'`' | b'"');
    if target.first() != Some(&b'/') || target.iter().any(is_none) {
        return Err(Violation("its target is none"));
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Violation("its version is none")),
    }
}

fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    // A line that begins with a blank goes on with the one before, or so some think.
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Violation("a field has no colon"))?;
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Violation("the name of a field is none"));
    }
    let value = value.get(1..).unwrap_or_default();
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Violation("a field's value has control characters"));
    }
    Ok((name, value.trim_ascii()))
}

/// A connection of which only sound requests come through.
#[derive(Debug)]
pub(crate) struct Strict<S> {
    inner: S,
    scanner: Scanner,
    sound: Vec<u8>,
    given: usize,
    /// The client has broken the grammar: nothing more of it is read.
    broken: bool,
}

impl<S> Strict<S> {
    pub(crate) const fn new(inner: S) -> Self {
        Self { inner, scanner: Scanner::new(), sound: Vec::new(), given: 0, broken: false }
    }

    /// The connection itself, and what came behind the request that has changed its protocol.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        match self.scanner.state {
            State::Held(held) => (self.inner, held),
            State::Head(_) | State::Data(..) | State::Size(_) | State::SizeEnd(_) | State::Trailer(_) => {
                (self.inner, Vec::new())
            }
        }
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = self.sound.get(self.given..).unwrap_or_default();
        if rest.is_empty() {
            return false;
        }
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..count).unwrap_or_default());
        self.given += count;
        if self.given == self.sound.len() {
            self.sound.clear();
            self.given = 0;
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.give(buffer) || self.broken {
                return Poll::Ready(Ok(()));
            }
            // What follows can be read by whoever takes the connection over; until then it waits in the kernel.
            if self.scanner.held().is_some_and(|held| held.len() >= READ_BYTES) {
                return Poll::Pending;
            }
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let this = &mut *self;
            if let Err(violation) = this.scanner.push(read.filled(), &mut this.sound) {
                tracing::debug!("{violation}");
                this.broken = true;
                match this.scanner.state {
                    State::Head(_) => this.sound.extend_from_slice(NO_REQUEST),
                    // Its body ends in the middle, and with it the connection.
                    State::Data(..) | State::Size(_) | State::SizeEnd(_) | State::Trailer(_) | State::Held(_) => {}
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes through of `sent`, given in pieces of `step` bytes.
    fn through(sent: &[u8], step: usize) -> Result<Vec<u8>, Violation> {
        let (mut scanner, mut out) = (Scanner::new(), Vec::new());
        for piece in sent.chunks(step) {
            scanner.push(piece, &mut out)?;
        }
        Ok(out)
    }

    const GOOD: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a?b=%20 HTTP/1.0\r\nhost: x\r\nX-Y:\tz \r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \xff\xfe\r\n\r\n",
    ];

    #[test]
    fn what_is_sound_comes_through_as_it_is_however_it_is_cut() {
        for sent in GOOD {
            for step in [1, 2, 3, 7, 1_000] {
                assert_eq!(through(sent, step).as_deref(), Ok(sent), "{}", sent.escape_ascii());
            }
        }
    }

    #[test]
    fn a_trailer_is_left_out() {
        let sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Evil: 1\r\nY: 2\r\n\r\n";
        let expected = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        for step in [1, 5, 1_000] {
            assert_eq!(through(sent, step).as_deref(), Ok(&expected[..]));
        }
    }

    /// Lines that no head has.
    const BAD_FIELDS: [&str; 34] = [
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 5, 5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding:",
        "Content-Length : 5",
        "Content-Length\t: 5",
        " Content-Length: 5",
        "X: y\r\n Z: w",
        "X: y\r\n\tz",
        ": y",
        "X",
        "X y: z",
        "Host: y",
        "Expect: 200-ok",
        "X: a\x01b",
        "X: a\x7fb",
        "X\u{e4}: y",
        "X: y\rZ: w",
        "X: y\nZ: w",
    ];

    /// What is no request, whole.
    const BAD_REQUESTS: [&[u8]; 30] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT y:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /#f HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / http/1.1\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01",
        b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a\x01\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
    ];

    #[test]
    fn what_two_parsers_could_understand_in_two_ways_is_no_request() {
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(FIELDS_MAX));
        let extended = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0;{}\r\n\r\n",
            "e".repeat(EXTENSION_BYTES_MAX)
        );

        let mut bad: Vec<Vec<u8>> = BAD_FIELDS
            .iter()
            .map(|line| format!("POST / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n").into_bytes())
            .collect();
        bad.extend([long.into_bytes(), many.into_bytes(), extended.into_bytes()]);
        bad.extend(BAD_REQUESTS.map(<[u8]>::to_vec));
        for sent in bad {
            for step in [1, 1_000_000] {
                assert!(through(&sent, step).is_err(), "{}", sent.escape_ascii());
            }
        }
    }

    #[test]
    fn a_trailer_has_an_end() {
        let mut sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".to_vec();
        sent.extend(b"X: y\r\n".repeat(TRAILER_BYTES_MAX));
        assert!(through(&sent, 100).is_err());
    }
}
