//! The control socket that systemd holds: nobody is refused while the daemon is being restarted.

use std::sync::atomic::{AtomicBool, Ordering};

use super::service::{Caller, Process, Service, journal, property, systemctl};
use super::unit::SLEEPERS;
use crate::needs::needs;

/// The start of the next daemon is held up, so that the call comes when there is none.
#[test]
fn who_calls_during_a_restart_waits_and_is_answered() {
    needs!(Root, Systemd);
    let slow = "[Service]\nExecStart=\nExecStart=/bin/sh -c 'while [ -e /run/hold ]; do :; done; exec /usr/local/bin/halsup daemon run'\n";
    let service = Service::start_with(SLEEPERS, &[("halsup.service", slow)]);
    let daemon = service.daemon();
    std::fs::write("/run/hold", "").expect("hold the next one up");
    systemctl(&["restart", "--no-block", "halsup"]);
    daemon.wait();
    let caller = Caller::call();
    std::fs::remove_file("/run/hold").expect("let it go");
    let next = caller.answer();
    assert_ne!(next, daemon.pid);
    assert_eq!(next, property("halsup", "MainPID"));
}

/// One call after the other, whatever happens: each is answered by some daemon, none is refused.
#[test]
fn nobody_is_refused_while_a_daemon_follows_another() {
    needs!(Root, Systemd);
    let service = Service::start(SLEEPERS);
    let done = AtomicBool::new(false);
    let daemons = std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let mut answered = std::collections::BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                // A call that reaches a daemon in its last moment is closed without an answer; it is not refused.
                let caller = Caller::call();
                assert!(caller.is_answered_within(crate::fixture::EVENT_DEADLINE), "{}", journal());
                answered.extend(caller.try_answer());
            }
            answered
        });
        for _ in 0..2 {
            let daemon: Process = service.daemon();
            systemctl(&["restart", "halsup"]);
            daemon.wait();
        }
        let last = Caller::call().answer();
        done.store(true, Ordering::Relaxed);
        let mut answered = calls.join().expect("the calls");
        answered.insert(last);
        answered
    });
    assert!(daemons.len() >= 2, "{daemons:?}");
}
