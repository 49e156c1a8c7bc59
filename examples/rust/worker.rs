//! A worker in Rust, which speaks the channel by itself: `docs/worker-contract.md` says what each frame means.
//!
//! One thread, any number of requests at once: `add` is answered at once, `count` is a stream that goes on when its reader has room,
//! `ask` has a tool of a client's used. Needs std and `serde_json`. As a pool:
//!
//! ```toml
//! [pool.rust]
//! command = ["/opt/halsup/rust-worker"]
//! ready = "channel"
//! dispatch = { capacity = 16 }
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;

use serde_json::{Value, json};

/// No frame is longer, in bytes.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// A stream of numbers: those from `next` to `end` are still to be sent, `credit` of them now.
#[derive(Debug)]
struct Count {
    next: u64,
    end: u64,
    credit: u64,
}

/// This end of the channel, and the requests that are not answered.
#[derive(Debug)]
struct Worker {
    channel: UnixDatagram,
    counts: BTreeMap<String, Count>,
    /// Calls to tools of clients, by their number: for which request.
    calls: BTreeMap<u64, String>,
    calls_made: u64,
    draining: bool,
    forgetting: bool,
}

#[allow(dead_code, reason = "a test runs what this calls")]
fn main() -> io::Result<()> {
    serve()
}

/// Says that the worker is ready, and serves until it was drained or its supervisor is gone.
pub(crate) fn serve() -> io::Result<()> {
    let number = std::env::var("HALSUP_CHANNEL_FD").ok().and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("HALSUP_CHANNEL_FD: this is to be run by halsup"))?;
    #[expect(unsafe_code, reason = "the descriptor comes by its number")]
    // SAFETY: halsup has opened it for this program, and nothing else here owns it.
    let channel = UnixDatagram::from(unsafe { OwnedFd::from_raw_fd(number) });
    let (counts, calls) = (BTreeMap::new(), BTreeMap::new());
    let mut worker = Worker { channel, counts, calls, calls_made: 0, draining: false, forgetting: false };
    worker.say(&json!({ "kind": "hello", "protocol": 1 }))?;
    worker.say(&json!({ "kind": "ready" }))?;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    while !worker.is_done() {
        let length = worker.channel.recv(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        // What is no frame is passed over.
        if let Ok(frame) = serde_json::from_slice::<Value>(&buffer[..length]) {
            worker.hear(&frame)?;
        }
    }
    Ok(())
}

impl Worker {
    fn say(&self, frame: &Value) -> io::Result<()> {
        self.channel.send(frame.to_string().as_bytes()).map(drop)
    }

    fn is_done(&self) -> bool {
        self.draining && self.counts.is_empty() && self.calls.is_empty()
    }

    fn hear(&mut self, frame: &Value) -> io::Result<()> {
        let id = frame["id"].as_str().unwrap_or_default();
        match frame["kind"].as_str().unwrap_or_default() {
            "ping" => self.say(&json!({ "kind": "pong", "id": frame["id"] }))?,
            "request" => self.begin(id, frame)?,
            "credit" => {
                if let Some(count) = self.counts.get_mut(id) {
                    count.credit += frame["count"].as_u64().unwrap_or(0);
                }
            }
            "cancel" => {
                let was_here = self.counts.remove(id).is_some() || self.calls.values().any(|of| of == id);
                self.calls.retain(|_, of| of != id);
                if was_here {
                    self.fail(id, "cancelled", "the answer is wanted no more")?;
                }
            }
            "reply" => self.end_call(frame)?,
            "drain" => self.draining = true,
            "forget" => {
                self.counts.clear();
                self.calls.clear();
                self.forgetting = true;
            }
            // What later versions say.
            _ => {}
        }
        if std::mem::take(&mut self.forgetting) {
            self.say(&json!({ "kind": "ready" }))?;
        }
        self.go_on()
    }

    fn begin(&mut self, id: &str, frame: &Value) -> io::Result<()> {
        let args = &frame["args"];
        match frame["command"].as_str().unwrap_or_default() {
            "add" => match (args["a"].as_f64(), args["b"].as_f64()) {
                (Some(a), Some(b)) => self.answer(id, &json!(a + b)),
                _ => self.fail(id, "bad_arguments", "expected two numbers, a and b"),
            },
            "count" if frame["stream"] == true => {
                let (end, credit) = (args.as_u64().unwrap_or(0), frame["credit"].as_u64().unwrap_or(0));
                self.counts.insert(id.to_owned(), Count { next: 0, end, credit });
                Ok(())
            }
            "ask" => {
                self.calls_made += 1;
                self.calls.insert(self.calls_made, id.to_owned());
                let (call, tool) = (self.calls_made, &args["tool"]);
                self.say(&json!({ "kind": "call", "call": call, "id": id, "tool": tool, "args": args["args"] }))
            }
            command => self.fail(id, "unknown_command", &format!("there is no command {command:?}")),
        }
    }

    fn end_call(&mut self, frame: &Value) -> io::Result<()> {
        let Some(id) = frame["call"].as_u64().and_then(|call| self.calls.remove(&call)) else { return Ok(()) };
        match frame["error"]["reason"].as_str() {
            Some(reason) => self.fail(&id, reason, frame["error"]["message"].as_str().unwrap_or_default()),
            None => self.answer(&id, &frame["result"]),
        }
    }

    /// Sends what there is room for of every stream.
    fn go_on(&mut self) -> io::Result<()> {
        let mut over = Vec::new();
        for (id, count) in &mut self.counts {
            while count.credit > 0 && count.next < count.end {
                let chunk = json!({ "kind": "chunk", "id": id, "data": count.next }).to_string();
                self.channel.send(chunk.as_bytes())?;
                count.next += 1;
                count.credit -= 1;
            }
            if count.next == count.end {
                over.push(id.clone());
            }
        }
        for id in over {
            self.counts.remove(&id);
            self.answer(&id, &json!("counted"))?;
        }
        Ok(())
    }

    fn answer(&self, id: &str, result: &Value) -> io::Result<()> {
        self.say(&json!({ "kind": "result", "id": id, "result": result }))
    }

    fn fail(&self, id: &str, reason: &str, message: &str) -> io::Result<()> {
        let error = json!({ "message": message, "reason": reason });
        self.say(&json!({ "kind": "error", "id": id, "error": error }))
    }
}
