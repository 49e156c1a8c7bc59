//! A daemon that is killed, leaves or is restarted: who lives is taken over, who died is known of, what was ordered holds.

#![expect(clippy::disallowed_methods, reason = "how long a start takes is what is asked for here")]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{
    certificates, lines, pid, python, signal, wait_certificate, wait_healthy, wait_line, worker, workers,
};
use crate::needs::needs;
use crate::place::Place;
use crate::ports::free_ports;

/// Kills the daemon and starts it anew.
#[track_caller]
fn kill_and_start(daemon: &mut Daemon) {
    let pid = i32::try_from(daemon.pid()).expect("a pid");
    signal(pid, Signal::KILL);
    daemon.start_again();
}

fn pids(daemon: &Daemon) -> BTreeMap<String, i32> {
    let name = |worker: &Value| worker["name"].as_str().expect("a name").to_owned();
    let running = workers(daemon).into_iter().filter(|worker| !worker["pid"].is_null());
    running.map(|worker| (name(&worker), pid(&worker))).collect()
}

#[test]
fn a_killed_daemon_comes_back_to_the_same_workers_and_knows_how_the_others_ended() {
    needs!(Root, CgroupTree);
    // Each ends when its file appears, in its own way.
    let ending = |end: &str| format!("command = ['sh', '-c', 'while [ ! -e go ]; do sleep 0.05; done; {end}']\n");
    let config = format!(
        "[pool.web]\nsize = 5\ncommand = ['sleep', 'infinity']\n[pool.zero]\n{}[pool.code]\n{}[pool.abort]\n{}",
        ending("exit 0"),
        ending("exit 42"),
        ending("kill -ABRT $$"),
    );
    let mut daemon = Daemon::start(&config);
    wait_healthy(&mut daemon, 8);
    let before = pids(&daemon);
    let waiting = ["zero.0", "code.0", "abort.0"].map(|name| {
        let inspected = daemon.cli(&["inspect", name, "--json"]).json();
        let worker = &inspected["workers"][0]["worker"];
        let init = worker["init_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        (worker["work_dir"].as_str().expect("a directory").to_owned(), init)
    });
    let own = i32::try_from(daemon.pid()).expect("a pid");
    signal(own, Signal::KILL);
    for (dir, init) in waiting {
        // With the init, which is the last: it has written down how its program ended.
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(init).expect("a pid"),
            rustix::process::PidfdFlags::empty(),
        );
        fs::write(format!("{dir}/go"), "").expect("let it end");
        assert!(crate::fixture::ended_within(
            std::os::fd::AsFd::as_fd(&pidfd.expect("it runs")),
            Duration::from_secs(20)
        ));
    }
    daemon.start_again();
    for (name, cause) in [("zero.0", "exited 0"), ("code.0", "exited 42"), ("abort.0", "signal 6")] {
        let told = wait_certificate(&mut daemon, name, 1);
        assert_eq!(told["cause"], cause, "{told}");
        assert!(told["note"].as_str().is_some_and(|note| note.contains("while no daemon ran")), "{told}");
    }
    let after = wait_healthy(&mut daemon, 8);
    for worker in after.iter().filter(|worker| worker["pool"] == "web") {
        assert_eq!(before.get(worker["name"].as_str().expect("a name")), Some(&pid(worker)), "{worker}");
        assert_eq!(worker["restarts"], 0, "{worker}");
    }
    // Once is enough, over all daemons.
    kill_and_start(&mut daemon);
    wait_healthy(&mut daemon, 8);
    assert_eq!(certificates(&daemon, "code.0").len(), 1);
}

#[test]
fn a_crowd_is_taken_over_whole_and_at_once() {
    let crowd: usize = std::env::var("HALSUP_TEST_CROWD").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    needs!(Root, CgroupTree, Descriptors(14 * crowd as u64));
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nsize = {crowd}\nstartup_batch_size = 64\ncommand = ['sleep', 'infinity']\n"
    ));
    wait_healthy(&mut daemon, crowd);
    let before = pids(&daemon);
    let own = i32::try_from(daemon.pid()).expect("a pid");
    signal(own, Signal::KILL);
    let begun = Instant::now();
    daemon.start_again();
    let took = begun.elapsed();
    assert_eq!(pids(&daemon), before, "all of them, none of them anew");
    assert!(workers(&daemon).iter().all(|worker| worker["state"] == "healthy" && worker["restarts"] == 0));
    // The target is one second; what else the machine does at this moment is not the daemon's, so only a multiple fails.
    assert!(took < Duration::from_secs(10), "ready after {took:?}");
    println!("{crowd} workers taken over, ready after {took:?}");
}

#[test]
fn what_was_ordered_holds_after_a_kill() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nmin = 1\nmax = 9\ncommand = ['sleep', 'infinity']\n\
         [pool.down]\nsize = 2\ncommand = ['sleep', 'infinity']\n\
         [pool.bad]\ncommand = ['false']\nrestart = { delay = '1ms', max_restarts = 1 }\n",
    );
    assert_eq!(daemon.cli(&["scale", "web", "4"]).status, 0);
    assert_eq!(daemon.cli(&["stop", "down.1"]).status, 0);
    daemon.wait_until("the barrier", |daemon| Some(()).filter(|()| worker(daemon, "bad.0")["state"] == "crashed"));
    let restarts = worker(&daemon, "bad.0")["restarts"].clone();
    let deaths = certificates(&daemon, "bad.0").len();
    kill_and_start(&mut daemon);
    assert_eq!(workers(&daemon).iter().filter(|worker| worker["pool"] == "web").count(), 4);
    assert_eq!(worker(&daemon, "down.1")["state"], "stopped");
    assert_eq!(worker(&daemon, "down.0")["state"], "healthy");
    assert_eq!(worker(&daemon, "bad.0")["state"], "crashed", "the barrier holds");
    assert_eq!(worker(&daemon, "bad.0")["restarts"], restarts);
    assert_eq!(certificates(&daemon, "bad.0").len(), deaths, "what was certified is known, once");
    assert_eq!(daemon.cli(&["start", "down.1"]).status, 0);
    assert_eq!(worker(&daemon, "down.1")["state"], "healthy");
}

#[test]
fn sockets_pipes_and_heartbeats_outlive_the_daemon() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    let serving = python(
        "import socket,os,sys,time\n\
         from socket import socket as S\n\
         n = S(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         say = lambda t: n.sendto(t, os.environ['NOTIFY_SOCKET'])\n\
         l = S(fileno=3)\n\
         l.settimeout(0.1)\n\
         say(b'READY=1\\nSTATUS=up')\n\
         while True:\n\
         \x20say(b'WATCHDOG=1')\n\
         \x20try: c, _ = l.accept()\n\
         \x20except TimeoutError: continue\n\
         \x20c.sendall(b'hello'); c.close(); print('served', flush=True)\n",
    );
    let config = format!(
        "[pool.web]\nlisten = ['tcp:127.0.0.1:{port}']\nready = 'notify'\n{serving}\
         [pool.web.heartbeat]\nsource = 'notify'\ninterval = '2s'\n"
    );
    let mut daemon = Daemon::start(&config);
    let before = pid(&wait_healthy(&mut daemon, 1)[0]);
    let ask = || {
        use std::io::Read as _;
        let mut said = String::new();
        let stream = std::net::TcpStream::connect(("127.0.0.1", port));
        stream.and_then(|mut stream| stream.read_to_string(&mut said)).expect("it answers");
        said
    };
    let own = i32::try_from(daemon.pid()).expect("a pid");
    signal(own, Signal::KILL);
    assert_eq!(ask(), "hello", "it serves without a daemon");
    daemon.start_again();
    assert_eq!(pid(&wait_healthy(&mut daemon, 1)[0]), before);
    assert_eq!(ask(), "hello");
    // What it wrote while nobody read has waited in its pipe.
    wait_line(&mut daemon, "web.0", |line| line == "served");
    daemon.wait_until("both lines", |daemon| {
        Some(()).filter(|()| lines(daemon, "web.0").iter().filter(|line| *line == "served").count() == 2)
    });
    // Its listener is still the daemon's to hand out: a restarted worker serves on it.
    assert_eq!(daemon.cli(&["restart", "web"]).status, 0);
    assert_ne!(pid(&worker(&daemon, "web.0")), before);
    assert_eq!(ask(), "hello");
    // And its beats are watched again: a stopped one is found out.
    signal(pid(&worker(&daemon, "web.0")), Signal::STOP);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 2)["cause"], "heartbeat");
}

#[test]
fn every_kind_of_worker_is_taken_over() {
    needs!(Root, CgroupTree, Python3, Userns);
    let channel = "import socket,os,json\n\
         s = socket.socket(fileno=int(os.environ['HALSUP_CHANNEL_FD']))\n\
         s.send(b'{\"kind\":\"hello\",\"protocol\":1}')\n\
         s.send(b'{\"kind\":\"ready\"}')\n\
         while True:\n\
         \x20m = json.loads(s.recv(65536))\n\
         \x20if m.get('kind') == 'ping': s.send(json.dumps({'kind': 'pong', 'id': m['id']}).encode())\n";
    let config = format!(
        "[pool.mapped]\nidentity = 'mapped'\ncommand = ['sleep', 'infinity']\n\
         [pool.own]\nnet = 'own'\ncommand = ['sleep', 'infinity']\n\
         [pool.file]\nready = 'file:up'\ncommand = ['sh', '-c', 'touch up; exec sleep infinity']\n\
         [pool.slow]\nready = 'file:up'\nready_timeout = '60s'\ncommand = ['sh', '-c', 'while [ ! -e go ]; do sleep 0.05; done; touch up; exec sleep infinity']\n\
         [pool.channel]\nready = 'channel'\n{}\
         [pool.channel.heartbeat]\nsource = 'channel'\ninterval = '200ms'\ntimeout = '5s'\n",
        python(channel)
    );
    let mut daemon = Daemon::start(&config);
    wait_healthy(&mut daemon, 4);
    let before = pids(&daemon);
    kill_and_start(&mut daemon);
    wait_healthy(&mut daemon, 4);
    assert_eq!(pids(&daemon), before);
    assert_eq!(worker(&daemon, "slow.0")["state"], "initializing");
    let inspected = daemon.cli(&["inspect", "slow.0", "--json"]).json();
    let dir = inspected["workers"][0]["worker"]["work_dir"].as_str().expect("a directory").to_owned();
    fs::write(format!("{dir}/go"), "").expect("let it become ready");
    wait_healthy(&mut daemon, 5);
    assert_eq!(pids(&daemon), before, "who was not ready yet became so for the next daemon");
}

#[test]
fn a_daemon_leaves_and_the_next_one_takes_over() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nsize = 3\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 3);
    let before = pids(&daemon);
    let left = daemon.cli(&["daemon", "stop", "--keep-workers"]);
    assert_eq!(left.status, 0, "{left:?}");
    assert!(daemon.start_again().success(), "leaving is no failure");
    assert_eq!(pids(&daemon), before);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::USR2);
    assert!(daemon.start_again().success());
    assert_eq!(pids(&daemon), before);
    assert_eq!(daemon.cli(&["daemon", "stop"]).status, 0);
    assert!(daemon.start_again().success());
    let after = wait_healthy(&mut daemon, 3);
    assert!(after.iter().all(|worker| !before.values().any(|old| *old == pid(worker))), "a stop ends them all");
}

#[test]
fn workers_whose_configuration_changed_while_no_daemon_ran_are_restarted_and_no_others() {
    needs!(Root, CgroupTree);
    let config = |seconds: u32| {
        format!(
            "[pool.same]\ncommand = ['sleep', '7777']\n[pool.other]\ncommand = ['sleep', '{seconds}']\n\
             {}",
            if seconds == 1000 { "[pool.gone]\ncommand = ['sleep', 'infinity']\n" } else { "" }
        )
    };
    let mut daemon = Daemon::start(&config(1000));
    wait_healthy(&mut daemon, 3);
    let before = pids(&daemon);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    daemon.place().configure(&config(2000));
    daemon.start_again();
    daemon.wait_until("the change", |daemon| {
        Some(()).filter(|()| pids(daemon).get("other.0").is_some_and(|pid| Some(pid) != before.get("other.0")))
    });
    wait_healthy(&mut daemon, 2);
    assert_eq!(pids(&daemon).get("same.0"), before.get("same.0"));
    assert_eq!(certificates(&daemon, "other.0")[0]["asked_by"], "a changed configuration");
    let gone = before.get("gone.0").expect("it ran");
    assert!(!fs::exists(format!("/proc/{gone}/ns")).expect("look"), "nothing runs that nobody watches");
}

#[test]
fn a_daemon_killed_while_it_stops_everything_begins_anew() {
    needs!(Root, CgroupTree);
    let place = Place::new(
        "[pool.web]\nsize = 2\nstop_grace = '60s'\ncommand = ['sh', '-c', 'trap \"\" TERM; while :; do sleep 0.1; done']\n",
    );
    let mut daemon = Daemon::start_in(place);
    wait_healthy(&mut daemon, 2);
    let before = pids(&daemon);
    let own = i32::try_from(daemon.pid()).expect("a pid");
    signal(own, Signal::TERM);
    daemon.wait_event(|event| event["state"] == "draining");
    signal(own, Signal::KILL);
    daemon.start_again();
    let after = wait_healthy(&mut daemon, 2);
    assert!(after.iter().all(|worker| !before.values().any(|old| *old == pid(worker))), "{before:?} {after:?}");
    assert_eq!(certificates(&daemon, "web.0")[0]["cause"], "shutdown");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::TERM);
    daemon.wait_event(|event| event["state"] == "draining");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::TERM);
}
