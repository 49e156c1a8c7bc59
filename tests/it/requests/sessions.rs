//! Sessions of requests: whose worker is whose, what happens when it is busy or gone, and when a session is over.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, refused, result};
use crate::look::worker;
use crate::needs::needs;
use crate::peer::Peer;

/// The worker that answered.
fn by(reply: &Value) -> String {
    reply["parameters"]["worker"].as_str().unwrap_or_else(|| panic!("no worker in {reply}")).to_owned()
}

fn gated(size: usize, dispatch: &str) -> (Scene, Gate) {
    let shared = Shared::new();
    let gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", &format!("size = {size}"), dispatch);
    (Scene::begin(shared, &config, size), gate)
}

#[test]
fn requests_of_a_session_go_to_one_worker() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(3, "");
    for session in ["a", "b"] {
        let ask = || by(&scene.ask("echo", &json!(1), &json!({ "session": session })));
        let workers: BTreeSet<String> = (0..10).map(|_| ask()).collect();
        assert_eq!(workers.len(), 1, "{session}: {workers:?}");
    }
    let others: BTreeSet<String> = (0..9).map(|_| by(&scene.ask("echo", &json!(1), &json!({})))).collect();
    assert_eq!(others.len(), 3, "those of none go round");
    assert_eq!(scene.queue("work")["sessions"], 2);
}

#[test]
fn who_is_strict_waits_or_is_refused_and_who_is_not_goes_elsewhere() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = gated(2, "queue_timeout = '60s'");
    let mut first = scene.send("gate", &json!("first"), &json!({ "session": "s" }));
    scene.wait_noted("in first", 1);
    let busy = scene.cli(&["call", "work", "echo", "1", "--session", "s", "--affinity", "strict-fail-fast"]);
    assert_eq!(busy.status, 4, "{busy:?}");
    assert!(busy.stderr.contains("the session's worker is busy"), "{busy:?}");
    let strict = json!({ "session": "s", "affinity": "strict_fail_fast" });
    assert_eq!(failed(&scene.ask("echo", &json!(1), &strict)), ("worker_busy", "never_started"));
    let elsewhere = scene.ask("echo", &json!(1), &json!({ "session": "t", "affinity": "strict_fail_fast" }));
    let hinted = scene.ask("echo", &json!(1), &json!({ "session": "s" }));
    assert_eq!(by(&elsewhere), by(&hinted), "there is one other");
    // The session is that one's from now on: its first worker is busy.
    let mut second = scene.send("gate", &json!("second"), &json!({ "session": "s" }));
    scene.wait_noted("in second", 1);
    let mut waits = scene.send("echo", &json!("after"), &json!({ "session": "s", "affinity": "strict_queue" }));
    scene.wait_queue("work", &json!({ "queued": 1, "in_flight": 2 }));
    gate.open(2);
    let (first, second, after) = (first.reply(), second.reply(), waits.reply());
    assert_eq!((result(&first), result(&second), result(&after)), (&json!("first"), &json!("second"), &json!("after")));
    assert_ne!(by(&first), by(&second));
    assert!([by(&first), by(&second)].contains(&by(&after)));
}

#[test]
fn a_strict_session_whose_worker_is_gone_is_told_so() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate) = gated(2, "affinity = 'strict_queue'\nqueue_timeout = '60s'");
    let home = by(&scene.ask("echo", &json!(1), &json!({ "session": "s" })));
    let died = scene.ask("die", &json!(1), &json!({ "session": "s" }));
    assert_eq!(
        (failed(&died), died["parameters"]["worker"].as_str()),
        (("worker_exit", "in_doubt"), Some(home.as_str()))
    );
    let gone = scene.ask("echo", &json!(1), &json!({ "session": "s" }));
    assert_eq!(failed(&gone), ("session_worker_unavailable", "never_started"));
    // Another process by the same name knows nothing of the session.
    scene.wait_until("it is back", |daemon| (worker(daemon, &home)["state"] == "healthy").then_some(()));
    let called = scene.cli(&["call", "work", "echo", "1", "--session", "s"]);
    assert_eq!(called.status, 1, "{called:?}");
    assert!(called.stderr.contains("the session's worker is gone"), "{called:?}");
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({ "session": "s", "affinity": "hint" }))), json!(1));
    assert_eq!(*result(&scene.ask("echo", &json!(2), &json!({ "session": "s" }))), json!(2), "it has another now");
}

#[test]
fn there_are_as_many_sessions_as_may_be_until_one_is_over() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "sessions = 2\nsession_ttl = '1h'");
    let mut peer = Peer::connect(&scene);
    let opened = peer.ask("OpenSession", &json!({ "pool": "work", "session": "a" }));
    assert_eq!(opened["parameters"]["session"], "a", "{opened}");
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({ "session": "b" }))), json!(1));
    let third = scene.ask("echo", &json!(1), &json!({ "session": "c" }));
    assert_eq!(failed(&third), ("session_quota_exceeded", "never_started"));
    assert!(refused(&peer.ask("OpenSession", &json!({ "pool": "work" }))).contains("there are 2 sessions"));
    assert_eq!(scene.queue("work")["sessions"], 2);
    let closed = peer.ask("CloseSession", &json!({ "pool": "work", "session": "b" }));
    assert_eq!(closed, json!({ "parameters": {} }));
    let unknown = peer.ask("CloseSession", &json!({ "pool": "work", "session": "b" }));
    assert_eq!(unknown["error"], "io.halsup.Control.NotFound", "{unknown}");
    let named = peer.ask("OpenSession", &json!({ "pool": "work", "ttl_ms": 200 }));
    let name = named["parameters"]["session"].as_str().expect("a name of its own");
    assert!(!name.is_empty());
    scene.wait_queue("work", &json!({ "sessions": 1 }));
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({ "session": "c" }))), json!(1));
}

#[test]
fn a_session_that_has_a_request_does_not_end() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = gated(1, "session_ttl = '100ms'\nqueue_timeout = '60s'");
    let mut inside = scene.send("gate", &json!("inside"), &json!({ "session": "s" }));
    scene.wait_noted("in inside", 1);
    // A session beside it is opened later and ends by its time, so that time has passed for both.
    let opened = Peer::connect(&scene).ask("OpenSession", &json!({ "pool": "work" }));
    assert!(opened["error"].is_null(), "{opened}");
    scene.wait_queue("work", &json!({ "sessions": 1, "in_flight": 1 }));
    gate.open(1);
    assert_eq!(*result(&inside.reply()), json!("inside"));
    scene.wait_queue("work", &json!({ "sessions": 0 }));
}

/// How much memory a process has, in KiB.
fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn sessions_that_are_refused_are_not_kept() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "sessions = 1");
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({ "session": "the one" }))), json!(1));
    let mut peer = Peer::connect(&scene);
    let mut refuse = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let session = json!({ "session": format!("{number:0256}") });
            let reply = peer.ask("Execute", &super::parameters("work", "echo", &json!(1), &session));
            assert_eq!(failed(&reply).0, "session_quota_exceeded");
        }
    };
    // What is needed for one is there after the first few.
    refuse(0..500);
    let before = rss_kib(scene.pid());
    refuse(500..8500);
    let after = rss_kib(scene.pid());
    assert!(after < before + 2048, "{before} KiB became {after} KiB");
}

/// What `halsup sessions --requests` says of them.
#[track_caller]
fn listed(scene: &Scene) -> Vec<Value> {
    let told = scene.cli(&["sessions", "--requests", "work", "--json"]).json();
    told["sessions"].as_array().expect("a list").clone()
}

#[test]
fn sessions_are_listed_with_their_worker_and_their_end() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = gated(2, "session_ttl = '1h'");
    assert_eq!(scene.cli(&["sessions", "--requests"]).stdout, "No sessions of requests.\n");
    assert_eq!(scene.cli(&["sessions", "--requests", "nobody"]).status, 5);
    Peer::connect(&scene).ask("OpenSession", &json!({ "pool": "work", "session": "idle", "ttl_ms": 7_200_000 }));
    let mut busy = scene.send("gate", &json!("held"), &json!({ "session": "busy" }));
    scene.wait_noted("in held", 1);
    let [idle, held] = listed(&scene).try_into().expect("two");
    let expires = idle["expires_in_ms"].as_u64().expect("its end");
    assert!((7_000_000..=7_200_000).contains(&expires), "{idle}");
    assert_eq!((&idle["session"], &idle["pool"], &idle["ttl_ms"]), (&json!("idle"), &json!("work"), &json!(7_200_000)));
    assert_eq!((&idle["requests"], &idle["lost"], idle.get("worker")), (&json!(0), &json!(false), None));
    assert_eq!((&held["session"], &held["requests"], &held["ttl_ms"]), (&json!("busy"), &json!(1), &json!(3_600_000)));
    assert_eq!(held.get("expires_in_ms"), None, "not while it has requests: {held}");
    let name = held["worker"].as_str().expect("its worker").to_owned();
    let table = scene.cli(&["sessions", "--requests"]).stdout;
    assert!(table.contains("busy") && table.contains(&name) && table.contains("2h"), "{table}");
    gate.open(1);
    assert_eq!(by(&busy.reply()), name);
    assert!(listed(&scene)[1]["expires_in_ms"].as_u64().is_some_and(|ms| ms > 3_000_000));
    // What it had is gone with its worker.
    assert_eq!(scene.cli(&["kill", &name]).status, 0);
    scene.daemon.wait_until("that it is lost", |daemon| {
        let told = daemon.cli(&["sessions", "--requests", "--json"]).json();
        (told["sessions"][1]["lost"] == true).then_some(())
    });
    Peer::connect(&scene).ask("CloseSession", &json!({ "pool": "work", "session": "busy" }));
    assert_eq!(listed(&scene).len(), 1);
}

#[test]
fn many_sessions_are_told_piece_by_piece() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "sessions = 1000");
    let mut peer = Peer::connect(&scene);
    for number in 0..600 {
        peer.ask("OpenSession", &json!({ "pool": "work", "session": format!("s{number}") }));
    }
    let all: Vec<String> = (0..600).map(|number| format!("s{number}")).collect();
    let names = |told: &Value| -> Vec<String> {
        let named = told["sessions"].as_array().expect("a list").iter();
        named.map(|one| one["session"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&scene.cli(&["sessions", "--requests", "--json"]).json()), all);
    assert_eq!(names(&peer.ask("ListSessions", &json!({}))["parameters"]), all);
    peer.say(&crate::peer::flagged("ListSessions", &json!({}), &json!({ "more": true })));
    let lengths: Vec<usize> = std::iter::from_fn(|| Some(names(&peer.reply()["parameters"]).len())).take(3).collect();
    assert_eq!(lengths, [256, 256, 88]);
}
