//! Sessions that are given back: their worker is gone, or its place is warm again with nothing in it of what was there.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{pid, wait_healthy, worker};
use crate::needs::needs;

/// What the first session leaves wherever it can.
const CANARY: &str = "canary-51c0de";

/// Leaves things everywhere, changes its init, does not end when it is asked to, and says what of that it could do.
const LEAVES: &str = r#"
import ctypes, json, os, resource, signal, socket, sys, time
CANARY = "canary-51" + "c0de"
libc = ctypes.CDLL(None, use_errno=True)
did = []
def attempt(name, action):
    try:
        if action() is not False: did.append(name)
    except Exception: pass
def write(path):
    with open(path, "w") as file: file.write(CANARY)
home = os.environ.get("HOME", "/run/worker/work")
for place in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev/mqueue", "/run/worker/work", home):
    attempt("file in " + place, lambda: write(place + "/" + CANARY))
def segment():
    number = libc.shmget(0x51c0de, 4096, 0o1600)
    if number < 0: return False
    libc.shmat.restype = ctypes.c_void_p
    ctypes.memmove(libc.shmat(number, None, 0), CANARY.encode(), len(CANARY))
attempt("segment", segment)
attempt("semaphores", lambda: libc.semget(0x51c0de, 1, 0o1600) >= 0)
attempt("messages", lambda: libc.msgget(0x51c0de, 0o1600) >= 0)
attempt("queue", lambda: libc.mq_open(b"/" + CANARY.encode(), 0o102, 0o600, None) >= 0)
attempt("key", lambda: libc.syscall(248, b"user", CANARY.encode(), CANARY.encode(), len(CANARY), -4) >= 0)
attempt("priority of its init", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
attempt("limits of its init", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (64, 64)))
attempt("processors of its init", lambda: os.sched_setaffinity(1, {min(os.sched_getaffinity(0))}))
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
def stay():
    if os.fork() == 0:
        os.setsid()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + CANARY)
        listener.listen()
        while True: time.sleep(1000)
attempt("process", stay)
print(CANARY, flush=True)
with open("report.tmp", "w") as file: json.dump(did, file)
os.rename("report.tmp", "report")
while True: time.sleep(1000)
"#;

/// Looks at all of these places.
const LOOKS: &str = r#"
import json, os, resource, socket
found = {}
home = os.environ.get("HOME", "/run/worker/work")
for place in ("/tmp", "/dev/shm", "/run", "/run/secrets", "/dev/mqueue", "/run/worker/work", home):
    try: found[place] = sorted(os.listdir(place))
    except OSError as error: found[place] = error.errno
for name in ("shm", "sem", "msg"):
    with open("/proc/sysvipc/" + name) as file: found[name] = len(file.readlines())
with open("/proc/keys") as file: found["keys"] = sum("canary" in line for line in file)
found["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
found["priority"] = [os.getpriority(os.PRIO_PROCESS, 1), os.getpriority(os.PRIO_PROCESS, 0)]
found["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
found["processors"] = [sorted(os.sched_getaffinity(1)), sorted(os.sched_getaffinity(0))]
found["environment"] = sorted(name for name in os.environ)
found["first project"] = os.path.exists(os.environ["FIRST"])
peer = socket.socket(socket.AF_UNIX)
try: found["socket"] = peer.connect("\0canary-51" + "c0de") or "connected"
except OSError as error: found["socket"] = error.errno
with open("report.tmp", "w") as file: json.dump(found, file)
os.rename("report.tmp", "report")
import time
time.sleep(1000)
"#;

/// Claims a worker of `pool` for `script` in a project of its own, and gives what it reports and the answer to the claim.
#[track_caller]
fn run(daemon: &mut Daemon, pool: &str, root: &Path, name: &str, script: &str, more: &[&str]) -> (Value, Value) {
    let project = root.join(name);
    fs::create_dir(&project).expect("make a project");
    let path = project.display().to_string();
    let first = format!("FIRST={}", root.join("first").display());
    let asked = ["claim", "--json", "--cold-ok", "--pool", pool, "--name", name, "--project", &path, "-e", &first];
    let claimed = daemon.cli(&[&asked, more, &["--", "python3", "-c", script]].concat());
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
    let report = daemon.wait_until("its report", |_| fs::read(project.join("report")).ok());
    (serde_json::from_slice(&report).expect("JSON"), claimed.json())
}

fn warm(daemon: &Daemon) -> Value {
    daemon.cli(&["status", "--json"]).json()["pools"][0]["claims"]["warm"].clone()
}

#[test]
fn nothing_of_a_session_meets_the_next_one_in_its_place() {
    needs!(Root, CgroupTree, Python3);
    for terminal in [false, true] {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let root = dir.path().canonicalize().expect("its path");
        fs::write(root.join("secret"), CANARY).expect("a secret");
        let pool = |name: &str| {
            format!(
                "[pool.{name}]\nterminal = {terminal}\nstop_grace = '300ms'\n\
                 [pool.{name}.claims]\nmin = 0\nmax = 1\nprojects = ['{}']\n",
                root.display()
            )
        };
        let mut daemon = Daemon::start(&(pool("work") + &pool("other")));
        let secret = format!("key={}", root.join("secret").display());
        let variable = format!("LEFT={CANARY}");
        let (did, claimed) = run(&mut daemon, "work", &root, "first", LEAVES, &["--secret", &secret, "-e", &variable]);
        assert_eq!(claimed["worker"], "work.0");
        for most in ["file in /tmp", "file in /dev/shm", "process", "priority of its init"] {
            assert!(did.as_array().is_some_and(|did| did.contains(&most.into())), "{most} is not among {did}");
        }
        let before = worker(&daemon, "work.0");
        let released = daemon.cli(&["release", "--reset", "first"]);
        assert_eq!((released.status, released.stdout.as_str()), (0, "first: 1 released and reset\n"), "{released:?}");
        // It is warm when that is said, and another generation with another identity.
        let after = worker(&daemon, "work.0");
        assert_eq!((&after["occupancy"], &after["session"]), (&"warm".into(), &Value::Null), "{after}");
        assert_ne!(after["generation"], before["generation"]);
        assert!(
            rustix::process::Pid::from_raw(pid(&before))
                .is_none_or(|pid| rustix::process::test_kill_process(pid).is_err())
        );
        let (found, claimed) = run(&mut daemon, "work", &root, "second", LOOKS, &[]);
        assert_eq!((&claimed["worker"], &claimed["warm"]), (&"work.0".into(), &true.into()));
        // What it finds is what one finds whose place nobody had before.
        let (fresh, _) = run(&mut daemon, "other", &root, "third", LOOKS, &[]);
        assert_eq!(found, fresh);
        assert!(!found.to_string().contains("canary"), "{found}");
        for arguments in
            [&["logs", "work.0", "-n", "1000"][..], &["inspect", "work.0", "--json"], &["capture", "work.0"]]
        {
            let told = daemon.cli(arguments);
            assert!(!told.stdout.contains(CANARY), "{arguments:?}: {}", told.stdout);
        }
        assert_eq!(daemon.stop(), 0);
    }
}

#[test]
fn a_place_that_the_pool_may_not_have_again_is_given_up_and_that_is_said() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.work]\nterminal = true\n[pool.work.claims]\nmin = 1\nmax = 1\n");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["claim", "--name", "one"]).status, 0);
    wait_healthy(&mut daemon, 2);
    let released = daemon.cli(&["release", "--reset", "one", "--json"]);
    assert_eq!(released.status, 0, "{}", released.stderr);
    assert_eq!((&released.json()["reset"], &released.json()["achieved"]), (&false.into(), &1.into()));
    assert!(
        released.stderr.contains("destroyed instead: its pool has 1 warm workers without it"),
        "{}",
        released.stderr
    );
    let names: Vec<String> = wait_healthy(&mut daemon, 1)
        .iter()
        .map(|worker| worker["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(names, ["work.1"]);
    // By default the place goes, also where there would be room.
    assert_eq!(daemon.cli(&["pool", "stop"]).status, 0);
    assert_eq!(daemon.cli(&["claim", "--name", "two"]).status, 0);
    let released = daemon.cli(&["release", "two"]);
    assert_eq!((released.status, released.stdout.as_str()), (0, "two: 1 released\n"));
    assert_eq!(warm(&daemon), 0);
    let both = daemon.cli(&["release", "--reset", "--destroy", "two"]);
    assert_eq!(both.status, 2, "{}", both.stderr);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_daemon_that_dies_in_a_reset_keeps_no_session_in_the_place() {
    needs!(Root, CgroupTree, Program("sh"));
    // It is asked to end and takes its time, in which the daemon is killed.
    let config = "[pool.work]\nstop_grace = '2s'\non_supervisor_death = 'forever'\n\
        command = ['sh', '-c', 'trap \"\" HUP; echo canary-51c0de; while :; do sleep 1; done']\n\
        [pool.work.claims]\nmin = 0\nmax = 1\n";
    let mut daemon = Daemon::start(config);
    assert_eq!(daemon.cli(&["claim", "--cold-ok", "--name", "one"]).status, 0);
    crate::look::wait_line(&mut daemon, "work.0", |line| line == CANARY);
    let before = worker(&daemon, "work.0")["generation"].clone();
    let mut release = daemon.place().command(&["release", "--reset", "one"]);
    let mut release = release.stderr(std::process::Stdio::null()).spawn().expect("release it");
    daemon.wait_event(|event| event["text"] == "work.0 is draining");
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    assert!(!release.wait().expect("reap it").success());
    daemon.start_again();
    daemon.wait_until("a fresh one in its place, or none", |daemon| {
        let all = crate::look::workers(daemon);
        let clean = |one: &Value| one["session"].is_null() && one["generation"] != before && one["state"] == "healthy";
        all.iter().all(clean).then_some(())
    });
    assert!(!daemon.cli(&["logs", "work", "-n", "100"]).stdout.contains(CANARY));
    assert_eq!(daemon.cli(&["claim", "--cold-ok", "--name", "one"]).status, 0, "its name is free");
    assert_eq!(daemon.stop(), 0);
}
