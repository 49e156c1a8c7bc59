//! Errors of the kernel's that a test injects, call by call: nothing is lost, nothing else is touched, and the daemon
//! recovers by itself.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::Value;

use crate::fixture::{Daemon, EVENT_DEADLINE, ended_within};
use crate::inject::{Injector, Rule, What, When, gate_words};
use crate::look::{certificates, pid, signal, wait_certificate, wait_healthy, worker, workers};
use crate::needs::needs;

const POOL: &str = "[pool.web]\nsize = 2\non_supervisor_death = 'forever'\ncommand = ['sleep', 'infinity']\n\
    [pool.web.restart]\ndelay = '1ms'\ndelay_max = '1ms'\nmax_restarts = 10000\n";

fn pidfd_of(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("it runs")
}

/// Lets time pass in which `program` must not end.
#[track_caller]
fn lives_for(program: &OwnedFd, time: Duration) {
    assert!(!ended_within(program.as_fd(), time), "a worker ended that nobody touched");
}

fn trouble(daemon: &Daemon) -> Option<String> {
    daemon.cli(&["status", "--json"]).json()["state_trouble"].as_str().map(str::to_owned)
}

fn descriptors(daemon: &Daemon) -> Vec<String> {
    let entries =
        fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("look at the daemon's descriptors").flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}

/// Names in the directories where each generation of a worker has something.
fn things(daemon: &Daemon) -> Vec<String> {
    let pool = daemon.cgroup().expect("its cgroup").join("pool.web");
    let dirs = [daemon.path("run/work"), pool];
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).expect("list").flatten());
    let names = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Waits until both workers are well and nothing is there but what is theirs.
#[track_caller]
fn wait_settled(daemon: &mut Daemon, descriptors_most: usize, after: &str) {
    daemon.wait_until(&format!("both are well after {after}"), |daemon| {
        let all = workers(daemon);
        (all.len() == 2 && all.iter().all(|one| one["state"] == "healthy")).then_some(())
    });
    daemon.wait_until(&format!("nothing is left after {after}: {:?}", things(daemon)), |daemon| {
        (things(daemon).len() == 4).then_some(())
    });
    daemon.wait_until(&format!("no descriptor stays open after {after}: {:?}", descriptors(daemon)), |daemon| {
        (descriptors(daemon).len() <= descriptors_most).then_some(())
    });
}

#[test]
fn every_single_call_of_an_end_and_a_start_may_fail() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let both = wait_healthy(&mut daemon, 2);
    let other = pidfd_of(pid(&both[1]));
    let injector = Injector::attach(daemon.pid());
    signal(pid(&both[0]), Signal::KILL);
    wait_certificate(&mut daemon, "web.0", 1);
    wait_settled(&mut daemon, usize::MAX, "nothing");
    // One connection of a client comes and goes.
    let most = descriptors(&daemon).len() + 1;
    // An emulated machine takes a sample.
    let stride = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 13 } else { 1 };
    let mut failed = 0;
    for number in (1_u64..).step_by(stride) {
        let killed = worker(&daemon, "web.0");
        injector.set(vec![Rule::fail(&[], Errno::ENOMEM).when(When::Nth(number))]);
        // What cost the daemon the program's pid did not cost it the worker.
        let any = killed["pid"].as_i64().or(killed["init_pid"].as_i64()).and_then(|pid| i32::try_from(pid).ok());
        signal(any.expect("a process"), Signal::KILL);
        let met = injector.is_applied_within(Duration::from_millis(1500));
        injector.set(Vec::new());
        let Some(what) = met else { break };
        daemon.wait_until(&format!("another generation after call {number}, {what}"), |daemon| {
            (worker(daemon, "web.0")["generation"] != killed["generation"]).then_some(())
        });
        wait_settled(&mut daemon, most, &format!("call {number}, {what}"));
        lives_for(&other, Duration::ZERO);
        let told = ends_since(&daemon, &killed);
        assert!(told.first().is_some_and(|one| one["cause"] == "signal 9"), "call {number}, {what}: {told:?}");
        failed += 1;
    }
    assert!(failed > 100 / stride, "only {failed} calls were made");
    drop(injector);
    assert_eq!(trouble(&daemon), None);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn every_single_call_of_a_start_that_takes_over_may_fail() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let mut known = wait_healthy(&mut daemon, 2);
    let dir = daemon.path("");
    let words = gate_words(&dir);
    let stride = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 41 } else { 3 };
    let (mut failed, mut refused) = (0, 0);
    for number in (1_u64..).step_by(stride) {
        signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
        // The first thing that a daemon does is to close what it has inherited; what comes before is not its own.
        let rule = Rule::fail(&[], Errno::ENOMEM).after(libc::SYS_close_range).when(When::Nth(number));
        let injector = Injector::at_gate(&dir, vec![rule]);
        let started = daemon.try_start_again(&words.each_ref().map(String::as_str));
        let met = injector.is_applied_within(Duration::ZERO);
        drop(injector);
        let Some(what) = met else { break };
        failed += 1;
        if let Err(refusal) = started {
            refused += 1;
            assert!(refusal.contains("exit status: 1\n"), "call {number}, {what}: {refusal}");
            assert!(refusal.contains("halsup: "), "call {number}, {what}: it says why: {refusal}");
            daemon.start_again();
        }
        let now = wait_healthy(&mut daemon, 2);
        for (before, after) in known.iter().zip(&now).filter(|(old, new)| old["generation"] != new["generation"]) {
            let told = ends_since(&daemon, before);
            assert_eq!(told.len(), 1, "call {number}, {what}: {} was not taken over: {told:?}", after["name"]);
            let note = told[0]["note"].as_str().unwrap_or_default();
            assert!(note.contains("taken over"), "call {number}, {what}: {told:?}");
        }
        daemon.wait_until(
            &format!("two workers and no more after call {number}, {what}: {:?}", things(&daemon)),
            |daemon| (things(daemon).len() == 4).then_some(()),
        );
        // What failed once is tried again within a second or two.
        daemon.wait_until(&format!("no trouble after call {number}, {what}"), |daemon| {
            trouble(daemon).is_none().then_some(())
        });
        known = now;
    }
    assert!(failed > 100 / stride, "only {failed} calls were made");
    assert!(refused < failed, "every start was refused");
    assert_eq!(daemon.stop(), 0);
}

/// Calls that any signal interrupts.
const INTERRUPTED: [i64; 17] = [
    libc::SYS_accept4,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];

#[test]
fn interrupted_calls_and_short_ones_are_nobodys_business() {
    needs!(Root, CgroupTree);
    let config = POOL.replace("'sleep', 'infinity'", "'sh', '-c', 'echo begun; exec sleep infinity'");
    let mut daemon = Daemon::start(&config);
    wait_healthy(&mut daemon, 2);
    let short = |calls: &[i64], about| Rule::new(calls, What::Shorten(7)).about(about);
    let rules = || {
        vec![
            short(&[libc::SYS_write], "/state/state"),
            short(&[libc::SYS_write], "/state/state.new"),
            short(&[libc::SYS_write], "/state/certificates"),
            short(&[libc::SYS_pread64], "/state/state"),
            short(&[libc::SYS_pread64], "/state/certificates"),
        ]
    };
    let injector = Injector::attach(daemon.pid());
    injector.set([rules(), vec![Rule::fail(&INTERRUPTED, Errno::EINTR).when(When::EveryOther)]].concat());
    for round in 1..=3 {
        signal(pid(&worker(&daemon, "web.0")), Signal::KILL);
        assert_eq!(wait_certificate(&mut daemon, "web.0", round)["cause"], "signal 9");
        wait_healthy(&mut daemon, 2);
    }
    assert_eq!(daemon.cli(&["restart", "web.1"]).status, 0);
    let before = wait_healthy(&mut daemon, 2);
    assert_eq!(crate::look::lines(&daemon, "web.0").iter().filter(|line| *line == "begun").count(), 4);
    assert_eq!(trouble(&daemon), None);
    let applied = injector.applied();
    assert!(applied.iter().filter(|one| one.contains("Shorten")).count() > 10, "{applied:?}");
    assert!(applied.iter().filter(|one| one.contains("EINTR")).count() > 100, "{applied:?}");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    drop(injector);
    let dir = daemon.path("");
    let words = gate_words(&dir);
    let injector = Injector::at_gate(&dir, rules());
    daemon.start_again_under(&words.each_ref().map(String::as_str));
    assert_eq!(
        wait_healthy(&mut daemon, 2).iter().map(pid).collect::<Vec<_>>(),
        before.iter().map(pid).collect::<Vec<_>>()
    );
    assert_eq!(certificates(&daemon, "web.0").len(), 3);
    let applied = injector.applied();
    let reads = applied.iter().filter(|one| one.starts_with(&format!("{}(", libc::SYS_pread64))).count();
    assert!(reads > 50, "it was read in small pieces: {applied:?}");
    drop(injector);
}

#[test]
fn a_flood_of_signals_changes_nothing() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let before = wait_healthy(&mut daemon, 2);
    let itself = pidfd_of(i32::try_from(daemon.pid()).expect("a pid"));
    for _ in 0..50 {
        for _ in 0..1000 {
            rustix::process::pidfd_send_signal(&itself, Signal::CHILD).expect("send it");
        }
        assert_eq!(daemon.cli(&["ps"]).status, 0);
    }
    signal(pid(&before[0]), Signal::KILL);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "signal 9");
    assert_eq!(pid(&wait_healthy(&mut daemon, 2)[1]), pid(&before[1]));
}

/// Calls by which something is written, and their errors.
const DISK: [(&[i64], Errno, &str); 4] = [
    (&[libc::SYS_write, libc::SYS_fallocate], Errno::ENOSPC, "No space left"),
    (&[libc::SYS_write, libc::SYS_ftruncate], Errno::EIO, "Input/output error"),
    (&[libc::SYS_write, libc::SYS_openat], Errno::EROFS, "Read-only"),
    (&[libc::SYS_write, libc::SYS_renameat, libc::SYS_renameat2], Errno::EDQUOT, "quota"),
];

#[test]
fn a_disk_that_takes_nothing_stops_only_what_is_new() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    wait_healthy(&mut daemon, 2);
    let mut ends = 0;
    for (calls, errno, text) in DISK {
        let both = wait_healthy(&mut daemon, 2);
        let other = pidfd_of(pid(&both[1]));
        let injector = Injector::attach(daemon.pid());
        let fails = |about| Rule::fail(calls, errno).about(about);
        let watched = Rule::new(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait], What::Note);
        let broken = ["/state", "/state.new", "/certificates", "/certificates.new"].map(fails).to_vec();
        injector.set(broken.clone());
        signal(pid(&both[0]), Signal::KILL);
        let said = daemon.wait_until("trouble", trouble);
        assert!(said.contains(text), "{errno}: {said}");
        ends += 1;
        assert_eq!(wait_certificate(&mut daemon, "web.0", ends)["cause"], "signal 9", "{errno}");
        let down = worker(&daemon, "web.0");
        assert_eq!((down["state"].as_str(), &down["pid"]), (Some("initializing"), &Value::Null), "{errno}: {down}");
        assert_eq!(daemon.cli(&["status"]).status, 0);
        assert!(daemon.stderr().contains("start web.0: write down that it is started"), "{errno}: {}", daemon.stderr());
        injector.set([broken, vec![watched]].concat());
        lives_for(&other, Duration::from_secs(3));
        let turns = injector.applied().iter().filter(|one| one.contains("Note")).count();
        assert!(turns < 100, "{errno}: it turned {turns} times for nothing");
        injector.set(Vec::new());
        daemon.wait_until("the trouble is over", |daemon| trouble(daemon).is_none().then_some(()));
        let again = wait_healthy(&mut daemon, 2);
        assert_eq!(pid(&again[1]), pid(&both[1]), "{errno}");
        drop(injector);
        let left: Vec<_> =
            fs::read_dir(daemon.path("state")).expect("list").flatten().map(|one| one.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{left:?}");
        signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
        daemon.start_again();
        let adopted = wait_healthy(&mut daemon, 2);
        assert_eq!(adopted.iter().map(pid).collect::<Vec<_>>(), again.iter().map(pid).collect::<Vec<_>>());
        assert_eq!(certificates(&daemon, "web.0").len(), ends, "{errno}: none is lost");
    }
}

#[test]
fn a_sync_that_fails_is_not_tried_again_on_the_same_file() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let before = wait_healthy(&mut daemon, 2);
    let injector = Injector::attach(daemon.pid());
    injector.set(vec![
        Rule::fail(&[libc::SYS_fdatasync, libc::SYS_fsync], Errno::EIO).about("/state/state").when(When::Nth(1)),
        Rule::new(&[libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_renameat], What::Note).about("/state/state"),
        Rule::new(&[libc::SYS_renameat], What::Note).about("state"),
    ]);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::USR2);
    injector.wait_applied(3);
    let applied = injector.applied();
    let sync = format!("{}(", libc::SYS_fdatasync);
    let rename = format!("{}(", libc::SYS_renameat);
    assert!(applied[0].starts_with(&sync) && applied[0].contains("EIO"), "{applied:?}");
    assert!(
        applied[1].starts_with(&rename) && applied[2].starts_with(&sync),
        "it is another file by then: {applied:?}"
    );
    drop(injector);
    assert_eq!(daemon.start_again().code(), Some(0));
    let after = wait_healthy(&mut daemon, 2);
    assert_eq!(before.iter().map(pid).collect::<Vec<_>>(), after.iter().map(pid).collect::<Vec<_>>());
}

/// The certificates of a worker from one generation on, as far as they are shown.
fn ends_since(daemon: &Daemon, worker: &Value) -> Vec<Value> {
    let since = worker["generation"].as_u64().expect("a generation");
    let told = certificates(daemon, worker["name"].as_str().expect("a name"));
    told.into_iter().filter(|one| one["generation"].as_u64() >= Some(since)).collect()
}

/// Has calls fail while a worker is to be started anew, and sees that this is all that happens.
#[track_caller]
fn shortage(daemon: &mut Daemon, name: &str, rule: Rule, patience: Duration) -> bool {
    let both = wait_healthy(daemon, 2);
    let other = pidfd_of(pid(&both[1]));
    let injector = Injector::attach(daemon.pid());
    injector.set(vec![rule]);
    signal(pid(&both[0]), Signal::KILL);
    let met = injector.is_applied_within(patience).is_some();
    // Long enough for several tries, as far as it is tried.
    lives_for(&other, Duration::from_millis(if met { 400 } else { 0 }));
    let tries = injector.applied().len();
    assert!(tries < 100, "{name}: {tries} tries in half a second");
    injector.set(Vec::new());
    let again = wait_healthy(daemon, 2);
    drop(injector);
    assert_eq!(pid(&again[1]), pid(&both[1]), "{name}");
    let told = ends_since(daemon, &both[0]);
    assert_eq!(told.len(), 1, "{name}: a shortage is no end: {told:?}");
    assert_eq!(told[0]["cause"], "signal 9", "{name}: {told:?}");
    assert_eq!(again[0]["restarts"].as_u64(), both[0]["restarts"].as_u64().map(|count| count + 1), "{name}");
    daemon.wait_until(&format!("nothing is left after {name}"), |daemon| (things(daemon).len() == 4).then_some(()));
    met
}

#[test]
fn without_descriptors_or_processes_a_start_waits_and_counts_for_nothing() {
    needs!(Root, CgroupTree);
    let config = POOL.replace("max_restarts = 10000", "max_restarts = 40\nwindow = '1h'");
    let mut daemon = Daemon::start(&config);
    let calls = [
        ("accept4", libc::SYS_accept4),
        ("clone3", libc::SYS_clone3),
        ("fcntl", libc::SYS_fcntl),
        ("inotify_init1", libc::SYS_inotify_init1),
        ("memfd_create", libc::SYS_memfd_create),
        ("openat", libc::SYS_openat),
        ("openat2", libc::SYS_openat2),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pipe2", libc::SYS_pipe2),
        ("socket", libc::SYS_socket),
        ("socketpair", libc::SYS_socketpair),
    ];
    // Not every one of these is called each time; an emulated machine takes longer until it is seen which.
    let emulated = std::env::var_os("HALSUP_TEST_CROWD").is_some();
    let patience = Duration::from_millis(if emulated { 2000 } else { 500 });
    let mut met = Vec::new();
    for errno in [Errno::EMFILE, Errno::ENFILE] {
        for (name, call) in calls {
            if shortage(&mut daemon, &format!("{name} {errno}"), Rule::fail(&[call], errno), patience) {
                met.push(name);
            }
        }
        let all: Vec<i64> = calls.iter().map(|(_, call)| *call).collect();
        shortage(&mut daemon, &format!("all {errno}"), Rule::fail(&all, errno), EVENT_DEADLINE);
    }
    for name in ["clone3", "fcntl", "memfd_create", "openat", "pipe2", "socketpair"] {
        assert!(met.contains(&name), "{name} was never called: {met:?}");
    }
    for errno in [Errno::EAGAIN, Errno::ENOMEM] {
        assert!(shortage(
            &mut daemon,
            &format!("clone3 {errno}"),
            Rule::fail(&[libc::SYS_clone3], errno),
            EVENT_DEADLINE
        ));
    }
    assert!(shortage(&mut daemon, "epoll_ctl", Rule::fail(&[libc::SYS_epoll_ctl], Errno::ENOSPC), EVENT_DEADLINE));
}

#[test]
fn a_worker_that_cannot_be_taken_over_is_ended_with_the_reason_and_started_anew() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let before = wait_healthy(&mut daemon, 2);
    let programs: Vec<OwnedFd> = before.iter().map(|one| pidfd_of(pid(one))).collect();
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    let dir = daemon.path("");
    let words = gate_words(&dir);
    let injector = Injector::at_gate(&dir, vec![Rule::fail(&[libc::SYS_pidfd_getfd], Errno::EPERM)]);
    daemon.start_again_under(&words.each_ref().map(String::as_str));
    let after = wait_healthy(&mut daemon, 2);
    drop(injector);
    for (number, program) in programs.iter().enumerate() {
        assert!(ended_within(program.as_fd(), Duration::ZERO), "it is ended");
        assert_ne!(pid(&before[number]), pid(&after[number]));
        let told = certificates(&daemon, &format!("web.{number}"));
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["cause"], "shutdown", "{told:?}");
        let note = told[0]["note"].as_str().unwrap_or_default();
        assert!(note.contains("could not be taken over") && note.contains("not permitted"), "{told:?}");
    }
}
