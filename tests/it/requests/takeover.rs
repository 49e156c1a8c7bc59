//! Daemons that end, or become another program, while requests are under way: callers are told, workers live on, and take
//! requests again when what they had is over.

use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, result};
use crate::look::{certificates, pid, signal, wait_healthy, worker};
use crate::needs::needs;
use crate::peer::Peer;
use crate::place::{Output, code, program};

/// Nobody is in a hurry.
const PATIENT: &str = "queue_timeout = '60s'\ncancel_grace = '60s'";

/// A caller that is a process of its own.
fn call(scene: &Scene, command: &str, args: &str) -> Child {
    let mut command = scene.place().command(&["call", "work", command, args]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run halsup")
}

/// What it said, when it has ended.
fn ended(caller: Child) -> Output {
    let output = caller.wait_with_output().expect("wait for it");
    let text = |bytes| String::from_utf8(bytes).expect("halsup prints UTF-8");
    Output { status: code(output.status), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn scene(size: usize, dispatch: &str) -> (Scene, Gate) {
    let shared = Shared::new();
    let gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", &format!("size = {size}\nstop_grace = '2s'"), dispatch);
    (Scene::begin(shared, &config, size), gate)
}

/// Kills the daemon, and starts it again when the callers have been told.
#[track_caller]
fn kill_and_start(scene: &mut Scene) {
    signal(i32::try_from(scene.pid()).expect("a pid"), Signal::KILL);
    scene.start_again();
}

#[test]
fn callers_of_a_daemon_that_is_killed_are_told_and_workers_serve_the_next_one() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate) = scene(1, PATIENT);
    let before = pid(&worker(&scene, "work.0"));
    let held = call(&scene, "hold", "1");
    scene.wait_noted("holding 1", 1);
    let queued = call(&scene, "hold", "2");
    scene.wait_queue("work", &json!({ "in_flight": 1, "queued": 1 }));
    kill_and_start(&mut scene);
    for caller in [held, queued] {
        let output = ended(caller);
        assert_eq!(output.status, 3, "{output:?}");
        assert!(output.stderr.starts_with("halsup: ") && output.stderr.lines().count() == 1, "{output:?}");
    }
    wait_healthy(&mut scene, 1);
    // The worker was told to forget what the earlier daemon had given it.
    scene.wait_noted("released 1", 1);
    let reply = scene.ask("echo", &json!("again"), &json!({}));
    assert_eq!(*result(&reply), json!("again"));
    assert_eq!(pid(&worker(&scene, "work.0")), before, "the same process");
    assert_eq!(scene.shared.ledger(), ["holding 1", "released 1"], "what waited never ran");
    let queue = scene.queue("work");
    assert_eq!((&queue["requests"], &queue["answered"]), (&json!(1), &json!(1)), "{queue}");
}

#[test]
fn a_worker_that_still_has_an_earlier_daemons_request_is_given_none() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = scene(1, PATIENT);
    let before = pid(&worker(&scene, "work.0"));
    let mut inside = scene.send("gate", &json!("old"), &json!({}));
    scene.wait_noted("in old", 1);
    kill_and_start(&mut scene);
    assert!(inside.next().is_none(), "its caller has lost the daemon");
    wait_healthy(&mut scene, 1);
    let timed_out = scene.ask("echo", &json!(1), &json!({ "queue_timeout_ms": 300 }));
    assert_eq!(failed(&timed_out), ("queue_timeout", "never_started"));
    let mut waits = scene.send("echo", &json!("new"), &json!({}));
    scene.wait_queue("work", &json!({ "queued": 1, "in_flight": 0, "available": 0 }));
    gate.open(1);
    assert_eq!(*result(&waits.reply()), json!("new"));
    assert_eq!(scene.shared.ledger(), ["in old", "out old"]);
    assert_eq!(pid(&worker(&scene, "work.0")), before, "the same process");
}

#[test]
fn a_worker_that_never_lets_go_of_an_earlier_daemons_request_is_replaced() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate) = scene(1, "queue_timeout = '60s'\ntimeout = '200ms'\ncancel_grace = '200ms'");
    let patient = json!({ "timeout_ms": 60_000 });
    let before = pid(&worker(&scene, "work.0"));
    let mut inside = scene.send("gate", &json!("old"), &patient);
    scene.wait_noted("in old", 1);
    kill_and_start(&mut scene);
    assert!(inside.next().is_none(), "its caller has lost the daemon");
    let reply = scene.ask("echo", &json!("new"), &patient);
    assert_eq!(*result(&reply), json!("new"));
    let told = certificates(&scene, "work.0");
    assert!(told.len() == 1 && told[0]["cause"] == "deadline" && told[0]["pid"] == before, "{told:?}");
    assert_ne!(pid(&worker(&scene, "work.0")), before, "another process");
    assert_eq!(scene.shared.ledger(), ["in old"], "it never came back, and nobody began it again");
}

#[test]
fn a_daemon_that_becomes_another_program_says_what_became_of_requests() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, mut gate) = scene(2, PATIENT);
    let baseline = scene.descriptors();
    let before: Vec<i32> = ["work.0", "work.1"].map(|name| pid(&worker(&scene, name))).to_vec();
    let mut inside: Vec<Peer> = (0..2).map(|number| scene.send("gate", &json!(number), &json!({}))).collect();
    scene.wait_noted("in ", 2);
    let mut queued = scene.send("echo", &json!("queued"), &json!({}));
    scene.wait_queue("work", &json!({ "in_flight": 2, "queued": 1 }));
    let shown = call(&scene, "echo", "3");
    scene.wait_queue("work", &json!({ "in_flight": 2, "queued": 2 }));
    let binary = program();
    let done = scene.cli(&["daemon", "reexec", "--binary", binary.to_str().expect("a path of a test is text")]);
    assert_eq!(done.status, 0, "{done:?}\n{}", scene.stderr());
    for peer in &mut inside {
        assert_eq!(failed(&peer.reply()), ("daemon_upgraded", "in_doubt"));
    }
    assert_eq!(failed(&queued.reply()), ("daemon_upgraded", "never_started"));
    let shown = ended(shown);
    assert_eq!(shown.status, 1, "{shown:?}");
    assert!(shown.stderr.contains("the daemon was upgraded meanwhile"), "{shown:?}");
    // Both workers are still inside, and take nothing before they are out.
    let mut waits = scene.send("echo", &json!("new"), &json!({}));
    scene.wait_queue("work", &json!({ "queued": 1, "in_flight": 0, "available": 0 }));
    gate.open(1);
    assert_eq!(*result(&waits.reply()), json!("new"));
    gate.open(1);
    scene.wait_queue("work", &json!({ "queued": 0, "in_flight": 0, "available": 2, "answered": 1 }));
    let after: Vec<i32> = ["work.0", "work.1"].map(|name| pid(&worker(&scene, name))).to_vec();
    assert_eq!(after, before, "the same processes");
    drop((inside, queued, waits));
    scene.wait_descriptors(baseline);
}

/// A session whose worker is busy, and a request that waits for that one, when the daemon ends by `ends`.
#[track_caller]
fn sessions_end_with_the_daemon(ends: fn(&mut Scene), told: Option<[(&str, &str); 2]>) {
    let (mut scene, mut gate) = scene(2, &format!("affinity = 'strict_queue'\n{PATIENT}"));
    let of_session = json!({ "session": "s" });
    let by = |reply: &Value| reply["parameters"]["worker"].as_str().map(str::to_owned);
    let home = by(&scene.ask("echo", &json!(1), &of_session));
    let mut inside = scene.send("gate", &json!("inside"), &of_session);
    scene.wait_noted("in inside", 1);
    let mut waits = scene.send("nap", &json!(["waits", 0]), &json!({ "session": "s", "idempotent": true }));
    scene.wait_queue("work", &json!({ "queued": 1, "in_flight": 1, "sessions": 1 }));
    ends(&mut scene);
    match told {
        Some(told) => assert_eq!([failed(&inside.reply()), failed(&waits.reply())], told),
        None => assert!(inside.next().is_none() && waits.next().is_none(), "the connections are lost"),
    }
    wait_healthy(&mut scene, 2);
    scene.wait_queue("work", &json!({ "sessions": 0, "queued": 0, "in_flight": 0 }));
    let closed = Peer::connect(&scene).ask("CloseSession", &json!({ "pool": "work", "session": "s" }));
    assert_eq!(closed["error"], "io.halsup.Control.NotFound", "{closed}");
    // By this name there is another session now, and the answer says whose it is: nobody waits for the one that is still inside.
    let reply = scene.ask("echo", &json!(2), &of_session);
    assert_eq!(*result(&reply), json!(2));
    assert!(home.is_some() && by(&reply).is_some() && by(&reply) != home, "{reply}");
    gate.open(1);
    scene.wait_queue("work", &json!({ "available": 2, "sessions": 1 }));
    assert_eq!(scene.shared.ledger(), ["in inside", "out inside"], "what waited never ran");
}

#[test]
fn sessions_end_when_the_daemon_is_killed() {
    needs!(Root, CgroupTree, Python3);
    sessions_end_with_the_daemon(kill_and_start, None);
}

#[test]
fn sessions_end_when_the_daemon_becomes_another_program() {
    needs!(Root, CgroupTree, Python3);
    let reexec = |scene: &mut Scene| {
        let binary = program();
        let done = scene.cli(&["daemon", "reexec", "--binary", binary.to_str().expect("a path of a test is text")]);
        assert_eq!(done.status, 0, "{done:?}\n{}", scene.stderr());
    };
    let told = [("daemon_upgraded", "in_doubt"), ("daemon_upgraded", "never_started")];
    sessions_end_with_the_daemon(reexec, Some(told));
}

#[test]
fn a_shutdown_lets_nothing_that_waits_begin() {
    needs!(Root, CgroupTree, Python3);
    let (mut scene, _gate) = scene(1, "queue_timeout = '60s'");
    let mut inside = scene.send("hold", &json!("inside"), &json!({}));
    scene.wait_noted("holding inside", 1);
    let mut queued = scene.send("hold", &json!("queued"), &json!({}));
    scene.wait_queue("work", &json!({ "in_flight": 1, "queued": 1 }));
    assert_eq!(scene.stop(), 0);
    assert_eq!(failed(&queued.reply()), ("shutting_down", "never_started"));
    let told: Option<Value> = inside.next();
    let told = told.expect("it is told before the end");
    assert_eq!(told["parameters"]["outcome"], "in_doubt", "{told}");
    assert_eq!(scene.shared.noted("holding queued"), 0);
}
