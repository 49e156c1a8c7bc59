//! Who is let in, by what name, with what, and what is refused at the door.

use super::Served;
use crate::fixture::Daemon;
use crate::http::{ask, exchange, get, parse, status};
use crate::needs::{needs, own_address};
use crate::ports::free_ports;

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";
const RESET: &str = "/pool/reset-circuit-breakers";

#[test]
fn another_host_is_no_host() {
    needs!(Root, CgroupTree);
    let served = Served::start_with("hosts = ['halsup.example.org']\n", SLEEPER);
    let with_host = |host: &str| ask(served.port, "GET", "/livez", &[("Host", host)], "").status;
    for good in ["localhost", "127.0.0.1:80", "[::1]", "halsup.example.org:8000", "HALSUP.example.org"] {
        assert_eq!(with_host(good), 200, "{good}");
    }
    for bad in ["evil.example.org", "halsup.example.org.evil", "127.0.0.1.nip.io", "0.0.0.0", "evil@localhost"] {
        assert_eq!(with_host(bad), 421, "{bad}");
    }
}

#[test]
fn the_address_that_it_listens_on_is_its_name() {
    needs!(Root, CgroupTree, OwnAddress);
    let address = own_address().expect("it is there");
    let port = free_ports(1);
    let mut daemon = Daemon::start(&format!("[gateway]\nlisten = ['{address}:{port}', '127.0.0.1:{port}']\n{SLEEPER}"));
    daemon.wait_until("the gateway answers", |_| Some(()).filter(|()| get(port, "/livez").status == 200));
    let with_host = |host: &str| ask(port, "GET", "/livez", &[("Host", host)], "").status;
    assert_eq!(with_host(&format!("{address}:{port}")), 200);
    assert_eq!(with_host(&format!("{address}.nip.io")), 421);
    assert_eq!(with_host("203.0.113.77"), 421, "one that it does not listen on");
    // The page opens there, without a word in `hosts`.
    let printed = daemon.cli(&["dashboard", "--sign-in"]);
    assert_eq!(printed.status, 0, "{printed:?}");
    assert!(printed.stdout.starts_with(&format!("http://{address}:{port}/pool#ticket=")), "{printed:?}");
}

#[test]
fn what_changes_something_needs_a_token_in_its_header_and_no_foreign_page() {
    needs!(Root, CgroupTree);
    let served = Served::start(SLEEPER);
    let token = served.token("acts", &[]);
    let bearer = format!("Bearer {token}");
    let post = |fields: &[(&str, &str)], body: &str| ask(served.port, "POST", RESET, fields, body).status;
    assert_eq!(post(&[("Authorization", &bearer)], ""), 200);
    assert_eq!(post(&[("authorization", &format!("bearer {token}"))], ""), 200);
    for fields in [
        &[][..],
        &[("Authorization", token.as_str())],
        &[("Authorization", "Bearer halsup_0000")],
        &[("Authorization", "Basic aGFsOjkwMDA=")],
        &[("X-Forwarded-For", "127.0.0.1")],
        &[("Cookie", token.as_str())],
        &[("Authorization", bearer.as_str()), ("Authorization", bearer.as_str())],
    ] {
        assert_eq!(post(fields, ""), 401, "{fields:?}");
    }
    assert_eq!(ask(served.port, "POST", &format!("{RESET}?token={token}"), &[], "").status, 401);
    for (name, value) in [
        ("Origin", "http://evil.example.org"),
        ("Origin", "null"),
        ("Origin", "file://"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        assert_eq!(post(&[("Authorization", &bearer), (name, value)], ""), 403, "{name}: {value}");
    }
    let own = format!("http://127.0.0.1:{}", served.port);
    assert_eq!(post(&[("Authorization", &bearer), ("Origin", &own), ("Sec-Fetch-Site", "same-origin")], ""), 200);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        assert_eq!(post(&[("Authorization", &bearer), ("Content-Type", kind)], "{}"), 415, "{kind}");
    }
    assert_eq!(post(&[("Authorization", &bearer)], "{}"), 415, "JSON says what it is");
    let packed =
        [("Authorization", bearer.as_str()), ("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
    assert_eq!(post(&packed, "{}"), 415);
}

#[test]
fn what_is_nothing_is_said_only_to_who_may_look() {
    needs!(Root, CgroupTree);
    let served = Served::start_with("open_status = false\n", SLEEPER);
    assert_eq!(get(served.port, "/livez").status, 200);
    for path in ["/readyz", "/health", "/health/pool", "/nothing", "/%2e%2e/etc/passwd"] {
        assert_eq!(get(served.port, path).status, 401, "{path}");
    }
    let token = served.token("looks", &["--scope", "observe"]);
    assert_eq!(served.ask(&token, "GET", "/health", "").status, 200);
    assert_eq!(served.ask(&token, "GET", "/nothing", "").status, 404);
    assert_eq!(served.daemon.cli(&["token", "revoke", "looks"]).status, 0);
    assert_eq!(served.ask(&token, "GET", "/health", "").status, 401, "a revoked token is worth nothing at once");
}

#[test]
fn without_a_token_nothing_is_told_but_status() {
    needs!(Root, CgroupTree);
    let secret = "pass-word-4217";
    let mut served = Served::start(&format!(
        "{SLEEPER}[pool.dies]\ncommand = ['sh', '-c', 'echo {secret}; exit 7']\n[pool.dies.restart]\nmax_restarts = 1\n"
    ));
    served.daemon.wait_until("it has died for good", |daemon| {
        Some(()).filter(|()| crate::look::worker(daemon, "dies.0")["state"] == "crashed")
    });
    for path in ["/api/logs/dies.0", "/tasks/x", "/stream/x"] {
        assert_eq!(status(served.port, path), 401, "{path}");
    }
    let bearer = format!("Bearer {}", served.token("looks", &["--scope", "observe"]));
    let first = |fields: &[(&str, &str)]| {
        let head: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut stream = crate::http::connect(served.port);
        let asked = format!("GET /api/watch HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
        std::io::Write::write_all(&mut stream, asked.as_bytes()).expect("ask");
        let mut told = Vec::new();
        let mut buffer = [0; 16 * 1024];
        // The page's first picture of everything, with how it died.
        while !told.windows(18).any(|part| part == b"event: snapshot\nda") || !told.ends_with(b"\n\n\r\n") {
            let count = std::io::Read::read(&mut stream, &mut buffer).expect("read a stream");
            assert!(count > 0, "it goes on");
            told.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8(told).expect("text")
    };
    let (nobody, somebody) = (first(&[]), first(&[("Authorization", &bearer)]));
    assert!(nobody.contains("exited 7") && !nobody.contains(secret), "{nobody}");
    assert!(somebody.contains(secret), "{somebody}");
}

#[test]
fn tokens_outlive_the_daemon_and_are_written_nowhere() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(SLEEPER);
    let token = served.token("acts", &["--expires", "1h"]);
    let brief = served.token("brief", &["--expires", "1s"]);
    assert_eq!(served.ask(&token, "POST", RESET, "").status, 200);
    let port = served.port;
    served.daemon.wait_until("it is over", |_| {
        let bearer = format!("Bearer {brief}");
        Some(()).filter(|()| ask(port, "GET", "/health", &[("Authorization", &bearer)], "").status == 401)
    });
    let listed = served.daemon.cli(&["token", "list", "--json"]).json();
    let names: Vec<_> = listed["tokens"].as_array().expect("a list").iter().map(|token| &token["name"]).collect();
    assert_eq!(names, ["acts", "brief"]);
    let secret = token.trim_start_matches("halsup_");
    assert!(!listed.to_string().contains(secret));
    assert_eq!(served.daemon.stop(), 0);
    served.daemon.start_again();
    served.daemon.wait_until("it answers again", |_| Some(()).filter(|()| get(port, "/readyz").status == 200));
    assert_eq!(served.ask(&token, "POST", RESET, "").status, 200);
    let mut directories = vec![served.daemon.path("state"), served.daemon.path("run")];
    let mut looked_at = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("list what the daemon keeps") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("what it is");
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                let held = std::fs::read(entry.path()).expect("read what the daemon keeps");
                assert!(
                    !held.windows(secret.len()).any(|part| part == secret.as_bytes()),
                    "{}",
                    entry.path().display()
                );
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 3, "{looked_at} files");
}

#[test]
fn what_is_no_request_ends_its_connection() {
    needs!(Root, CgroupTree);
    let served = Served::start(SLEEPER);
    let smuggled = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: +4",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length : 4",
        "X: y\r\n z",
        "X: y\nZ: w",
    ] {
        let mut sent = format!("POST /livez HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n").into_bytes();
        sent.extend_from_slice(smuggled);
        let answer = exchange(served.port, &sent);
        assert_eq!(parse(&answer).map(|answer| answer.status), Some(400), "{head}: {}", answer.escape_ascii());
        assert_eq!(answer.windows(9).filter(|nine| nine == b"HTTP/1.1 ").count(), 1, "{head}: answered once");
    }
    let many: String = (0..150).map(|number| format!("X-{number}: y\r\n")).collect();
    let answer = exchange(served.port, format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").as_bytes());
    assert_eq!(parse(&answer).map(|answer| answer.status), Some(400));
    let long = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    assert_eq!(parse(&exchange(served.port, long.as_bytes())).map(|answer| answer.status), Some(400));
}

#[test]
fn every_answer_tells_browsers_what_it_is() {
    needs!(Root, CgroupTree);
    let served = Served::start(SLEEPER);
    for path in ["/livez", "/health", "/nothing"] {
        let answer = get(served.port, path);
        assert_eq!(answer.field("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.field("cache-control"), Some("no-store"), "{path}");
        let policy = answer.field("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.field("access-control-allow-origin"), None);
    }
}
