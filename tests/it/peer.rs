//! A client of the control socket that says whatever a test wants, byte by byte, and knows nothing of the program's own.
//!
//! Every wait has a deadline. `Peer` may break the protocol; who only asks uses the command line.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Daemon, EVENT_DEADLINE};

/// The interface that halsup's own methods are in.
pub(crate) const INTERFACE: &str = "io.halsup.Control";

/// A connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    unread: Vec<u8>,
}

/// A call as bytes; a method without a dot is one of [`INTERFACE`].
pub(crate) fn call(method: &str, parameters: &Value) -> Vec<u8> {
    flagged(method, parameters, &json!({}))
}

/// The same with flags, such as `{ "more": true }`.
pub(crate) fn flagged(method: &str, parameters: &Value, flags: &Value) -> Vec<u8> {
    let method = if method.contains('.') { method.to_owned() } else { format!("{INTERFACE}.{method}") };
    let mut call = json!({ "method": method, "parameters": parameters });
    for (name, flag) in flags.as_object().expect("flags are an object") {
        call[name] = flag.clone();
    }
    frame(&call)
}

/// A message as bytes.
pub(crate) fn frame(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(0);
    bytes
}

impl Peer {
    /// Connects to a daemon.
    #[track_caller]
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        Self::connect_to(&daemon.path("run/control.sock"))
    }

    #[track_caller]
    pub(crate) fn connect_to(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("connect to {}: {error}", path.display()));
        stream.set_read_timeout(Some(EVENT_DEADLINE)).expect("set a deadline");
        stream.set_write_timeout(Some(EVENT_DEADLINE)).expect("set a deadline");
        Self { stream, unread: Vec::new() }
    }

    /// Says this. `false`: the daemon has closed before it took all.
    #[track_caller]
    pub(crate) fn say(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => false,
            Err(error) => panic!("write to the daemon: {error}"),
        }
    }

    /// Calls a method; a reply is read by whoever wants it.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> bool {
        self.say(&call(method, parameters))
    }

    /// The error of the next reply, with its reason.
    #[track_caller]
    pub(crate) fn refusal(&mut self) -> (String, String) {
        let reply = self.reply();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&reply["error"]), text(&reply["parameters"]["reason"]))
    }

    /// Calls a method and gives the next reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.call(method, parameters);
        self.reply()
    }

    /// The next reply.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Value {
        self.next().unwrap_or_else(|| panic!("the daemon closed the connection"))
    }

    /// The next reply, or `None` once the daemon has closed.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == 0) {
                let frame: Vec<u8> = self.unread.drain(..=end).collect();
                let text = frame.strip_suffix(b"\0").expect("it was found");
                return Some(serde_json::from_slice(text).expect("a reply is JSON"));
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no reply: {error}"),
            }
        }
    }

    /// What the daemon still says until it closes.
    #[track_caller]
    pub(crate) fn until_closed(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
