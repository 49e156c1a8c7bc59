//! Streams: events, snapshots, logs, and the tickets that lead to them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Served;
use crate::http::{ask, connect, get};
use crate::look::{pid, signal, wait_healthy_of, worker};
use crate::needs::needs;

const SLEEPER: &str = "[pool.web]\nsize = 2\ncommand = ['sleep', 'infinity']\n";
/// A line that somebody would like to be markup, the end of a message, or a message.
const HOSTILE: &str = r#"<script>alert(1)</script> \u001b[31m event: server_shutdown"#;

/// A reader of a stream.
struct Reader(BufReader<TcpStream>);

/// A message: its event, its id, its data.
#[derive(Debug)]
struct Message {
    event: String,
    id: Option<String>,
    data: Value,
}

impl Reader {
    fn open(port: u16, path: &str, fields: &[(&str, &str)]) -> Self {
        let mut stream = connect(port);
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).expect("ask for a stream");
        let mut reader = Self(BufReader::new(stream));
        let status = reader.line().expect("an answer");
        assert!(status.starts_with("HTTP/1.1 200"), "{path}: {status}");
        let mut kind = None;
        while let Some(line) = reader.line().filter(|line| !line.is_empty()) {
            kind = line.strip_prefix("content-type: ").map(str::to_owned).or(kind);
        }
        assert_eq!(kind.as_deref(), Some("text/event-stream"));
        reader
    }

    /// The next line, without its end; sizes of chunks among them.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).expect("read a stream");
        (count > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next message; `None` at the end.
    fn next(&mut self) -> Option<Message> {
        let (mut event, mut id) = (None, None);
        loop {
            let line = self.line()?;
            if let Some(name) = line.strip_prefix("event: ") {
                event = Some(name.to_owned());
            } else if let Some(value) = line.strip_prefix("id: ") {
                id = Some(value.to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).expect("data is JSON");
                return Some(Message { event: event.expect("an event has a name"), id, data });
            }
        }
    }

    /// The next one that is meant.
    #[track_caller]
    fn find(&mut self, what: &str, meant: impl Fn(&Message) -> bool) -> Message {
        std::iter::from_fn(|| self.next()).find(|message| meant(message)).unwrap_or_else(|| panic!("{what} is told"))
    }
}

fn ticket(served: &Served, token: &str, path: &str) -> String {
    let answer = served.ask(token, "POST", "/api/ticket", &json!({ "path": path }).to_string());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()["ticket"].as_str().expect("a ticket").to_owned()
}

#[test]
fn events_are_told_and_taken_up_where_they_were_left() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(SLEEPER);
    let workers = wait_healthy_of(&mut served.daemon, "web", 2);
    let mut reader = Reader::open(served.port, "/events", &[]);
    signal(pid(&workers[0]), Signal::KILL);
    let death = reader.find("the death", |message| message.event == "death");
    assert_eq!(death.data["worker"], "web.0");
    assert_eq!(death.data["cause"], "signal 9");
    let id = death.id.expect("an id");
    assert_eq!(id.split_once('.').expect("a life and a number").1, death.data["sequence"].to_string());
    drop(reader);
    signal(pid(&workers[1]), Signal::KILL);
    wait_healthy_of(&mut served.daemon, "web", 2);
    let mut reader = Reader::open(served.port, "/events", &[("Last-Event-ID", &id)]);
    let next = reader.next().expect("one more");
    assert_eq!(next.data["sequence"].as_u64(), death.data["sequence"].as_u64().map(|number| number + 1));
    let other = reader.find("the other death", |message| message.event == "death");
    assert_eq!(other.data["worker"], "web.1");
    // Of another daemon's life: all of this one's is new.
    let mut reader = Reader::open(served.port, "/events?last_event_id=1.999999", &[]);
    assert_eq!(reader.next().expect("the first").data["sequence"], 1);
}

#[test]
fn a_stream_ends_with_a_word_and_begins_again() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(SLEEPER);
    let paths = ["/events", "/api/watch", "/api/logs/web.0"];
    let bearer = format!("Bearer {}", served.token("looks", &["--scope", "observe"]));
    let readers = paths.map(|path| Reader::open(served.port, path, &[("Authorization", &bearer)]));
    let before = pid(&worker(&served.daemon, "gateway"));
    signal(before, Signal::TERM);
    for mut reader in readers {
        reader.find("the end", |message| message.event == "server_shutdown");
        assert!(reader.next().is_none());
        assert_eq!(reader.line(), None, "and the connection with it");
    }
    served.daemon.wait_until("another one serves", |daemon| {
        let now = worker(daemon, "gateway");
        Some(()).filter(|()| now["state"] == "healthy" && now["pid"].as_i64() != Some(i64::from(before)))
    });
    let mut reader = Reader::open(served.port, "/api/watch", &[]);
    reader.find("a snapshot", |message| message.event == "snapshot");
}

#[test]
fn a_snapshot_holds_everything_and_follows_what_happens() {
    needs!(Root, CgroupTree);
    let mut served =
        Served::start(&format!("[pool.fdo]\nsize = 1\ndispatch = true\ncommand = ['sleep', 'infinity']\n{SLEEPER}"));
    let workers = wait_healthy_of(&mut served.daemon, "web", 2);
    let mut reader = Reader::open(served.port, "/api/watch", &[]);
    let first = reader.find("a snapshot", |message| message.event == "snapshot").data;
    assert_eq!(first["daemon"]["state"], "running");
    assert_eq!(first["totals"]["workers"], 4, "the gateway is one of them");
    let of = |snapshot: &Value, name: &str| {
        let workers = snapshot["workers"].as_array().expect("workers");
        workers.iter().find(|worker| worker["name"] == name).expect("it is there").clone()
    };
    let seen = of(&first, "web.0");
    for key in [
        "state",
        "occupancy",
        "restarts",
        "requests",
        "failed",
        "in_flight",
        "breaker",
        "memory_bytes",
        "memory_max_bytes",
        "cpu_usec",
        "cpu_max_millis",
        "pids",
        "last_death",
        "status_text",
    ] {
        assert!(seen.as_object().expect("an object").contains_key(key), "{key}");
    }
    assert_eq!(seen["state"], "healthy");
    assert_eq!(seen["last_death"], Value::Null);
    assert_eq!(of(&first, "fdo.0")["breaker"], "closed");
    signal(pid(&workers[0]), Signal::KILL);
    let after = reader.find("its end", |message| {
        message.event == "snapshot" && of(&message.data, "web.0")["last_death"]["cause"] == "signal 9"
    });
    assert!(of(&after.data, "web.0")["restarts"].as_u64() <= Some(1));
    reader.find("that it is back", |message| {
        message.event == "snapshot" && of(&message.data, "web.0")["state"] == "healthy"
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long something takes is what is tested")]
fn snapshots_are_at_most_four_a_second() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(
        "[pool.web]\ncommand = ['sh', '-c', 'sleep 0.02']\n[pool.web.restart]\ndelay = '10ms'\ndelay_max = '10ms'\nmax_restarts = 10000\n",
    );
    served.daemon.wait_until("it goes round", |daemon| {
        Some(()).filter(|()| worker(daemon, "web.0")["restarts"].as_u64() > Some(3))
    });
    let mut reader = Reader::open(served.port, "/api/watch", &[]);
    reader.find("a snapshot", |message| message.event == "snapshot");
    let begin = std::time::Instant::now();
    for _ in 0..8 {
        reader.find("a snapshot", |message| message.event == "snapshot");
    }
    assert!(begin.elapsed() >= Duration::from_millis(1_700), "{:?}", begin.elapsed());
}

#[test]
fn a_log_is_told_as_it_is_written_and_as_text() {
    needs!(Root, CgroupTree);
    let served = Served::start(&format!(
        "[pool.web]\ncommand = ['sh', '-c', 'echo first; printenv HOSTILE; exec sleep infinity']\n[pool.web.env]\nHOSTILE = '{HOSTILE}'\n"
    ));
    let bearer = format!("Bearer {}", served.token("looks", &["--scope", "observe"]));
    assert_eq!(crate::http::status(served.port, "/api/logs/web.0"), 401, "it is told to who shows a token");
    let mut reader = Reader::open(served.port, "/api/logs/web.0?lines=10", &[("Authorization", &bearer)]);
    assert_eq!(reader.next().expect("a line").data["text"], "first");
    let hostile = reader.next().expect("another");
    assert_eq!(hostile.event, "log");
    assert_eq!(hostile.data["text"], HOSTILE);
    assert_eq!(hostile.data["worker"], "web.0");
    for none in
        ["/api/logs/web.9", "/api/logs/nothing", "/api/logs/..%2fetc", "/api/logs/%00", "/api/logs/web.0?lines=x"]
    {
        let status = ask(served.port, "GET", none, &[("Authorization", &bearer)], "").status;
        assert!(status == 404 || status == 400, "{none}: {status}");
    }
}

#[test]
fn a_ticket_is_good_once_for_one_stream_and_no_longer_than_its_token() {
    needs!(Root, CgroupTree);
    let served = Served::start_with("open_status = false\n", SLEEPER);
    let port = served.port;
    assert_eq!(get(port, "/events").status, 401);
    assert_eq!(
        ask(port, "POST", "/api/ticket", &[("Content-Type", "application/json")], "{\"path\":\"/events\"}").status,
        401
    );
    let looks = served.token("looks", &["--scope", "observe"]);
    let made = ticket(&served, &looks, "/events");
    assert_eq!(get(port, &format!("/api/watch?ticket={made}")).status, 401, "it is for another stream");
    assert_eq!(get(port, &format!("/events?ticket={made}")).status, 401, "and used up by that");
    let made = ticket(&served, &looks, "/events");
    let path = format!("/events?ticket={made}");
    let reader = Reader::open(port, &path, &[]);
    assert_eq!(get(port, &path).status, 401, "it is good once");
    drop(reader);
    assert_eq!(get(port, "/events?ticket=").status, 401);
    assert_eq!(get(port, &format!("/events?token={looks}")).status, 400, "no token is taken from an address");
    let made = ticket(&served, &looks, "/events");
    let foreign = ask(port, "GET", &format!("/events?ticket={made}"), &[("Sec-Fetch-Site", "cross-site")], "");
    assert_eq!(foreign.status, 403, "no page of another origin's opens a stream");
    for path in ["/drain", "/pool", "/api/reset/web", "/api/ticket", "/apilogs/web", ""] {
        let body = json!({ "path": path }).to_string();
        assert_eq!(served.ask(&looks, "POST", "/api/ticket", &body).status, 400, "{path}");
    }
    let made = ticket(&served, &looks, "/api/token");
    let told = get(port, &format!("/api/token?ticket={made}"));
    assert_eq!((told.status, told.field("cache-control")), (200, Some("no-store")));
    assert_eq!(told.json()["token"], looks);
    let made = ticket(&served, &looks, "/events");
    assert_eq!(served.daemon.cli(&["token", "revoke", "looks"]).status, 0);
    assert_eq!(get(port, &format!("/events?ticket={made}")).status, 401, "its token is worth nothing any more");
}

#[test]
fn a_token_on_one_pool_sees_no_more_than_that() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(&format!("[pool.api]\ncommand = ['sleep', 'infinity']\n{SLEEPER}"));
    wait_healthy_of(&mut served.daemon, "web", 2);
    wait_healthy_of(&mut served.daemon, "api", 1);
    let token = served.token("one", &["--scope", "observe", "--pool", "web"]);
    let bearer = format!("Bearer {token}");
    let status = |path: &str| ask(served.port, "GET", path, &[("Authorization", &bearer)], "").status;
    for path in ["/api/watch", "/api/logs/api.0"] {
        assert_eq!(status(path), 403, "{path}");
    }
    let refused = ask(served.port, "GET", "/api/watch", &[("Authorization", &bearer)], "").json();
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("the pool web alone")), "{refused}");
    // What happens to others, and what they have, is not told; what its own pool does and has is.
    let workers = [worker(&served.daemon, "api.0"), worker(&served.daemon, "web.0")];
    let mut reader = Reader::open(served.port, "/events?last_event_id=1.0", &[("Authorization", &bearer)]);
    workers.iter().for_each(|worker| signal(pid(worker), Signal::KILL));
    let mut last = None;
    while last.is_none() {
        let message = reader.next().expect("another");
        assert_eq!(message.data["pool"], "web", "{message:?}");
        last = message.id.filter(|_| message.event == "death");
    }
    drop(reader);
    let other = worker(&served.daemon, "web.1");
    signal(pid(&other), Signal::KILL);
    let shown = [("Authorization", bearer.as_str()), ("Last-Event-ID", last.as_deref().unwrap_or_default())];
    let mut reader = Reader::open(served.port, "/events", &shown);
    let death = reader.find("the other death", |message| {
        assert_eq!(message.data["pool"], "web", "{message:?}");
        message.event == "death"
    });
    assert_eq!(death.data["worker"], "web.1", "nothing twice");
    let metrics = ask(served.port, "GET", "/metrics", &[("Authorization", &bearer)], "");
    assert_eq!(metrics.status, 200);
    let text = String::from_utf8(metrics.body).expect("text");
    assert!(text.contains("halsup_workers{pool=\"web\",state=\"healthy\"}") && text.contains("worker=\"web.0\""));
    assert!(!text.contains("api") && !text.contains("halsup_gateway") && !text.contains("halsup_daemon"), "{text}");
    drop(Reader::open(served.port, "/api/logs/web.0", &[("Authorization", &bearer)]));
    let reset = ask(served.port, "POST", "/api/reset/web", &[("Authorization", &bearer)], "");
    assert_eq!(reset.status, 403, "to look is not to act");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long something takes is what is tested")]
fn readers_that_do_not_read_cost_little_and_nobody_else_waits() {
    needs!(Root, CgroupTree);
    let served = Served::start(
        "[pool.web]\ncommand = ['sh', '-c', 'while :; do printf \"%01000d\\n\" 1; sleep 0.002; done']\n[pool.web.log]\nmax_size = '64K'\n[pool.flap]\nsize = 4\ncommand = ['sh', '-c', 'sleep 0.01']\n[pool.flap.restart]\ndelay = '5ms'\ndelay_max = '5ms'\nmax_restarts = 10000\n",
    );
    let gateway = pid(&worker(&served.daemon, "gateway"));
    let looks = served.token("looks", &["--scope", "observe"]);
    let bearer = format!("Bearer {looks}");
    let reads = format!("Bearer {}", served.token("reads", &["--scope", "observe"]));
    let mut held = Vec::new();
    for number in 0..300 {
        let mut stream = connect(served.port);
        let path = ["/events?last_event_id=0.0", "/api/watch", "/api/logs/web.0?lines=10000"][number % 3];
        let shown = if number % 3 == 2 { format!("Authorization: {reads}\r\n") } else { String::new() };
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{shown}\r\n");
        stream.write_all(head.as_bytes()).expect("ask for a stream");
        held.push(stream);
    }
    let (begin, mut slowest) = (std::time::Instant::now(), Duration::ZERO);
    while begin.elapsed() < Duration::from_secs(4) {
        let asked = std::time::Instant::now();
        let answer = ask(served.port, "GET", "/health", &[("Authorization", &bearer)], "");
        assert!([200, 400].contains(&answer.status), "{}", answer.status);
        slowest = slowest.max(asked.elapsed());
    }
    // Who shows a token has places of their own.
    let mut reader = Reader::open(served.port, "/api/watch", &[("Authorization", &bearer)]);
    reader.find("a snapshot", |message| message.event == "snapshot");
    let refused = get(served.port, "/events");
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    let status = std::fs::read_to_string(format!("/proc/{gateway}/status")).expect("read its status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the most memory");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    println!("the most memory of the gateway: {kib} KiB; the slowest answer: {slowest:?}");
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
    assert!(kib < 64 * 1024, "{kib} KiB");
    assert_eq!(pid(&worker(&served.daemon, "gateway")), gateway, "it is the same one");
    // What comes and goes all the time is nobody's for a moment.
    assert_eq!(served.daemon.cli(&["stop", "flap"]).status, 0);
}
