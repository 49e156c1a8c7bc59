//! Failures in a row: when a worker or a pool is given nothing more, how it comes back, and what a restart keeps of it.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, result};
use crate::look::{signal, wait_healthy};
use crate::needs::needs;
use crate::peer::Peer;

/// Has a worker die of a request, and comes back when there is another.
#[track_caller]
fn kill_by_request(scene: &mut Scene, number: usize) {
    let reply = scene.ask("die", &json!(number), &json!({}));
    assert_eq!(failed(&reply), ("worker_exit", "in_doubt"), "{reply}");
    wait_healthy(scene, 1);
}

/// The breaker of the only worker, as `halsup breaker ls` has it.
fn breaker(scene: &Scene) -> Value {
    scene.cli(&["breaker", "ls", "work", "--json"]).json()["pools"][0]["desks"][0]["breaker"].clone()
}

#[test]
fn three_crashes_open_it_through_a_kill_of_the_daemon_and_a_reset_closes_it() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "worker_breaker = { failures = 3, open_for = '1h' }\nqueue_timeout = '60s'");
    for number in 0..2 {
        kill_by_request(&mut scene, number);
        assert_eq!(breaker(&scene), "closed");
    }
    kill_by_request(&mut scene, 2);
    assert_eq!(breaker(&scene), "open");
    let held = scene.cli(&["call", "work", "echo", "1", "--queue-timeout", "100ms"]);
    assert_eq!(held.status, 4, "{held:?}");
    let pid = i32::try_from(scene.pid()).expect("a pid");
    signal(pid, Signal::KILL);
    scene.start_again();
    wait_healthy(&mut scene, 1);
    assert_eq!(breaker(&scene), "open", "the next daemon knows of it");
    let shown = scene.cli(&["breaker", "ls"]).stdout;
    assert!(shown.lines().any(|line| line.starts_with("work.0") && line.contains("open")), "{shown}");
    let mut waits = scene.send("echo", &json!("waited"), &json!({}));
    scene.wait_queue("work", &json!({ "queued": 1, "in_flight": 0 }));
    let reset = scene.cli(&["breaker", "reset", "work.0"]);
    assert_eq!((reset.status, reset.stdout.as_str()), (0, "work.0: 1 reset\n"), "{reset:?}");
    assert_eq!(*result(&waits.reply()), json!("waited"));
    assert_eq!(breaker(&scene), "closed");
    assert_eq!(scene.shared.noted("died"), 3, "nothing ran twice");
}

#[test]
fn a_half_open_one_lets_exactly_one_probe_through() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let dispatch = "capacity = 4\nqueue_timeout = '60s'\nworker_breaker = { failures = 3, open_for = '300ms' }";
    let config = shared.pool("work", "worker.py", "", dispatch);
    let mut scene = Scene::begin(shared, &config, 1);
    for number in 0..3 {
        kill_by_request(&mut scene, number);
    }
    let mut waiting: Vec<Peer> = (0..4).map(|number| scene.send("gate", &json!(number), &json!({}))).collect();
    // There is room for four, and all have come: the probe is alone until it has an answer.
    scene.wait_noted("in ", 1);
    let queue = scene.wait_queue("work", &json!({ "in_flight": 1, "queued": 3 }));
    assert_eq!(queue["desks"][0]["breaker"], "half_open", "{queue}");
    assert_eq!(scene.shared.noted("in "), 1);
    gate.open(1);
    scene.wait_noted("in ", 4);
    scene.wait_queue("work", &json!({ "in_flight": 3, "queued": 0, "answered": 1 }));
    assert_eq!(breaker(&scene), "closed");
    gate.open(3);
    for (number, peer) in waiting.iter_mut().enumerate() {
        assert_eq!(*result(&peer.reply()), json!(number));
    }
}

#[test]
fn a_pools_breaker_refuses_at_once() {
    needs!(Root, CgroupTree, Python3);
    let dispatch = "queue_timeout = '60s'\npool_breaker = { failures = 2, open_for = '1h' }";
    let mut scene = Scene::start(1, dispatch);
    kill_by_request(&mut scene, 0);
    kill_by_request(&mut scene, 1);
    let refused = scene.cli(&["call", "work", "echo", "1"]);
    assert_eq!(refused.status, 4, "{refused:?}");
    assert!(refused.stderr.contains("the circuit breaker of pool work is open"), "{refused:?}");
    assert_eq!(failed(&scene.ask("echo", &json!(1), &json!({}))), ("circuit_open", "never_started"));
    let reset = scene.cli(&["breaker", "reset", "work"]);
    assert_eq!((reset.status, reset.stdout.as_str()), (0, "work: 1 reset\n"), "{reset:?}");
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
}

#[test]
fn what_kills_workers_again_and_again_is_let_through_no_more() {
    needs!(Root, CgroupTree, Python3);
    let dispatch =
        "queue_timeout = '60s'\nattempts = 10\nquarantine = 3\nbackoff = '1ms'\nworker_breaker = { failures = 0 }";
    let mut scene = Scene::start(2, dispatch);
    let poison = json!("poison");
    let reply = scene.ask("die", &poison, &json!({ "idempotent": true }));
    assert_eq!(failed(&reply), ("quarantined", "in_doubt"), "{reply}");
    assert_eq!(reply["parameters"]["attempts"], 3, "{reply}");
    wait_healthy(&mut scene, 2);
    let held = scene.ask("die", &poison, &json!({}));
    assert_eq!(failed(&held), ("quarantined", "never_started"), "{held}");
    assert_eq!(*result(&scene.ask("echo", &poison, &json!({}))), poison, "another request is not it");
    assert_eq!(scene.shared.noted("died poison"), 3);
    let reset = scene.cli(&["breaker", "reset", "work"]);
    assert_eq!((reset.status, reset.stdout.as_str()), (0, "work: 1 reset\n"), "{reset:?}");
    assert_eq!(failed(&scene.ask("die", &poison, &json!({}))), ("worker_exit", "in_doubt"));
    assert_eq!(scene.shared.noted("died poison"), 4);
}
