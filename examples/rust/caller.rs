//! A caller in Rust, which speaks to the control socket by itself: `varlinkctl` shows what else can be asked of it.
//!
//! `rust-caller SOCKET add 1 2`, `count 5`, which is a stream, and `serve`, which serves a tool and has a worker call it. Needs std
//! and `serde_json`.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

/// A connection, on which one call is made at a time.
#[derive(Debug)]
pub(crate) struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the daemon's control socket, `/run/halsup/control.sock` as a rule.
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        UnixStream::connect(path).map(BufReader::new).map(Self)
    }

    /// Sends a call of the interface. With `more`, several replies are welcome.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value, more: bool) -> io::Result<()> {
        let call = json!({ "method": format!("io.halsup.Control.{method}"), "parameters": parameters, "more": more });
        let mut message = call.to_string().into_bytes();
        message.push(0);
        self.0.get_mut().write_all(&message)
    }

    /// The parameters of the next reply, and whether others follow it.
    pub(crate) fn reply(&mut self) -> io::Result<(Value, bool)> {
        let mut message = Vec::new();
        self.0.read_until(0, &mut message)?;
        let Some(text) = message.strip_suffix(b"\0") else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let mut reply: Value = serde_json::from_slice(text)?;
        if let Some(error) = reply["error"].as_str() {
            // `RequestFailed` says in its `outcome` whether the request may have run.
            return Err(io::Error::other(format!("{error}: {}", reply["parameters"])));
        }
        Ok((reply["parameters"].take(), reply["continues"] == true))
    }
}

#[allow(dead_code, reason = "a test runs what this calls")]
fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for line in run(&arguments)? {
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

/// Does what the arguments say; what comes out, line by line.
pub(crate) fn run(arguments: &[String]) -> io::Result<Vec<Value>> {
    let usage = || io::Error::other("usage: rust-caller SOCKET add A B | count N | serve");
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<f64>().map_err(|_no_number| usage());
    match words.as_slice() {
        [socket, "add", a, b] => {
            let mut connection = Connection::open(socket)?;
            let args = json!({ "a": number(a)?, "b": number(b)? });
            connection.call("Execute", &json!({ "pool": "rust", "command": "add", "args": args }), false)?;
            Ok(vec![connection.reply()?.0["result"].take()])
        }
        [socket, "count", end] => {
            let mut connection = Connection::open(socket)?;
            let end: u64 = end.parse().map_err(|_no_number| usage())?;
            let parameters = json!({ "pool": "rust", "command": "count", "args": end, "stream": true });
            connection.call("Execute", &parameters, true)?;
            let mut lines = Vec::new();
            loop {
                let (mut said, continues) = connection.reply()?;
                lines.push(said[if continues { "chunk" } else { "result" }].take());
                if !continues {
                    return Ok(lines);
                }
            }
        }
        [socket, "serve"] => serve(socket).map(|result| vec![result]),
        _ => Err(usage()),
    }
}

/// Serves a tool `double` for the pool, and has a worker call it once.
fn serve(socket: &str) -> io::Result<Value> {
    let mut server = Connection::open(socket)?;
    server.call("ServeTools", &json!({ "pool": "rust", "tools": ["double"] }), true)?;
    // Empty: from now on no call is missed.
    server.reply()?;
    let mut caller = Connection::open(socket)?;
    let args = json!({ "tool": "double", "args": 21 });
    caller.call("Execute", &json!({ "pool": "rust", "command": "ask", "args": args }), false)?;
    let (called, _) = server.reply()?;
    let result = called["args"].as_u64().map(|number| number * 2);
    let mut replies = Connection::open(socket)?;
    replies.call("ReplyTool", &json!({ "pool": "rust", "call": called["call"], "result": result }), false)?;
    replies.reply()?;
    Ok(caller.reply()?.0["result"].take())
}
