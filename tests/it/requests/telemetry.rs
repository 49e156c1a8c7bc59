//! Telemetry from the outside: each event by its name, with its numbers and what it is about, told to whoever follows.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Gate, Scene, Shared, failed, result};
use crate::fixture::{Daemon, EVENT_DEADLINE, Following};
use crate::look::{pid, signal, wait_healthy, worker};
use crate::needs::needs;
use crate::peer::{Peer, flagged};

/// Somebody who follows.
pub(super) struct Follower {
    peer: Peer,
    heard: Vec<Value>,
}

impl Follower {
    /// Follows from now on: what happens after this is told.
    #[track_caller]
    pub(super) fn begin(daemon: &Daemon) -> Self {
        let mut peer = Peer::connect(daemon);
        peer.say(&flagged("Events", &json!({ "follow": true, "telemetry": true }), &json!({ "more": true })));
        let first = peer.reply();
        assert_eq!((&first["error"], &first["parameters"]["events"]), (&Value::Null, &json!([])), "{first}");
        Self { peer, heard: Vec::new() }
    }

    /// The first event of this name that is such a one, of those that were told and of those that will be.
    #[track_caller]
    pub(super) fn find(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let name = format!("halsup.{name}");
        let is = |event: &&Value| event["name"] == name && wanted(event);
        if let Some(event) = self.heard.iter().find(is) {
            return event.clone();
        }
        let deadline = Instant::now() + EVENT_DEADLINE;
        loop {
            // Others are told all the time: that nothing comes at all is not what is waited for.
            assert!(Instant::now() < deadline, "no {name} was told");
            let reply = self.peer.reply();
            assert_eq!((&reply["error"], &reply["parameters"]["missed"]), (&Value::Null, &json!(0)), "{reply}");
            let events = reply["parameters"]["events"].as_array().expect("events").clone();
            let found = events.iter().find(is).cloned();
            self.heard.extend(events);
            if let Some(event) = found {
                assert_eq!((&event["kind"], &event["text"]), (&json!("telemetry"), &json!(name)), "{event}");
                assert!(event["measurements"]["system_time"].as_u64().is_some_and(|time| time > 1 << 50), "{event}");
                return event;
            }
        }
    }

    /// Events of all these names are told.
    #[track_caller]
    pub(super) fn all(&mut self, names: &[&str]) {
        for name in names {
            self.find(name, |_| true);
        }
    }

    /// Of the events that were told, how many have this name.
    fn count(&self, name: &str) -> usize {
        self.heard.iter().filter(|event| event["name"] == format!("halsup.{name}")).count()
    }
}

pub(super) fn number(event: &Value, name: &str) -> u64 {
    event["measurements"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {event}"))
}

#[test]
fn a_request_is_told_of_from_the_queue_to_its_answer_under_one_correlation() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let mut gate = Gate::new(&shared);
    let config = shared.pool("work", "worker.py", "", "queue_max = 1\nqueue_timeout = '60s'");
    let mut scene = Scene::begin(shared, &config, 1);
    let mut follower = Follower::begin(&scene);
    let mut first = scene.send("gate", &json!("one"), &json!({ "correlation": "c-1" }));
    scene.wait_noted("in", 1);
    let mut second = scene.send("echo", &json!("two"), &json!({ "correlation": "c-2" }));
    scene.wait_queue("work", &json!({ "queued": 1 }));
    let third = scene.ask("echo", &json!(3), &json!({ "correlation": "c-3" }));
    assert_eq!(failed(&third).0, "pool_saturated");
    gate.open(1);
    assert_eq!(*result(&first.reply()), json!("one"));
    assert_eq!(*result(&second.reply()), json!("two"));
    let about = |event: &Value, which: &str| event["metadata"]["correlation"] == which;
    let executed = follower.find("request.executed", |event| about(event, "c-2"));
    assert_eq!(
        (&executed["pool"], &executed["worker"], &executed["metadata"]["command"]),
        (&json!("work"), &json!("work.0"), &json!("echo")),
        "{executed}"
    );
    let said = &executed["metadata"];
    assert_eq!(
        (&said["success"], &said["aborted"], &said["streaming"]),
        (&json!(true), &json!(false), &json!(false)),
        "{said}"
    );
    assert!(number(&executed, "duration_us") > 0);
    for name in [
        "pool.queue.enqueued",
        "pool.queue.dequeued",
        "pool.call.dispatched",
        "grpc_worker.execute.start",
        "grpc_worker.execute.stop",
        "circuit_breaker.call.allowed",
    ] {
        let event = follower.find(name, |event| about(event, "c-2"));
        assert_eq!(event["metadata"]["request"], executed["metadata"]["request"], "{event}");
    }
    follower.find("circuit_breaker.call.success", |event| event["worker"] == "work.0");
    let saturated = follower.find("pool.saturated", |event| about(event, "c-3"));
    assert_eq!((number(&saturated, "queue_size"), number(&saturated, "max_queue_size")), (1, 1));
    assert_eq!(
        (&saturated["metadata"]["available_workers"], &saturated["metadata"]["busy_workers"]),
        (&json!(0), &json!(1))
    );
    let refused = follower.find("request.executed", |event| about(event, "c-3"));
    assert_eq!((&refused["metadata"]["reason"], &refused["worker"]), (&json!("pool_saturated"), &Value::Null));
    // The worker has it too, and the caller.
    let about = scene.ask("about", &json!(null), &json!({ "correlation": "c-4" }));
    assert_eq!((&result(&about)["correlation"], &about["parameters"]["correlation"]), (&json!("c-4"), &json!("c-4")));
    // The eight numbers, as they are.
    let queue = scene.queue("work");
    let status = follower.find("pool.status", |event| number(event, "requests") == 4);
    for (name, value) in [
        ("requests", 4),
        ("queued", 0),
        ("errors", 0),
        ("queue_timeouts", 0),
        ("pool_saturated", 1),
        ("workers", 1),
        ("available", 1),
        ("busy", 0),
    ] {
        assert_eq!((number(&status, name), queue[name].as_u64()), (value, Some(value)), "{name}");
    }
}

#[test]
fn what_goes_wrong_with_requests_is_told() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let config = shared.pool(
        "work",
        "worker.py",
        "",
        "taint = '100ms'\nattempts = 2\nworker_breaker = { failures = 2, open_for = '3s' }\npool_breaker = { failures = 2, open_for = '3s' }\nquarantine = 0",
    );
    let mut scene = Scene::begin(shared, &config, 1);
    let mut follower = Follower::begin(&scene);
    // An error of the application, and one that nobody expected.
    scene.ask("fail", &json!(null), &json!({}));
    let thrown = follower.find("python.exception.mapped", |_| true);
    assert_eq!(thrown["metadata"]["reason"], "full", "{thrown}");
    scene.ask("crash", &json!(null), &json!({}));
    follower.find("python.exception.unmapped", |event| event["metadata"]["reason"] == "KeyError");
    follower.all(&["error.python_exception", "grpc_worker.execute.exception"]);
    // A worker that dies of its request, twice, because it may be tried again.
    let died = scene.ask("die", &json!(1), &json!({ "idempotent": true, "timeout_ms": 60_000 }));
    assert!(["worker_exit", "circuit_open", "queue_timeout"].contains(&failed(&died).0), "{died}");
    let refused = scene.ask("echo", &json!(1), &json!({}));
    assert_eq!(failed(&refused).0, "circuit_open", "{refused}");
    follower.find("circuit_breaker.call.rejected", |event| event["metadata"]["command"] == "echo");
    let crash = follower.find("worker.crash", |_| true);
    assert_eq!((&crash["worker"], &crash["metadata"]["reason"]), (&json!("work.0"), &json!("signal 9")), "{crash}");
    let ended = follower.find("pool.worker.terminated", |_| true);
    assert_eq!(ended["metadata"]["planned"], false, "{ended}");
    assert!(number(&ended, "total_commands") >= 3, "{ended}");
    number(&ended, "lifetime_ms");
    follower.all(&["worker.tainted", "retry.attempt", "retry.backoff", "retry.exhausted"]);
    follower.all(&[
        "pool.worker.spawn_started",
        "pool.worker.spawned",
        "worker.restarted",
        "pool.worker.restarted",
        "pool.worker_ready",
    ]);
    let opened = follower.find("circuit_breaker.opened", |event| event["worker"] == "work.0");
    assert_eq!(number(&opened, "failure_count"), 2, "{opened}");
    follower.find("circuit_breaker.opened", |event| event["worker"] == Value::Null && event["pool"] == "work");
    wait_healthy(&mut scene, 1);
    scene.daemon.wait_until("a probe is answered", |daemon| answered(daemon).then_some(()));
    scene.daemon.wait_until("the other one too", |daemon| answered(daemon).then_some(()));
    follower.all(&["circuit_breaker.half_open", "circuit_breaker.closed"]);
    // One that waits too long.
    let busy = scene.send("nap", &json!(["long", 100.0]), &json!({}));
    scene.wait_noted("began long", 1);
    let late = scene.ask("echo", &json!(1), &json!({ "queue_timeout_ms": 50 }));
    assert_eq!(failed(&late).0, "queue_timeout");
    assert!(number(&follower.find("pool.queue.timeout", |_| true), "queue_time_us") >= 50_000);
    drop(busy);
    follower.find("request.cancelled", |_| true);
    follower.find("request.executed", |event| event["metadata"]["aborted"] == true);
}

/// Whether a request is answered at once.
fn answered(daemon: &Daemon) -> bool {
    let parameters = super::parameters("work", "echo", &json!(1), &json!({ "queue_timeout_ms": 100 }));
    Peer::connect(daemon).ask("Execute", &parameters)["error"] == Value::Null
}

#[test]
fn a_retry_that_succeeds_and_memory_that_goes_along_are_told() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(2, "select = 'round-robin'\nworker_breaker = { failures = 0 }");
    let mut follower = Follower::begin(&scene);
    let given = scene.path("given");
    std::fs::write(&given, vec![7; 100_000]).expect("write a file");
    let given = given.to_str().expect("text").to_owned();
    let called = scene.cli(&["call", "work", "reverse", "--payload", &given, "--output", "/dev/null", "--json"]);
    assert_eq!(called.status, 0, "{called:?}");
    assert_eq!(number(&follower.find("zero_copy.export", |_| true), "bytes"), 100_000);
    assert_eq!(number(&follower.find("zero_copy.import", |_| true), "bytes"), 100_000);
    let held = scene.send("hold", &json!("x"), &json!({ "idempotent": true }));
    scene.wait_noted("holding", 1);
    let busy =
        scene.queue("work")["desks"].as_array().expect("desks").iter().find(|desk| desk["in_flight"] == 1).cloned();
    let busy = busy.expect("somebody has it")["worker"].as_str().expect("a name").to_owned();
    signal(pid(&worker(&scene, &busy)), Signal::KILL);
    scene.wait_noted("holding", 2);
    follower.find("retry.attempt", |event| event["metadata"]["command"] == "hold" || event["worker"] == busy);
    drop(held);
}

#[test]
fn sessions_are_told_of_from_their_beginning_to_their_end() {
    needs!(Root, CgroupTree, Python3);
    let mut scene = Scene::start(1, "session_ttl = '1s'\nsessions = 2\naffinity = 'strict_queue'");
    let mut follower = Follower::begin(&scene);
    let reply = scene.ask("about", &json!(null), &json!({ "session": "s-1", "correlation": "mine" }));
    assert_eq!(result(&reply)["session"], "s-1");
    let created = follower.find("session.created", |event| event["metadata"]["session"] == "s-1");
    assert_eq!((&created["pool"], &created["metadata"]["correlation"]), (&json!("work"), &json!("mine")), "{created}");
    let assigned = follower.find("session.affinity.assigned", |_| true);
    assert_eq!(
        (&assigned["worker"], &assigned["metadata"]["session"]),
        (&json!("work.0"), &json!("s-1")),
        "{assigned}"
    );
    follower.find("session_store.session.expired", |event| event["metadata"]["session"] == "s-1");
    follower.find("bridge.session.pruned", |event| number(event, "count") == 1);
    let opened =
        Peer::connect(&scene).ask("OpenSession", &json!({ "pool": "work", "session": "s-2", "ttl_ms": 3_600_000 }));
    assert_eq!(opened["error"], Value::Null, "{opened}");
    let opened =
        Peer::connect(&scene).ask("OpenSession", &json!({ "pool": "work", "session": "s-3", "ttl_ms": 3_600_000 }));
    assert_eq!(opened["error"], Value::Null, "{opened}");
    let warned = follower.find("bridge.session.accumulation_warning", |_| true);
    assert_eq!((number(&warned, "current_sessions"), number(&warned, "max_sessions")), (2, 2), "{warned}");
    let before = scene.ask("about", &json!(null), &json!({ "session": "s-2" }));
    assert_eq!(before["error"], Value::Null, "{before}");
    signal(pid(&worker(&scene, "work.0")), Signal::KILL);
    follower.find("worker.crash", |_| true);
    let broken = scene.ask("about", &json!(null), &json!({ "session": "s-2" }));
    assert_eq!(failed(&broken).0, "session_worker_unavailable");
    follower.find("session.affinity.broken", |event| event["metadata"]["command"] == "about");
    let closed = Peer::connect(&scene).ask("CloseSession", &json!({ "pool": "work", "session": "s-3" }));
    assert_eq!(closed["error"], Value::Null, "{closed}");
    follower.find("session.destroyed", |event| event["metadata"]["session"] == "s-3");
    follower.find("session_store.session.deleted", |event| event["metadata"]["session"] == "s-3");
    wait_healthy(&mut scene, 1);
}

#[test]
fn heartbeats_are_told_of_and_so_is_their_lack() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let more = "heartbeat = { interval = '200ms', timeout = '2s', max_missed = 2 }";
    let config = shared.pool("work", "worker.py", more, "");
    let mut scene = Scene::begin(shared, &config, 1);
    let mut follower = Follower::begin(&scene);
    follower.find("heartbeat.ping_sent", |event| event["worker"] == "work.0");
    number(&follower.find("heartbeat.pong_received", |event| event["worker"] == "work.0"), "latency_us");
    signal(pid(&worker(&scene, "work.0")), Signal::STOP);
    assert!(number(&follower.find("heartbeat.heartbeat_timeout", |_| true), "missed_count") >= 1);
    follower.find("heartbeat.monitor_failure", |event| event["metadata"]["failure_reason"] == "missed heartbeats");
    follower.all(&["heartbeat.monitor_stopped", "worker.crash", "heartbeat.monitor_started"]);
    wait_healthy(&mut scene, 1);
}

#[test]
fn pools_that_begin_workers_that_are_replaced_and_ends_are_told() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let one = shared.pool("work", "worker.py", "", "worker_max_requests = 2\nbudget = { name = 'b', max = 1 }");
    let gone = "[pool.gone]\ncommand = ['/no/such/program']\nrestart = false\n";
    let two = shared.pool(
        "more",
        "worker.py",
        "size = 2\nstop_signal = 'SIGUSR1'\nstop_grace = '200ms'",
        "budget = { name = 'b', max = 1 }",
    );
    let mut scene = Scene::begin(shared, &one, 1);
    let mut follower = Follower::begin(&scene);
    let path = scene.path("config.toml");
    let text = std::fs::read_to_string(&path).expect("read the configuration");
    std::fs::write(&path, format!("{text}{two}{gone}")).expect("write the configuration");
    let reloaded = scene.cli(&["daemon", "reload"]);
    assert_eq!(reloaded.status, 0, "{reloaded:?}");
    let begun = follower.find("pool.init_started", |event| event["pool"] == "more");
    assert_eq!(number(&begun, "total_workers"), 2, "{begun}");
    number(&follower.find("pool.init_complete", |event| event["pool"] == "more"), "duration_ms");
    follower.find("pool.initialized", |event| event["pool"] == "more");
    let spawned = follower.find("pool.worker.spawned", |event| event["worker"] == "more.1");
    number(&spawned, "duration_us");
    follower.find("pool.worker.spawn_failed", |event| event["worker"] == "gone.0");
    // A worker that was given two requests is replaced.
    for number in 0..2 {
        result(&scene.ask("echo", &json!(number), &json!({})));
    }
    let due = follower.find("worker.recycle_due", |_| true);
    assert_eq!(due["metadata"]["reason"], "max_requests", "{due}");
    let recycled = follower.find("worker.recycled", |_| true);
    assert_eq!(
        (&recycled["worker"], &recycled["metadata"]["reason"]),
        (&json!("work.0"), &json!("recycled")),
        "{recycled}"
    );
    // Two pools share one request.
    let held = scene.send("hold", &json!("x"), &json!({}));
    scene.wait_noted("holding", 1);
    let mut waits = Peer::connect(&scene);
    waits.call("Execute", &super::parameters("more", "echo", &json!(1), &json!({ "queue_timeout_ms": 60_000 })));
    let reached = follower.find("pool.capacity_reached", |_| true);
    assert_eq!((number(&reached, "capacity"), &reached["pool"]), (1, &json!("more")), "{reached}");
    drop(held);
    result(&waits.reply());
    // The order to end, and one that does not hear it.
    let stopped = scene.cli(&["stop", "more.0"]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    follower.find("cleanup.start", |event| event["worker"] == "more.0");
    follower.find("cleanup.success", |event| event["worker"] == "more.0");
    let ended = follower.find("pool.worker.terminated", |event| event["worker"] == "more.0");
    assert_eq!(ended["metadata"]["planned"], true, "{ended}");
}

#[test]
fn the_end_of_the_daemon_is_told_to_the_last() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\ncommand = ['sh', '-c', 'trap \"\" TERM; echo up; sleep 1000 & wait; sleep 1000']\nstop_grace = '300ms'\n",
    );
    wait_healthy(&mut daemon, 1);
    crate::look::wait_line(&mut daemon, "web.0", |line| line == "up");
    let mut follower = Follower::begin(&daemon);
    let mut asks = Peer::connect(&daemon);
    asks.call("Shutdown", &json!({}));
    follower.all(&["script.shutdown.start", "script.shutdown.stop", "cleanup.start", "cleanup.timeout"]);
    follower.all(&["application_cleanup.emergency_cleanup", "pool.worker.terminated", "cleanup.success"]);
}

#[test]
fn what_a_worker_tells_is_told_as_its_own_and_under_no_name_of_the_daemons() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let program = "from halsup import serve, tool
@tool
def tells(context, args):
    for name in args:
        context.event(name, {'duration': 5}, {'tool': 'x'})
serve()
";
    shared.program("telling.py", program);
    let config = shared.pool("work", "telling.py", "", "");
    let scene = Scene::begin(shared, &config, 1);
    let mut follower = Follower::begin(&scene);
    result(&scene.ask("tells", &json!(["python.call.start", "pool.saturated"]), &json!({})));
    let told = follower.find("python.call.start", |_| true);
    assert_eq!(
        (&told["worker"], &told["metadata"]["told_by"], number(&told, "duration")),
        (&json!("work.0"), &json!("worker"), 5),
        "{told}"
    );
    let told = follower.find("worker.event", |_| true);
    assert_eq!(told["metadata"]["event"], "pool.saturated", "{told}");
    assert_eq!(follower.count("pool.saturated"), 0, "a worker cannot forge the daemon's own");
}

#[test]
fn without_a_follower_nothing_is_told_and_telemetry_pushes_no_event_out() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let counted = |scene: &Scene| scene.cli(&["events", "-n", "1000", "--json"]).stdout.lines().count();
    let before = counted(&scene);
    {
        let mut follower = Follower::begin(&scene);
        for number in 0..20 {
            result(&scene.ask("echo", &json!(number), &json!({})));
        }
        follower.find("request.executed", |_| true);
    }
    assert_eq!(counted(&scene), before, "the ring of events is another one");
    for number in 0..20 {
        result(&scene.ask("echo", &json!(number), &json!({})));
    }
    // Nothing of what was before is told to who comes later.
    let mut follower = Follower::begin(&scene);
    result(&scene.ask("echo", &json!(1), &json!({ "correlation": "last" })));
    follower.find("request.executed", |event| event["metadata"]["correlation"] == "last");
    assert_eq!(follower.count("request.executed"), 1);
    let refused = Peer::connect(&scene).ask("Events", &json!({ "telemetry": true }));
    assert_eq!(refused["error"], "org.varlink.service.InvalidParameter", "{refused}");
    // Pings go on by themselves, so there is something to tell whenever the command has begun to follow.
    let mut shown = Following::start(scene.place(), &["events", "--telemetry", "--json"]);
    let event: Value = serde_json::from_str(&shown.line()).expect("JSON");
    assert!(event["name"].as_str().is_some_and(|name| name.starts_with("halsup.")), "{event}");
}
