//! `halsup daemon reexec`: the daemon goes on as another program, in the same process, and goes back if that one fails.

#![expect(clippy::disallowed_methods, reason = "how long a client waits is what is asked for here")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{certificates, pid, python, signal, wait_healthy, wait_line, workers};
use crate::needs::needs;
use crate::place::program;

/// Pid and restarts of every worker that runs.
fn all(daemon: &Daemon) -> Vec<(String, i32, u64)> {
    let text = |worker: &Value| worker["name"].as_str().expect("a name").to_owned();
    let running = workers(daemon).into_iter().filter(|worker| !worker["pid"].is_null());
    running.map(|w| (text(&w), pid(&w), w["restarts"].as_u64().expect("a number"))).collect()
}

/// A program that passes the trial as `halsup` does and then does something else first.
fn script(daemon: &Daemon, name: &str, then: &str) -> PathBuf {
    let real = Path::new(&program()).canonicalize().expect("the program is there");
    let real = real.display();
    let path = daemon.path(name);
    let text = format!("#!/bin/sh\n[ -n \"$HALSUP_TRIAL\" ] && exec '{real}' \"$@\"\n{then}\nexec '{real}' \"$@\"\n");
    fs::write(&path, text).expect("write a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    path
}

fn reexec(daemon: &Daemon, binary: &Path) -> crate::place::Output {
    daemon.cli(&["daemon", "reexec", "--binary", binary.to_str().expect("a path of a test is text")])
}

#[test]
fn workers_and_clients_do_not_notice() {
    needs!(Root, CgroupTree, Python3);
    let beating = python(
        "import socket,os,time\n\
         n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         say = lambda t: n.sendto(t, os.environ['NOTIFY_SOCKET'])\n\
         say(b'READY=1')\n\
         i = 0\n\
         while True:\n\
         \x20say(b'WATCHDOG=1'); i += 1; print(i, flush=True); time.sleep(0.05)\n",
    );
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nsize = 3\ncommand = ['sleep', 'infinity']\n\
         [pool.beat]\nready = 'notify'\n{beating}\
         [pool.beat.heartbeat]\nsource = 'notify'\ninterval = '3s'\n"
    ));
    wait_healthy(&mut daemon, 4);
    let before = all(&daemon);
    // An old and a new build in turn: two files.
    let copy = daemon.path("other");
    fs::copy(program(), &copy).expect("copy the program");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let binaries = [copy, Path::new(&program()).canonicalize().expect("the program is there")];
    let mut idle = crate::peer::Peer::connect(&daemon);
    assert_eq!(idle.ask("Ping", &serde_json::json!({}))["error"], Value::Null);
    for round in 0..10 {
        let done = reexec(&daemon, &binaries[round % 2]);
        assert_eq!(done.status, 0, "{done:?}\n{}", daemon.stderr());
        assert!(done.stdout.contains("goes on as"), "{done:?}");
        assert_eq!(all(&daemon), before, "same pids, no restart");
        let told = daemon.cli(&["status", "--json"]).json();
        assert_eq!(told["pid"].as_u64(), Some(daemon.pid().into()), "same process");
        // A connection that was idle goes on with the new program.
        assert_eq!(idle.ask("Ping", &serde_json::json!({}))["error"], Value::Null);
    }
    let exe = fs::read_link(format!("/proc/{}/exe", daemon.pid())).expect("it runs");
    assert_eq!(exe, binaries[1], "the last one asked for");
    assert_eq!(certificates(&daemon, "beat.0").len(), 0, "its heartbeats were heard");
    // What it wrote meanwhile is all there, in its order.
    let seen = wait_line(&mut daemon, "beat.0", |line| line == "20");
    let numbers: Vec<u32> = seen.iter().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// How often the program is changed under load, without and with patience.
fn rounds() -> usize {
    std::env::var("HALSUP_TEST_UPGRADES").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[test]
fn under_load_nobody_is_lost_and_nobody_waits() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nsize = 5\ncommand = ['sleep', 'infinity']\n\
         [pool.churn]\nsize = 4\ncommand = ['sh', '-c', 'echo x; sleep 0.05']\n\
         restart = { delay = '1ms', delay_max = '5ms', max_restarts = 10000 }\n\
         [pool.scaled]\nmin = 0\nmax = 8\ncommand = ['sleep', 'infinity']\n",
    );
    daemon.wait_until("the web pool", |daemon| {
        Some(())
            .filter(|()| workers(daemon).iter().filter(|w| w["pool"] == "web" && w["state"] == "healthy").count() == 5)
    });
    let web =
        |daemon: &Daemon| all(daemon).into_iter().filter(|(name, ..)| name.starts_with("web")).collect::<Vec<_>>();
    // A worker that is being restarted has no pid to tell.
    let before = web(&daemon);
    let copy = daemon.path("other");
    fs::copy(program(), &copy).expect("copy the program");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let binaries = [copy, Path::new(&program()).canonicalize().expect("the program is there")];
    let over = AtomicBool::new(false);
    let longest = std::thread::scope(|scope| {
        let socket = daemon.path("run/control.sock");
        let over = &over;
        let asking = scope.spawn(move || {
            let mut longest = Duration::ZERO;
            let mut peer = crate::peer::Peer::connect_to(&socket);
            while !over.load(Ordering::Acquire) {
                let asked = Instant::now();
                // A connection that is in the middle of a call may be closed; its client then comes anew.
                peer.call("Ping", &serde_json::json!({}));
                if peer.next().is_none() {
                    peer = crate::peer::Peer::connect_to(&socket);
                }
                longest = longest.max(asked.elapsed());
            }
            longest
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..rounds() {
                let size = [8, 0, 3][round % 3].to_string();
                let scaled = daemon.cli(&["scale", "scaled", &size]);
                assert_eq!(scaled.status, 0, "{scaled:?}");
                let done = reexec(&daemon, &binaries[round % 2]);
                assert_eq!(done.status, 0, "round {round}: {done:?}\n{}", daemon.stderr());
                assert_eq!(web(&daemon), before, "round {round}");
            }
        }));
        over.store(true, Ordering::Release);
        let longest = asking.join().expect("the client goes on to the end");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        longest
    });
    println!("{} upgrades, the longest answer after {longest:?}", rounds());
    // The promise is one second; the machine may be busy with other tests, so only a multiple of it fails.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

#[test]
fn a_program_that_cannot_take_over_is_not_become() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nsize = 2\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 2);
    let before = all(&daemon);
    let path = daemon.path("crashes");
    fs::write(&path, "#!/bin/sh\necho no luck today >&2\nexit 3\n").expect("write a script");
    for (mode, sentence) in [(0o644, "not executable"), (0o777, "writable by nobody else"), (0o755, "no luck today")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set its mode");
        let refused = reexec(&daemon, &path);
        assert_eq!(refused.status, 1, "{refused:?}");
        assert!(refused.stderr.contains(sentence), "{refused:?}");
    }
    for (binary, sentence) in [
        ("/bin/true", "no halsup"),
        ("/no/such/file", "No such file"),
        ("/bin", "no regular file"),
        ("/bin/sh", "trial"),
    ] {
        let refused = reexec(&daemon, Path::new(binary));
        assert_eq!(refused.status, 1, "{binary}: {refused:?}");
        assert!(refused.stderr.contains(sentence), "{binary}: {refused:?}");
    }
    assert_eq!(all(&daemon), before);
}

#[test]
fn a_trial_that_hangs_does_not_outlive_the_daemon() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    let path = daemon.path("hangs");
    let sign = daemon.path("began");
    fs::write(&path, format!("#!/bin/sh\necho $$ > '{0}.new'\nmv '{0}.new' '{0}'\nexec sleep 1000\n", sign.display()))
        .expect("write a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let mut asking =
        daemon.place().command(&["daemon", "reexec", "--binary"]).arg(&path).spawn().expect("ask for an upgrade");
    let trial = daemon.wait_until("the trial", |_| fs::read_to_string(&sign).ok());
    let trial = rustix::process::Pid::from_raw(trial.trim().parse().expect("a pid"));
    let trial = rustix::process::pidfd_open(trial.expect("a pid"), rustix::process::PidfdFlags::empty());
    assert_eq!(daemon.stop(), 0);
    let ended =
        crate::fixture::ended_within(std::os::fd::AsFd::as_fd(&trial.expect("it runs")), Duration::from_secs(20));
    assert!(ended, "nothing runs on that the daemon has started");
    assert!(!asking.wait().expect("reap the client").success());
}

#[test]
fn a_program_that_fails_afterwards_becomes_the_old_one_again() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nsize = 2\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 2);
    let before = all(&daemon);
    let config = daemon.path("config.toml");
    let text = fs::read_to_string(&config).expect("read the configuration");
    let breaking = script(&daemon, "breaks", &format!("echo 'what is this' > '{}'", config.display()));
    let failed = reexec(&daemon, &breaking);
    assert_eq!(failed.status, 1, "{failed:?}");
    assert!(failed.stderr.contains("config.toml"), "{failed:?}");
    fs::write(&config, &text).expect("mend the configuration");
    assert_eq!(all(&daemon), before, "{}", daemon.stderr());
    assert_eq!(daemon.cli(&["status", "--json"]).json()["pid"].as_u64(), Some(daemon.pid().into()));
    // And then it can still be upgraded.
    let done = reexec(&daemon, &Path::new(&program()).canonicalize().expect("the program is there"));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(all(&daemon), before);
}

#[test]
fn a_program_that_hangs_or_crashes_afterwards_becomes_the_old_one_again() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nsize = 2\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 2);
    let before = all(&daemon);
    let config = daemon.path("config.toml");
    let text = fs::read_to_string(&config).expect("read the configuration");
    // It reads its configuration from a pipe that nobody writes to: for ever.
    let shown = config.display();
    let hanging = script(&daemon, "hangs", &format!("rm '{shown}'; mkfifo '{shown}'; touch '{shown}.hangs'"));
    let daemon_pid = i32::try_from(daemon.pid()).expect("a pid");
    for crash in [None, Some(Signal::SEGV), Some(Signal::ABORT)] {
        let asking =
            daemon.place().command(&["daemon", "reexec", "--binary"]).arg(&hanging).stderr(Stdio::piped()).spawn();
        if let Some(crash) = crash {
            daemon.wait_until("it hangs", |daemon| {
                let reads = fs::read_to_string(format!("/proc/{daemon_pid}/wchan")).unwrap_or_default();
                let there = fs::exists(daemon.path("config.toml.hangs")).unwrap_or(false);
                Some(()).filter(|()| there && (reads.contains("fifo") || reads.contains("wait_for_partner")))
            });
            signal(daemon_pid, crash);
        }
        let failed = asking.and_then(Child::wait_with_output).expect("run halsup");
        let stderr = String::from_utf8(failed.stderr).expect("halsup prints UTF-8");
        fs::remove_file(&config).expect("remove the pipe");
        fs::remove_file(daemon.path("config.toml.hangs")).expect("remove the sign");
        fs::write(&config, &text).expect("mend the configuration");
        let wanted = if crash.is_some() { "crashed with signal" } else { "not healthy in time" };
        assert!(stderr.contains(wanted) && failed.status.code() == Some(1), "{stderr}\n{}", daemon.stderr());
        assert_eq!(all(&daemon), before, "{}", daemon.stderr());
    }
}
