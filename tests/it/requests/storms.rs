//! Workers and callers that are killed while requests are under way: every request has one answer, and nothing is left over.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use super::{Scene, parameters, result};
use crate::fixture::ended_within;
use crate::look::{healthy, wait_healthy};
use crate::needs::needs;
use crate::peer::Peer;

const ROUNDS: usize = 30;
/// From one round to the next.
const PAUSE: Duration = Duration::from_millis(25);

/// The daemon's process, which is to outlive every round.
fn daemon_of(scene: &Scene) -> OwnedFd {
    let pid = i32::try_from(scene.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    pidfd_open(pid, PidfdFlags::empty()).expect("open its pidfd")
}

/// Kills a worker's program, if it is still there.
fn kill(worker: &Value) -> bool {
    // One that has just died is not listed as that yet, but has no process.
    let pid = worker["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    pidfd.is_some_and(|pidfd| pidfd_send_signal(&pidfd, Signal::KILL).is_ok())
}

/// What became of the requests of one caller.
#[derive(Debug, Default)]
struct Heard {
    answered: u64,
    failed: u64,
}

/// Calls until it is over: each request has one answer, and it is its own.
fn call(socket: &std::path::Path, caller: u64, over: &AtomicBool) -> Heard {
    let mut peer = Peer::connect_to(socket);
    let mut heard = Heard::default();
    while !over.load(Ordering::Acquire) {
        let args = json!([caller, heard.answered + heard.failed]);
        let reply =
            peer.ask("Execute", &parameters("work", "echo", &args, &json!({ "idempotent": caller.is_multiple_of(2) })));
        if reply["error"].is_null() {
            assert_eq!(*result(&reply), args);
            heard.answered += 1;
        } else {
            let reason = &reply["parameters"]["reason"];
            assert!(["worker_exit", "undelivered"].contains(&reason.as_str().unwrap_or_default()), "{reply}");
            heard.failed += 1;
        }
    }
    // Nothing more comes than was asked for.
    assert_eq!(peer.ask("Ping", &json!({})), json!({ "parameters": {} }));
    heard
}

#[test]
fn every_request_has_one_answer_while_workers_are_killed_all_the_time() {
    needs!(Root, CgroupTree, Python3);
    let dispatch = "queue_timeout = '60s'\nattempts = 20\nquarantine = 0\nworker_breaker = { failures = 0 }";
    let mut scene = Scene::start(8, dispatch);
    let (baseline, daemon) = (scene.descriptors(), daemon_of(&scene));
    let over = AtomicBool::new(false);
    let socket = scene.path("run/control.sock");
    let (heard, killed) = std::thread::scope(|scope| {
        let (over, socket) = (&over, &socket);
        let callers: Vec<_> = (0..16).map(|caller| scope.spawn(move || call(socket, caller, over))).collect();
        let mut killed = 0;
        for round in 0..ROUNDS {
            let alive = healthy(&scene);
            killed += alive.iter().cycle().skip(round).take(alive.len().min(2)).filter(|worker| kill(worker)).count();
            assert!(!ended_within(daemon.as_fd(), PAUSE), "the daemon has ended");
        }
        over.store(true, Ordering::Release);
        (callers.into_iter().map(|caller| caller.join().expect("a caller")).collect::<Vec<_>>(), killed)
    });
    // A worker is up again only after its interpreter is; on a busy machine that takes many rounds.
    assert!(killed >= 8, "{killed} were killed");
    wait_healthy(&mut scene, 8);
    let queue = scene.wait_queue("work", &json!({ "in_flight": 0, "queued": 0, "available": 8, "workers": 8 }));
    let sum = |of: fn(&Heard) -> u64| heard.iter().map(of).sum::<u64>();
    let (answered, failed) = (sum(|heard| heard.answered), sum(|heard| heard.failed));
    let told = [&queue["requests"], &queue["answered"], &queue["errors"], &queue["abandoned"]];
    assert_eq!(told, [&json!(answered + failed), &json!(answered), &json!(failed), &json!(0)], "{queue}");
    assert!(heard.iter().all(|heard| heard.answered > 0), "{heard:?}");
    let idempotent = heard.iter().step_by(2).map(|heard| heard.failed).sum::<u64>();
    assert_eq!(idempotent, 0, "what may run twice is run again until it has an answer: {heard:?}");
    scene.wait_descriptors(baseline);
}

/// A caller that is a process of its own.
fn spawn(scene: &Scene, command: &str, args: &str) -> Child {
    let mut called = scene.place().command(&["call", "work", command, args]);
    called.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run halsup")
}

fn end(mut child: Child) {
    child.kill().expect("kill it");
    child.wait().expect("reap it");
}

#[test]
fn requests_of_callers_that_are_killed_never_begin_or_are_cancelled() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(2, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let baseline = scene.descriptors();
    let mut callers: Vec<Child> = (0..2).map(|number| spawn(&scene, "hold", &number.to_string())).collect();
    scene.wait_noted("holding", 2);
    let waiting: Vec<Child> = (2..8).map(|number| spawn(&scene, "hold", &number.to_string())).collect();
    scene.wait_queue("work", &json!({ "queued": 6, "in_flight": 2 }));
    waiting.into_iter().for_each(end);
    scene.wait_queue("work", &json!({ "queued": 0, "in_flight": 2, "abandoned": 6 }));
    callers.drain(..).for_each(end);
    scene.wait_noted("released", 2);
    scene.wait_queue("work", &json!({ "requests": 8, "in_flight": 0, "abandoned": 8, "available": 2 }));
    assert_eq!(*result(&scene.ask("echo", &json!(1), &json!({}))), json!(1));
    assert_eq!(scene.shared.noted("holding"), 2, "who waited never ran: {:?}", scene.shared.ledger());
    scene.wait_descriptors(baseline);
}

#[test]
fn callers_that_are_killed_all_the_time_leave_nothing() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(4, "queue_timeout = '60s'\ncancel_grace = '60s'");
    let (baseline, daemon) = (scene.descriptors(), daemon_of(&scene));
    let over = AtomicBool::new(false);
    let socket = scene.path("run/control.sock");
    let heard = std::thread::scope(|scope| {
        let (over, socket) = (&over, &socket);
        let callers: Vec<_> = (0..4).map(|caller| scope.spawn(move || call(socket, caller, over))).collect();
        let mut doomed = std::collections::VecDeque::new();
        for round in 0..ROUNDS {
            doomed.extend((0..2).map(|which| spawn(&scene, "nap", &format!("[\"{round}.{which}\", 0.03]"))));
            assert!(!ended_within(daemon.as_fd(), PAUSE), "the daemon has ended");
            doomed.drain(..doomed.len().saturating_sub(4)).for_each(end);
        }
        doomed.into_iter().for_each(end);
        over.store(true, Ordering::Release);
        callers.into_iter().map(|caller| caller.join().expect("a caller")).collect::<Vec<_>>()
    });
    assert!(heard.iter().all(|heard| heard.failed == 0 && heard.answered > 0), "{heard:?}");
    let queue = scene.wait_queue("work", &json!({ "in_flight": 0, "queued": 0, "available": 4, "errors": 0 }));
    let number = |name: &str| queue[name].as_u64().expect("a number");
    assert_eq!(number("requests"), number("answered") + number("abandoned"), "{queue}");
    assert_eq!(healthy(&scene).len(), 4);
    scene.wait_descriptors(baseline);
}

#[test]
fn workers_and_callers_that_are_killed_together_leave_nothing_and_others_their_answers() {
    needs!(Root, CgroupTree, Python3);
    let dispatch =
        "queue_timeout = '60s'\ncancel_grace = '60s'\nattempts = 20\nquarantine = 0\nworker_breaker = { failures = 0 }";
    let mut scene = Scene::start(8, dispatch);
    let (baseline, daemon) = (scene.descriptors(), daemon_of(&scene));
    let over = AtomicBool::new(false);
    let socket = scene.path("run/control.sock");
    let (heard, killed) = std::thread::scope(|scope| {
        let (over, socket) = (&over, &socket);
        let callers: Vec<_> = (0..8).map(|caller| scope.spawn(move || call(socket, caller, over))).collect();
        let (mut killed, mut doomed) = (0, std::collections::VecDeque::new());
        for round in 0..ROUNDS {
            doomed.extend((0..2).map(|which| spawn(&scene, "nap", &format!("[\"{round}.{which}\", 0.03]"))));
            let alive = healthy(&scene);
            killed += alive.iter().cycle().skip(round).take(alive.len().min(2)).filter(|worker| kill(worker)).count();
            assert!(!ended_within(daemon.as_fd(), PAUSE), "the daemon has ended");
            doomed.drain(..doomed.len().saturating_sub(6)).for_each(end);
        }
        doomed.into_iter().for_each(end);
        over.store(true, Ordering::Release);
        (callers.into_iter().map(|caller| caller.join().expect("a caller")).collect::<Vec<_>>(), killed)
    });
    assert!(killed >= 8, "{killed} were killed");
    wait_healthy(&mut scene, 8);
    let queue = scene.wait_queue("work", &json!({ "in_flight": 0, "queued": 0, "available": 8, "workers": 8 }));
    let number = |name: &str| queue[name].as_u64().expect("a number");
    // Of those whose callers were killed, some were answered before, some have failed with their worker, the others were given up.
    assert_eq!(number("requests"), number("answered") + number("errors") + number("abandoned"), "{queue}");
    let sum = |of: fn(&Heard) -> u64| heard.iter().map(of).sum::<u64>();
    assert!(
        number("answered") >= sum(|heard| heard.answered) && number("errors") >= sum(|heard| heard.failed),
        "{queue}"
    );
    let idempotent = heard.iter().step_by(2).map(|heard| heard.failed).sum::<u64>();
    assert!(idempotent == 0 && heard.iter().all(|heard| heard.answered > 0), "{heard:?}");
    scene.wait_descriptors(baseline);
}
