//! Workers that stand still while nobody needs them: who is idle does, who is needed goes on at once, and whatever becomes of
//! the daemon meanwhile, nobody is left standing.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::checker::pause;
use crate::fixture::Daemon;
use crate::look::{certificates, pid, signal, wait_healthy, wait_line, worker};
use crate::needs::{Need, cgroup_mount, met, needs};
use crate::terminals::operator::Operator;

/// A pool of one warm worker, frozen after a second, whose program answers each line and a signal.
const SESSIONS: &str = "[pool.work]\nterminal = true\nfreeze_after = '1s'\non_supervisor_death = 'forever'\n\
    command = ['sh', '-c', '''trap 'echo heard' USR1; stty -echo; echo begun; while :; do read line && echo \"said $line\"; done''']\n\
    [pool.work.claims]\nmin = 1\nmax = 2\n";

fn occupancy(daemon: &Daemon, name: &str) -> String {
    worker(daemon, name)["occupancy"].as_str().unwrap_or_default().to_owned()
}

fn cgroup_of(daemon: &Daemon, name: &str) -> PathBuf {
    let worker = worker(daemon, name);
    let below = worker["cgroup"].as_str().expect("its cgroup").trim_start_matches('/').to_owned();
    cgroup_mount().expect("a cgroup mount").join(below)
}

fn stands_still(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
}

#[track_caller]
fn wait_frozen(daemon: &mut Daemon, name: &str) -> PathBuf {
    daemon.wait_until(&format!("{name} is frozen"), |daemon| (occupancy(daemon, name) == "frozen").then_some(()));
    let cgroup = cgroup_of(daemon, name);
    assert!(stands_still(&cgroup), "{name} is said to be frozen and runs");
    cgroup
}

#[track_caller]
fn wait_screen(daemon: &mut Daemon, name: &str, text: &str) {
    daemon.wait_until(text, |daemon| daemon.cli(&["capture", name]).stdout.contains(text).then_some(()));
}

/// A session `one` in `work.0`, which has begun.
#[track_caller]
fn session() -> Daemon {
    let mut daemon = Daemon::start(SESSIONS);
    wait_healthy(&mut daemon, 1);
    let claimed = daemon.cli(&["claim", "--name", "one"]);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    wait_screen(&mut daemon, "one", "begun");
    daemon
}

#[test]
fn an_idle_session_stands_still_until_somebody_needs_it() {
    needs!(Root, CgroupTree);
    let mut daemon = session();
    let cgroup = wait_frozen(&mut daemon, "work.0");
    // Everywhere the same is told.
    assert!(daemon.cli(&["ps"]).stdout.contains("healthy, frozen"));
    assert!(daemon.cli(&["inspect", "work.0"]).stdout.contains("healthy, frozen"));
    assert_eq!(daemon.cli(&["sessions", "--json"]).json()["sessions"][0]["frozen"], true);
    assert!(daemon.cli(&["pool", "list"]).stdout.contains("work.0  frozen  one"));
    daemon.wait_until("its file says so", |daemon| {
        let text = fs::read_to_string(daemon.path("state/pool/workers/work.0.json")).unwrap_or_default();
        text.contains("\"status\": \"frozen\"").then_some(())
    });
    // Typing.
    assert_eq!(daemon.cli(&["send", "one", "--enter", "hello"]).status, 0);
    wait_screen(&mut daemon, "one", "said hello");
    wait_frozen(&mut daemon, "work.0");
    // A program beside it.
    let run = daemon.cli(&["exec", "one", "--", "echo", "beside"]);
    assert_eq!((run.status, run.stdout.as_str()), (0, "beside\n"), "{run:?}");
    wait_frozen(&mut daemon, "work.0");
    // A signal.
    assert_eq!(daemon.cli(&["kill", "work.0", "--signal", "USR1"]).status, 0);
    wait_screen(&mut daemon, "one", "heard");
    wait_frozen(&mut daemon, "work.0");
    // Somebody who only looks: as long as that, it runs.
    assert_eq!(daemon.cli(&["capture", "one"]).status, 0);
    daemon.wait_event(|event| event["text"] == "work.0 goes on");
    wait_frozen(&mut daemon, "work.0");
    // The end, which it has to be able to hear of.
    assert_eq!(daemon.cli(&["release", "one"]).status, 0);
    assert!(!cgroup.exists(), "it is gone");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_frozen_warm_worker_is_claimed_as_any_other() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(SESSIONS);
    wait_healthy(&mut daemon, 1);
    wait_frozen(&mut daemon, "work.0");
    assert!(daemon.cli(&["status"]).stdout.contains("(1 frozen)"));
    assert!(daemon.cli(&["pool", "status"]).stdout.contains("s, frozen)"));
    let claimed = daemon.cli(&["claim", "--json", "--name", "one"]);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    let claimed = claimed.json();
    assert_eq!((&claimed["worker"], &claimed["warm"]), (&"work.0".into(), &true.into()));
    wait_screen(&mut daemon, "one", "begun");
    // Both of them, the session and the one that has taken its place, and then nobody looks at anything any more.
    wait_frozen(&mut daemon, "work.0");
    wait_frozen(&mut daemon, "work.1");
    let woken = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("its status");
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned))
    };
    // What the last connection left has its time first.
    pause(Duration::from_secs(6));
    let before = woken();
    pause(Duration::from_secs(3));
    assert_eq!(woken(), before, "the daemon wakes up although all stand still");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn who_works_or_is_looked_at_does_not_stand_still() {
    needs!(Root, CgroupTree);
    let config = "[pool.busy]\nterminal = true\nfreeze_after = '1s'\n\
        command = ['sh', '-c', 'while :; do sleep 0.4; done']\n\
        [pool.idle]\nterminal = true\nfreeze_after = '1s'\ncommand = ['sleep', '1000']\n";
    let mut daemon = Daemon::start(config);
    wait_healthy(&mut daemon, 2);
    wait_frozen(&mut daemon, "idle.0");
    let mut viewer = Operator::at(daemon.place(), &["attach", "--read-only", "idle.0"]);
    daemon.wait_event(|event| event["text"] == "idle.0 goes on");
    let cgroups = ["busy.0", "idle.0"].map(|name| cgroup_of(&daemon, name));
    for _ in 0..40 {
        pause(Duration::from_millis(100));
        assert!(cgroups.iter().all(|cgroup| !stands_still(cgroup)), "it has something to do");
    }
    viewer.types("\x10\x11");
    assert_eq!(viewer.ends(), 0);
    wait_frozen(&mut daemon, "idle.0");
    assert!(!stands_still(&cgroups[0]));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn who_stands_still_misses_no_beat() {
    needs!(Root, CgroupTree, Python3);
    let script = "import os, socket, time\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.connect(os.environ['NOTIFY_SOCKET'])\n\
        while True:\n    s.send(b'WATCHDOG=1')\n    time.sleep(2.5)\n";
    let config = format!(
        "[pool.web]\nterminal = true\nfreeze_after = '1s'\ncommand = ['python3', '-c', '''{script}''']\n\
         [pool.web.heartbeat]\nsource = 'notify'\ninterval = '4s'\nmax_missed = 1\n"
    );
    let mut daemon = Daemon::start(&config);
    wait_healthy(&mut daemon, 1);
    let cgroup = wait_frozen(&mut daemon, "web.0");
    // Twice as long as would end it otherwise.
    pause(Duration::from_secs(8));
    assert!(stands_still(&cgroup) && certificates(&daemon, "web.0").is_empty());
    assert_eq!(daemon.cli(&["send", "web.0", "x"]).status, 0);
    daemon.wait_event(|event| event["text"] == "web.0 goes on");
    wait_frozen(&mut daemon, "web.0");
    assert!(certificates(&daemon, "web.0").is_empty(), "it beats again by itself");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_daemon_that_dies_leaves_nobody_standing() {
    needs!(Root, CgroupTree);
    let mut daemon = session();
    let cgroup = wait_frozen(&mut daemon, "work.0");
    let before = pid(&worker(&daemon, "work.0"));
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    daemon.start_again();
    daemon.wait_event(|event| event["text"] == "work.0 is healthy");
    let state = worker(&daemon, "work.0");
    assert_eq!((pid(&state), &state["session"]["name"]), (before, &"one".into()));
    // It says what is so, and then it is frozen anew.
    assert_eq!(state["occupancy"] == "frozen", stands_still(&cgroup));
    wait_frozen(&mut daemon, "work.0");
    assert_eq!(daemon.cli(&["send", "one", "--enter", "again"]).status, 0);
    wait_screen(&mut daemon, "one", "said again");
    wait_frozen(&mut daemon, "work.0");
    assert_eq!(daemon.cli(&["daemon", "reexec"]).status, 0);
    let state = worker(&daemon, "work.0");
    assert_eq!(pid(&state), before);
    wait_frozen(&mut daemon, "work.0");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn who_is_not_to_outlive_the_daemon_does_not_because_it_stood_still() {
    needs!(Root, CgroupTree);
    let config =
        "[pool.web]\nterminal = true\nfreeze_after = '1s'\non_supervisor_death = '1s'\ncommand = ['sleep', '1000']\n";
    let mut daemon = Daemon::start(config);
    wait_healthy(&mut daemon, 1);
    let cgroup = wait_frozen(&mut daemon, "web.0");
    let program = Pid::from_raw(pid(&worker(&daemon, "web.0"))).expect("a pid");
    let watched = pidfd_open(program, PidfdFlags::empty()).expect("open its pidfd");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    assert!(crate::fixture::ended_within(watched.as_fd(), crate::fixture::EVENT_DEADLINE), "it outlives its daemon");
    let empty = || !fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"));
    assert!(
        (0..600).any(|_| empty() || {
            pause(Duration::from_millis(100));
            false
        }),
        "its init outlives it"
    );
    daemon.start_again();
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.stop(), 0);
}

/// The helper that lets everything go on when the daemon is gone.
fn guard(daemon: &Daemon) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).unwrap_or_default();
    let is_guard = |pid: &&str| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(10).any(|w| w == b"thaw-guard"))
    };
    children.split_whitespace().find(is_guard).and_then(|pid| pid.parse().ok())
}

#[test]
fn nobody_stands_still_without_the_guard() {
    needs!(Root, CgroupTree);
    let mut daemon = session();
    assert_eq!(guard(&daemon), None, "nobody is frozen yet");
    wait_frozen(&mut daemon, "work.0");
    let first = guard(&daemon).expect("a guard");
    signal(first, Signal::KILL);
    daemon.wait_event(|event| event["text"] == "work.0 goes on");
    wait_frozen(&mut daemon, "work.0");
    let second = guard(&daemon).expect("another guard");
    assert_ne!(first, second);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_copy_of_a_volume_and_idleness_do_not_undo_each_other() {
    needs!(Root, CgroupTree, Userns);
    let config = "[pool.web]\nterminal = true\nfreeze_after = '1s'\nvolumes = ['data:/data']\n\
        command = ['sh', '-c', 'stty -echo; while :; do read line && echo \"said $line\"; done']\n";
    let mut daemon = Daemon::start(config);
    wait_healthy(&mut daemon, 1);
    let cgroup = wait_frozen(&mut daemon, "web.0");
    let archive = daemon.path("out.tar.gz");
    assert_eq!(daemon.cli(&["volume", "export", "data", "-o", archive.to_str().expect("ASCII")]).status, 0);
    assert!(stands_still(&cgroup), "the end of the copy has let it go on");
    // Who is needed while a copy is made goes on after it.
    let mut export = daemon.place().command(&["volume", "export", "data", "-o", "-"]);
    let mut export = export.stdout(std::process::Stdio::piped()).spawn().expect("export");
    daemon.wait_event(|event| event["text"].as_str().is_some_and(|text| text.starts_with("hold volumes")));
    assert_eq!(daemon.cli(&["send", "web.0", "--enter", "hello"]).status, 0);
    export.kill().expect("end it");
    export.wait().expect("reap it");
    wait_screen(&mut daemon, "web.0", "said hello");
    wait_frozen(&mut daemon, "web.0");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_reload_without_the_key_lets_all_go_on() {
    needs!(Root, CgroupTree);
    let with = "[pool.web]\nterminal = true\nfreeze_after = '1s'\ncommand = ['sleep', '1000']\n";
    let mut daemon = Daemon::start(with);
    wait_healthy(&mut daemon, 1);
    let cgroup = wait_frozen(&mut daemon, "web.0");
    let before = pid(&worker(&daemon, "web.0"));
    daemon.place().configure(&with.replace("freeze_after = '1s'\n", ""));
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    daemon.wait_until("it goes on", |_| (!stands_still(&cgroup)).then_some(()));
    pause(Duration::from_secs(3));
    assert!(!stands_still(&cgroup));
    assert_eq!(pid(&worker(&daemon, "web.0")), before, "the same one");
    daemon.place().configure("[pool.web]\nfreeze_after = '1s'\ncommand = ['sleep', '1000']\n");
    let refused = daemon.cli(&["daemon", "reload"]);
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("freeze_after is written for workers"), "{}", refused.stderr);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn memory_that_a_frozen_worker_can_do_without_is_taken() {
    needs!(Root, CgroupTree);
    if !met(&[Need::Cgroup2("memory")]) {
        return;
    }
    // Pages of a file that it has read, which the kernel can read again.
    let script =
        "head -c 33554432 /dev/zero > /data/big; cat /data/big > /dev/null; sync /data/big; echo read; sleep 1000";
    let config = format!(
        "[pool.web]\nterminal = true\nfreeze_after = '1s'\nvolumes = ['data:/data']\ncommand = ['sh', '-c', '{script}']\n"
    );
    // On a disk: what lies in a tmpfs cannot be taken, and old kernels cannot map its ids.
    let dir = tempfile::Builder::new().prefix("halsup-test-").tempdir_in("/var/tmp").expect("make a directory");
    let mut daemon = Daemon::try_start(dir, &[], &config).expect("it starts");
    wait_line(&mut daemon, "web.0", |line| line == "read");
    let cgroup = cgroup_of(&daemon, "web.0");
    if !cgroup.join("memory.reclaim").exists() {
        return;
    }
    wait_frozen(&mut daemon, "web.0");
    let used = |file: &str| {
        let text = fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(u64::MAX)
    };
    daemon.wait_until("its memory is taken", |_| (used("memory.current") < (16 << 20)).then_some(()));
    assert_eq!(daemon.stop(), 0);
}
