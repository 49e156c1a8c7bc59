//! A request and its answer, by the command line and frame by frame.

use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, result};
use crate::needs::needs;
use crate::peer::Peer;

#[test]
fn any_json_comes_back_as_it_was_sent() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let mut peer = Peer::connect(&scene);
    for value in [
        json!(null),
        json!(true),
        json!(-7),
        json!(1.5),
        json!(u64::MAX),
        json!("\u{0} \u{1b}[31m \u{202e} \" \\ ß 🦀"),
        json!([[], {}, [[[[[[[[1]]]]]]]]]),
        json!({ "a": { "b": [1, 2, { "c": null }] }, "": "" }),
        json!("x".repeat(60_000)),
    ] {
        let reply = peer.ask("Execute", &super::parameters("work", "echo", &value, &json!({})));
        assert_eq!(*result(&reply), value);
    }
    let called = scene.cli(&["call", "work", "echo", "{\"x\": [1, \"two\"]}"]);
    assert_eq!((called.status, called.stdout.as_str()), (0, "{\"x\":[1,\"two\"]}\n"), "{called:?}");
    let without = scene.cli(&["call", "work", "echo", "--json"]).json();
    assert_eq!((&without["worker"], &without["attempts"]), (&json!("work.0"), &json!(1)), "{without}");
    let wrong = scene.cli(&["call", "work", "echo", "{x}"]);
    assert_eq!(wrong.status, 2, "{wrong:?}");
    assert!(wrong.stderr.contains("the arguments are not JSON"), "{wrong:?}");
    let nowhere = scene.cli(&["call", "nowhere", "echo"]);
    assert_eq!(nowhere.status, 5, "{nowhere:?}");
}

#[test]
fn an_error_of_the_application_is_an_answer_and_no_failure_of_its_worker() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(
        1,
        "worker_breaker = { failures = 1, open_for = '300s' }\npool_breaker = { failures = 1, open_for = '300s' }",
    );
    let reply = scene.ask("fail", &json!(null), &json!({ "idempotent": true, "correlation": "mine" }));
    assert_eq!(failed(&reply), ("full", "answered"));
    let said = &reply["parameters"];
    let expected = json!({ "category": "disk", "message": "the disk is full", "details": { "free": 0 },
        "worker": "work.0", "attempts": 1, "correlation": "mine" });
    for (name, value) in expected.as_object().expect("fields") {
        assert_eq!(said[name], *value, "{name} in {said}");
    }
    let called = scene.cli(&["call", "work", "crash", "--json"]);
    assert_eq!(called.status, 1, "{called:?}");
    assert!(called.stderr.contains("missing"), "{called:?}");
    let told: Value = serde_json::from_str(&called.stdout).unwrap_or_else(|error| panic!("{error}: {called:?}"));
    assert_eq!((&told["reason"], &told["outcome"]), (&json!("KeyError"), &json!("answered")), "{told}");
    assert!(told["traceback"].as_str().is_some_and(|text| text.contains("raise KeyError")), "{told}");
    let unknown = scene.ask("no such tool", &json!({}), &json!({}));
    assert_eq!(failed(&unknown), ("unknown_command", "answered"));
    let queue = scene.queue("work");
    let numbers =
        json!({ "requests": 3, "answered": 3, "errors": 3, "retries": 0, "in_flight": 0, "breaker": "closed" });
    for (name, value) in numbers.as_object().expect("fields") {
        assert_eq!(queue[name], *value, "{name} in {queue}");
    }
    let desk = &queue["desks"][0];
    assert_eq!((&desk["failures"], &desk["breaker"]), (&json!(0), &json!("closed")), "{desk}");
}

#[test]
fn what_a_caller_says_of_a_request_reaches_its_worker_and_comes_back() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let called = scene.cli(&["call", "work", "about", "--session", "ses", "--correlation", "order-7", "--json"]).json();
    assert_eq!(called["result"], json!({ "session": "ses", "correlation": "order-7", "command": "about" }));
    assert_eq!(called["correlation"], "order-7");
    let request = called["request"].as_str().expect("its number");
    assert!(request.len() == 32 && request.bytes().all(|byte| byte.is_ascii_hexdigit()), "{request}");
    // One that says nothing has one made up, which is its number.
    let called = scene.cli(&["call", "work", "about", "--json"]).json();
    assert_eq!(called["result"]["correlation"], called["request"]);
    assert_eq!(called["correlation"], called["request"]);
    assert_ne!(called["request"], request);
    for long in ["command", "session", "correlation"] {
        let mut parameters = super::parameters("work", "about", &json!(null), &json!({}));
        parameters[long] = json!("x".repeat(257));
        let reply = Peer::connect(&scene).ask("Execute", &parameters);
        assert_eq!(reply["error"], "org.varlink.service.InvalidParameter", "{reply}");
        assert_eq!(reply["parameters"]["parameter"], long, "{reply}");
    }
}

#[test]
fn numbers_of_a_known_mixture_are_exact() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "", "queue_max = 1\nqueue_timeout = '60s'");
    let mut scene = Scene::begin(shared, &config, 1);
    for number in 0..3 {
        assert_eq!(*result(&scene.ask("echo", &json!(number), &json!({}))), json!(number));
    }
    assert_eq!(failed(&scene.ask("fail", &json!(0), &json!({}))).1, "answered");
    let mut first = scene.send("gate", &json!("first"), &json!({}));
    scene.wait_noted("in first", 1);
    let timed_out = scene.cli(&["call", "work", "nap", "[\"late\", 0]", "--queue-timeout", "50ms"]);
    assert_eq!(timed_out.status, 4, "{timed_out:?}");
    assert!(timed_out.stderr.contains("no worker of work was free within"), "{timed_out:?}");
    let gone = scene.send("nap", &json!(["gone", 0]), &json!({}));
    scene.wait_queue("work", &json!({ "queued": 1 }));
    drop(gone);
    scene.wait_queue("work", &json!({ "queued": 0, "abandoned": 1 }));
    let mut second = scene.send("gate", &json!("second"), &json!({}));
    let queue = scene.wait_queue("work", &json!({ "queued": 1 }));
    assert_eq!((&queue["in_flight"], &queue["busy"], &queue["available"]), (&json!(1), &json!(1), &json!(0)));
    let saturated = scene.cli(&["call", "work", "echo", "1"]);
    assert_eq!(saturated.status, 4, "{saturated:?}");
    assert!(saturated.stderr.contains("as many requests wait for pool work as may"), "{saturated:?}");
    gate.open(2);
    assert_eq!((result(&first.reply()), result(&second.reply())), (&json!("first"), &json!("second")));
    let queue = scene.queue("work");
    let numbers = json!({
        "requests": 9, "answered": 6, "errors": 2, "queue_timeouts": 1, "pool_saturated": 1, "abandoned": 1,
        "queued_total": 3, "queued": 0, "in_flight": 0, "workers": 1, "available": 1, "busy": 0, "retries": 0,
    });
    for (name, value) in numbers.as_object().expect("fields") {
        assert_eq!(queue[name], *value, "{name} in {queue}");
    }
    assert_eq!(scene.shared.ledger(), ["in first", "out first", "in second", "out second"], "nobody else ever ran");
}
