//! Kills the daemon at every system call and sees that nothing is lost and nothing left (HARDENING R1).
//!
//! A scenario is one order or mishap. Its boundaries, entries into system calls and returns from them, are counted; then it
//! is played once for each boundary in a directory of its own, the daemon is killed there, started again, checked, stopped, and
//! checked to have left nothing. Double kills also kill the daemon that was started again, at some boundary of its start.
//!
//! ```text
//! cargo test --release --test kill_at -- --nocapture                        a sample of each scenario, below a minute
//! HALSUP_KILL=full cargo test --release --test kill_at -- --nocapture       every boundary, double kills at every fourth
//! HALSUP_KILL=full HALSUP_KILL_ONLY=crash,stop cargo test …                 of the scenarios with one of these in their names
//! HALSUP_KILL=crash:17 cargo test …                                         one boundary of one, with the daemon's log
//! HALSUP_KILL_RANDOM=500 cargo test …                                       as many random kills (25)
//! ```

#[path = "../checker/mod.rs"]
mod checker;
#[path = "../it/ports.rs"]
mod ports;
mod ready;
mod round;
mod scenarios;
mod scene;
mod site;
mod tracer;

mod inputs;
mod leases;
mod requests;
mod tasks;
mod tokens;

mod by_hand;
mod campaign;
mod random;

/// Writes past libtest, which swallows what passing tests print.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).expect("write to stderr");
}

/// A setting of the environment.
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the machine has what these tests need; says so where not, and fails where it has to.
fn able() -> bool {
    let needs = [("root", rustix::process::geteuid().is_root()), ("cgroup2", checker::cgroups::mount().is_some())];
    let required = setting("HALSUP_TEST_REQUIRE").unwrap_or_default();
    needs.into_iter().all(|(need, met)| {
        if !met {
            assert!(!required.contains(need), "HALSUP_TEST_REQUIRE asks for {need}, which this machine lacks");
            say(&format!("skipped: needs {need} (kill_at)"));
        }
        met
    })
}

#[test]
fn a_kill_at_any_system_call_loses_nothing_and_leaves_nothing() {
    if able() {
        campaign::run();
    }
}

#[test]
fn random_kills_under_load_lose_nobody_who_was_to_be_kept() {
    if able() {
        random::run();
    }
}

#[test]
fn a_kill_at_any_system_call_of_what_is_brought_back_by_hand_leaves_the_old_or_the_new() {
    if able() {
        by_hand::run();
    }
}
