//! What whoever runs it asks: `/metrics`, `/drain`, `/openapi.json`; and the files of the page.

use std::collections::BTreeMap;

use rustix::process::Signal;

use super::Served;
use crate::http::{ask, get};
use crate::look::{pid, signal, wait_healthy_of, worker};
use crate::needs::needs;

const POOLS: &str = "[pool.fdo]\nsize = 2\ndispatch = true\ncommand = ['sleep', 'infinity']\n";

/// Reads OpenMetrics by its grammar: each family's kind, and its samples.
fn parse(text: &str) -> BTreeMap<String, (String, Vec<(String, f64)>)> {
    let mut families: BTreeMap<String, (String, Vec<(String, f64)>)> = BTreeMap::new();
    let (mut current, mut has_help) = (String::new(), true);
    let body = text.strip_suffix("# EOF\n").expect("it ends");
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_')
    };
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name, value) = (words.next(), words.next().expect("a name"), words.next().expect("a value"));
            match what {
                Some("TYPE") => {
                    assert!(has_help, "{current} has a help");
                    assert!(is_name(name) && ["gauge", "counter", "info"].contains(&value), "{line}");
                    assert!(!families.contains_key(name), "{name} is told at one place");
                    families.insert(name.to_owned(), (value.to_owned(), Vec::new()));
                    (current, has_help) = (name.to_owned(), false);
                }
                Some("UNIT") => assert!(name == current && name.ends_with(&format!("_{value}")), "{line}"),
                Some("HELP") => {
                    assert!(name == current && !value.is_empty(), "{line}");
                    has_help = true;
                }
                other => panic!("{other:?} in {line}"),
            }
            continue;
        }
        let (kind, samples) = families.get_mut(&current).expect("a family before its samples");
        let end = line.rfind(' ').expect("a value");
        let value: f64 = line[end + 1..].parse().expect("a number");
        let (name, labels) = line[..end].split_once('{').unwrap_or((&line[..end], ""));
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{current}{suffix}"), "{line}");
        let labels = labels.trim_end_matches('}');
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once("=\"").expect("a label");
            assert!(is_name(name) && !value.contains('\n'), "{line}");
        }
        assert!(!samples.iter().any(|(own, _)| own == labels), "{line} is told once");
        samples.push((labels.to_owned(), value));
    }
    assert!(has_help);
    families
}

#[test]
fn metrics_are_openmetrics_and_true() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(POOLS);
    let workers = wait_healthy_of(&mut served.daemon, "fdo", 2);
    crate::look::signal(crate::look::pid(&workers[0]), rustix::process::Signal::KILL);
    served.daemon.wait_until("it is back", |daemon| {
        let now = crate::look::worker(daemon, "fdo.0");
        Some(()).filter(|()| now["restarts"] == 1 && now["state"] == "healthy")
    });
    assert_eq!(get(served.port, "/nothing").status, 404);
    let answer = get(served.port, "/metrics");
    assert_eq!(answer.field("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let families = parse(std::str::from_utf8(&answer.body).expect("text"));
    let sample = |family: &str, labels: &str| {
        let (_, samples) = families.get(family).unwrap_or_else(|| panic!("{family} is there"));
        samples.iter().find(|(own, _)| own == labels).unwrap_or_else(|| panic!("{family} {labels} in {samples:?}")).1
    };
    let is = |family: &str, labels: &str, value: f64| {
        assert!((sample(family, labels) - value).abs() < 0.01, "{family} {labels}")
    };
    is("halsup_up", "", 1.0);
    is("halsup_workers", "pool=\"fdo\",state=\"healthy\"", 2.0);
    is("halsup_workers", "pool=\"fdo\",state=\"crashed\"", 0.0);
    is("halsup_restarts", "pool=\"fdo\"", 1.0);
    is("halsup_worker_restarts", "pool=\"fdo\",worker=\"fdo.0\"", 1.0);
    is("halsup_pool_breaker", "pool=\"fdo\",state=\"closed\"", 1.0);
    is("halsup_requests_in_flight", "pool=\"fdo\"", 0.0);
    is("halsup_daemon_state", "state=\"running\"", 1.0);
    is("halsup_gateway_requests", "route=\"none\",code=\"4xx\"", 1.0);
    assert!(sample("halsup_gateway_requests", "route=\"/livez\",code=\"2xx\"") >= 1.0);
    assert!(sample("halsup_gateway_connections", "") >= 1.0);
    for family in
        ["halsup_worker_memory_bytes", "halsup_worker_cpu_seconds", "halsup_worker_oom_kills", "halsup_uptime_seconds"]
    {
        assert!(families.contains_key(family), "{family}");
    }
}

#[test]
fn a_drain_is_the_admins_and_can_be_taken_back() {
    needs!(Root, CgroupTree);
    let served = Served::start(&format!(
        "{POOLS}[pool.hal]\ncommand = ['sleep', 'infinity']\n[pool.hal.claims]\nmin = 1\nmax = 1\n"
    ));
    let acts = served.token("acts", &[]);
    assert_eq!(ask(served.port, "POST", "/drain", &[], "").status, 401);
    assert_eq!(served.ask(&acts, "POST", "/drain", "").status, 403, "who operates does not take it away from others");
    let one = served.token("one", &["--scope", "admin", "--pool", "fdo"]);
    assert_eq!(served.ask(&one, "POST", "/drain", "").status, 403);
    assert_eq!(get(served.port, "/readyz").status, 200);
    let admin = served.token("admin", &["--scope", "admin"]);
    assert_eq!(served.ask(&admin, "POST", "/drain", "{\"drain\":1}").status, 400);
    let answer = served.ask(&admin, "POST", "/drain", "");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let told = answer.json();
    assert_eq!((&told["draining"], &told["drained"], &told["in_flight"]), (&true.into(), &true.into(), &0.into()));
    assert_eq!(told["paused"], serde_json::json!(["hal"]));
    assert_eq!(get(served.port, "/readyz").status, 503);
    assert_eq!(get(served.port, "/livez").status, 200);
    let told = served.ask(&admin, "POST", "/drain", "{\"drain\":false}").json();
    assert_eq!((&told["draining"], &told["resumed"]), (&false.into(), &serde_json::json!(["hal"])));
    assert_eq!(get(served.port, "/readyz").status, 200);
}

#[test]
fn a_drain_outlives_the_gateway_that_was_asked_for_it() {
    needs!(Root, CgroupTree);
    // Also where it can ask nothing on nobody's behalf.
    let mut served = Served::start_with(
        "open_status = false\n",
        &format!("{POOLS}[pool.hal]\ncommand = ['sleep', 'infinity']\n[pool.hal.claims]\nmin = 1\nmax = 1\n"),
    );
    let admin = served.token("admin", &["--scope", "admin"]);
    let bearer = format!("Bearer {admin}");
    let ready = |served: &Served| ask(served.port, "GET", "/readyz", &[("Authorization", &bearer)], "").status;
    let restart = |served: &mut Served| {
        let before = pid(&worker(&served.daemon, "gateway"));
        signal(before, Signal::KILL);
        served.daemon.wait_until("another one serves", |daemon| {
            let now = worker(daemon, "gateway");
            Some(()).filter(|()| now["state"] == "healthy" && now["pid"].as_i64() != Some(i64::from(before)))
        });
    };
    assert_eq!(served.ask(&admin, "POST", "/drain", "").json()["paused"], serde_json::json!(["hal"]));
    for _ in 0..2 {
        restart(&mut served);
        assert_eq!(ready(&served), 503);
    }
    assert_eq!(served.ask(&admin, "GET", "/w/fdo/", "").status, 503);
    let told = served.ask(&admin, "POST", "/drain", "{\"drain\":false}").json();
    assert_eq!(told["resumed"], serde_json::json!(["hal"]), "and what another one has paused goes on");
    assert_eq!(ready(&served), 200);
    restart(&mut served);
    assert_eq!(ready(&served), 200);
}

#[test]
fn the_page_and_its_files_are_told_once() {
    needs!(Root, CgroupTree);
    let served = Served::start_with("open_status = false\n", POOLS);
    let root = get(served.port, "/");
    assert_eq!((root.status, root.field("location")), (307, Some("/pool")));
    for (path, kind) in [
        ("/pool", "text/html; charset=utf-8"),
        ("/pool/app.js", "text/javascript; charset=utf-8"),
        ("/pool/card.js", "text/javascript; charset=utf-8"),
        ("/pool/dom.js", "text/javascript; charset=utf-8"),
        ("/pool/stream.js", "text/javascript; charset=utf-8"),
        ("/pool/style.css", "text/css; charset=utf-8"),
        ("/pool/icon.svg", "image/svg+xml"),
    ] {
        let answer = get(served.port, path);
        assert_eq!((answer.status, answer.field("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(answer.field("cache-control"), Some("no-cache"), "{path}");
        let policy = answer.field("content-security-policy").expect("a policy");
        assert!(policy.contains("script-src 'self';") && policy.contains("require-trusted-types-for 'script'"));
        let tag = answer.field("etag").expect("a tag").to_owned();
        let again = ask(served.port, "GET", path, &[("If-None-Match", &tag)], "");
        assert_eq!((again.status, again.body.len(), again.field("etag")), (304, 0, Some(tag.as_str())), "{path}");
        assert_eq!(ask(served.port, "GET", path, &[("If-None-Match", "\"other\"")], "").status, 200);
    }
    let document = get(served.port, "/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long something takes is what is tested")]
fn whoever_is_slow_waits_for_nobody_else() {
    needs!(Root, CgroupTree);
    let served = Served::start(POOLS);
    let mut held = Vec::new();
    for number in 0..500 {
        let mut stream = crate::http::connect(served.port);
        let begun: &[u8] = if number % 2 == 0 { b"GET /livez HTT" } else { b"" };
        std::io::Write::write_all(&mut stream, begun).expect("begin a request");
        held.push(stream);
    }
    let begin = std::time::Instant::now();
    assert_eq!(get(served.port, "/readyz").status, 200);
    assert!(begin.elapsed() < std::time::Duration::from_secs(2), "{:?}", begin.elapsed());
    // None of them is kept: whoever has not said anything whole in time is let go.
    let mut first = held.remove(0);
    let mut answer = Vec::new();
    let ended = std::io::Read::read_to_end(&mut first, &mut answer);
    assert!(ended.is_ok() || answer.starts_with(b"HTTP/1.1 408"), "{ended:?} {}", answer.escape_ascii());
    assert!(begin.elapsed() < std::time::Duration::from_secs(19), "{:?}", begin.elapsed());
}
