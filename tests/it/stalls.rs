//! Time that goes wrong and company that is not wanted: a daemon that stood still, a clock that jumped, a second daemon,
//! workers that do their worst while their daemon is away.

#![expect(clippy::disallowed_methods, reason = "measures how long a start takes, and sets the clock of a guest")]

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::fixture::{Daemon, ended_within};
use crate::look::{ANSWERS_PINGS, certificates, pid, python, signal, wait_certificate, wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::{Place, directory};

fn pidfd_of(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("it runs")
}

fn daemon_pid(daemon: &Daemon) -> i32 {
    i32::try_from(daemon.pid()).expect("a pid")
}

/// Pinged and beating workers, with intervals far below what the daemon will stand still.
fn beating() -> String {
    let beats = "import os,socket,time\nn = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\nn.connect(os.environ['NOTIFY_SOCKET'])\n\
        n.send(b'READY=1')\nwhile True:\n    n.send(b'WATCHDOG=1')\n    time.sleep(0.05)\n";
    format!(
        "[pool.asked]\non_supervisor_death = 'forever'\nready = 'channel'\n{}[pool.asked.heartbeat]\nsource = 'channel'\n\
         interval = '200ms'\ntimeout = '400ms'\nmax_missed = 2\n\
         [pool.beats]\non_supervisor_death = 'forever'\nready = 'notify'\n{}[pool.beats.heartbeat]\nsource = 'notify'\n\
         interval = '500ms'\nmax_missed = 2\n",
        python(ANSWERS_PINGS),
        python(beats)
    )
}

/// Sees that both workers live on, and that a real hang of either is still found.
fn hangs_are_found(daemon: &mut Daemon, programs: &[i32]) {
    let first = pidfd_of(programs[0]);
    assert!(!ended_within(first.as_fd(), Duration::from_secs(2)), "it was killed for nothing\n{}", daemon.stderr());
    assert_eq!(wait_healthy(daemon, 2).iter().map(pid).collect::<Vec<_>>(), programs, "{}", daemon.stderr());
    for (number, name) in ["asked.0", "beats.0"].iter().enumerate() {
        assert_eq!(certificates(daemon, name).len(), 0, "{name}");
        signal(programs[number], Signal::STOP);
        assert_eq!(wait_certificate(daemon, name, 1)["cause"], "heartbeat", "{name}");
    }
    wait_healthy(daemon, 2);
}

#[test]
fn a_daemon_that_stood_still_kills_nobody_for_it() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = Daemon::start(&beating());
    let programs: Vec<i32> = wait_healthy(&mut daemon, 2).iter().map(pid).collect();
    let first = pidfd_of(programs[0]);
    for stall in [Duration::from_millis(700), Duration::from_secs(5)] {
        signal(daemon_pid(&daemon), Signal::STOP);
        assert!(!ended_within(first.as_fd(), stall), "nobody was there to end it");
        signal(daemon_pid(&daemon), Signal::CONT);
        assert_eq!(daemon.cli(&["ps"]).status, 0);
    }
    hangs_are_found(&mut daemon, &programs);
}

const YEAR: i64 = 365 * 24 * 3600;

/// Sets the wall clock by so many seconds, and back when dropped.
struct Jumped(i64);

fn set_wall_clock(by: i64) {
    let now = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + by, ..now }).expect("set the clock");
}

impl Jumped {
    fn by(seconds: i64) -> Self {
        set_wall_clock(seconds);
        Self(seconds)
    }
}

impl Drop for Jumped {
    fn drop(&mut self) {
        set_wall_clock(-self.0);
    }
}

#[test]
fn a_year_that_passes_in_no_time_changes_nothing() {
    needs!(Root, CgroupTree, Python3, WallClock);
    for years in [1, -1, 10] {
        let mut daemon = Daemon::start(&beating());
        let programs: Vec<i32> = wait_healthy(&mut daemon, 2).iter().map(pid).collect();
        let jumped = Jumped::by(years * YEAR);
        assert_eq!(daemon.cli(&["status"]).status, 0);
        signal(daemon_pid(&daemon), Signal::KILL);
        daemon.start_again();
        drop(jumped);
        hangs_are_found(&mut daemon, &programs);
    }
}

#[test]
fn a_second_daemon_ends_with_the_reason_and_the_first_does_not_notice() {
    needs!(Root, CgroupTree);
    let pool = "[pool.web]\ncommand = ['sleep', 'infinity']\n";
    let mut daemon = Daemon::start(pool);
    let program = pid(&wait_healthy(&mut daemon, 1)[0]);
    let times = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 5 } else { 50 };
    let same_files = daemon.path("config.toml");
    let elsewhere = directory();
    let config = |state: &std::path::Path, run: &std::path::Path| {
        format!("[daemon]\ninstance = {:?}\nruntime_dir = {run:?}\nstate_dir = {state:?}\n{pool}", daemon.instance())
    };
    let write = |name: &str, text: String| {
        let path = elsewhere.path().join(name);
        fs::write(&path, text).expect("write a configuration");
        path
    };
    let (other_state, other_run) = (elsewhere.path().join("state"), elsewhere.path().join("run"));
    let configs = [
        (same_files, "runs with directory"),
        (write("run.toml", config(&other_state, &daemon.path("run"))), "runs with directory"),
        (write("state.toml", config(&daemon.path("state"), &other_run)), "runs with directory"),
        (write("instance.toml", config(&other_state, &other_run)), "of instance"),
    ];
    for round in 0..times {
        for (path, reason) in &configs {
            let mut second = crate::place::command();
            second.arg("--config").arg(path).args(["daemon", "run"]);
            let ended = daemon.place().run_bounded(&mut second);
            assert_eq!(ended.status, 1, "{round}, {}: {ended:?}", path.display());
            assert!(ended.stderr.contains(reason), "{}: {ended:?}", path.display());
        }
        assert_eq!(daemon.cli(&["ps"]).status, 0);
    }
    assert_eq!(pid(&wait_healthy(&mut daemon, 1)[0]), program);
    assert_eq!(certificates(&daemon, "web.0").len(), 0);
}

#[test]
fn of_two_daemons_that_start_at_once_one_runs() {
    needs!(Root, CgroupTree);
    let times = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 3 } else { 25 };
    let place = Place::new("");
    for round in 0..times {
        let mut both = [0, 1].map(|number| {
            let log = fs::File::create(place.path(&format!("stderr-{number}"))).expect("make a log");
            let mut daemon = place.command(&["daemon", "run"]);
            daemon.stdout(Stdio::null()).stderr(log).spawn().expect("start a daemon")
        });
        let fds = both.each_ref().map(|child| pidfd_of(i32::try_from(child.id()).expect("a pid")));
        let ended = crate::fixture::ready_for(
            rustix::event::PollFlags::IN,
            fds.each_ref().map(|fd| fd.as_fd()),
            Instant::now() + crate::fixture::LIFE_DEADLINE,
        );
        let loser = ended.unwrap_or_else(|| panic!("{round}: both run"));
        let said = fs::read_to_string(place.path(&format!("stderr-{loser}"))).expect("read its log");
        assert_eq!(both[loser].wait().expect("reap it").code(), Some(1), "{round}: {said}");
        assert!(said.contains("another halsup daemon"), "{round}: {said}");
        let winner = 1 - loser;
        // Listening or not yet: it is asked to end either way.
        rustix::process::pidfd_send_signal(&fds[winner], Signal::TERM).expect("it runs");
        let status = both[winner].wait().expect("reap it");
        let said = fs::read_to_string(place.path(&format!("stderr-{winner}"))).expect("read its log");
        assert!(status.code() == Some(0) || !said.contains("ready"), "{round}: {status}: {said}");
    }
}

#[test]
fn a_crowd_of_processes_and_frozen_ones_are_taken_over_at_once() {
    needs!(Root, CgroupTree, Python3);
    let count = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 300 } else { 3000 };
    let crowd = format!(
        "import os,signal\nfor n in range({count}):\n    if os.fork() == 0:\n        signal.pause()\nprint('forked', flush=True)\nsignal.pause()\n"
    );
    let mut daemon = Daemon::start(&format!(
        "[pool.crowd]\npids = 'max'\non_supervisor_death = 'forever'\n{}[pool.still]\nsize = 2\non_supervisor_death = 'forever'\n\
         command = ['sleep', 'infinity']\n",
        python(&crowd)
    ));
    wait_line(&mut daemon, "crowd.0", |line| line == "forked");
    let before = wait_healthy(&mut daemon, 3);
    let still: Vec<_> = before.iter().filter(|one| one["pool"] == "still").collect();
    let freeze = crate::needs::cgroup_mount()
        .expect("there is a hierarchy")
        .join(still[0]["cgroup"].as_str().expect("a cgroup").trim_start_matches('/'))
        .join("cgroup.freeze");
    fs::write(&freeze, "1").expect("freeze it");
    let init = i32::try_from(still[1]["init_pid"].as_i64().expect("an init")).expect("a pid");
    for process in [init, pid(still[1])] {
        signal(process, Signal::STOP);
    }
    signal(daemon_pid(&daemon), Signal::KILL);
    let begun = Instant::now();
    daemon.start_again();
    let took = begun.elapsed();
    let after = wait_healthy(&mut daemon, 3);
    assert_eq!(after.iter().map(pid).collect::<Vec<_>>(), before.iter().map(pid).collect::<Vec<_>>());
    assert!(took < Duration::from_secs(if count < 3000 { 20 } else { 2 }), "it took {took:?}");
    fs::write(&freeze, "0").expect("thaw it");
    signal(pid(still[1]), Signal::CONT);
    signal(init, Signal::CONT);
    assert_eq!(daemon.stop(), 0);
}
