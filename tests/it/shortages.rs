//! Disks, descriptors and processes that run out, truly: what runs goes on, what is new waits, and all is well again when
//! there is room.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, prlimit};
use serde_json::Value;

use crate::fixture::{Daemon, ended_within};
use crate::look::{certificates, pid, signal, wait_certificate, wait_healthy, worker};
use crate::needs::needs;
use crate::place::Place;

const POOL: &str = "[pool.web]\nsize = 2\non_supervisor_death = 'forever'\ncommand = ['sleep', 'infinity']\n\
    [pool.web.restart]\ndelay = '1ms'\n";

fn pidfd_of(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("it runs")
}

fn daemon_pid(daemon: &Daemon) -> i32 {
    i32::try_from(daemon.pid()).expect("a pid")
}

/// Time on the processor that the daemon has used, in hundredths of a second.
fn used(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("read its times");
    let fields = stat.rsplit_once(") ").expect("its name").1.split(' ');
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
}

/// Lets time pass in which the daemon has next to nothing to do and no worker ends.
#[track_caller]
fn idle(daemon: &Daemon, program: &OwnedFd) {
    let before = used(daemon);
    assert!(!ended_within(program.as_fd(), Duration::from_secs(2)), "a worker ended that nobody touched");
    let spent = used(daemon) - before;
    assert!(spent < 40, "the daemon spun: {spent} % of two seconds\n{}", daemon.stderr());
}

fn trouble(daemon: &Daemon) -> Option<String> {
    daemon.cli(&["status", "--json"]).json()["state_trouble"].as_str().map(str::to_owned)
}

/// Mounts a small file system of its own at a directory of a place.
fn small(place: &Place, name: &str, options: &str) {
    let at = place.path(name);
    fs::create_dir(&at).expect("make the directory");
    let options = std::ffi::CString::new(format!("mode=755,{options}")).expect("no nul");
    mount("tmpfs", &at, "tmpfs", MountFlags::empty(), &*options).expect("mount a tmpfs");
}

/// Fills it to the last byte.
fn fill(dir: &Path) {
    let mut file = File::create(dir.join("fill")).expect("make a file");
    let mut size = 1 << 16;
    while size > 0 {
        if file.write_all(&vec![b'x'; size]).is_err() {
            size /= 2;
        }
    }
}

/// Ends the daemon and takes the small file system away.
fn finish(mut daemon: Daemon, name: &str) {
    assert_eq!(daemon.stop(), 0, "{}", daemon.stderr());
    unmount(daemon.path(name), UnmountFlags::empty()).expect("unmount it: nothing holds it");
}

#[test]
fn a_full_state_directory_keeps_what_runs_and_starts_nothing() {
    needs!(Root, CgroupTree);
    let place = Place::new(POOL);
    small(&place, "state", "size=1m");
    let mut daemon = Daemon::start_in(place);
    let both = wait_healthy(&mut daemon, 2);
    let other = pidfd_of(pid(&both[1]));
    fill(&daemon.path("state"));
    signal(pid(&both[0]), Signal::KILL);
    let said = daemon.wait_until("trouble", trouble);
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "signal 9");
    assert_eq!(worker(&daemon, "web.0")["pid"], Value::Null);
    idle(&daemon, &other);

    // Started where nothing can be written, it takes over what runs and waits all the same.
    signal(daemon_pid(&daemon), Signal::KILL);
    daemon.start_again();
    assert!(trouble(&daemon).is_some_and(|said| said.contains("No space left")));
    assert_eq!(pid(&worker(&daemon, "web.1")), pid(&both[1]));
    idle(&daemon, &other);

    fs::remove_file(daemon.path("state/fill")).expect("make room");
    daemon.wait_until("the trouble is over", |daemon| trouble(daemon).is_none().then_some(()));
    let again = wait_healthy(&mut daemon, 2);
    assert_eq!(pid(&again[1]), pid(&both[1]));
    assert_eq!(certificates(&daemon, "web.1").len(), 0);
    finish(daemon, "state");
}

#[test]
fn a_runtime_directory_without_room_keeps_what_runs_and_is_found_again() {
    needs!(Root, CgroupTree);
    let place = Place::new(POOL);
    small(&place, "run", "size=1m,nr_inodes=40");
    let mut daemon = Daemon::start_in(place);
    let both = wait_healthy(&mut daemon, 2);
    let other = pidfd_of(pid(&both[1]));
    let made = (0..100).take_while(|number| File::create(daemon.path(&format!("run/more-{number}"))).is_ok()).count();
    assert!(made < 40, "{made} files were made");
    signal(pid(&both[0]), Signal::KILL);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "signal 9");
    // What the dead one has left is room for the next: that is filled too.
    let refill = |daemon: &Daemon| {
        (100..200).take_while(|number| File::create(daemon.path(&format!("run/more-{number}"))).is_ok()).count()
    };
    refill(&daemon);
    idle(&daemon, &other);
    signal(daemon_pid(&daemon), Signal::KILL);
    refill(&daemon);
    daemon.start_again();
    assert_eq!(
        pid(&worker(&daemon, "web.1")),
        pid(&both[1]),
        "a daemon without room for a socket takes that of the last"
    );
    for entry in fs::read_dir(daemon.path("run")).expect("list").flatten() {
        if entry.file_name().to_string_lossy().starts_with("more-") {
            fs::remove_file(entry.path()).expect("make room");
        }
    }
    assert_eq!(pid(&wait_healthy(&mut daemon, 2)[1]), pid(&both[1]));
    finish(daemon, "run");
}

#[test]
fn without_a_free_descriptor_what_runs_goes_on_and_who_calls_waits() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let both = wait_healthy(&mut daemon, 2);
    let other = pidfd_of(pid(&both[1]));
    let itself = Pid::from_raw(daemon_pid(&daemon));
    // The hard limit stays: who may not raise it again could give no worker its own.
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("read its limits");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit on files");
    let maximum = files.split_whitespace().nth(1).and_then(|hard| hard.parse().ok());
    prlimit(itself, Resource::Nofile, Rlimit { current: Some(1), maximum }).expect("limit it");
    let mut caller = daemon.place().command(&["ps", "--json"]).stdout(Stdio::null()).spawn().expect("run halsup");
    signal(pid(&both[0]), Signal::KILL);
    let replaced = pidfd_of(i32::try_from(caller.id()).expect("a pid"));
    idle(&daemon, &other);
    assert!(!ended_within(replaced.as_fd(), Duration::ZERO), "nobody is accepted, nobody is refused");
    prlimit(itself, Resource::Nofile, Rlimit { current: maximum, maximum }).expect("give it back");
    assert!(caller.wait().expect("wait for it").success(), "who waited is answered");
    let again = wait_healthy(&mut daemon, 2);
    assert_eq!(pid(&again[1]), pid(&both[1]));
    let told = certificates(&daemon, "web.0");
    assert_eq!((told.len(), told[0]["cause"].as_str()), (1, Some("signal 9")), "a shortage is no end: {told:?}");
    let said = daemon.stderr();
    assert_eq!(said.matches("accept a control connection").count(), 1, "it is said once: {said}");
    assert!(said.matches("cgroup of web.0").count() <= 1, "it is said once: {said}");
}

#[test]
fn without_a_free_process_a_start_waits_and_counts_for_nothing() {
    needs!(Root, Cgroup2("pids"));
    let mut daemon = Daemon::start(&format!("{POOL}max_restarts = 2\nwindow = '1h'\n"));
    let both = wait_healthy(&mut daemon, 2);
    let other = pidfd_of(pid(&both[1]));
    let limit = daemon.cgroup().expect("its cgroup").join("pool.web/pids.max");
    // The other worker has two processes.
    fs::write(&limit, "2").expect("set the limit");
    signal(pid(&both[0]), Signal::KILL);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "signal 9");
    idle(&daemon, &other);
    assert_eq!(worker(&daemon, "web.0")["pid"], Value::Null);
    let said = daemon.stderr();
    assert_eq!(said.matches("start web.0: ").count(), 1, "it is said once why: {said}");
    assert!(said.contains("start web.0: start it: clone a process into"), "{said}");
    fs::write(&limit, "max").expect("lift the limit");
    let again = wait_healthy(&mut daemon, 2);
    assert_eq!(pid(&again[1]), pid(&both[1]));
    assert_eq!((certificates(&daemon, "web.0").len(), &again[0]["restarts"]), (1, &Value::from(1)));
}
