//! A connection to a control socket that keeps the books: which calls were accepted, how many answers each got, how late.
//!
//! Says and reads Varlink by itself. The books are the caller's record that [`judge`] holds against the invariants: one answer
//! for every call that was taken and whose daemon lived, never two, each within its budget.

#![expect(clippy::disallowed_methods, reason = "answers are timed by the real clock")]

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::{Findings, Invariant};

/// How late the answer to a ping may be. A guest that is emulated takes longer than the few milliseconds that it is granted
/// on the reference machine.
pub(crate) const PING_BUDGET: Duration = Duration::from_secs(1);
/// How long an answer is waited for before it counts as missing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One call as its caller saw it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// Answers that end it.
    pub(crate) answers: u32,
    /// From the last byte of the call to the first answer.
    pub(crate) took: Option<Duration>,
    /// Whether the connection ended first.
    pub(crate) cut: bool,
}

/// A connection with its books.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    unread: Vec<u8>,
    /// Events that came along with one that was wanted.
    events: VecDeque<Value>,
    /// Descriptors that came along.
    passed: Vec<OwnedFd>,
    pub(crate) calls: Vec<Call>,
}

impl Line {
    pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, unread: Vec::new(), events: VecDeque::new(), passed: Vec::new(), calls: Vec::new() })
    }

    /// Calls a method of halsup's own interface and gives its answer; `None` if there was none.
    pub(crate) fn ask(&mut self, method: &str, parameters: &Value) -> Option<Value> {
        let begin = self.say(method, parameters, false)?;
        let answer = self.next();
        let call = self.calls.last_mut().expect("it was said");
        match &answer {
            Some(_) => (call.answers, call.took) = (1, Some(begin.elapsed())),
            None => call.cut = true,
        }
        answer
    }

    /// Says a call and reads nothing; with `more`, further answers follow. `None`: the daemon did not take it.
    pub(crate) fn say(&mut self, method: &str, parameters: &Value, more: bool) -> Option<Instant> {
        let mut call = json!({ "method": format!("io.halsup.Control.{method}"), "parameters": parameters });
        if more {
            call["more"] = Value::Bool(true);
        }
        let mut bytes = call.to_string().into_bytes();
        bytes.push(0);
        self.stream.write_all(&bytes).ok()?;
        self.calls.push(Call { method: method.to_owned(), answers: 0, took: None, cut: false });
        Some(Instant::now())
    }

    /// Says a call that nobody answers. `None`: the daemon did not take it.
    pub(crate) fn tell(&mut self, method: &str, parameters: &Value) -> Option<()> {
        let method = format!("io.halsup.Control.{method}");
        let mut bytes = json!({ "method": method, "parameters": parameters, "oneway": true }).to_string().into_bytes();
        bytes.push(0);
        self.stream.write_all(&bytes).ok()
    }

    /// Says a part of a call.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap_or_default();
    }

    /// Begins to follow all events, those that have happened first.
    pub(crate) fn follow(&mut self) {
        self.say("Events", &json!({ "last": 1000, "follow": true }), true);
        self.calls.clear();
    }

    /// The next message, or `None` at the end of the connection or of patience.
    pub(crate) fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == 0) {
                let frame: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(frame.strip_suffix(b"\0")?).ok();
            }
            let mut buffer = [0; 16 << 10];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg(&self.stream, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC);
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.passed.extend(fds);
                }
            }
            match received.map(|received| received.bytes) {
                Ok(0) => return None,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// The descriptor that came with what was read last.
    pub(crate) fn take_passed(&mut self) -> Option<OwnedFd> {
        self.passed.pop()
    }

    /// The next event that `wanted` accepts, of those that follow [`Self::follow`].
    pub(crate) fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Some(event);
                }
            }
            let reply = self.next()?;
            self.events.extend(reply["parameters"]["events"].as_array().cloned().unwrap_or_default());
        }
    }

    /// Reads what is still said, without waiting, and counts it as answers to the last call.
    pub(crate) fn surplus(&mut self) {
        self.stream.set_nonblocking(true).expect("a socket of our own");
        while self.next().is_some() {
            if let Some(call) = self.calls.last_mut() {
                call.answers += 1;
            }
        }
        self.stream.set_nonblocking(false).expect("a socket of our own");
    }
}

/// I5 and I7, by a caller's books. `daemon_killed`: calls that were cut are excused, for nobody was there to answer.
pub(crate) fn judge(calls: &[Call], daemon_killed: bool, found: &mut Findings) {
    for call in calls {
        if call.answers > 1 {
            found.add(Invariant::Answers, format!("{} got {} answers", call.method, call.answers));
        }
        if call.answers == 0 && !(call.cut && daemon_killed) {
            let invariant = if call.method == "Ping" { Invariant::Latency } else { Invariant::Answers };
            found.add(invariant, format!("{} got no answer", call.method));
        }
        if let Some(took) = call.took.filter(|took| call.method == "Ping" && *took > PING_BUDGET) {
            found.add(Invariant::Latency, format!("a ping was answered only after {took:?}"));
        }
    }
}
