//! Workers that will not end, that end all at once, that say their last word at the last moment; and halsup as PID 1.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{identities, init_pid, python, shell};
use crate::fixture::Daemon;
use crate::look::{certificates, lines, pid, signal, wait_certificate, wait_healthy, wait_line, worker, workers};
use crate::needs::needs;

#[test]
fn the_last_words_of_200_workers_are_heard() {
    needs!(Root, CgroupTree, Python3);
    let program = "
import os, socket
name = os.environ['HALSUP_WORKER']
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
os.write(1, b'first\\n')
notify.send(b'STATUS=almost')
os.write(2, b'last word on stderr\\n')
os.write(1, b'last word of ' + name.encode())
notify.send(b'READY=1\\nSTATUS=last word')
os._exit(7)
";
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nsize = 20\nready = 'notify'\n{}[pool.web.restart]\nmax_restarts = 9\nwindow = '1h'\ndelay = '1ms'\ndelay_max = '2ms'\n",
        python(program)
    ));
    // READY=1 was the last datagram of each: heard before the exit that came with it.
    let ready = Cell::new(0);
    for _ in 0..200 {
        daemon.wait_event(|event| {
            ready.set(ready.get() + u32::from(event["state"] == "healthy"));
            event["kind"] == "death"
        });
    }
    assert_eq!(ready.get(), 200);
    daemon.wait_until("all are held back", |daemon| {
        Some(()).filter(|()| workers(daemon).iter().all(|worker| worker["state"] == "crashed"))
    });
    for worker in workers(&daemon) {
        let name = worker["name"].as_str().expect("a name");
        let deaths = certificates(&daemon, name);
        assert_eq!(deaths.len(), 10, "{name}");
        for death in &deaths {
            assert_eq!(death["cause"], "exited 7", "{death}");
            let said = death["last_output"].as_str().expect("output");
            assert!(
                said.trim_end().ends_with(&format!("last word of {name}")) || said.contains("last word on stderr"),
                "{said:?}"
            );
        }
        let said = lines(&daemon, name);
        let count = |wanted: &str| said.iter().filter(|line| *line == wanted).count();
        let counts = (count("first"), count("last word on stderr"), count(&format!("last word of {name}")));
        assert_eq!(counts, (10, 10, 10), "{name}");
    }
}

#[test]
fn many_workers_that_exit_at_once_have_a_certificate_each() {
    needs!(Root, CgroupTree);
    // An emulated machine starts programs five times slower: there a fifth of them has to do.
    let count = if std::env::var_os("HALSUP_TEST_CROWD").is_some() { 100 } else { 500 };
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nsize = {count}\nstartup_batch_size = {count}\nrestart = false\n{}",
        shell("exit $((HALSUP_SLOT % 100))")
    ));
    daemon.wait_until("all have ended", |daemon| {
        let all = workers(daemon);
        Some(()).filter(|()| all.len() == count && all.iter().all(|worker| worker["last_exit"].is_string()))
    });
    for worker in workers(&daemon) {
        let slot = worker["slot"].as_u64().expect("a slot");
        assert_eq!(worker["last_exit"], format!("exited {}", slot % 100), "{worker}");
    }
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).expect("list children");
    assert_eq!(children, "", "no zombie is left");
}

#[test]
fn as_pid_1_the_daemon_reaps_orphans_and_ends_with_everything() {
    needs!(Root, CgroupTree);
    // The shell's background children become the daemon's, their children orphans that are given to it.
    let orphans = "i=0; while [ $i -lt 100 ]; do (sh -c 'sleep 0.3 & sleep 0.1 &' &); i=$((i+1)); done; exec \"$@\"";
    let wrapper = ["unshare", "-pf", "--mount-proc", "sh", "-c", orphans, "sh"];
    let mut daemon = Daemon::start_under(
        &wrapper,
        "[pool.web]\nsize = 3\ncommand = ['sh', '-c', 'sleep 1000 & sleep 1000 & exec sleep infinity']\n",
    );
    wait_healthy(&mut daemon, 3);
    let unshare = daemon.pid();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).expect("list children");
    let leader: i32 = children.trim().parse().expect("one child");
    let of_leader = || fs::read_to_string(format!("/proc/{leader}/task/{leader}/children")).unwrap_or_default();
    daemon.wait_until("only workers are its children", |_| {
        Some(()).filter(|()| of_leader().split_whitespace().count() == 3)
    });
    assert_eq!(daemon.cli(&["kill", "web.1"]).status, 0);
    // Pids in its answers are those of its own namespace; the certificate is what counts.
    assert_eq!(wait_certificate(&mut daemon, "web.1", 1)["status"], "signal 9");
    wait_healthy(&mut daemon, 3);
    signal(leader, Signal::TERM);
    assert_eq!(daemon.stop(), 0);
    assert!(!PathBuf::from(format!("/proc/{leader}")).exists());
}

#[test]
fn programs_without_handlers_stop_long_before_the_grace() {
    needs!(Root, CgroupTree, Python3);
    let commands = [
        "command = ['sleep', 'infinity']".to_owned(),
        python("import time; print('up', flush=True); time.sleep(1000)"),
        shell("echo up; sleep 1000; true"),
        shell("echo up; while :; do sleep 0.1; done"),
        python(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start(); print('up', flush=True)",
        ),
    ];
    for command in commands {
        let mut daemon = Daemon::start(&format!("[pool.web]\nstop_grace = '50s'\n{command}\n"));
        wait_healthy(&mut daemon, 1);
        if command.contains("up") {
            wait_line(&mut daemon, "web.0", |line| line == "up");
        }
        let begun = Instant::now();
        assert_eq!(daemon.cli(&["stop", "web"]).status, 0);
        assert!(begun.elapsed() < Duration::from_secs(10), "{command}: {:?}", begun.elapsed());
        assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["status"], "signal 15", "{command}");
    }
}

#[test]
fn a_signal_to_the_init_reaches_the_program() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nrestart = false\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    // As a kernel does at shutdown, or an operator with `kill`: the PID 1 of a namespace ignores what it does not handle.
    signal(i32::try_from(init_pid(&daemon)).expect("a pid"), Signal::TERM);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "signal 15");
}

/// The only directory of a worker's cgroup.
fn worker_cgroup(daemon: &Daemon) -> PathBuf {
    let pool = daemon.cgroup().expect("the instance's cgroup").join("pool.web");
    let mut dirs = fs::read_dir(&pool).expect("list the pool's cgroup").flatten().map(|entry| entry.path());
    dirs.find(|path| path.is_dir()).unwrap_or_else(|| panic!("no worker in {pool:?}"))
}

const DEAF: &str = "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nprint('up', flush=True)\nwhile True: time.sleep(1000)";

#[test]
fn a_worker_that_is_deaf_stopped_or_frozen_is_ended() {
    needs!(Root, CgroupTree, Python3);
    type Hold = fn(&Daemon);
    let holds: [(&str, Hold); 5] = [
        ("deaf", |_| {}),
        ("stopped", |daemon| signal(pid(&worker(daemon, "web.0")), Signal::STOP)),
        ("its init stopped", |daemon| {
            signal(i32::try_from(init_pid(daemon)).expect("a pid"), Signal::STOP);
        }),
        ("frozen", |daemon| fs::write(worker_cgroup(daemon).join("cgroup.freeze"), "1").expect("freeze it")),
        ("its pool frozen", |daemon| {
            let pool = worker_cgroup(daemon);
            fs::write(pool.parent().expect("a pool").join("cgroup.freeze"), "1").expect("freeze it");
        }),
    ];
    for (how, hold) in holds {
        let mut daemon = Daemon::start(&format!(
            "[pool.web]\nstop_grace = '200ms'\n{}[pool.other]\ncommand = ['sleep', 'infinity']\n",
            python(DEAF)
        ));
        wait_healthy(&mut daemon, 2);
        wait_line(&mut daemon, "web.0", |line| line == "up");
        let cgroup = worker_cgroup(&daemon);
        hold(&daemon);
        let stopped = daemon.cli(&["stop", "web"]);
        assert_eq!(stopped.status, 0, "{how}: {stopped:?}");
        assert_eq!(worker(&daemon, "web.0")["state"], "stopped", "{how}");
        assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["status"], "signal 9", "{how}");
        assert!(!cgroup.exists(), "{how}");
        assert_eq!(worker(&daemon, "other.0")["state"], "healthy", "{how}");
    }
}

#[test]
fn a_cgroup_that_cannot_be_removed_is_said_to_be_stuck_until_it_can() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nstop_grace = '100ms'\nkill_timeout = '300ms'\ncommand = ['sleep', 'infinity']\n[pool.other]\ncommand = ['sleep', 'infinity']\n",
    );
    wait_healthy(&mut daemon, 2);
    let cgroup = worker_cgroup(&daemon);
    for parent in [&cgroup, cgroup.parent().expect("a pool")] {
        fs::write(parent.join("cgroup.max.descendants"), "max").expect("allow cgroups in it");
        fs::write(parent.join("cgroup.max.depth"), "max").expect("allow cgroups in it");
    }
    let foreign = cgroup.join("foreign");
    fs::create_dir(&foreign).expect("make a cgroup in it, as somebody from outside may");
    let stopped = daemon.cli(&["stop", "web"]);
    assert_eq!(stopped.status, 1, "{stopped:?}");
    assert!(stopped.stderr.contains("stuck"), "{stopped:?}");
    assert_eq!(worker(&daemon, "web.0")["state"], "stuck");
    assert_eq!(daemon.cli(&["restart", "other"]).status, 0, "the daemon goes on");
    fs::remove_dir(&foreign).expect("remove it");
    daemon.wait_until("no longer stuck", |daemon| Some(()).filter(|()| worker(daemon, "web.0")["state"] != "stuck"));
}

#[test]
fn descendants_that_hide_are_ended_and_counted() {
    needs!(Root, CgroupTree, Python3);
    // Each leaves the session and its parent, ignores everything, and keeps stdout and stderr open.
    let program = "
import os, signal, time
read, write = os.pipe()
for n in range(10):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)
            os.write(write, b'x')
            time.sleep(100000)
        os._exit(0)
    os.wait()
got = 0
while got < 10: got += len(os.read(read, 10))
print('gone', flush=True)
os._exit(3)
";
    for identity in identities() {
        let mut daemon =
            Daemon::start(&format!("[pool.web]\nrestart = false\nidentity = '{identity}'\n{}", python(program)));
        let certificate = wait_certificate(&mut daemon, "web.0", 1);
        assert_eq!(certificate["cause"], "exited 3", "{certificate}");
        assert_eq!(certificate["leftover_processes"], 10, "{certificate}");
        assert!(certificate["last_output"].as_str().is_some_and(|said| said.contains("gone")));
        let pool = daemon.cgroup().expect("the instance's cgroup").join("pool.web");
        assert!(!fs::read_dir(pool).expect("list").flatten().any(|entry| entry.path().is_dir()), "{identity}");
    }
}
