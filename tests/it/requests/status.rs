//! What became of a request, for whoever asks later: by its number, or by what its caller calls it.

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, result};
use crate::needs::needs;

/// What `halsup queue --request` says; the one request that is called so.
#[track_caller]
fn status(scene: &Scene, id: &str) -> Value {
    let told = scene.cli(&["queue", "work", "--request", id, "--json"]).json();
    let [one] = told["requests"].as_array().expect("a list").clone().try_into().expect("one");
    one
}

#[track_caller]
fn state(one: &Value) -> (&str, Option<&str>) {
    (one["state"].as_str().expect("a state"), one["reason"].as_str())
}

#[test]
fn whoever_asks_is_told_how_far_a_request_is_and_what_became_of_it() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "", "queue_max = 1\nqueue_timeout = '60s'")
        + &shared.pool("other", "worker.py", "", "");
    let mut scene = Scene::begin(shared, &config, 2);
    let called = |name: &str| json!({ "correlation": name });
    let mut held = scene.send("gate", &json!("held"), &called("held"));
    scene.wait_noted("in held", 1);
    let running = status(&scene, "held");
    assert_eq!(state(&running), ("running", None));
    assert_eq!((&running["worker"], &running["attempts"]), (&json!("work.0"), &json!(1)));
    assert_eq!(running.get("ended_ms"), None);
    // Another pool's request is none of this one's.
    for arguments in [&["queue", "other", "--request", "held"], &["queue", "work", "--request", "nothing"]] {
        let missing = scene.cli(arguments);
        assert_eq!((missing.status, missing.stdout.as_str()), (5, ""), "{missing:?}");
    }
    let mut waits = scene.send("echo", &json!(1), &called("waits"));
    scene.wait_queue("work", &json!({ "queued": 1 }));
    let queued = status(&scene, "waits");
    assert_eq!((state(&queued), &queued["attempts"], queued.get("worker")), (("queued", None), &json!(0), None));
    scene.ask("echo", &json!(1), &called("refused"));
    assert_eq!(state(&status(&scene, "refused")), ("never_started", Some("pool_saturated")));
    gate.open(1);
    let answer = held.reply();
    assert_eq!(*result(&answer), json!("held"));
    assert_eq!(*result(&waits.reply()), json!(1));
    let number = answer["parameters"]["request"].as_str().expect("its number").to_owned();
    for id in [number.as_str(), "held"] {
        // Nor is it any other pool's when it is over.
        assert_eq!(scene.cli(&["queue", "other", "--request", id]).status, 5);
        let answered = status(&scene, id);
        assert_eq!(state(&answered), ("answered", None));
        assert_eq!((&answered["request"], &answered["correlation"]), (&json!(number), &json!("held")));
        assert!(answered["ended_ms"].as_u64() <= answered["age_ms"].as_u64(), "{answered}");
    }
    scene.ask("fail", &json!(1), &called("failed"));
    assert_eq!(state(&status(&scene, "failed")), ("answered", Some("full")));
    // Who is gone before it is over can still ask.
    let gone = scene.send("hold", &json!(1), &called("gone"));
    scene.wait_noted("holding", 1);
    drop(gone);
    scene.wait_noted("released", 1);
    assert_eq!(state(&status(&scene, "gone")), ("in_doubt", Some("abandoned")));
    scene.ask("die", &json!(1), &called("died"));
    assert_eq!(state(&status(&scene, "died")), ("in_doubt", Some("worker_exit")));
    // Several may be called alike; a table shows them to people.
    scene.wait_queue("work", &json!({ "available": 1 }));
    scene.ask("echo", &json!(1), &called("held"));
    let table = scene.cli(&["queue", "--request", "held"]).stdout;
    assert_eq!(table.matches("answered").count(), 2, "{table}");
    assert!(table.contains(&number), "{table}");
}
