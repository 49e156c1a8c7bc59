//! The example in Rust: its worker is run by a daemon, its caller calls it. This program is both, as a guest has no compiler.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::{Scene, Shared};
use crate::look::certificates;
use crate::needs::needs;
use crate::peer::{Peer, flagged};

#[path = "../../../examples/rust/caller.rs"]
mod caller;
#[path = "../../../examples/rust/worker.rs"]
mod worker;

/// What runs inside a worker of the pool below; nothing to test without a daemon.
#[test]
fn as_a_worker() {
    if std::env::var_os("HALSUP_CHANNEL_FD").is_some() {
        worker::serve().expect("serve");
    }
}

/// A pool `rust` with a worker that this program is.
fn scene() -> Scene {
    let shared = Shared::new();
    let program = shared.programs.path().join("worker");
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("copy it");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("let it be run");
    let python = "command = ['python3', '-B', '/srv/worker']";
    let rust = "command = ['/srv/worker', '--exact', 'requests::rust::as_a_worker', '--nocapture', '--test-threads=1']";
    let config = shared.pool("rust", "worker", "", "capacity = 16").replace(python, rust);
    Scene::begin(shared, &config, 1)
}

#[test]
fn the_caller_in_rust_gets_what_the_worker_in_rust_makes() {
    needs!(Root, CgroupTree);
    let mut scene = scene();
    let socket = scene.path("run/control.sock").display().to_string();
    let run = |words: &[&str]| {
        let words = [&[socket.as_str()], words].concat();
        caller::run(&words.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    assert_eq!(run(&["add", "1", "2.5"]).expect("a sum"), [json!(3.5)]);
    let mut counted: Vec<Value> = (0..100).map(|number| json!(number)).collect();
    counted.push(json!("counted"));
    assert_eq!(run(&["count", "100"]).expect("numbers"), counted);
    assert_eq!(run(&["serve"]).expect("the reply"), [json!(42)]);
    let failed = scene.cli(&["call", "rust", "add", "{}"]);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.contains("expected two numbers"), "{failed:?}");
    let unserved = scene.cli(&["call", "rust", "ask", "{\"tool\": \"nobody's\"}"]);
    assert!(unserved.stderr.contains("nobody serves"), "{unserved:?}");
    // A stream that nobody reads holds up nobody else, and is over with its reader.
    let mut stalled = Peer::connect(&scene);
    let parameters = json!({ "pool": "rust", "command": "count", "args": 1_000_000, "stream": true });
    stalled.say(&flagged("Execute", &parameters, &json!({ "more": true })));
    assert_eq!(stalled.reply()["parameters"]["chunk"], 0);
    assert_eq!(run(&["add", "1", "2"]).expect("a sum"), [json!(3.0)]);
    drop(stalled);
    scene.wait_queue("rust", &json!({ "in_flight": 0 }));
    assert_eq!(certificates(&scene, "rust.0").len(), 0);
}
