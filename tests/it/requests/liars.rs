//! Workers that lie, flood, or fall silent: each harms its own requests alone, and the daemon keeps nothing of it.

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, parameters, result};
use crate::look::{certificates, pid, wait_certificate, wait_healthy, worker};
use crate::needs::needs;
use crate::peer::{Peer, flagged};

const LIAR: &str = include_str!("liar.py");

/// Everything that is no payload, as `liar.py` names it.
const BAD: [&str; 17] = [
    "pipe",
    "fifo",
    "socket",
    "directory",
    "zero",
    "path",
    "memory of itself",
    "text of the kernel",
    "file",
    "unsealed",
    "may shrink",
    "may grow",
    "may be written",
    "may be sealed",
    "short",
    "itself",
    "pidfd",
];

/// A pool `lies` with one liar beside a pool `work` with one honest worker.
fn scene(dispatch: &str) -> (Scene, Gate, usize) {
    let shared = Shared::new();
    shared.program("liar.py", LIAR);
    let gate = Gate::new(&shared);
    let dispatch = format!("queue_timeout = '60s'\nworker_breaker = {{ failures = 0 }}\n{dispatch}");
    let config = shared.pool("lies", "liar.py", "", &dispatch)
        + &shared.pool("work", "worker.py", "", "capacity = 16\nqueue_timeout = '60s'");
    let scene = Scene::begin(shared, &config, 2);
    let baseline = scene.descriptors();
    (scene, gate, baseline)
}

/// What comes of a request to the liar.
#[track_caller]
fn lie(scene: &Scene, command: &str, args: &Value, more: &Value) -> Value {
    Peer::connect(scene).ask("Execute", &parameters("lies", command, args, more))
}

/// That the liar answers as ever, that its neighbour does, and that the daemon keeps nothing.
#[track_caller]
fn assert_unharmed(scene: &mut Scene, baseline: usize) {
    assert_eq!(*result(&lie(scene, "echo", &json!("still"), &json!({}))), json!("still"));
    assert_eq!(*result(&scene.ask("echo", &json!("here"), &json!({}))), json!("here"));
    for pool in ["lies", "work"] {
        scene.wait_queue(pool, &json!({ "in_flight": 0, "queued": 0 }));
    }
    assert_eq!(certificates(scene, "work.0").len(), 0, "the neighbour lives");
    scene.wait_descriptors(baseline);
}

#[test]
fn answers_in_the_name_of_others_count_for_nobody() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate, baseline) = scene("");
    let mut others: Vec<Peer> = (0..8).map(|number| scene.send("gate", &json!(number), &json!({}))).collect();
    scene.wait_noted("in ", 8);
    let mut waits = Peer::connect(&scene);
    waits.say(&flagged(
        "Execute",
        &parameters("lies", "forge", &json!("mine"), &json!({ "stream": true })),
        &json!({ "more": true }),
    ));
    let reply = waits.reply();
    assert_eq!(*result(&reply), json!("mine"), "its own is its to answer");
    assert_eq!(scene.queue("work")["in_flight"], 8, "none of the others' is over");
    gate.open(8);
    for (number, peer) in others.iter_mut().enumerate() {
        assert_eq!(*result(&peer.reply()), json!(number));
    }
    drop((waits, others));
    assert_unharmed(&mut scene, baseline);
}

#[test]
fn of_several_answers_the_first_counts_and_late_ones_count_for_nobody() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate, baseline) = scene("cancel_grace = '60s'");
    let mut peer = Peer::connect(&scene);
    for round in 0..5 {
        let reply = peer.ask("Execute", &parameters("lies", "twice", &json!(round), &json!({})));
        assert_eq!(*result(&reply), json!(round));
        // It answers the earlier one once more, and then this one.
        let reply = peer.ask("Execute", &parameters("lies", "echo", &json!([round]), &json!({})));
        assert_eq!(*result(&reply), json!([round]));
    }
    let timed_out = lie(&scene, "late", &json!(1), &json!({ "timeout_ms": 200 }));
    assert_eq!(failed(&timed_out), ("worker_timeout", "in_doubt"));
    let reply = peer.ask("Execute", &parameters("lies", "echo", &json!("own"), &json!({})));
    assert_eq!(*result(&reply), json!("own"));
    drop(peer);
    let queue = scene.queue("lies");
    assert_eq!((&queue["requests"], &queue["answered"], &queue["errors"]), (&json!(12), &json!(11), &json!(1)));
    assert_eq!(certificates(&scene, "lies.0").len(), 0);
    assert_unharmed(&mut scene, baseline);
}

#[test]
fn what_is_no_payload_is_refused_and_held_by_nobody() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate, baseline) = scene("attempts = 1");
    for kind in BAD {
        let reply = lie(&scene, "bad", &json!(kind), &json!({}));
        assert_eq!(failed(&reply), ("worker_broken", "in_doubt"), "{kind}");
    }
    for command in ["none", "not lent", "many"] {
        let reply = lie(&scene, command, &json!(null), &json!({}));
        assert_eq!(failed(&reply), ("worker_broken", "in_doubt"), "{command}");
    }
    // A frame that says more than can be is none.
    assert_eq!(*result(&lie(&scene, "huge", &json!("then this"), &json!({}))), json!("then this"));
    assert_eq!(*result(&lie(&scene, "unasked", &json!(null), &json!({}))), json!("beside"));
    for kind in ["pipe", "unsealed", "directory"] {
        let mut peer = Peer::connect(&scene);
        let parameters = parameters("lies", "bad chunk", &json!("after"), &json!({ "stream": true, "args": kind }));
        peer.say(&flagged("Execute", &parameters, &json!({ "more": true })));
        assert_eq!(*result(&peer.reply()), json!(kind), "the chunk is left out");
    }
    assert_eq!(certificates(&scene, "lies.0").len(), 0);
    assert_unharmed(&mut scene, baseline);
}

#[test]
fn floods_of_junk_calls_and_chunks_hold_up_the_flooder_alone() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate, baseline) = scene("");
    let mut flood = Peer::connect(&scene);
    flood.call("Execute", &parameters("lies", "junk", &json!(20_000), &json!({})));
    // Its neighbour is asked meanwhile.
    let mut peer = Peer::connect(&scene);
    for number in 0..50 {
        let reply = peer.ask("Execute", &parameters("work", "echo", &json!(number), &json!({})));
        assert_eq!(*result(&reply), json!(number));
    }
    assert_eq!(*result(&flood.reply()), json!(20_000));
    let reply = lie(&scene, "calls", &json!(20), &json!({}));
    assert_eq!(*result(&reply), json!(["tool_not_found"]));
    // Chunks beyond what it was allowed are no chunks.
    flood.say(&flagged(
        "Execute",
        &parameters("lies", "flood", &json!(5000), &json!({ "stream": true })),
        &json!({ "more": true }),
    ));
    let (mut last, mut count) = (None, 0);
    let end = loop {
        let reply = flood.reply();
        if reply["continues"] != true {
            break reply;
        }
        let number = reply["parameters"]["chunk"].as_u64();
        assert!(number > last, "{number:?} after {last:?}");
        (last, count) = (number, count + 1);
    };
    assert_eq!(*result(&end), json!(5000));
    assert!(count >= 8, "{count}");
    // Nor are those of a stream that nobody reads.
    let mut stalled = Peer::connect(&scene);
    stalled.say(&flagged(
        "Execute",
        &parameters("lies", "flood", &json!(5000), &json!({ "stream": true })),
        &json!({ "more": true }),
    ));
    assert_eq!(*result(&peer.ask("Execute", &parameters("lies", "echo", &json!(1), &json!({})))), json!(1));
    drop((flood, peer, stalled));
    assert_eq!(certificates(&scene, "lies.0").len(), 0);
    assert_unharmed(&mut scene, baseline);
}

#[test]
fn who_falls_silent_is_ended_when_its_time_is_over_and_nobody_else() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate, baseline) = scene("cancel_grace = '200ms'");
    let (liar, neighbour) = (pid(&worker(&scene, "lies.0")), pid(&worker(&scene, "work.0")));
    let mut beside = scene.send("gate", &json!("beside"), &json!({}));
    scene.wait_noted("in beside", 1);
    let reply = lie(&scene, "silence", &json!(null), &json!({ "timeout_ms": 200 }));
    assert_eq!(failed(&reply), ("worker_timeout", "in_doubt"));
    let certificate = wait_certificate(&mut scene, "lies.0", 1);
    assert_eq!(certificate["cause"], "deadline", "{certificate}");
    // Whoever comes next has the process after it.
    assert_eq!(*result(&lie(&scene, "echo", &json!(1), &json!({}))), json!(1));
    gate.open(1);
    assert_eq!(*result(&beside.reply()), json!("beside"));
    drop(beside);
    wait_healthy(&mut scene, 2);
    assert_ne!(pid(&worker(&scene, "lies.0")), liar);
    assert_eq!(pid(&worker(&scene, "work.0")), neighbour);
    assert_unharmed(&mut scene, baseline);
}
