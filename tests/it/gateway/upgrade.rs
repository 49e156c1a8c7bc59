//! WebSockets, and whatever else a connection is changed to, through the gateway to real servers and back.

#![expect(clippy::disallowed_methods, reason = "how long something takes is what is tested")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::Served;
use crate::http::{Answer, ask, connect, get, parse};
use crate::look::{pid, signal, wait_certificate, wait_healthy_of, worker};
use crate::needs::needs;
use crate::ports::free_ports;

const MIB: usize = 1 << 20;

/// A pool `ws` of servers of WebSockets, and a token for it.
struct Sockets {
    served: Served,
    token: String,
}

impl Sockets {
    fn start(size: u16, keys: &str) -> Self {
        let program = include_str!("websocket.py").replace('{', "{{").replace('}', "}}").replace('\\', "\\\\");
        let first = free_ports(size);
        let mut served = Served::start(&format!(
            "[pool.ws]\nserve = 'http'\nsize = {size}\nbase_port = {first}\n\
             command = ['python3', '-c', \"\"\"{}\"\"\", '{{port}}']\n{keys}",
            program.replace('"', "\\\"")
        ));
        wait_healthy_of(&mut served.daemon, "ws", usize::from(size));
        let token = served.token("works", &["--pool", "ws"]);
        Self { served, token }
    }

    /// Asks for a WebSocket, with further fields.
    fn asked(&self, path: &str, fields: &str) -> TcpStream {
        let mut stream = connect(self.served.port);
        let head = format!(
            "GET /w/ws{path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n{fields}\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).expect("ask for a socket");
        stream
    }

    /// Has one.
    #[track_caller]
    fn open(&self, path: &str) -> (TcpStream, Answer) {
        let mut stream = self.asked(path, "");
        let told = head(&mut stream);
        assert_eq!(told.status, 101, "{told:?}");
        (stream, told)
    }

    fn in_flight(&self) -> u64 {
        get(self.served.port, "/health/pool").json()["concurrent_requests"].as_u64().expect("a number")
    }

    fn wait_in_flight(&mut self, count: u64) {
        let port = self.served.port;
        self.served.daemon.wait_until("so many are in workers", |_| {
            let told = get(port, "/health/pool").json();
            Some(()).filter(|()| told["concurrent_requests"] == count)
        });
    }
}

/// Reads the head of an answer, and nothing behind it.
#[track_caller]
fn head(stream: &mut TcpStream) -> Answer {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} behind {}", head.escape_ascii()));
        head.push(byte[0]);
    }
    parse(&head).expect("the head of an answer")
}

fn framed(kind: u8, data: &[u8]) -> Vec<u8> {
    let mask = [7, 11, 13, 17];
    let mut frame = vec![0x80 | kind, 0x80 | 127];
    frame.extend((data.len() as u64).to_be_bytes());
    frame.extend(mask);
    frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn send(stream: &mut TcpStream, kind: u8, data: &[u8]) {
    stream.write_all(&framed(kind, data)).expect("send a frame");
}

#[track_caller]
fn receive(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut begin = [0; 2];
    stream.read_exact(&mut begin).expect("a frame");
    let mut length = [0; 8];
    let short = usize::from(begin[1] & 0x7f);
    let length = if short == 127 {
        stream.read_exact(&mut length).expect("its length");
        usize::try_from(u64::from_be_bytes(length)).expect("a length")
    } else {
        short
    };
    let mut data = vec![0; length];
    stream.read_exact(&mut data).expect("what it says");
    (begin[0] & 0xf, data)
}

/// Reads to the end of a connection; how much came.
fn to_end(stream: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap_or_default();
    rest.len()
}

#[test]
fn a_socket_is_opened_echoes_and_ends() {
    needs!(Root, CgroupTree, Python3);
    let mut sockets = Sockets::start(1, "");
    let (mut stream, told) = sockets.open("/fields?x=1");
    assert_eq!(told.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let field = |name| told.field(name);
    assert_eq!(
        (field("upgrade"), field("connection"), field("x-own")),
        (Some("websocket"), Some("upgrade"), Some("kept"))
    );
    assert_eq!((field("x-hop"), field("x-halsup-worker")), (None, Some("ws.0")));
    let (_, fields) = receive(&mut stream);
    let fields: Value = serde_json::from_slice(&fields).expect("JSON");
    assert_eq!((&fields["upgrade"], &fields["connection"]), (&"websocket".into(), &"upgrade".into()));
    assert_eq!(fields["x-forwarded-prefix"], "/w/ws");
    assert!(fields["authorization"].is_null(), "{fields}");
    send(&mut stream, 1, b"hello");
    assert_eq!(receive(&mut stream), (1, b"hello".to_vec()));
    assert_eq!(sockets.in_flight(), 1, "the worker is held while it lasts");
    send(&mut stream, 8, &[3, 232]);
    assert_eq!(receive(&mut stream), (8, vec![3, 232]));
    assert_eq!(to_end(&mut stream), 0, "and then it ends");
    drop(stream);
    sockets.wait_in_flight(0);
    assert_eq!(worker(&sockets.served.daemon, "ws.0")["restarts"], 0);
    // Said in one breath with the answer.
    let (mut stream, _) = sockets.open("/early");
    assert_eq!(receive(&mut stream), (1, b"hi".to_vec()));
    // And what a client says before it has one waits, and is no request.
    drop(stream);
    sockets.wait_in_flight(0);
    let mut stream = sockets.asked("/echo", "");
    send(&mut stream, 1, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(head(&mut stream).status, 101);
    assert_eq!(receive(&mut stream), (1, b"GET / HTTP/1.1\r\n\r\n".to_vec()));
}

#[test]
fn ten_megabytes_flow_each_way_at_once_and_no_faster_than_they_are_taken() {
    needs!(Root, CgroupTree, Python3);
    let sockets = Sockets::start(1, "dispatch = { capacity = 2 }\n");
    let (mut stream, _) = sockets.open("/echo");
    let data: Vec<u8> = (0..10 * MIB).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
    let mut writer = stream.try_clone().expect("another handle");
    let sent = data.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || sent.chunks(64 * 1024).for_each(|piece| send(&mut writer, 2, piece)));
        let mut came = Vec::new();
        while came.len() < data.len() {
            came.extend(receive(&mut stream).1);
        }
        assert!(came == data, "the same comes back");
    });
    drop(stream);
    // Its worker does not read before it is told to: until then no more is taken than fits on the way.
    let (mut stream, _) = sockets.open("/deaf");
    stream.set_nonblocking(true).expect("have it not wait");
    let frame = framed(2, &vec![b'x'; 64 * 1024]);
    let (mut taken, mut left) = (0, frame.as_slice());
    let mut begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) && taken < 64 * MIB {
        match stream.write(left) {
            Ok(count) => {
                taken += count;
                begun = Instant::now();
                left = if count == left.len() { &frame } else { &left[count..] };
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(taken < 16 * MIB, "{taken} bytes were taken");
    stream.set_nonblocking(false).expect("have it wait");
    assert_eq!(sockets.served.ask(&sockets.token, "GET", "/w/ws/hear", "").status, 200);
    if left.len() < frame.len() {
        stream.write_all(left).expect("the rest of a frame");
        taken += left.len();
    }
    send(&mut stream, 2, b"end");
    let (_, told) = receive(&mut stream);
    let told: Value = serde_json::from_slice(&told).expect("JSON");
    let whole = taken / frame.len() * 64 * 1024 + 3;
    assert_eq!(told["count"], whole, "and all of it has come");
}

#[test]
fn whoever_ends_ends_it_for_the_other() {
    needs!(Root, CgroupTree, Python3);
    let mut sockets = Sockets::start(1, "restart = { delay = '10ms' }\ndispatch = { queue_timeout = '20s' }\n");
    // A worker that is killed in the middle.
    let (mut stream, _) = sockets.open("/echo");
    send(&mut stream, 1, b"a");
    receive(&mut stream);
    signal(pid(&worker(&sockets.served.daemon, "ws.0")), Signal::KILL);
    let begun = Instant::now();
    assert_eq!(to_end(&mut stream), 0);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    wait_certificate(&mut sockets.served.daemon, "ws.0", 1);
    wait_healthy_of(&mut sockets.served.daemon, "ws", 1);
    // One that ends by itself, with what it was sent unread.
    let (mut stream, _) = sockets.open("/die");
    send(&mut stream, 1, &[b'x'; 100_000]);
    assert_eq!(to_end(&mut stream), 0);
    wait_certificate(&mut sockets.served.daemon, "ws.0", 2);
    wait_healthy_of(&mut sockets.served.daemon, "ws", 1);
    // A client that goes away, without a word or in order: the worker is free for the next.
    for shut in [None, Some(Shutdown::Write)] {
        let (stream, _) = sockets.open("/echo");
        match shut {
            Some(how) => stream.shutdown(how).expect("say nothing more"),
            None => drop(stream),
        }
        let (mut next, _) = sockets.open("/echo");
        send(&mut next, 1, b"b");
        assert_eq!(receive(&mut next), (1, b"b".to_vec()));
    }
    sockets.wait_in_flight(0);
    // The gateway, killed and told to end.
    for how in [Signal::KILL, Signal::TERM] {
        let (mut stream, _) = sockets.open("/echo");
        let gateway = worker(&sockets.served.daemon, "gateway");
        signal(pid(&gateway), how);
        assert_eq!(to_end(&mut stream), 0, "{how:?}");
        sockets.served.daemon.wait_until("another one serves", |daemon| {
            let now = worker(daemon, "gateway");
            Some(()).filter(|()| now["state"] == "healthy" && now["pid"] != gateway["pid"])
        });
        let (mut next, _) = sockets.open("/echo");
        send(&mut next, 1, b"c");
        assert_eq!(receive(&mut next), (1, b"c".to_vec()));
    }
    assert_eq!(worker(&sockets.served.daemon, "ws.0")["restarts"], 2, "nobody else has ended");
    // The daemon.
    let (mut stream, _) = sockets.open("/echo");
    let begun = Instant::now();
    assert_eq!(sockets.served.daemon.stop(), 0);
    assert_eq!(to_end(&mut stream), 0);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn it_has_its_time_and_says_something_within_it() {
    needs!(Root, CgroupTree, Python3);
    let mut sockets = Sockets::start(
        1,
        "upgrade_max = '3s'\nupgrade_idle = '1s'\ndispatch = { timeout = '500ms', cancel_grace = '10s', queue_timeout = '20s' }\n",
    );
    // As long as a request has: nothing but its beginning.
    let begun = Instant::now();
    let (mut stream, _) = sockets.open("/echo");
    while begun.elapsed() < Duration::from_millis(1_800) {
        send(&mut stream, 1, b"x");
        receive(&mut stream);
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("have a reading end");
        assert!(stream.read(&mut [0]).is_err(), "it lasts");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("have a reading end");
    }
    let quiet = Instant::now();
    assert_eq!(to_end(&mut stream), 0, "nothing was said");
    assert!((700..2_000).contains(&quiet.elapsed().as_millis()), "{:?}", quiet.elapsed());
    sockets.wait_in_flight(0);
    let begun = Instant::now();
    let (mut stream, _) = sockets.open("/echo");
    let mut clone = stream.try_clone().expect("another handle");
    let talks = std::thread::scope(|scope| {
        let ended = scope.spawn(move || to_end(&mut clone));
        while stream.write_all(&framed(1, b"x")).is_ok() {
            let pause = connect(sockets.served.port);
            pause.set_read_timeout(Some(Duration::from_millis(100))).expect("have a reading end");
            assert!((&pause).read(&mut [0]).is_err());
            if ended.is_finished() {
                break;
            }
        }
        begun.elapsed()
    });
    assert!((2_900..6_000).contains(&talks.as_millis()), "{talks:?}");
    let late = head(&mut sockets.asked("/never", ""));
    assert_eq!(late.status, 504, "its beginning has as long as a request");
    assert_eq!(late.field("connection"), Some("close"));
}

#[test]
fn what_is_not_let_through_is_refused_in_words() {
    needs!(Root, CgroupTree, Python3);
    let none = format!(
        "[pool.none]\nserve = 'http'\nupgrade_max = '0s'\nbase_port = {}\nready = 'exec'\ncommand = ['sleep', 'infinity']\n",
        free_ports(1)
    );
    let sockets = Sockets::start(1, &format!("dispatch = {{ capacity = 64 }}\n{none}"));
    let port = sockets.served.port;
    let token = format!("Bearer {}", sockets.served.token("all", &[]));
    let asked = |method: &str, path: &str, fields: &[(&str, &str)]| {
        let all = [("Authorization", token.as_str()), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "eA==")];
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n");
        for (name, value) in all.iter().filter(|(name, _)| !fields.iter().any(|(own, _)| own == name)).chain(fields) {
            if !value.is_empty() {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        // What stands behind it is not looked at: the connection ends with the answer.
        let behind = format!("{head}\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = crate::http::exchange(port, behind.as_bytes());
        assert_eq!(answer.windows(9).filter(|nine| nine == b"HTTP/1.1 ").count(), 1, "{}", answer.escape_ascii());
        parse(&answer).expect("an answer")
    };
    for (status, method, path, fields) in [
        (400, "GET", "/livez", &[][..]),
        (400, "GET", "/events", &[]),
        (400, "POST", "/w/ws/echo", &[("Transfer-Encoding", "chunked")]),
        (401, "GET", "/w/ws/echo", &[("Authorization", "")]),
        (403, "GET", "/w/ws/echo", &[("Origin", "http://evil.example.org")]),
        (403, "GET", "/w/ws/echo", &[("Origin", "null")]),
        (403, "GET", "/w/ws/echo", &[("Sec-Fetch-Site", "cross-site")]),
        (403, "GET", "/w/none/", &[]),
        (502, "POST", "/w/ws/unasked", &[("Upgrade", "h2c")]),
    ] {
        let got = asked(method, path, fields);
        assert_eq!(got.status, status, "{method} {path} {fields:?}: {}", String::from_utf8_lossy(&got.body));
        assert!(got.json()["message"].as_str().is_some_and(|message| message.len() > 15), "{path}");
    }
    // What its worker says to that is passed on, and HTTP of another version is passed over.
    let got = asked("GET", "/w/ws/refuse", &[]);
    assert_eq!((got.status, got.body.as_slice()), (426, b"other".as_slice()));
    let got = asked("GET", "/w/ws/", &[("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")]);
    assert_eq!((got.status, &got.json()["upgrade"], &got.json()["connection"]), (200, &Value::Null, &"close".into()));
    assert_eq!(ask(port, "GET", "/livez", &[("Upgrade", "websocket")], "").status, 200);
    // As many as may be, and places for requests beside them.
    let open: Vec<_> = (0..48).map(|_| sockets.open("/echo")).collect();
    let mut one_more = sockets.asked("/echo", "");
    assert_eq!(head(&mut one_more).status, 503);
    assert_eq!(sockets.served.ask(&sockets.token, "GET", "/w/ws/", "").status, 200);
    drop(open);
    let (mut stream, _) = std::iter::repeat_with(|| {
        let mut stream = sockets.asked("/echo", "");
        let status = head(&mut stream).status;
        (stream, status)
    })
    .take(1_000)
    .find(|(_, status)| *status == 101)
    .expect("there is a place again");
    send(&mut stream, 1, b"d");
    assert_eq!(receive(&mut stream), (1, b"d".to_vec()));
}
