//! `halsup pool wait`: it comes back when a pool is there, when it cannot be, or when its time is over.

use serde_json::{Value, json};

use super::{Gate, Shared};
use crate::fixture::Daemon;
use crate::look::wait_healthy;
use crate::needs::needs;
use crate::peer::{INTERFACE, Peer, flagged};

/// A worker that is ready when the test lets it, and a pool of so many.
fn gated(size: usize) -> (Daemon, Shared, Gate) {
    let shared = Shared::new();
    let gate = Gate::new(&shared);
    let program =
        "with open('/mnt/gate', 'rb', buffering=0) as pipe:\n    pipe.read(1)\nimport worker\nworker.halsup.serve()\n";
    shared.program("late.py", program);
    let config = shared.pool("late", "late.py", &format!("size = {size}"), "");
    (Daemon::start(&config), shared, gate)
}

/// The next reply of one who waits.
#[track_caller]
fn progress(peer: &mut Peer) -> (bool, Vec<(u64, u64, u64)>, bool) {
    let reply = peer.reply();
    assert_eq!(reply["error"], Value::Null, "{reply}");
    let numbers = |pool: &Value| {
        let number = |name: &str| pool[name].as_u64().expect("a number");
        (number("ready"), number("wanted"), number("starting"))
    };
    let pools = reply["parameters"]["pools"].as_array().expect("pools").iter().map(numbers).collect();
    (reply["parameters"]["reached"] == true, pools, reply["continues"] == true)
}

#[test]
fn who_waits_is_told_each_step_and_the_end() {
    needs!(Root, CgroupTree, Python3);
    let (mut daemon, _shared, mut gate) = gated(3);
    let wait = |complete: bool| {
        let mut peer = Peer::connect(&daemon);
        peer.say(&flagged("WaitPool", &json!({ "pool": "late", "complete": complete }), &json!({ "more": true })));
        peer
    };
    let (mut ready, mut complete) = (wait(false), wait(true));
    let mut quiet = Peer::connect(&daemon);
    quiet.call("WaitPool", &json!({ "complete": true }));
    assert_eq!(progress(&mut ready), (false, vec![(0, 3, 3)], true));
    assert_eq!(progress(&mut complete), (false, vec![(0, 3, 3)], true));
    let out = daemon.cli(&["pool", "wait", "late", "--timeout", "50ms"]);
    assert_eq!((out.status, out.stdout.as_str()), (4, ""), "{out:?}");
    assert!(out.stderr.contains("late: not ready after 50ms: late: 0 of 3 ready"), "{out:?}");
    let out = daemon.cli(&["pool", "wait", "--complete", "--timeout", "50ms", "--json"]);
    let said: Value = serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    assert_eq!((out.status, &said["pools"][0]["starting"]), (4, &json!(3)), "{out:?}");
    gate.open(1);
    assert_eq!(progress(&mut ready), (true, vec![(1, 3, 2)], false));
    assert_eq!(progress(&mut complete), (false, vec![(1, 3, 2)], true));
    gate.open(2);
    let end = loop {
        let said = progress(&mut complete);
        if !said.2 {
            break said;
        }
        assert!(!said.0, "{said:?}");
    };
    assert_eq!(end, (true, vec![(3, 3, 0)], false));
    assert_eq!(progress(&mut quiet), (true, vec![(3, 3, 0)], false));
    let out = daemon.cli(&["pool", "wait", "late", "--complete", "--timeout", "60s"]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "late: 3 of 3 ready\n"), "{out:?}");
    assert_eq!(daemon.cli(&["pool", "wait", "nobody"]).status, 5);
    wait_healthy(&mut daemon, 3);
}

#[test]
fn a_pool_that_cannot_be_there_is_not_waited_for() {
    needs!(Root, CgroupTree, Python3);
    let shared = Shared::new();
    shared.program("ends.py", "raise SystemExit(3)");
    let config = shared.pool("work", "worker.py", "", "")
        + &shared.pool("ends", "ends.py", "", "").replace("max_restarts = 10000", "max_restarts = 1");
    let daemon = Daemon::start(&config);
    for pools in [&["ends", "--ready"][..], &["--complete"]] {
        let out = daemon.cli(&[&["pool", "wait", "--timeout", "60s"], pools].concat());
        assert_eq!((out.status, out.stdout.as_str()), (1, ""), "{out:?}");
        assert!(out.stderr.contains("ends.0"), "it says who: {out:?}");
    }
    let out = daemon.cli(&["pool", "wait", "work", "--timeout", "60s"]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "work: 1 of 1 ready\n"), "{out:?}");
    // Nor one that was stopped.
    assert_eq!(daemon.cli(&["stop", "work"]).status, 0);
    assert_eq!(daemon.cli(&["pool", "wait", "work", "--timeout", "60s"]).status, 1);
}

#[test]
fn a_pool_that_goes_meanwhile_is_not_waited_for() {
    needs!(Root, CgroupTree, Python3);
    let (daemon, _shared, _gate) = gated(1);
    let mut peer = Peer::connect(&daemon);
    peer.say(&flagged("WaitPool", &json!({ "pool": "late" }), &json!({ "more": true })));
    assert_eq!(progress(&mut peer), (false, vec![(0, 1, 1)], true));
    daemon.place().configure("");
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    let end = loop {
        let reply = peer.reply();
        if reply["continues"] != true {
            break reply;
        }
    };
    let gone = end["error"] == format!("{INTERFACE}.NotFound");
    assert!(gone || end["parameters"]["reached"] == false || end["parameters"]["pools"][0]["wanted"] == 0, "{end}");
}
