//! `halsup pool` in the words that scripts for the system before this one look for, and what it does to warm workers.

use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{wait_healthy, workers};
use crate::needs::needs;
use crate::place::{Place, halsup};

const POOL: &str = "[pool.hal9000.claims]\nmin = 2\nmax = 4\n";

/// Workers that wait to be claimed.
fn warm(daemon: &Daemon) -> usize {
    workers(daemon).iter().filter(|worker| worker["occupancy"] == "warm").count()
}

#[test]
fn a_wrong_command_line_is_said_as_it_was() {
    for (arguments, expected) in [
        (&["pool"][..], "No command specified"),
        (&["pool", "bogus"], "Unknown argument: bogus"),
        (&["pool", "status", "--wat"], "Unknown argument: --wat"),
        (&["pool", "scale"], "Scale target not specified"),
        (&["pool", "scale", "abc"], "Invalid scale target: abc"),
        (&["pool", "scale", "-1"], "Invalid scale target: -1"),
        (&["pool", "scale", "99999999999999999999"], "Invalid scale target: 99999999999999999999"),
        (&["pool", "scale", "1\u{1b}[2J"], "Invalid scale target: 1\\x1b[2J"),
    ] {
        let output = halsup(arguments);
        assert_eq!(output.status, 2, "{arguments:?}: {output:?}");
        assert!(output.stderr.contains(expected) && output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    let other = halsup(&["volume", "bogus"]);
    assert!(other.status == 2 && other.stderr.contains("unrecognized subcommand 'bogus'"), "{other:?}");
    assert_eq!(Place::new("").cli(&["pool", "scale", "1"]).status, 3, "right, and no daemon");
}

#[test]
fn a_warm_worker_that_was_made_is_named_last_and_by_its_id() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    wait_healthy(&mut daemon, 2);
    let made = daemon.cli(&["pool", "warm"]);
    assert_eq!(made.status, 0, "{made:?}");
    let name = made.stdout.trim_end();
    let file = daemon.path("state/pool/workers").join(format!("{name}.json"));
    let file: Value = daemon.wait_until("its file", |_| serde_json::from_slice(&std::fs::read(&file).ok()?).ok());
    let said = format!("[pool] Created warm worker: {name} ({})", file["container_id"].as_str().expect("an id"));
    assert!(made.stderr.contains(&said), "{said:?}: {made:?}");
}

#[test]
fn a_manager_that_is_stopped_takes_warm_workers_along_and_brings_them_back() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    wait_healthy(&mut daemon, 2);
    assert_eq!(daemon.cli(&["claim", "--name", "one", "--", "sleep", "1000"]).status, 0);
    wait_healthy(&mut daemon, 3);
    assert_eq!(daemon.cli(&["pool", "stop"]).status, 0);
    assert_eq!(warm(&daemon), 2, "they stay where nobody says otherwise");
    let drained = daemon.cli(&["pool", "stop", "--drain"]);
    assert!(drained.status == 0 && drained.stderr.contains("Pool manager not running"), "{drained:?}");
    assert_eq!(warm(&daemon), 0);
    let refused = daemon.cli(&["claim", "--name", "two", "--", "true"]);
    assert!(refused.status == 1 && refused.stderr.contains("No warm workers available"), "{refused:?}");
    assert!(daemon.cli(&["sessions"]).stdout.contains("one"), "what is claimed is not the manager's");
    // Those that an operator has stopped too: what is said to be kept warm is warm.
    let started = daemon.cli(&["pool", "start"]);
    assert!(started.status == 0 && started.stderr.contains("Pool manager started (PID: "), "{started:?}");
    assert!(started.stdout.contains("Warm (ready): 2\n"), "{started:?}");
    assert_eq!(warm(&daemon), 2);
    assert!(daemon.cli(&["sessions"]).stdout.contains("one"));
}

#[test]
fn a_claim_that_names_no_command_has_a_shell_that_waits() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    wait_healthy(&mut daemon, 2);
    let claimed = daemon.cli(&["claim", "--name", "mine"]);
    assert_eq!((claimed.status, claimed.stdout.as_str()), (0, "mine\n"), "{claimed:?}");
    assert_eq!(daemon.cli(&["send", "mine", "--enter", "echo alive-$((1+1))"]).status, 0);
    daemon.wait_until("its answer", |daemon| daemon.cli(&["capture", "mine"]).stdout.contains("alive-2").then_some(()));
}
