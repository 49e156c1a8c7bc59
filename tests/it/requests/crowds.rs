//! More requests than workers: who waits, who is refused, who runs beside whom, and what pools share.

#![expect(clippy::disallowed_methods, reason = "how long the callers took to ask decides what is exact")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, parameters, result};
use crate::needs::needs;
use crate::peer::Peer;

#[test]
fn of_ten_callers_one_runs_five_wait_in_vain_and_four_are_refused() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "queue_max = 5\nqueue_timeout = '100ms'");
    let mut peers: Vec<Peer> = (0..10).map(|_| Peer::connect(&scene)).collect();
    let mut last = Peer::connect(&scene);
    let began = Instant::now();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.call("Execute", &parameters("work", "nap", &json!([format!("n{number}"), 0.5]), &json!({})));
    }
    // It is answered after the requests were taken that were there before it.
    assert_eq!(last.ask("Ping", &json!({}))["error"], Value::Null);
    let at_once = began.elapsed() < Duration::from_millis(90);
    let (mut ran, mut timed_out, mut refused) = (Vec::new(), 0, 0);
    for (number, peer) in peers.iter_mut().enumerate() {
        let reply = peer.reply();
        if reply["error"].is_null() {
            assert_eq!(*result(&reply), json!(format!("n{number}")));
            ran.push(format!("began n{number}"));
            continue;
        }
        match failed(&reply) {
            ("queue_timeout", "never_started") => timed_out += 1,
            ("pool_saturated", "never_started") => refused += 1,
            other => panic!("{other:?}: {reply}"),
        }
    }
    assert!(!ran.is_empty() && ran.len() + timed_out + refused == 10, "{ran:?} {timed_out} {refused}");
    if at_once {
        assert_eq!((ran.as_slice(), timed_out, refused), (["began n0".to_owned()].as_slice(), 5, 4));
    }
    let numbers = json!({ "requests": 10, "answered": ran.len(), "queue_timeouts": timed_out,
        "pool_saturated": refused, "errors": timed_out, "queued": 0, "in_flight": 0 });
    scene.wait_queue("work", &numbers);
    // Of those that were told that they never ran, none did; not even now that the worker is free.
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
    let mut ledger = scene.shared.ledger();
    ledger.sort();
    ran.sort();
    assert_eq!(ledger, ran);
}

#[test]
fn a_worker_of_capacity_eight_has_eight_requests_at_once_and_no_ninth() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "", "capacity = 8\nqueue_timeout = '60s'");
    let mut scene = Scene::begin(shared, &config, 1);
    // Nobody comes back before all eight are in.
    let mut meeting: Vec<Peer> = (0..8).map(|_| scene.send("meet", &json!(null), &json!({}))).collect();
    for peer in &mut meeting {
        assert_eq!(*result(&peer.reply()), json!(true));
    }
    let mut inside: Vec<Peer> = (0..9).map(|number| scene.send("gate", &json!(number), &json!({}))).collect();
    scene.wait_noted("in ", 8);
    let queue = scene.wait_queue("work", &json!({ "in_flight": 8, "queued": 1, "available": 0 }));
    assert_eq!(queue["desks"][0]["in_flight"], 8, "{queue}");
    assert_eq!(scene.shared.noted("in "), 8);
    gate.open(9);
    for (number, peer) in inside.iter_mut().enumerate() {
        assert_eq!(*result(&peer.reply()), json!(number));
    }
}

#[test]
fn requests_that_wait_are_served_in_the_order_in_which_they_came() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "", "queue_timeout = '60s'");
    let mut scene = Scene::begin(shared, &config, 1);
    let mut peers: Vec<Peer> = (0..20)
        .map(|number| {
            let peer = scene.send("gate", &json!(number), &json!({}));
            scene.wait_queue("work", &json!({ "queued": number, "in_flight": 1 }));
            peer
        })
        .collect();
    gate.open(20);
    for (number, peer) in peers.iter_mut().enumerate() {
        assert_eq!(*result(&peer.reply()), json!(number));
    }
    let expected: Vec<String> = (0..20).flat_map(|number| [format!("in {number}"), format!("out {number}")]).collect();
    assert_eq!(scene.shared.ledger(), expected);
}

#[test]
fn two_pools_with_one_budget_never_have_more_in_flight_than_it() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let dispatch = "queue_timeout = '60s'\nbudget = { name = 'gpu', max = 3 }";
    let pool = |name| shared.pool(name, "worker.py", "size = 3", dispatch);
    let config = pool("work") + &pool("more");
    let mut scene = Scene::begin(shared, &config, 6);
    let send = |pool, number: usize| {
        let mut peer = Peer::connect(&scene);
        peer.call("Execute", &parameters(pool, "gate", &json!(number), &json!({})));
        peer
    };
    let mut peers: Vec<Peer> =
        (0..10).map(|number| send(if number % 2 == 0 { "work" } else { "more" }, number)).collect();
    scene.wait_noted("in ", 3);
    let in_all = |scene: &Scene, name: &str| {
        let of = |pool| scene.queue(pool)[name].as_u64().expect("a number");
        of("work") + of("more")
    };
    for round in 0..8 {
        scene.wait_noted("in ", 3 + round.min(7));
        assert_eq!((in_all(&scene, "in_flight"), in_all(&scene, "queued")), (3, 7 - round as u64), "round {round}");
        assert_eq!(scene.shared.noted("in ") - scene.shared.noted("out "), 3, "in round {round}");
        gate.open(1);
        scene.wait_noted("out ", round + 1);
        if round < 7 {
            scene.wait_noted("in ", 4 + round);
        }
    }
    gate.open(2);
    for (number, peer) in peers.iter_mut().enumerate() {
        assert_eq!(*result(&peer.reply()), json!(number));
    }
}
