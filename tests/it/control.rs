//! The control socket without the command line: what any Varlink client may send, and what a hostile one tries.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::fixture::{Daemon, EVENT_DEADLINE};
use crate::needs::needs;

const ONE_SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

/// A connection that speaks frames.
struct Peer {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Peer {
    fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(daemon.path("run/control.sock")).expect("connect");
        stream.set_read_timeout(Some(EVENT_DEADLINE)).expect("set a deadline");
        Self { stream, unread: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    fn call(&mut self, method: &str, parameters: &Value) {
        self.send(&call(method, parameters));
    }

    /// The next reply; `None` once the daemon has closed the connection.
    fn reply(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == 0) {
                let frame: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&frame[..end]).expect("a reply is JSON"));
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no reply in time: {error}"),
            }
        }
    }

    /// The error of the next reply, with its reason.
    fn refusal(&mut self) -> (String, String) {
        let reply = self.reply().expect("a reply before the end");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&reply["error"]), text(&reply["parameters"]["reason"]))
    }
}

fn call(method: &str, parameters: &Value) -> Vec<u8> {
    flagged(method, parameters, &json!({}))
}

fn flagged(method: &str, parameters: &Value, flags: &Value) -> Vec<u8> {
    let method = if method.contains('.') { method.to_owned() } else { format!("io.halsup.Control.{method}") };
    let mut call = json!({ "method": method, "parameters": parameters });
    for (name, flag) in flags.as_object().expect("flags are an object") {
        call[name] = flag.clone();
    }
    let mut frame = call.to_string().into_bytes();
    frame.push(0);
    frame
}

#[test]
fn any_client_can_ask_what_is_spoken() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(ONE_SLEEPER);
    let mut peer = Peer::connect(&daemon);
    peer.call("org.varlink.service.GetInfo", &json!({}));
    let info = peer.reply().expect("an answer");
    for interface in info["parameters"]["interfaces"].as_array().expect("interfaces") {
        peer.call("org.varlink.service.GetInterfaceDescription", &json!({ "interface": interface }));
        let description = peer.reply().expect("an answer")["parameters"]["description"].clone();
        let heading = format!("interface {}", interface.as_str().expect("a name"));
        assert!(description.as_str().expect("a text").lines().any(|line| line == heading));
    }
    for (method, parameters, error) in [
        ("Nope", json!({}), "org.varlink.service.MethodNotFound"),
        ("a.b.C", json!({}), "org.varlink.service.InterfaceNotFound"),
        ("Ping", json!({ "x": 1 }), "org.varlink.service.InvalidParameter"),
        ("Events", json!({ "follow": true }), "org.varlink.service.ExpectedMore"),
        ("Stop", json!({ "target": "web.9" }), "io.halsup.Control.NotFound"),
        ("Stop", json!({ "target": "nobody" }), "io.halsup.Control.NotFound"),
        ("Scale", json!({ "pool": "web", "count": 99 }), "io.halsup.Control.Refused"),
    ] {
        peer.call(method, &parameters);
        assert_eq!(peer.refusal().0, error, "{method} {parameters}");
    }
    peer.call("Ping", &json!({}));
    assert_eq!(peer.reply(), Some(json!({ "parameters": {} })), "a wrong call costs nothing but its answer");
}

#[test]
fn answers_come_in_the_order_of_the_calls() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(ONE_SLEEPER);
    let mut peer = Peer::connect(&daemon);
    let mut calls = call("Ping", &json!({}));
    calls.extend(call("Restart", &json!({ "target": "web.0" })));
    calls.extend(flagged("Ping", &json!({}), &json!({ "oneway": true })));
    calls.extend(call("Status", &json!({})));
    calls.extend(flagged("List", &json!({}), &json!({ "more": true })));
    for _ in 0..2_000 {
        calls.extend(call("Ping", &json!({})));
    }
    peer.send(&calls);
    peer.stream.shutdown(std::net::Shutdown::Write).expect("finish speaking");
    assert_eq!(peer.reply(), Some(json!({ "parameters": {} })));
    let restarted = peer.reply().expect("an answer");
    assert_eq!(restarted["parameters"], json!({ "achieved": 1, "wanted": 1, "failures": [] }));
    assert_eq!(peer.reply().expect("an answer")["parameters"]["state"], "running", "oneway has no reply");
    let listed = peer.reply().expect("an answer");
    assert_eq!(listed["parameters"]["workers"][0]["state"], "healthy", "the restart was over before");
    for _ in 0..2_000 {
        assert_eq!(peer.reply(), Some(json!({ "parameters": {} })));
    }
    assert_eq!(peer.reply(), None, "who has finished speaking and heard all is let go");
}

#[test]
fn a_stream_ends_when_its_client_says_something_else() {
    needs!(Root, CgroupTree);
    let program = "[pool.web]\ncommand = ['sh', '-c', 'printf half; touch said; sleep 1000']\nready = 'file:said'\n";
    let daemon = Daemon::start(program);
    assert_eq!(daemon.cli(&["start", "web"]).status, 0, "it is ready, so it has spoken");
    let mut peer = Peer::connect(&daemon);
    peer.send(&flagged("Events", &json!({ "follow": true, "last": 0 }), &json!({ "more": true })));
    let first = peer.reply().expect("a first answer");
    assert_eq!(first, json!({ "parameters": { "events": [], "missed": 0 }, "continues": true }));
    let mut log = Peer::connect(&daemon);
    log.send(&flagged("Logs", &json!({ "worker": "web.0", "follow": true }), &json!({ "more": true })));
    assert_eq!(log.reply().expect("a first answer")["continues"], true);
    assert_eq!(daemon.cli(&["kill", "web.0"]).status, 0);
    let told = peer.reply().expect("an event");
    assert_eq!(told["parameters"]["events"][0]["kind"], "order");
    let line = log.reply().expect("a line");
    assert_eq!(line["parameters"]["entries"][0]["text"], "half", "begun before it was followed, ended by the death");
    for peer in [&mut peer, &mut log] {
        peer.call("Ping", &json!({}));
        while peer.reply().expect("the end of the stream").get("continues").is_some() {}
        assert_eq!(peer.reply(), Some(json!({ "parameters": {} })));
    }
}

#[test]
fn what_is_no_message_gets_one_answer_and_the_end() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(ONE_SLEEPER);
    let deep = format!("{}\0", "[".repeat(200_000));
    for (bytes, reason) in [
        (deep.as_bytes(), "nested deeper than 16 levels"),
        (b"{\"method\":\"a\",\"method\":\"b\"}\0".as_slice(), "comes twice"),
        (b"{\"method\":\"\xff\"}\0".as_slice(), "not UTF-8"),
        (b"\0".as_slice(), "not valid"),
        (b"[]\0".as_slice(), "expected a JSON object"),
        (b"{\"method\"".as_slice(), "the rest of a message did not come within 2 s"),
    ] {
        let mut peer = Peer::connect(&daemon);
        peer.send(bytes);
        let (error, said) = peer.refusal();
        assert_eq!(error, "io.halsup.Control.Refused");
        assert!(said.contains(reason), "{said}");
        assert_eq!(peer.reply(), None);
    }
    let mut peer = Peer::connect(&daemon);
    // The daemon closes before all of it is sent.
    peer.stream.write_all(&vec![b'x'; 2 << 20]).expect_err("nobody takes 2 MiB");
    assert_eq!(peer.refusal().1, "message is longer than 262144 bytes");
}

#[test]
fn clients_that_do_not_read_hold_up_nobody() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(ONE_SLEEPER);
    let mut deaf = Vec::new();
    for _ in 0..50 {
        let peer = Peer::connect(&daemon);
        peer.stream.set_nonblocking(true).expect("do not wait");
        while (&peer.stream).write(&call("Status", &json!({}))).is_ok() {}
        deaf.push(peer);
    }
    let mut peer = Peer::connect(&daemon);
    peer.call("Ping", &json!({}));
    assert_eq!(peer.reply(), Some(json!({ "parameters": {} })));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read its status");
    let resident = memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 100 << 10, "{kib} KiB for 50 clients that do not read");
}

#[test]
fn there_are_so_many_clients_and_no_more() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(ONE_SLEEPER);
    let mut refused = None;
    let mut peers = Vec::new();
    for _ in 0..300 {
        let mut peer = Peer::connect(&daemon);
        // One that is refused at once may be closed before it has spoken.
        let sent = peer.stream.write_all(&call("Ping", &json!({})));
        let reply = peer.reply();
        if sent.is_err() || reply.as_ref().is_none_or(|reply| reply.get("error").is_some()) {
            refused = reply;
            break;
        }
        peers.push(peer);
    }
    // The fixture itself follows the events.
    assert!((250..=256).contains(&peers.len()), "{} clients", peers.len());
    assert_eq!(refused.expect("a reason")["parameters"]["reason"], "too many clients are connected");
    peers.clear();
    // Places are free as soon as the daemon has seen that their clients are gone.
    let again = (0..100).map(|_| daemon.cli(&["status"]).status).find(|status| *status == 0);
    assert_eq!(again, Some(0));
}
