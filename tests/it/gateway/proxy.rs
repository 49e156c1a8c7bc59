//! Pooled HTTP: requests for real servers, through the gateway.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::Value;

use super::Served;
use crate::http::{Answer, ask, connect, exchange, parse};
use crate::look::{certificates, pid, signal, wait_certificate, wait_healthy_of, wait_line, worker};
use crate::needs::needs;
use crate::ports::free_ports;

/// A pool `fdo` of such workers, and a token for it.
struct Work {
    served: Served,
    token: String,
}

impl Work {
    fn start(size: u16, keys: &str) -> Self {
        let program = include_str!("worker.py").replace('{', "{{").replace('}', "}}");
        let first = free_ports(size);
        let mut served = Served::start(&format!(
            "[pool.fdo]\nserve = 'http'\nsize = {size}\nbase_port = {first}\n\
             command = ['python3', '-c', '''{program}''', '{{port}}', '{{slot}}']\n{keys}"
        ));
        wait_healthy_of(&mut served.daemon, "fdo", usize::from(size));
        let token = served.token("works", &["--pool", "fdo"]);
        Self { served, token }
    }

    fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let fields: Vec<_> = fields.iter().copied().chain([("Authorization", bearer.as_str())]).collect();
        ask(self.served.port, method, &format!("/w/fdo{path}"), &fields, body)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    /// Sends a request and does not wait for its answer.
    fn begin(&self, method: &str, path: &str, fields: &str) -> TcpStream {
        let mut stream = connect(self.served.port);
        let head = format!(
            "{method} /w/fdo{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{fields}\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).expect("send a request");
        stream
    }

    fn pool(&self) -> Value {
        self.served.json("/health/pool")
    }

    /// Waits until so many requests are in workers.
    fn wait_in_flight(&mut self, count: u64) {
        let port = self.served.port;
        self.served.daemon.wait_until("requests are in workers", |_| {
            let pool = crate::http::get(port, "/health/pool").json();
            Some(()).filter(|()| pool["concurrent_requests"] == count)
        });
    }
}

fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut whole = Vec::new();
    // A connection that is reset is at its end as well.
    stream.read_to_end(&mut whole).unwrap_or_default();
    whole
}

#[track_caller]
fn answer(stream: TcpStream) -> Answer {
    let whole = rest(stream);
    parse(&whole).unwrap_or_else(|| panic!("no answer: {}", whole.escape_ascii()))
}

#[test]
fn requests_take_turns_and_are_passed_on_without_what_is_of_the_connection() {
    needs!(Root, CgroupTree, Python3);
    let work = Work::start(3, "");
    let names: Vec<_> =
        (0..6).map(|_| work.get("/").field("x-halsup-worker").expect("its worker").to_owned()).collect();
    assert_eq!(names, ["fdo.0", "fdo.1", "fdo.2", "fdo.0", "fdo.1", "fdo.2"]);
    let fields = [
        ("X-Own", "kept"),
        ("Connection", "X-Hop, keep-alive"),
        ("X-Hop", "gone"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Proxy-Authorization", "Basic x"),
        ("X-Forwarded-For", "10.9.8.7"),
        ("Forwarded", "for=10.9.8.7"),
        ("X-Request-Id", "mine-1"),
    ];
    let got = work.ask("PATCH", "/a%20b/../c?x=1&y=%2f", &fields, "{\"k\": 1}");
    assert_eq!(
        (got.status, got.field("x-halsup-attempts"), got.field("x-request-id")),
        (200, Some("1"), Some("mine-1"))
    );
    let told = got.json();
    assert_eq!((&told["method"], &told["path"]), (&"PATCH".into(), &"/a%20b/../c?x=1&y=%2f".into()));
    assert_eq!(told["body"], "{\"k\": 1}");
    let seen = &told["fields"];
    assert_eq!(
        (&seen["x-own"], &seen["connection"], &seen["x-request-id"]),
        (&"kept".into(), &"close".into(), &"mine-1".into())
    );
    assert_eq!((&seen["x-forwarded-for"], &seen["x-forwarded-prefix"]), (&"127.0.0.1".into(), &"/w/fdo".into()));
    for gone in ["x-hop", "keep-alive", "te", "upgrade", "proxy-authorization", "authorization", "forwarded"] {
        assert!(seen[gone].is_null(), "{gone}: {seen}");
    }
    let made = work.get("/").field("x-request-id").expect("one is made").to_owned();
    assert!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
    assert_eq!(work.ask("HEAD", "/", &[], "").status, 200);
    assert_eq!(work.pool()["total_requests"], 9);
}

#[test]
fn a_worker_has_one_request_at_a_time_and_who_came_first_is_first() {
    needs!(Root, CgroupTree, Python3);
    let mut work = Work::start(1, "");
    let mut waiting = vec![work.begin("GET", "/slow?ms=2000&n=0", "")];
    work.wait_in_flight(1);
    for number in 1..=5_u32 {
        waiting.push(work.begin("GET", &format!("/slow?ms=10&n={number}"), ""));
        // The next one comes when this one waits.
        work.served.daemon.wait_until("it waits", |daemon| {
            let told = daemon.cli(&["queue", "--json"]).json();
            Some(()).filter(|()| told["pools"][0]["queued"] == number)
        });
    }
    let last = waiting.pop().map(answer).expect("there is one");
    assert_eq!(last.json()["most"], 1, "one at a time");
    assert_eq!(last.json()["order"], serde_json::json!(["0", "1", "2", "3", "4", "5"]));
    for stream in waiting {
        assert_eq!(answer(stream).status, 200);
    }
    let work = Work::start(2, "");
    let crowd: Vec<_> = (0..20).map(|_| work.begin("GET", "/slow?ms=20", "")).collect();
    for stream in crowd {
        let got = answer(stream);
        assert_eq!((got.status, &got.json()["most"]), (200, &Value::from(1)));
    }
    assert_eq!((&work.pool()["total_requests"], &work.pool()["failed_requests"]), (&20.into(), &0.into()));
}

#[test]
fn a_refusal_of_the_workers_own_passes_untouched_and_three_crashes_open_its_breaker() {
    needs!(Root, CgroupTree, Python3);
    let mut work = Work::start(
        1,
        "restart = { delay = '10ms', delay_max = '10ms' }\ndispatch = { queue_timeout = '300ms', quarantine = 0 }\n",
    );
    for _ in 0..4 {
        let refused = work.ask("POST", "/status/422", &[("Content-Type", "text/plain")], "x");
        assert_eq!((refused.status, refused.field("x-own"), refused.field("x-hop")), (422, Some("kept"), None));
        assert_eq!(refused.json()["error"]["line"], 3);
    }
    assert_eq!(work.get("/status/500").status, 500);
    let port = work.served.port;
    let told = work.served.daemon.wait_until("it is counted", |_| {
        Some(crate::http::get(port, "/health/pool").json()).filter(|told| told["failed_requests"] == 1)
    });
    assert_eq!(
        (&told["failed_requests"], &told["instances"][0]["consecutive_failures"]),
        (&1.into(), &1.into()),
        "{told}"
    );
    assert_eq!(work.get("/").status, 200);
    for count in 1..=3 {
        let got = work.ask("POST", "/die", &[], "");
        assert_eq!(got.status, 502, "{}", String::from_utf8_lossy(&got.body));
        let message = got.json()["message"].as_str().expect("a sentence").to_owned();
        assert!(
            message.starts_with("All retry attempts failed (1 attempts across 1 instances). Last error: "),
            "{message}"
        );
        wait_certificate(&mut work.served.daemon, "fdo.0", count);
        wait_healthy_of(&mut work.served.daemon, "fdo", 1);
    }
    let told = work.pool();
    let one = &told["instances"][0];
    assert_eq!(
        (&one["circuit_breaker_open"], &one["consecutive_failures"], &one["failed_requests"], &one["total_requests"]),
        (&true.into(), &3.into(), &4.into(), &9.into()),
        "{told}"
    );
    let got = work.get("/");
    assert_eq!((got.status, got.field("retry-after")), (503, Some("1")));
    let message = got.json()["message"].as_str().expect("a sentence").to_owned();
    assert!(message.starts_with("No healthy daemon instances available after 3"), "{message}");
    assert!(message.ends_with("ms wait (attempted 0 instances, pool exhausted)"), "{message}");
    let admin = work.served.token("resets", &[]);
    assert_eq!(work.served.ask(&admin, "POST", "/pool/reset-circuit-breakers", "").status, 200);
    assert_eq!(work.get("/").status, 200);
}

#[test]
fn what_may_run_twice_goes_on_with_another_worker_when_its_own_is_killed() {
    needs!(Root, CgroupTree, Python3);
    let mut work = Work::start(2, "restart = { delay = '10ms', delay_max = '10ms' }\n");
    for (method, fields, retried) in [
        ("GET", "", true),
        ("PUT", "Content-Length: 0\r\n", true),
        ("POST", "Content-Length: 0\r\n", false),
        ("POST", "Content-Length: 0\r\nIdempotency-Key: 1\r\n", true),
    ] {
        // Behind the second it is the first's turn.
        while work.get("/").field("x-halsup-worker") != Some("fdo.1") {}
        let stream = work.begin(method, "/hang?slot=0", fields);
        work.wait_in_flight(1);
        signal(pid(&worker(&work.served.daemon, "fdo.0")), Signal::KILL);
        let got = answer(stream);
        if retried {
            assert_eq!((got.status, got.field("x-halsup-attempts")), (200, Some("2")), "{method} {fields}");
            assert_eq!(got.field("x-halsup-worker"), Some("fdo.1"));
        } else {
            assert_eq!((got.status, got.field("x-halsup-attempts")), (502, Some("1")), "{method} {fields}");
        }
        wait_healthy_of(&mut work.served.daemon, "fdo", 2);
    }
}

#[test]
fn bodies_flow_both_ways_whatever_their_length_and_within_their_limits() {
    needs!(Root, CgroupTree, Python3);
    let work = Work::start(1, "request_max = '6m'\nanswer_max = '6m'\n");
    let large: String = (0..5 << 20).map(|at: u32| char::from(b'a' + u8::try_from(at % 23).unwrap_or(0))).collect();
    let got = work.ask("POST", "/mirror", &[("Content-Type", "application/octet-stream")], &large);
    assert_eq!((got.status, got.body.len()), (200, large.len()));
    assert!(got.body == large.as_bytes(), "the same comes back");
    // In pieces of unknown number.
    let mut stream = work.begin("POST", "/mirror", "Transfer-Encoding: chunked\r\n");
    for piece in large.as_bytes().chunks(100_000) {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).expect("send its length");
        stream.write_all(piece).expect("send a piece");
        stream.write_all(b"\r\n").expect("end it");
    }
    stream.write_all(b"0\r\n\r\n").expect("end them all");
    let got = answer(stream);
    assert!(got.status == 200 && got.body == large.as_bytes(), "{} with {} bytes", got.status, got.body.len());
    let longer = "x".repeat(7 << 20);
    assert_eq!(work.ask("POST", "/mirror", &[], &longer[..(6 << 20) + 1]).status, 413);
    let endless = rest(work.begin("GET", "/stream?count=700", ""));
    assert!(endless.len() < 7_000_000 && !endless.ends_with(b"0\r\n\r\n"), "it is broken off: {}", endless.len());
    let whole = answer(work.begin("GET", "/stream?count=30", ""));
    assert_eq!((whole.status, whole.body.len()), (200, 300_000));
    assert_eq!(work.get("/").status, 200);
}

#[test]
fn who_took_a_workers_port_is_not_asked() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    let mut served = Served::start(&format!(
        "[pool.fdo]\nserve = 'http'\nopen = true\nbase_port = {port}\nready = 'exec'\ncommand = ['sleep', 'infinity']\n\
         dispatch = {{ backoff = '10ms' }}\n"
    ));
    wait_healthy_of(&mut served.daemon, "fdo", 1);
    let squatter = TcpListener::bind(("127.0.0.1", port)).expect("take the port");
    squatter.set_nonblocking(true).expect("have it not wait");
    let got = ask(served.port, "GET", "/w/fdo/", &[], "");
    assert_eq!(got.status, 502, "{}", String::from_utf8_lossy(&got.body));
    assert!(squatter.accept().is_err(), "nobody has come");
    assert!(served.daemon.stderr().contains(&format!("somebody else listens on port {port}")));
}

#[test]
fn who_took_the_port_that_a_worker_let_go_of_is_not_asked() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    let program = "import socket, sys, time\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nprint('listens', flush=True)\n\
                   asked = b''\nwhile b'/leave' not in asked:\n c, _ = s.accept()\n asked = c.recv(9999)\n\
                   \x20c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\nConnection: close\\r\\n\\r\\nown')\n c.close()\n\
                   s.close()\nprint('left', flush=True)\ntime.sleep(3600)\n";
    let mut served = Served::start(&format!(
        "[pool.fdo]\nserve = 'http'\nopen = true\nbase_port = {port}\nready = 'exec'\n\
         command = ['python3', '-c', {program:?}, '{{port}}']\ndispatch = {{ attempts = 1 }}\n"
    ));
    let asked = |path: &str| ask(served.port, "GET", path, &[], "");
    wait_line(&mut served.daemon, "fdo.0", |line| line == "listens");
    for path in ["/w/fdo/", "/w/fdo/", "/w/fdo/leave"] {
        assert_eq!(asked(path).body, b"own");
    }
    wait_line(&mut served.daemon, "fdo.0", |line| line == "left");
    let squatter = TcpListener::bind(("127.0.0.1", port)).expect("take the port");
    squatter.set_nonblocking(true).expect("have it not wait");
    let got = asked("/w/fdo/");
    assert_eq!(got.status, 502, "{}", String::from_utf8_lossy(&got.body));
    assert!(squatter.accept().is_err(), "nobody has come");
    assert!(served.daemon.stderr().contains(&format!("somebody else listens on port {port}")));
}

#[test]
fn a_worker_with_too_many_descriptors_is_not_asked_and_says_so() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    let many = "import resource, socket, time\nheld = [open('/dev/null') for _ in range(2100)]\n\
                s = socket.create_server(('127.0.0.1', int(__import__('sys').argv[1])))\nprint('listens', flush=True)\ntime.sleep(3600)\n";
    let mut served = Served::start(&format!(
        "[pool.fdo]\nserve = 'http'\nopen = true\nbase_port = {port}\nready = 'exec'\nrlimits = {{ nofile = 4096 }}\n\
         command = ['python3', '-c', \"\"\"{many}\"\"\", '{{port}}']\ndispatch = {{ attempts = 1 }}\n"
    ));
    wait_line(&mut served.daemon, "fdo.0", |line| line == "listens");
    let got = ask(served.port, "GET", "/w/fdo/", &[], "");
    assert_eq!(got.status, 502, "{}", String::from_utf8_lossy(&got.body));
    let told = format!("nobody is found who listens on port {port}, among the first 2048 descriptors of its processes");
    assert!(served.daemon.stderr().contains(&told), "{}", served.daemon.stderr());
}

#[test]
fn a_worker_that_does_not_answer_in_time_is_restarted_when_it_stays_so() {
    needs!(Root, CgroupTree, Python3);
    let mut work =
        Work::start(1, "restart = { delay = '10ms' }\ndispatch = { timeout = '300ms', cancel_grace = '300ms' }\n");
    let late = work.get("/hang");
    assert_eq!(late.status, 504, "{}", String::from_utf8_lossy(&late.body));
    let ended = wait_certificate(&mut work.served.daemon, "fdo.0", 1);
    assert_eq!(ended["cause"], "deadline", "{ended}");
    wait_healthy_of(&mut work.served.daemon, "fdo", 1);
    assert_eq!(work.get("/").status, 200);
    // One that is merely slow has its time, and is not ended.
    assert_eq!(work.get("/slow?ms=450").status, 504);
    assert_eq!(work.get("/").status, 200);
    assert_eq!(certificates(&work.served.daemon, "fdo.0").len(), 1);
}

#[test]
fn a_client_that_goes_away_frees_its_worker() {
    needs!(Root, CgroupTree, Python3);
    let mut work = Work::start(1, "dispatch = { timeout = '60s', queue_timeout = '20s' }\n");
    for path in ["/slow?ms=200", "/stream"] {
        let stream = work.begin("GET", path, "");
        work.wait_in_flight(1);
        drop(stream);
        let got = work.get("/slow?ms=1");
        assert_eq!(
            (got.status, &got.json()["most"]),
            (200, &Value::from(1)),
            "{path}: not before the worker let go of it"
        );
    }
    assert_eq!(worker(&work.served.daemon, "fdo.0")["restarts"], 0);
}

#[test]
fn a_gateway_that_is_killed_costs_no_worker_and_ends_what_it_carried() {
    needs!(Root, CgroupTree, Python3);
    let mut work = Work::start(1, "dispatch = { timeout = '60s', queue_timeout = '20s' }\n");
    let mut stream = work.begin("GET", "/stream", "");
    let mut some = [0; 4096];
    stream.read_exact(&mut some).expect("it flows");
    let gateway = worker(&work.served.daemon, "gateway");
    signal(pid(&gateway), Signal::KILL);
    assert!(!rest(stream).ends_with(b"0\r\n\r\n"), "what was broken off does not look whole");
    let port = work.served.port;
    work.served.daemon.wait_until("another one serves", |daemon| {
        let now = worker(daemon, "gateway");
        Some(()).filter(|()| now["state"] == "healthy" && now["pid"] != gateway["pid"])
    });
    let sent = format!(
        "GET /w/fdo/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        work.token
    );
    assert_eq!(parse(&exchange(port, sent.as_bytes())).map(|answer| answer.status), Some(200));
    assert_eq!(worker(&work.served.daemon, "fdo.0")["restarts"], 0);
}

#[test]
fn work_is_for_who_may_have_it_done() {
    needs!(Root, CgroupTree, Python3);
    let work = Work::start(1, "[pool.other]\ncommand = ['sleep', 'infinity']\n");
    let served = &work.served;
    let with = |token: &str, path: &str| served.ask(token, "GET", path, "").status;
    let (looks, elsewhere) =
        (served.token("looks", &["--scope", "observe"]), served.token("else", &["--pool", "other"]));
    let all = served.token("all", &[]);
    assert_eq!(ask(served.port, "GET", "/w/fdo/", &[], "").status, 401);
    assert_eq!(ask(served.port, "POST", "/w/fdo/", &[], "").status, 401);
    assert_eq!(with("halsup_00", "/w/fdo/"), 401);
    assert_eq!((with(&looks, "/w/fdo/"), with(&elsewhere, "/w/fdo/")), (403, 403));
    assert_eq!((with(&all, "/w/fdo/"), with(&all, "/w/other/"), with(&all, "/w/nobody/")), (200, 404, 404));
    assert_eq!((with(&all, "/w/"), with(&all, "/w/..%2f/"), with(&all, "/w/fdo")), (404, 404, 200));
    let foreign = [("Origin", "http://evil.example.org")];
    assert_eq!(work.ask("POST", "/", &foreign, "").status, 403);
    let got = work.get("/");
    let policies: Vec<_> = got.fields.iter().filter(|(name, _)| name == "content-security-policy").collect();
    assert!(policies.iter().any(|(_, value)| value.starts_with("sandbox")), "{policies:?}");
}
