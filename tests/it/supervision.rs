//! Exits, restarts, stops: each told by a death certificate.

use rustix::process::Signal;

use crate::fixture::Daemon;
use crate::look::{certificates, pid, signal, wait_certificate, wait_healthy, wait_line, worker};
use crate::needs::needs;

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

#[test]
fn a_killed_program_is_replaced_and_its_certificate_says_signal_9() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(SLEEPER);
    let first = wait_healthy(&mut daemon, 1).remove(0);
    signal(pid(&first), Signal::KILL);
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "signal 9");
    assert_eq!(certificate["generation"], first["generation"]);
    let second = wait_healthy(&mut daemon, 1).remove(0);
    assert_ne!(pid(&first), pid(&second));
    assert_eq!(second["restarts"], 1);
}

#[test]
fn a_killed_init_is_a_worker_killed() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(SLEEPER);
    let first = wait_healthy(&mut daemon, 1).remove(0);
    let init = i32::try_from(first["init_pid"].as_i64().expect("an init")).expect("a pid");
    signal(init, Signal::KILL);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "signal 9");
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_killed_child_restarts_nothing() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\ncommand = ['sh', '-c', 'while :; do sh -c \"kill -9 \\$\\$\"; echo gone; sleep 1000 & wait; done']\n",
    );
    let lines = wait_line(&mut daemon, "web.0", |line| line == "gone");
    assert!(lines.contains(&"gone".to_owned()));
    let worker = worker(&daemon, "web.0");
    assert_eq!((worker["state"].as_str(), worker["restarts"].as_u64()), (Some("healthy"), Some(0)));
    assert_eq!(certificates(&daemon, "web.0").len(), 0);
}

#[test]
fn exit_codes_and_last_words_are_kept() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nrestart = false\ncommand = ['sh', '-c', 'echo last words; echo to stderr >&2; (sleep 1000 &) ; exit 42']\n",
    );
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "exited 42");
    let output = certificate["last_output"].as_str().expect("output");
    assert!(output.contains("last words") && output.contains("to stderr"), "{output:?}");
    assert_eq!(certificate["leftover_processes"], 1, "the sleep that it left behind");
    daemon.wait_until("crashed", |daemon| Some(()).filter(|()| worker(daemon, "web.0")["state"] == "crashed"));
}

#[test]
fn what_exits_at_once_is_held_back_by_the_barrier_until_reset() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\ncommand = ['sh', '-c', 'exit 1']\n[pool.web.restart]\ndelay = '20ms'\njitter_percent = 0\nmax_restarts = 4\nwindow = '60s'\n",
    );
    daemon.wait_until("crashed", |daemon| Some(()).filter(|()| worker(daemon, "web.0")["state"] == "crashed"));
    let deaths = certificates(&daemon, "web.0");
    assert_eq!(deaths.len(), 5, "the first start and four restarts: {deaths:?}");
    assert!(deaths.iter().all(|death| death["cause"] == "exited 1"));
    let ended: Vec<&str> = deaths.iter().filter_map(|death| death["ended"].as_str()).collect();
    let at = |text: &str| humantime::parse_rfc3339(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let gaps: Vec<u128> = ended
        .windows(2)
        .map(|pair| at(pair[1]).duration_since(at(pair[0])).expect("in the order of the deaths").as_millis())
        .collect();
    // The first restart is immediate; then the delay begins, and doubles. Times are told to the millisecond.
    for (gap, delay) in gaps.iter().skip(1).zip([20, 40, 80]) {
        assert!(*gap + 1 >= delay, "{gaps:?}");
    }
    let reset = daemon.cli(&["reset", "web"]);
    assert_eq!(reset.status, 0, "{reset:?}");
    wait_certificate(&mut daemon, "web.0", 6);
}

#[test]
fn a_stop_takes_everything_that_a_deaf_worker_has_left_around() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nstop_grace = '300ms'\ncommand = ['sh', '-c', '''trap \"\" TERM HUP INT; (setsid sh -c \"trap \\\"\\\" TERM; sleep 1000\" & ) ; echo up; while :; do sleep 1000; done''']\n",
    );
    wait_line(&mut daemon, "web.0", |line| line == "up");
    let stopped = daemon.cli(&["stop", "web"]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    assert_eq!(worker(&daemon, "web.0")["state"], "stopped");
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "requested");
    assert!(certificate["asked_by"].as_str().is_some_and(|who| who.contains("uid 0")), "{certificate}");
    let base = daemon.cgroup().expect("the instance's cgroup");
    let left: Vec<_> = std::fs::read_dir(base.join("pool.web")).expect("list the pool's cgroup").flatten().collect();
    assert!(left.iter().all(|entry| !entry.path().is_dir()), "{left:?}");
    assert_eq!(daemon.cli(&["start", "web"]).status, 0);
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_program_without_handlers_stops_at_once() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nstop_grace = '60s'\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["stop", "web"]).status, 0);
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["status"], "signal 15", "the request ended it, not the end of its grace");
}

#[test]
fn a_hundred_workers_killed_in_one_instant_are_all_back() {
    needs!(Root, CgroupTree);
    let mut daemon =
        Daemon::start("[pool.web]\nsize = 100\nstartup_batch_size = 100\ncommand = ['sleep', 'infinity']\n");
    let before = wait_healthy(&mut daemon, 100);
    for worker in &before {
        signal(pid(worker), Signal::KILL);
    }
    daemon.wait_until("all back", |daemon| {
        let all = crate::look::healthy(daemon);
        Some(()).filter(|()| all.len() == 100 && all.iter().all(|worker| worker["restarts"] == 1))
    });
    for worker in &before {
        let name = worker["name"].as_str().expect("a name");
        let deaths = certificates(&daemon, name);
        assert_eq!(deaths.len(), 1, "{name}");
        assert_eq!(
            (&deaths[0]["cause"], &deaths[0]["generation"]),
            (&"signal 9".into(), &worker["generation"]),
            "{name}"
        );
    }
    let children =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).expect("list children");
    assert_eq!(children.split_whitespace().count(), 100, "no zombie among them");
}

#[test]
fn what_cannot_be_executed_says_so_in_one_sentence() {
    needs!(Root, CgroupTree);
    for (command, words) in [
        ("/nowhere/at/all", "execute \"/nowhere/at/all\": No such file or directory"),
        ("no-such-program", "execute \"no-such-program\": No such file or directory"),
        ("/etc/passwd", "execute \"/etc/passwd\": Permission denied"),
    ] {
        let mut daemon = Daemon::start(&format!("[pool.web]\nrestart = false\ncommand = ['{command}']\n"));
        let certificate = wait_certificate(&mut daemon, "web.0", 1);
        assert_eq!(certificate["cause"], "start-failed");
        let text = certificate["start_failure"]["text"].as_str().expect("a sentence");
        assert!(text.contains(words), "{text}");
        daemon.wait_until("crashed", |daemon| Some(()).filter(|()| worker(daemon, "web.0")["state"] == "crashed"));
    }
}

#[test]
fn a_port_that_somebody_has_is_named_with_its_holder() {
    needs!(Root, CgroupTree);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("its address").port();
    let mut daemon =
        Daemon::start(&format!("[pool.web]\nrestart = false\nbase_port = {port}\ncommand = ['sleep', '1']\n"));
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    let text = certificate["start_failure"]["text"].as_str().expect("a sentence");
    assert!(text.contains(&format!("port {port} is in use by ")) && text.contains("(pid "), "{text}");
}

#[test]
fn scaling_answers_with_what_was_achieved() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\nmin = 1\nmax = 5\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["scale", "web", "4"]).status, 0);
    wait_healthy(&mut daemon, 4);
    let beyond = daemon.cli(&["scale", "web", "9"]);
    assert_eq!(beyond.status, 1, "{beyond:?}");
    assert!(beyond.stderr.contains('5'), "{beyond:?}");
    assert_eq!(daemon.cli(&["scale", "web", "2"]).status, 0);
    assert_eq!(crate::look::workers(&daemon).len(), 2);
}

#[test]
fn a_restart_is_a_new_generation() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(SLEEPER);
    let first = wait_healthy(&mut daemon, 1).remove(0);
    let restarted = daemon.cli(&["restart", "web.0"]);
    assert_eq!(restarted.status, 0, "{restarted:?}");
    let second = worker(&daemon, "web.0");
    assert_eq!(second["state"], "healthy");
    assert_ne!(first["generation"], second["generation"]);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "requested");
}

#[test]
fn a_shortage_of_the_host_is_waited_out_and_is_no_crash() {
    needs!(Root, CgroupTree);
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let mut daemon = Daemon::start(
        "log_level = 'debug'\n[pool.web]\nmin = 0\nmax = 3\ncommand = ['sleep', 'infinity']\n[pool.web.restart]\nmax_restarts = 0\n",
    );
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a pid"));
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("list descriptors").count() as u64;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(open + 4), maximum: Some(20_000) });
    let before = before.expect("lower its limit");
    let mut scaling = daemon.place().command(&["scale", "web", "1"]).spawn().expect("ask for a worker");
    daemon.wait_until("the shortage is met", |daemon| Some(()).filter(|()| daemon.stderr().contains("tried again")));
    let raised = Rlimit { current: before.current, maximum: Some(20_000) };
    prlimit(pid, Resource::Nofile, raised).expect("raise its limit");
    assert!(scaling.wait().expect("wait for the order").success());
    wait_healthy(&mut daemon, 1);
    assert_eq!(certificates(&daemon, "web.0").len(), 0);
}
