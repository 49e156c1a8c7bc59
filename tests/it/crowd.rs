//! A thousand workers at once: they start, are listed, shrink, grow and stop, and nothing of them is left.

use std::collections::BTreeSet;

use crate::fixture::Daemon;
use crate::look::{pid, wait_healthy, workers};
use crate::needs::needs;

/// How many workers, unless `HALSUP_TEST_CROWD` says so: an emulated guest has neither the time nor the memory.
const CROWD: usize = 1_000;
/// How many are left in between.
const FEW: usize = 10;

fn crowd() -> usize {
    std::env::var("HALSUP_TEST_CROWD")
        .map_or(CROWD, |count| count.parse().unwrap_or_else(|_| panic!("HALSUP_TEST_CROWD: {count:?} is no number")))
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("look at the daemon's descriptors").count()
}

fn healthy_pids(daemon: &Daemon) -> BTreeSet<i32> {
    workers(daemon).iter().filter(|worker| worker["state"] == "healthy").map(pid).collect()
}

#[test]
fn a_crowd_starts_is_listed_shrinks_grows_and_stops() {
    let crowd = crowd();
    needs!(Root, CgroupTree, Descriptors(12 * crowd as u64));
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nmin = {FEW}\nmax = {crowd}\nstartup_batch_size = 64\ncommand = ['sleep', 'infinity']\n"
    ));
    daemon.wait_event(|_| true);
    let few = wait_healthy(&mut daemon, FEW);
    let baseline = descriptors(&daemon);

    let grown = daemon.cli(&["scale", "web", &crowd.to_string()]);
    assert_eq!(grown.status, 0, "{grown:?}");
    let all = healthy_pids(&daemon);
    assert_eq!(all.len(), crowd, "as many processes as workers");
    assert!(few.iter().all(|worker| all.contains(&pid(worker))), "who was there stays");
    let table = daemon.cli(&["ps"]);
    assert_eq!((table.status, table.stdout.lines().count()), (0, crowd + 1));

    let shrunk = daemon.cli(&["scale", "web", &FEW.to_string()]);
    assert_eq!(shrunk.status, 0, "{shrunk:?}");
    assert_eq!(healthy_pids(&daemon), few.iter().map(pid).collect::<BTreeSet<_>>(), "the first ones stay");
    assert_eq!(workers(&daemon).len(), FEW);
    daemon.wait_until("the descriptors are closed", |daemon| Some(()).filter(|()| descriptors(daemon) <= baseline));

    let again = daemon.cli(&["scale", "web", &crowd.to_string()]);
    assert_eq!(again.status, 0, "{again:?}");
    assert_eq!(healthy_pids(&daemon).len(), crowd);

    let stopped = daemon.cli(&["stop", "web"]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    assert!(workers(&daemon).iter().all(|worker| worker["state"] == "stopped"));
    daemon.wait_until("the descriptors are closed", |daemon| Some(()).filter(|()| descriptors(daemon) <= baseline));
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    assert_eq!(std::fs::read_to_string(children).expect("list children"), "", "no zombie is left");
    assert_eq!(daemon.stop(), 0);
}
