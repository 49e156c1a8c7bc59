//! A pool's life from the outside: it comes up, a killed worker is replaced, a stop leaves nothing.

use serde_json::Value;

use crate::fixture::Daemon;
use crate::needs::needs;

const THREE_SLEEPERS: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\nsize = 3\n";

/// The workers that `halsup ps --json` lists as healthy.
fn healthy(daemon: &Daemon) -> Vec<Value> {
    let listed = daemon.cli(&["ps", "--json"]).json();
    let workers = listed["workers"].as_array().cloned().unwrap_or_default();
    workers.into_iter().filter(|worker| worker["state"] == "healthy").collect()
}

fn all_three(daemon: &Daemon) -> Option<Vec<Value>> {
    Some(healthy(daemon)).filter(|workers| workers.len() == 3)
}

#[test]
fn a_pool_comes_up_and_a_stop_leaves_nothing() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(THREE_SLEEPERS);
    daemon.wait_until("three healthy workers", all_three);
    assert!(std::fs::exists(format!("/proc/{}", daemon.pid())).expect("look at /proc"));
    assert!(!daemon.stderr().contains(" ERROR "), "{}: {}", daemon.instance(), daemon.stderr());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_killed_worker_is_replaced() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(THREE_SLEEPERS);
    daemon.wait_until("three healthy workers", all_three);
    assert_eq!(daemon.cli(&["kill", "web.0"]).status, 0);
    daemon.wait_event(|event| event["worker"] == "web.0" && event["state"] == "restarting");
    daemon.wait_until("three healthy workers again", all_three);
}
