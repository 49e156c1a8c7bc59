//! The checker goes red: for each invariant a violation is planted, found, and removed again.

#![expect(clippy::disallowed_types, reason = "what is planted are processes of the test's own")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::json;

use crate::checker::canary::Canary;
use crate::checker::host::{self, Host};
use crate::checker::line::{self, Line};
use crate::checker::told::{self, Told};
use crate::checker::{self, Findings, Instance, Invariant, Violation, cgroups, descriptors, proc};
use crate::fixture::Daemon;
use crate::look::{pid, signal, wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::directory;

const ONE: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

/// Whether there is a violation of this invariant that says this.
fn says(found: &[Violation], invariant: Invariant, text: &str) -> bool {
    found.iter().any(|one| one.invariant == invariant && one.what.contains(text))
}

#[track_caller]
fn assert_says(found: &[Violation], invariant: Invariant, text: &str) {
    assert!(says(found, invariant, text), "no {invariant} with {text:?} in:\n{}", checker::lines(found));
}

#[track_caller]
fn assert_clean(instance: &Instance) {
    let found = checker::running(instance);
    assert!(found.is_empty(), "{}", checker::lines(&found));
}

/// A process that does nothing, with these as its standard streams.
fn sleeper(streams: [Stdio; 3]) -> Child {
    let [stdin, stdout, stderr] = streams;
    Command::new("sleep").arg("infinity").stdin(stdin).stdout(stdout).stderr(stderr).spawn().expect("run sleep")
}

fn end(mut child: Child) {
    child.kill().expect("end it");
    child.wait().expect("reap it");
}

fn move_to(cgroup: &Path, pid: u32) {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).expect("move a process");
}

#[test]
fn a_process_without_an_owner_is_found() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(ONE);
    wait_healthy(&mut daemon, 1);
    let instance = daemon.place().checked();
    assert_clean(&instance);
    let leaf = daemon.cgroup().expect("a cgroup").join("pool.web/w-7-99");
    fs::create_dir(&leaf).expect("make a cgroup");
    let stray = sleeper([Stdio::null(), Stdio::null(), Stdio::null()]);
    move_to(&leaf, stray.id());
    for found in [checker::look_at_running(&instance), checker::stopped(&instance)] {
        assert_says(&found, Invariant::Processes, &format!("process {}", stray.id()));
        assert_says(&found, Invariant::Objects, "w-7-99");
    }
    end(stray);
    fs::remove_dir(&leaf).expect("remove the cgroup");
    // One that has left its cgroup is known by its environment.
    let mut escaped = Command::new("sleep");
    escaped.arg("infinity").env("HALSUP_WORKER", "web.7").env("HALSUP_INSTANCE", daemon.instance());
    let escaped = escaped.spawn().expect("run sleep");
    assert_says(&checker::look_at_running(&instance), Invariant::Processes, &format!("process {}", escaped.id()));
    end(escaped);
    assert_clean(&instance);
}

#[test]
fn what_is_left_in_the_file_system_is_found() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(ONE);
    wait_healthy(&mut daemon, 1);
    let instance = daemon.place().checked();
    for place in ["run/work/web.0-99", "run/notify/web.0-99", "state/overlay/web.0-99", "run/tmp", "state/logs/tmp"] {
        let planted = daemon.path(place);
        fs::create_dir(&planted).expect("make a directory");
        for found in [checker::look_at_running(&instance), checker::stopped(&instance)] {
            assert_says(&found, Invariant::Objects, planted.to_str().expect("ASCII"));
        }
        fs::remove_dir(&planted).expect("remove the directory");
    }
    for place in ["state/x.json.tmp", "run/.new", "state/logs/workers/web.0.tmp"] {
        let planted = daemon.path(place);
        fs::write(&planted, "").expect("make a file");
        assert_says(&checker::look_at_running(&instance), Invariant::Objects, planted.to_str().expect("ASCII"));
        fs::remove_file(&planted).expect("remove the file");
    }
    let socket = daemon.path("run/stale.sock");
    drop(UnixListener::bind(&socket).expect("bind a socket"));
    assert_says(&checker::look_at_running(&instance), Invariant::Objects, "stale.sock");
    fs::remove_file(&socket).expect("remove the socket");
    let point = daemon.path("host");
    mount("none", &point, "tmpfs", MountFlags::empty(), None).expect("mount a tmpfs");
    let found = checker::look_at_running(&instance);
    unmount(&point, UnmountFlags::DETACH).expect("unmount it");
    assert_says(&found, Invariant::Objects, "mount on");
    assert_clean(&instance);
}

#[test]
fn descriptors_without_an_owner_are_found() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(ONE);
    wait_healthy(&mut daemon, 1);
    let instance = daemon.place().checked();
    assert_clean(&instance);
    let leaf = daemon.cgroup().expect("a cgroup").join("pool.web/w-7-99");
    fs::create_dir(&leaf).expect("make a cgroup");
    let log = daemon.path("state/logs/workers/web.7.log");
    fs::write(&log, "").expect("make a log");
    let mut dead = Command::new("true").spawn().expect("run true");
    let pidfd: OwnedFd = pidfd_open(Pid::from_child(&dead), PidfdFlags::empty()).expect("open its pidfd");
    dead.wait().expect("reap it");
    // A process that stands in for a daemon with such descriptors.
    let open = |path: &Path| Stdio::from(fs::File::open(path).expect("open it"));
    let planted = sleeper([pidfd.into(), open(&leaf), open(&log)]);
    let many = sleeper([Stdio::piped(), Stdio::piped(), Stdio::piped()]);
    let mut nobody = Findings::default();
    let mut told = Told::ask(&instance.control(), &mut nobody).expect("it answers");
    let mut found = Findings::default();
    descriptors::accounted_of(planted.id(), &instance, &told, &mut found);
    told.workers.clear();
    descriptors::accounted_of(many.id(), &instance, &told, &mut found);
    end(planted);
    end(many);
    fs::remove_dir(&leaf).expect("remove the cgroup");
    fs::remove_file(&log).expect("remove the log");
    for text in [
        "descriptor 0 of the daemon: a pidfd of process -1",
        "1 of the daemon: cgroup",
        "2 of the daemon: log",
        "pipes, at most 1 are",
    ] {
        assert_says(&found.0, Invariant::Descriptors, text);
    }
}

#[test]
fn what_is_told_and_not_so_is_found() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(ONE);
    let worker = wait_healthy(&mut daemon, 1).remove(0);
    let instance = daemon.place().checked();
    let program = u32::try_from(pid(&worker)).expect("a pid");
    let base = daemon.cgroup().expect("a cgroup");
    move_to(&cgroups::mount().expect("a hierarchy"), program);
    let found = checker::look_at_running(&instance);
    move_to(&base.join("pool.web").join(format!("w-0-{}", worker["generation"])), program);
    assert_says(&found, Invariant::Truth, &format!("the program of web.0, {program}, is in"));
    assert_clean(&instance);

    let mut lies = Findings::default();
    let mut told = Told::ask(&instance.control(), &mut lies).expect("it answers");
    let mut gone = Command::new("true").spawn().expect("run true");
    gone.wait().expect("reap it");
    told.workers[0].pid = Some(gone.id());
    told.workers[0].generation = Some(99);
    told.status["counts"]["crashed"] = json!(7);
    told::true_to_life(&told, Some(&base), &proc::all(), &mut lies);
    for text in ["does not run", "and not in /pool.web/w-0-99", "w-0-99 is not there", "all: 7 crashed"] {
        assert_says(&lies.0, Invariant::Truth, text);
    }
}

/// What a client's books say of a daemon that gives this answer to a call.
fn books(answer: &[u8]) -> Vec<Violation> {
    let dir = directory();
    let path = dir.path().join("control.sock");
    let listener = UnixListener::bind(&path).expect("bind a socket");
    let mut found = Findings::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().expect("accept a connection");
            let mut buffer = [0; 4096];
            assert_ne!(peer.read(&mut buffer).expect("read a call"), 0, "there is one");
            peer.write_all(answer).expect("answer it");
        });
        let mut line = Line::connect(&path, Duration::from_secs(60)).expect("connect");
        line.ask("Stop", &json!({ "target": "web" }));
        // The rest, until the peer has closed.
        while line.next().is_some() {
            line.calls[0].answers += 1;
        }
        line::judge(&line.calls, false, &mut found);
    });
    found.0
}

#[test]
fn an_answer_too_many_or_too_few_is_found() {
    assert_eq!(books(b"{\"parameters\":{}}\0"), []);
    assert_says(&books(b"{\"parameters\":{}}\0{\"parameters\":{}}\0"), Invariant::Answers, "Stop got 2 answers");
    assert_says(&books(b""), Invariant::Answers, "Stop got no answer");
}

#[test]
fn a_bystander_that_was_signalled_or_killed_is_found() {
    let found = |canary: &Canary| {
        let mut found = Findings::default();
        canary.untouched(&mut found);
        found.0
    };
    let canary = Canary::start(None);
    let raw = i32::try_from(canary.pid()).expect("a pid");
    assert_eq!(found(&canary), []);
    signal(raw, Signal::TERM);
    assert_says(&found(&canary), Invariant::Bystanders, "was signalled");
    signal(raw, Signal::KILL);
    while !proc::one(canary.pid()).is_none_or(|one| one.is_zombie()) {
        std::thread::yield_now();
    }
    assert_says(&found(&canary), Invariant::Bystanders, "was killed");
}

#[test]
fn a_daemon_that_does_not_answer_in_time_is_found() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(ONE);
    wait_healthy(&mut daemon, 1);
    let stopped = i32::try_from(daemon.pid()).expect("a pid");
    signal(stopped, Signal::STOP);
    let found = checker::look_at_running(&daemon.place().checked());
    signal(stopped, Signal::CONT);
    assert_says(&found, Invariant::Latency, "Ping got no answer");
    let late = line::Call { method: "Ping".into(), answers: 1, took: Some(Duration::from_secs(5)), cut: false };
    let mut found = Findings::default();
    line::judge(&[late], false, &mut found);
    assert_says(&found.0, Invariant::Latency, "only after 5s");
}

#[test]
fn a_secret_outside_its_scope_is_found() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.a]\nenv = { SECRET = 'kept-close' }\ncommand = ['sleep', 'infinity']\n\
         [pool.b]\nenv = { SECRET = 'kept-close' }\ncommand = ['sh', '-c', 'echo $SECRET; exec sleep infinity']\n",
    );
    wait_healthy(&mut daemon, 2);
    wait_line(&mut daemon, "b.0", |line| line == "kept-close");
    let mut instance = daemon.place().checked();
    instance.secrets.pools.push(("a".to_owned(), "kept-close".to_owned()));
    let found = checker::look_at_running(&instance);
    assert_says(&found, Invariant::Secrets, "of pool b has the secret of a");
    assert_says(&found, Invariant::Secrets, "the secret of a is in");
    assert!(!says(&found, Invariant::Secrets, "of pool a"), "{}", checker::lines(&found));
    let environment = fs::read(format!("/proc/{}/environ", daemon.pid())).expect("read the daemon's environment");
    let secret = daemon.place().secret();
    assert!(String::from_utf8_lossy(&environment).contains(&secret), "the daemon has its own");
    let planted = daemon.path("state/logs/workers/a.0.log");
    fs::write(&planted, format!("{secret}\n")).expect("write a log");
    assert_says(&checker::stopped(&instance), Invariant::Secrets, "the secret of the daemon is in");
    fs::write(&planted, "").expect("empty the log");
}

#[test]
fn a_host_that_was_touched_is_found() {
    let dir = directory();
    let host = Host::look(&host::canaries(dir.path()));
    let found = |host: &Host| {
        let mut found = Findings::default();
        host.untouched(&mut found);
        found.0
    };
    assert_eq!(found(&host), []);
    let file = dir.path().join("file");
    fs::write(&file, "changed").expect("change a canary");
    assert_says(&found(&host), Invariant::Host, "/file is no longer");
    fs::set_permissions(dir.path().join("inner"), fs::Permissions::from_mode(0o777)).expect("change a mode");
    assert_says(&found(&host), Invariant::Host, "/inner is no longer");
    fs::remove_file(dir.path().join("link")).expect("remove a canary");
    assert_says(&found(&host), Invariant::Host, "/link is no longer");
    let mut other = Host::look(&[]);
    let taken = other.mounts.pop().expect("something is mounted");
    assert_says(&found(&other), Invariant::Host, &format!("new mount {taken}"));
    other.mounts.extend([taken, "a mount that went".to_owned()]);
    assert_says(&found(&other), Invariant::Host, "lost mount a mount that went");
}
