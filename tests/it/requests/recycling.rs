//! Workers that are replaced as planned, while they are called all the time: nobody who calls notices.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use super::{Scene, parameters, result};
use crate::look::{certificates, healthy};
use crate::needs::needs;
use crate::peer::Peer;

/// Calls from six callers until so many workers were replaced; how many requests that were, each of them answered.
#[track_caller]
fn call_until_recycled(scene: &mut Scene, command: &str, args: &Value, count: u64) -> u64 {
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let socket = scene.path("run/control.sock");
    std::thread::scope(|scope| {
        let caller = || {
            let mut peer = Peer::connect_to(&socket);
            while !over.load(Ordering::Acquire) {
                let reply = peer.ask("Execute", &parameters("work", command, args, &json!({})));
                asked.fetch_add(1, Ordering::AcqRel);
                assert_eq!(reply["error"], Value::Null, "{reply}");
            }
        };
        let callers: Vec<_> = (0..6).map(|_| scope.spawn(caller)).collect();
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scene.wait_until("workers are replaced", |daemon| {
                let queue = daemon.cli(&["queue", "work", "--json"]).json();
                queue["pools"][0]["recycled"].as_u64().filter(|recycled| *recycled >= count)
            })
        }));
        // The callers end before the wait's own failure is told.
        over.store(true, Ordering::Release);
        callers.into_iter().for_each(|caller| caller.join().expect("a caller whose requests are answered"));
        waited.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    asked.into_inner()
}

/// That the pool is again what it was before, by other processes, and that every request was answered at its first attempt.
#[track_caller]
fn assert_settled(scene: &mut Scene, requests: u64) {
    // By age there is always a next replacement, which comes and goes.
    scene.wait_until("the same two places", |daemon| {
        let healthy: Vec<String> = healthy(daemon).iter().map(|worker| worker["name"].to_string()).collect();
        (healthy == ["\"work.0\"", "\"work.1\""]).then_some(())
    });
    let queue = scene.wait_queue("work", &json!({ "in_flight": 0, "queued": 0 }));
    let told = [&queue["requests"], &queue["answered"], &queue["errors"], &queue["retries"]];
    assert_eq!(told, [&json!(requests), &json!(requests), &json!(0), &json!(0)], "{queue}");
    for worker in ["work.0", "work.1"] {
        let certificates = certificates(scene, worker);
        assert!(
            !certificates.is_empty() && certificates.iter().all(|one| one["cause"] == "recycled"),
            "{certificates:?}"
        );
    }
}

#[test]
fn after_so_many_requests() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(2, "capacity = 2\nqueue_timeout = '60s'\nworker_max_requests = 20");
    let asked = call_until_recycled(&mut scene, "echo", &json!(1), 4);
    assert!(asked >= 40, "{asked}");
    assert_settled(&mut scene, asked);
}

#[test]
fn after_so_much_time() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(2, "capacity = 2\nqueue_timeout = '60s'\nworker_ttl = '1s'");
    let asked = call_until_recycled(&mut scene, "echo", &json!(1), 4);
    assert_settled(&mut scene, asked);
}

#[test]
fn when_they_use_too_much_memory() {
    needs!(Root, CgroupTree, Python3, Cgroup2("memory"));
    let mut scene = Scene::start(2, "capacity = 2\nqueue_timeout = '60s'\nworker_max_memory = '200m'");
    for worker in 0..2 {
        let session = json!({ "session": format!("s{worker}"), "affinity": "strict_queue" });
        assert!(result(&scene.ask("grow", &json!(250_000_000), &session)).is_null());
    }
    let asked = call_until_recycled(&mut scene, "echo", &json!(1), 2);
    assert_settled(&mut scene, asked + 2);
}
