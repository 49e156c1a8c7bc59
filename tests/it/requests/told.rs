//! Telemetry of what is rarer than `telemetry.rs` has it, and that no name of the documentation is without a test.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::telemetry::{Follower, number};
use super::{Scene, Shared, failed, result};
use crate::fixture::Daemon;
use crate::look::wait_healthy;
use crate::needs::needs;
use crate::peer::Peer;
use crate::ports::free_ports;

const DOCUMENT: &str = include_str!("../../../docs/telemetry.md");
const TESTS: [&str; 2] = [include_str!("telemetry.rs"), include_str!("told.rs")];

/// The names in the first column of the table: one that begins with a dot goes on where the one before it ends.
fn documented() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `")) {
        let column = line.split_once(" |").expect("a row").0;
        let mut before = String::new();
        for name in column.split('`').step_by(2).filter(|name| !name.is_empty()) {
            let whole = match name.strip_prefix('.') {
                Some(rest) => format!("{}.{rest}", before.rsplit_once('.').expect("a name before").0),
                None => name.to_owned(),
            };
            // Of the heading there is nothing.
            if whole != "halsup." {
                before.clone_from(&whole);
                names.insert(whole);
            }
        }
    }
    names
}

#[test]
fn no_name_that_is_documented_is_without_a_test() {
    let names = documented();
    assert!(names.len() > 70 && names.contains("circuit_breaker.half_open"), "{names:?}");
    let missing: Vec<&String> =
        names.iter().filter(|name| !TESTS.iter().any(|test| test.contains(&format!("\"{name}\"")))).collect();
    assert_eq!(missing, [&""; 0]);
}

#[test]
fn an_error_is_told_by_what_kind_of_error_it_is() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let mut follower = Follower::begin(&scene);
    for name in ["error.shape_mismatch", "error.device", "error.oom", "error.dtype_mismatch", "error.dimension_error"] {
        let category = name.strip_prefix("error.").expect("of errors");
        let answer = scene.ask("fail_as", &json!(category), &json!({ "correlation": category }));
        assert_eq!(failed(&answer), ("misfit", "answered"));
        let told = follower.find(name, |_| true);
        let about = &told["metadata"];
        assert_eq!((&about["reason"], &about["correlation"]), (&json!("misfit"), &json!(category)), "{told}");
        assert_eq!(told["worker"], "work.0");
        follower.find("python.exception.mapped", |event| event["metadata"]["correlation"] == category);
    }
}

#[test]
fn an_answer_that_is_none_and_a_second_try_that_succeeds_are_told() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    shared.program("liar.py", include_str!("liar.py"));
    let lies = "worker_breaker = { failures = 0 }\nzero_copy = 1000\n";
    let config = shared.pool("lies", "liar.py", "", lies)
        + &shared.pool("work", "worker.py", "size = 2", "worker_breaker = { failures = 0 }\nquarantine = 0");
    let scene = Scene::begin(shared, &config, 3);
    let mut follower = Follower::begin(&scene);
    let lie = |command: &str, args: &Value| {
        Peer::connect(&scene).ask("Execute", &super::parameters("lies", command, args, &json!({})))
    };
    assert_eq!(failed(&lie("bad", &json!("unsealed"))).0, "worker_broken");
    follower.find("circuit_breaker.call.failure", |event| event["worker"] == "lies.0");
    // It was told to answer in memory, and does not: which costs time, and is no failure.
    for (length, is_told) in [(999 - 2, false), (1001 - 2, true)] {
        let text = json!("x".repeat(length));
        assert_eq!(*result(&lie("echo", &text)), text);
        if is_told {
            let told = follower.find("zero_copy.fallback", |_| true);
            assert_eq!((number(&told, "bytes"), &told["worker"]), (1001, &json!("lies.0")), "{told}");
        }
    }
    let answer = scene.ask("die_once", &json!("twice"), &json!({ "idempotent": true, "correlation": "twice" }));
    assert_eq!((result(&answer), &answer["parameters"]["attempts"]), (&json!("second"), &json!(2)));
    let told = follower.find("retry.success", |event| event["metadata"]["correlation"] == "twice");
    assert_eq!(number(&told, "attempts"), 2, "{told}");
}

#[test]
fn a_session_that_a_request_begins_is_stored() {
    needs!(Root, CgroupTree, Python3);
    let scene = Scene::start(1, "");
    let mut follower = Follower::begin(&scene);
    result(&scene.ask("echo", &json!(1), &json!({ "session": "s", "correlation": "c" })));
    let told = follower.find("session_store.session.created", |event| event["metadata"]["session"] == "s");
    assert_eq!((number(&told, "count"), &told["metadata"]["correlation"]), (1, &json!("c")), "{told}");
}

#[test]
fn a_worker_that_is_old_is_told_to_be_due() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    let late = shared.pool("work", "worker.py", "", "worker_ttl = '1s'");
    let mut daemon = Daemon::start("");
    let mut follower = Follower::begin(&daemon);
    daemon.place().configure(&late);
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    let due = follower.find("worker.recycle_due", |_| true);
    assert_eq!((&due["worker"], &due["metadata"]["reason"]), (&json!("work.0"), &json!("ttl")), "{due}");
    follower.find("worker.recycled", |event| event["worker"] == "work.0");
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_probe_that_is_refused_and_processes_that_are_left_behind_are_told() {
    needs!(Root, CgroupTree, Python3);
    // It listens until it is asked not to.
    let listens = "import os, signal, socket\ns = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n\
                   signal.signal(signal.SIGUSR1, lambda *_: s.close())\nwhile True: signal.pause()\n";
    let port = free_ports(1);
    let mut daemon = Daemon::start(&format!(
        "[pool.beats]\nready = 'tcp'\nbase_port = {port}\ncommand = ['python3', '-c', \"\"\"{listens}\"\"\"]\n\
         heartbeat = {{ interval = '100ms', timeout = '1s', max_missed = 3 }}\n"
    ));
    wait_healthy(&mut daemon, 1);
    let mut follower = Follower::begin(&daemon);
    assert_eq!(daemon.cli(&["kill", "beats.0", "--signal", "USR1"]).status, 0);
    let failed = follower.find("worker.health_check_failed", |event| event["worker"] == "beats.0");
    assert_eq!(number(&failed, "count"), 1, "{failed}");
    follower.find("heartbeat.heartbeat_timeout", |event| event["worker"] == "beats.0");
    let leaves = "[pool.leaves]\nrestart = false\ncommand = ['sh', '-c', 'sleep 1000 & sleep 1000 & exit 0']\n";
    daemon.place().configure(leaves);
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    let found = follower.find("application_cleanup.orphaned_processes_found", |event| event["worker"] == "leaves.0");
    assert_eq!(number(&found, "count"), 2, "{found}");
    let cleaned = follower.find("application_cleanup.cleanup_success", |event| event["worker"] == "leaves.0");
    assert_eq!(number(&cleaned, "count"), 2, "{cleaned}");
}

#[test]
fn that_everything_has_ended_is_told_to_who_still_reads() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    let mut follower = Follower::begin(&daemon);
    let mut asks = Peer::connect(&daemon);
    asks.call("Shutdown", &json!({}));
    for name in ["application_cleanup.cleanup_success", "script.shutdown.cleanup", "script.shutdown.exit"] {
        let told = follower.find(name, |event| event["worker"] == Value::Null);
        number(&told, "duration_ms");
    }
}

#[test]
fn a_worker_that_runs_out_of_memory_and_one_that_uses_more_than_it_may_are_told() {
    needs!(Root, CgroupTree, Cgroup2("memory"), Python3);
    let shared = Shared::new();
    let config = shared.pool("work", "worker.py", "memory = '128M'\nswap = '0'", "worker_max_memory = '64M'")
        + &shared.pool("more", "worker.py", "memory = '128M'\nswap = '0'", "");
    let scene = Scene::begin(shared, &config, 2);
    let mut follower = Follower::begin(&scene);
    scene.ask("grow", &json!(80 << 20), &json!({}));
    let due = follower.find("worker.recycle_due", |event| event["worker"] == "work.0");
    assert_eq!(due["metadata"]["reason"], "memory", "{due}");
    assert!(number(&due, "memory_bytes") > 64 << 20, "{due}");
    let grown = super::parameters("more", "grow", &json!(512 << 20), &json!({ "timeout_ms": 60_000 }));
    assert_eq!(failed(&Peer::connect(&scene).ask("Execute", &grown)).0, "worker_exit");
    let oom = follower.find("error.oom", |event| event["worker"] == "more.0");
    assert!(number(&oom, "oom_kills") >= 1, "{oom}");
    follower.find("worker.crash", |event| event["metadata"]["reason"] == "oom");
}
