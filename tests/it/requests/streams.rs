//! Answers in pieces: all of them, in their order, no faster than they are read, and cleaned up when nobody reads.

use serde_json::{Value, json};

use super::{Scene, failed, parameters, result};
use crate::needs::needs;
use crate::peer::{Peer, flagged};

/// A reader of a stream that has asked and read nothing.
#[track_caller]
fn stream(scene: &Scene, command: &str, args: &Value) -> Peer {
    let mut peer = Peer::connect(scene);
    let parameters = parameters("work", command, args, &json!({ "stream": true }));
    peer.say(&flagged("Execute", &parameters, &json!({ "more": true })));
    peer
}

#[test]
fn ten_thousand_chunks_arrive_in_order() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let called = scene.cli(&["call", "work", "count", "[10000, 0]", "--stream"]);
    assert_eq!(called.status, 0, "{}", called.stderr);
    let mut lines = called.stdout.lines();
    for number in 0..10_000 {
        assert_eq!(lines.next(), Some(number.to_string().as_str()));
    }
    assert_eq!((lines.next(), lines.next()), (Some("\"counted\""), None));
    let client = "
import sys
from halsup import Client
with Client(sys.argv[1]) as client, client.stream('work', 'count', [3000, 100]) as stream:
    for number, chunk in enumerate(stream):
        assert chunk.data == [number, 'x' * 100], (number, chunk)
    assert stream.reply.result == 'counted'
    print(number + 1)
";
    let output = scene.python(client);
    assert_eq!((output.status, output.stdout.as_str()), (0, "3000\n"), "{}", output.stderr);
    let mut whole = Peer::connect(&scene);
    let without = whole.ask("Execute", &parameters("work", "count", &json!([3, 0]), &json!({ "stream": true })));
    assert_eq!(without["error"], "org.varlink.service.ExpectedMore", "{without}");
}

#[test]
fn a_reader_that_stalls_holds_up_its_own_stream_alone() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "capacity = 3");
    let baseline = scene.descriptors();
    let mut stalled = stream(&scene, "count", &json!([100_000, 30_000]));
    assert_eq!(stalled.reply()["parameters"]["chunk"][0], 0);
    let mut other = stream(&scene, "count", &json!([2000, 10]));
    for number in 0..2000 {
        let reply = other.reply();
        assert_eq!((&reply["parameters"]["chunk"][0], &reply["continues"]), (&json!(number), &json!(true)), "{reply}");
    }
    assert_eq!(*result(&other.reply()), json!("counted"));
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
    assert_eq!(scene.queue("work")["in_flight"], 1);
    drop(stalled);
    scene.wait_noted("cleaned", 2);
    scene.wait_queue("work", &json!({ "in_flight": 0, "abandoned": 1, "available": 1 }));
    let ledger = scene.shared.ledger();
    let made = |line: &String| line.strip_prefix("cleaned ").and_then(|number| number.parse::<u32>().ok());
    let made: Vec<u32> = ledger.iter().filter_map(made).collect();
    // What a socket holds, and the credit beyond that.
    assert!(made[0] == 1999 && made[1] < 200, "{made:?}");
    assert_eq!(scene.queue("work")["desks"][0]["failures"], 0);
    drop(other);
    scene.wait_descriptors(baseline);
}

#[test]
fn a_stream_that_nobody_wants_any_more_is_cleaned_up_and_frees_its_worker() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let before = crate::look::pid(&crate::look::worker(&scene, "work.0"));
    for round in 1..=3 {
        let mut reader = stream(&scene, "count", &json!([1_000_000, 0]));
        for number in 0..20 {
            assert_eq!(reader.reply()["parameters"]["chunk"], json!(number));
        }
        drop(reader);
        // Its worker takes one thing at a time: it is free again when this has an answer.
        assert_eq!(*result(&scene.ask("echo", &json!(round), &json!({}))), json!(round));
        assert_eq!(scene.shared.noted("cleaned"), round);
    }
    assert_eq!(crate::look::pid(&crate::look::worker(&scene, "work.0")), before, "it was not killed for it");
    scene.wait_queue("work", &json!({ "in_flight": 0, "abandoned": 3, "answered": 3 }));
}

#[test]
fn a_stream_that_was_begun_is_not_begun_again_whatever_it_may() {
    needs!(Root, CgroupTree, Python3);
    let dispatch = "queue_timeout = '60s'\nattempts = 3\nquarantine = 0\nworker_breaker = { failures = 0 }";
    let scene = Scene::start(2, dispatch);
    // Without chunks that somebody may have seen, it is tried as often as it may be.
    let whole = scene.ask("falter", &json!("whole"), &json!({ "idempotent": true }));
    assert_eq!(failed(&whole), ("worker_exit", "in_doubt"));
    assert_eq!(scene.shared.noted("began whole"), 3);
    let mut peer = Peer::connect(&scene);
    let more = json!({ "stream": true, "idempotent": true });
    peer.say(&flagged("Execute", &parameters("work", "falter", &json!("stream"), &more), &json!({ "more": true })));
    let mut expected = 0;
    let last = loop {
        let reply = peer.reply();
        if reply["continues"] != true {
            break reply;
        }
        assert_eq!(reply["parameters"]["chunk"], json!(expected), "no chunk comes a second time");
        expected += 1;
    };
    assert_eq!(failed(&last), ("worker_exit", "in_doubt"));
    assert_eq!(last["parameters"]["attempts"], 1, "{last}");
    assert_eq!(scene.shared.noted("began stream"), 1);
}

#[test]
fn a_stream_has_its_deadline_too_and_ends_with_it() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let mut peer = Peer::connect(&scene);
    let more = json!({ "stream": true, "timeout_ms": 300 });
    peer.say(&flagged(
        "Execute",
        &parameters("work", "count", &json!([100_000_000, 0]), &more),
        &json!({ "more": true }),
    ));
    let mut expected = 0;
    let last = loop {
        let reply = peer.reply();
        if reply["continues"] != true {
            break reply;
        }
        assert_eq!(reply["parameters"]["chunk"], json!(expected));
        expected += 1;
    };
    assert_eq!(failed(&last), ("worker_timeout", "in_doubt"));
    scene.wait_noted("cleaned", 1);
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
}
