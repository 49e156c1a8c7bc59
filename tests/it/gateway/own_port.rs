//! A pool with an address of its own: the same work by the same rules, without a prefix.

use std::net::TcpListener;

use rustix::process::Signal;

use super::Served;
use crate::http::{Answer, ask, exchange, get, parse};
use crate::look::{pid, signal, wait_healthy_of, worker};
use crate::needs::needs;
use crate::ports::free_ports;

fn pool(first: u16, own: Option<u16>) -> String {
    let program = include_str!("worker.py").replace('{', "{{").replace('}', "}}");
    let own = own.map(|port| format!("http_listen = ['127.0.0.1:{port}']\n")).unwrap_or_default();
    format!(
        "[pool.fdo]\nserve = 'http'\nsize = 2\nbase_port = {first}\n{own}request_max = '1m'\n\
         command = ['python3', '-c', '''{program}''', '{{port}}', '{{slot}}']\n"
    )
}

#[test]
fn a_pool_answers_at_its_own_address_by_the_same_rules() {
    needs!(Root, CgroupTree, Python3);
    let (first, own) = (free_ports(2), free_ports(1));
    let mut served = Served::start(&pool(first, Some(own)));
    wait_healthy_of(&mut served.daemon, "fdo", 2);
    let bearer = format!("Bearer {}", served.token("works", &["--pool", "fdo"]));
    let there = |method: &str, path: &str, fields: &[(&str, &str)], body: &str| -> Answer {
        let fields: Vec<_> = fields.iter().copied().chain([("Authorization", bearer.as_str())]).collect();
        ask(own, method, path, &fields, body)
    };
    let workers: Vec<_> =
        (0..4).map(|_| there("GET", "/", &[], "").field("x-halsup-worker").expect("its worker").to_owned()).collect();
    assert_eq!(workers, ["fdo.0", "fdo.1", "fdo.0", "fdo.1"]);
    // Nothing of the gateway's own is there, nor a way round by the names that are elsewhere.
    for path in ["/livez", "/metrics", "/w/fdo/x", "/pool?x=%2f", "/a/../b"] {
        let got = there("POST", path, &[("Content-Type", "text/plain")], "x");
        assert_eq!((got.status, &got.json()["path"]), (200, &path.into()), "{path}");
        assert!(got.json()["fields"]["x-forwarded-prefix"].is_null());
        assert!(got.json()["fields"]["authorization"].is_null());
    }
    assert_eq!(ask(own, "GET", "/", &[], "").status, 401);
    assert_eq!(ask(own, "GET", "/", &[("Authorization", "Bearer halsup_00")], "").status, 401);
    let elsewhere = format!("Bearer {}", served.token("else", &["--pool", "gateway"]));
    assert_eq!(ask(own, "GET", "/", &[("Authorization", &elsewhere)], "").status, 403);
    assert_eq!(there("GET", "/", &[("Host", "evil.example.org")], "").status, 421);
    assert_eq!(there("POST", "/", &[("Origin", "http://evil.example.org")], "").status, 403);
    assert_eq!(there("POST", "/mirror", &[], &"x".repeat((1 << 20) + 1)).status, 413);
    let both =
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(parse(&exchange(own, both)).map(|answer| answer.status), Some(400));
    let metrics = String::from_utf8(get(served.port, "/metrics").body).expect("text");
    assert!(metrics.contains("route=\"/w/{pool}/{*path}\""), "{metrics}");
    // Nobody else can have it, also while the gateway is restarted, and whoever comes meanwhile waits.
    for _ in 0..5 {
        let before = pid(&worker(&served.daemon, "gateway"));
        signal(before, Signal::KILL);
        assert!(TcpListener::bind(("127.0.0.1", own)).is_err());
        let sent = format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {bearer}\r\n\r\n");
        let answered = std::iter::repeat_with(|| exchange(own, sent.as_bytes()))
            .take(50)
            .find(|answer| answer.starts_with(b"HTTP/1.1 200"));
        assert!(answered.is_some(), "it is back");
        served.daemon.wait_until("another one serves", |daemon| {
            let now = worker(daemon, "gateway");
            Some(()).filter(|()| now["state"] == "healthy" && now["pid"].as_i64() != Some(i64::from(before)))
        });
    }
}

#[test]
fn a_reload_gives_it_and_takes_it_and_concerns_no_worker() {
    needs!(Root, CgroupTree, Python3);
    let (first, own) = (free_ports(2), free_ports(1));
    let mut served = Served::start(&pool(first, None));
    wait_healthy_of(&mut served.daemon, "fdo", 2);
    let bearer = format!("Bearer {}", served.token("works", &[]));
    let before = pid(&worker(&served.daemon, "fdo.0"));
    assert!(std::net::TcpStream::connect(("127.0.0.1", own)).is_err());
    let config = |own| format!("[gateway]\nlisten = ['127.0.0.1:{}']\n{}", served.port, pool(first, own));
    let (with, without) = (config(Some(own)), config(None));
    served.daemon.configure(&with);
    assert_eq!(served.daemon.cli(&["daemon", "reload"]).status, 0);
    served.daemon.wait_until("it answers", |_| {
        std::net::TcpStream::connect(("127.0.0.1", own)).ok()?;
        let got = exchange(
            own,
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {bearer}\r\n\r\n")
                .as_bytes(),
        );
        Some(()).filter(|()| got.starts_with(b"HTTP/1.1 200"))
    });
    served.daemon.configure(&without);
    assert_eq!(served.daemon.cli(&["daemon", "reload"]).status, 0);
    served
        .daemon
        .wait_until("nobody listens", |_| std::net::TcpStream::connect(("127.0.0.1", own)).is_err().then_some(()));
    assert_eq!(pid(&worker(&served.daemon, "fdo.0")), before, "the worker is the same");
}
