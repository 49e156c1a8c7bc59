//! The control socket without the command line: what any Varlink client may send, and what it gets.
//!
//! What a hostile client tries is in `clients.rs`.

use std::io::Write as _;

use serde_json::json;

use crate::fixture::Daemon;
use crate::needs::needs;
use crate::peer::{Peer, call, flagged};

const ONE_SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

#[test]
fn any_client_can_ask_what_is_spoken() {
    needs!(Root, CgroupTree);
    let daemon = Daemon::start(ONE_SLEEPER);
    let mut peer = Peer::connect(&daemon);
    peer.call("org.varlink.service.GetInfo", &json!({}));
    let info = peer.next().expect("an answer");
    for interface in info["parameters"]["interfaces"].as_array().expect("interfaces") {
        peer.call("org.varlink.service.GetInterfaceDescription", &json!({ "interface": interface }));
        let description = peer.next().expect("an answer")["parameters"]["description"].clone();
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
    assert_eq!(peer.next(), Some(json!({ "parameters": {} })), "a wrong call costs nothing but its answer");
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
    peer.say(&calls);
    peer.stream.shutdown(std::net::Shutdown::Write).expect("finish speaking");
    assert_eq!(peer.next(), Some(json!({ "parameters": {} })));
    let restarted = peer.next().expect("an answer");
    assert_eq!(restarted["parameters"], json!({ "achieved": 1, "wanted": 1, "failures": [] }));
    assert_eq!(peer.next().expect("an answer")["parameters"]["state"], "running", "oneway has no reply");
    let listed = peer.next().expect("an answer");
    assert_eq!(listed["parameters"]["workers"][0]["state"], "healthy", "the restart was over before");
    for _ in 0..2_000 {
        assert_eq!(peer.next(), Some(json!({ "parameters": {} })));
    }
    assert_eq!(peer.next(), None, "who has finished speaking and heard all is let go");
}

#[test]
fn a_stream_ends_when_its_client_says_something_else() {
    needs!(Root, CgroupTree);
    let program = "[pool.web]\ncommand = ['sh', '-c', 'printf half; touch said; sleep 1000']\nready = 'file:said'\n";
    let daemon = Daemon::start(program);
    assert_eq!(daemon.cli(&["start", "web"]).status, 0, "it is ready, so it has spoken");
    let mut peer = Peer::connect(&daemon);
    peer.say(&flagged("Events", &json!({ "follow": true, "last": 0 }), &json!({ "more": true })));
    let first = peer.next().expect("a first answer");
    assert_eq!(first, json!({ "parameters": { "events": [], "missed": 0 }, "continues": true }));
    let mut log = Peer::connect(&daemon);
    log.say(&flagged("Logs", &json!({ "worker": "web.0", "follow": true }), &json!({ "more": true })));
    assert_eq!(log.next().expect("a first answer")["continues"], true);
    assert_eq!(daemon.cli(&["kill", "web.0"]).status, 0);
    let told = peer.next().expect("an event");
    assert_eq!(told["parameters"]["events"][0]["kind"], "order");
    let line = log.next().expect("a line");
    assert_eq!(line["parameters"]["entries"][0]["text"], "half", "begun before it was followed, ended by the death");
    for peer in [&mut peer, &mut log] {
        peer.call("Ping", &json!({}));
        while peer.next().expect("the end of the stream").get("continues").is_some() {}
        assert_eq!(peer.next(), Some(json!({ "parameters": {} })));
    }
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
    assert_eq!(peer.next(), Some(json!({ "parameters": {} })));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read its status");
    let resident = memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 100 << 10, "{kib} KiB for 50 clients that do not read");
}
