//! `halsup doctor`: each trouble that the seed's troubleshooting guide knows is made here, and has its sentence and its fix.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{wait_certificate, wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::{Output, Place, run};
use crate::ports::free_ports;

const SLEEPER: &str = "command = ['sleep', 'infinity']\n";
const NOBODY: u32 = 65_534;

fn checks(output: &Output) -> Vec<Value> {
    let line = output.stdout.lines().next().unwrap_or_else(|| panic!("{output:?}"));
    let reply: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    reply["checks"].as_array().cloned().unwrap_or_default()
}

fn find(checks: &[Value], name: &str) -> Option<Value> {
    checks.iter().find(|check| check["name"] == name).cloned()
}

/// The check of this name is not ok, and says these words; its fix says those.
#[track_caller]
fn assert_said(checks: &[Value], name: &str, found: &str, fix: &str) {
    let check = find(checks, name).unwrap_or_else(|| panic!("no check {name:?} in {checks:#?}"));
    assert_eq!(check["ok"], false, "{check}");
    assert!(check["found"].as_str().is_some_and(|text| text.contains(found)), "{check}");
    assert!(check["fix"].as_str().is_some_and(|text| text.contains(fix)), "{check}");
}

fn ask(daemon: &Daemon) -> Vec<Value> {
    checks(&daemon.cli(&["doctor", "--json"]))
}

/// Waits until the check of this name is not ok, and holds it against the words.
#[track_caller]
fn wait_said(daemon: &mut Daemon, name: &str, found: &str, fix: &str) {
    let all = daemon.wait_until(&format!("{name:?} with {found:?}"), |daemon| {
        let all = ask(daemon);
        let check = find(&all, name)?;
        let there = check["ok"] == false && check["found"].as_str().is_some_and(|text| text.contains(found));
        there.then_some(all)
    });
    assert_said(&all, name, found, fix);
}

#[test]
fn no_daemon_and_no_right_to_ask_one() {
    needs!(Root, CgroupTree);
    let place = Place::new(&format!("[pool.web]\n{SLEEPER}"));
    let output = place.cli(&["doctor", "--json"]);
    assert_eq!(output.status, 1, "{output:?}");
    assert_said(&checks(&output), "daemon", "no halsup daemon answers on", "halsup daemon start");

    let daemon = Daemon::start(&format!("[pool.web]\n{SLEEPER}"));
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o711)).expect("let it in");
    let mut command = crate::place::command();
    command.arg("--socket").arg(daemon.path("run/control.sock")).args(["doctor", "--json"]);
    let output = run(command.uid(NOBODY).gid(NOBODY));
    assert_eq!(output.status, 1, "{output:?}");
    assert_said(&checks(&output), "daemon", "permission denied on", "ask as root");
}

#[test]
fn a_configuration_that_is_wrong() {
    let place = Place::new("[pool.web]\nsise = 3\n");
    let output = run(place.command(&["doctor", "--json"]).env_remove("X"));
    // Where the socket is cannot be known then: the whole answer is what is wrong with the file.
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.stderr.contains("unknown key"), "{output:?}");
}

#[test]
fn all_is_well_and_each_pool_and_volume_is_named() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&format!("[pool.web]\nsize = 2\nvolumes = ['data:/data']\n{SLEEPER}"));
    wait_healthy(&mut daemon, 2);
    let all = ask(&daemon);
    for (name, found) in [
        ("daemon", "runs, pid "),
        ("pool web", "2 of 2 workers are ready"),
        ("volume data", "is there"),
        ("room", " are free"),
        ("state files", "are whole"),
    ] {
        let check = find(&all, name).unwrap_or_else(|| panic!("no {name} in {all:#?}"));
        assert_eq!(check["ok"], true, "{check}");
        assert!(check["found"].as_str().is_some_and(|text| text.contains(found)), "{check}");
    }
    assert!(find(&all, "dns").is_some());
}

#[test]
fn a_service_that_fails_to_start_in_time() {
    needs!(Root, CgroupTree);
    let port = free_ports(1);
    let service = format!(
        "[service.chromadb]\nbase_port = {port}\nready = 'http:/api/v2/heartbeat'\nready_timeout = '1s'\n{SLEEPER}"
    );
    let mut daemon = Daemon::start(&service);
    wait_said(&mut daemon, "service chromadb", "failed to start within 1s", "halsup logs chromadb");
}

#[test]
fn a_port_that_somebody_else_has() {
    needs!(Root, CgroupTree);
    let listener = TcpListener::bind("0.0.0.0:0").expect("take a port");
    let port = listener.local_addr().expect("it has one").port();
    let config = format!("[service.chromadb]\nbase_port = {port}\n{SLEEPER}");
    let named = format!("port {port} is in use by ");
    let place = Place::new(&config);
    assert_said(&checks(&place.cli(&["doctor", "--json"])), "port of chromadb", &named, "CHROMADB_PORT=8080");
    let mut daemon = Daemon::start_in(place);
    wait_said(&mut daemon, "service chromadb", &format!("port {port} is in use"), "use another port");
    drop(daemon);
    drop(listener);
}

#[test]
fn a_service_that_nobody_can_reach() {
    needs!(Root, CgroupTree);
    let port = free_ports(1);
    let own = format!("[pool.web]\nnet = 'own'\n{SLEEPER}");
    let mut daemon = Daemon::start(&format!("[service.chromadb]\nbase_port = {port}\n{SLEEPER}{own}"));
    wait_healthy(&mut daemon, 2);
    let all = ask(&daemon);
    assert_said(&all, "port of chromadb", &format!("nobody listens on localhost:{port}"), "ready = \"tcp\"");
    let network = find(&all, "network of web").expect("a check");
    assert!(network["found"].as_str().is_some_and(|text| text.contains("do not reach services at localhost")));
    assert!(network["fix"].as_str().is_some_and(|text| text.contains("net = \"parent\"")), "{network}");
}

#[test]
fn a_memory_limit_that_was_reached() {
    needs!(Root, Cgroup2("memory"), Python3);
    let hog = "import time\nx = bytearray(512 << 20)\ntime.sleep(1000)";
    let settings = "memory = '64m'\nrestart = false\n";
    let mut daemon = Daemon::start(&format!("[pool.web]\n{settings}command = ['python3', '-c', '''{hog}''']\n"));
    wait_said(&mut daemon, "limits of web", "web.0: OOMKilled: true (memory 64m)", "memory = \"8g\" in [pool.web]");
}

#[test]
fn a_limit_on_processes_that_was_reached() {
    needs!(Root, Cgroup2("pids"));
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait";
    let mut daemon = Daemon::start(&format!("[pool.web]\npids = 5\ncommand = ['sh', '-c', '{script}']\n"));
    wait_said(&mut daemon, "limits of web", "web.0: pids limit reached (5)", "pids = 200 in [pool.web]");
}

#[test]
fn a_root_that_cannot_be_found() {
    needs!(Root, CgroupTree);
    let place = Place::new(&format!("[pool.web]\nroot = '/nowhere/at/all'\n{SLEEPER}"));
    let all = checks(&place.cli(&["doctor", "--json"]));
    assert_said(&all, "root of web", "unable to find /nowhere/at/all", "name another `root` in [pool.web]");
}

#[test]
fn an_image_that_is_not_found() {
    needs!(Root, CgroupTree);
    let place = Place::new(&format!("[pool.web]\nroot = 'image:ghcr.io/hellblazer/hal-9000:worker'\n{SLEEPER}"));
    let all = checks(&place.cli(&["doctor", "--json"]));
    let found = "image 'ghcr.io/hellblazer/hal-9000:worker' not found";
    assert_said(&all, "root of web", found, "halsup image import");
    let mut daemon = Daemon::start_in(place);
    wait_said(&mut daemon, "root of web", found, "halsup image import");
    assert_said(&ask(&daemon), "pool web", "0 of 1 workers are ready", "");
}

#[test]
fn no_warm_workers_because_the_program_ends() {
    needs!(Root, CgroupTree);
    let restart = "restart = { max_restarts = 1, delay = '10ms' }\n";
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nsize = 2\n{restart}command = ['sh', '-c', 'echo no such key >&2; exit 3']\n"
    ));
    daemon.wait_until("two workers that were given up", |daemon| {
        let workers = crate::look::workers(daemon);
        (workers.len() == 2 && workers.iter().all(|worker| worker["state"] == "crashed")).then_some(())
    });
    wait_said(&mut daemon, "pool web", "it ended: exited 3, with the words \"no such key\"", "halsup reset web.");
    let printed = daemon.cli(&["doctor"]);
    assert_eq!(printed.status, 1, "{printed:?}");
    assert!(printed.stdout.contains("MISS  pool web: 0 of 2 workers are ready"), "{printed:?}");
}

#[test]
fn workers_that_somebody_stopped() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&format!("[pool.web]\n{SLEEPER}"));
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["stop", "web"]).status, 0);
    wait_said(&mut daemon, "pool web", "somebody stopped it", "halsup start web.0");
}

#[test]
fn no_warm_workers_because_the_pool_is_stopped() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.work]\n[pool.work.claims]\nmin = 1\nmax = 2\nsessions = 2\n");
    daemon.wait_until("a warm worker", |daemon| {
        let check = find(&ask(daemon), "pool work")?;
        (check["found"] == "1 of 1 workers are warm, 0 are claimed").then_some(())
    });
    assert_eq!(daemon.cli(&["pool", "stop"]).status, 0);
    let claimed = daemon.cli(&["claim", "--name", "one", "--", "sleep", "1000"]);
    assert_eq!(claimed.status, 0, "{claimed:?}");
    wait_said(&mut daemon, "pool work", "0 of 1 workers are warm, 1 are claimed; it is stopped", "halsup pool start");
    assert_eq!(daemon.cli(&["release", "one"]).status, 0);
}

#[test]
fn files_in_a_volume_that_its_workers_cannot_change() {
    needs!(Root, CgroupTree);
    let script =
        "while ! (echo x >> /data/chromadb/file) 2>/dev/null; do sleep 0.1; done; echo wrote; exec sleep infinity";
    let config = format!("[pool.web]\nvolumes = ['chromadb:/data/chromadb']\ncommand = ['sh', '-c', '{script}']\n");
    let mut daemon = Daemon::start(&format!("[pool.idle]\n{SLEEPER}"));
    assert_eq!(daemon.cli(&["volume", "create", "chromadb"]).status, 0);
    let file = daemon.path("state/volumes/chromadb/data/file");
    fs::write(&file, "").expect("write");
    std::os::unix::fs::chown(&file, Some(1234), Some(1234)).expect("give it away");
    daemon.place().configure(&config);
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    wait_said(&mut daemon, "owners in chromadb", "permission denied to its workers: 1 files", "halsup volume repair");
    let repaired = daemon.cli(&["volume", "repair", "chromadb"]);
    assert_eq!((repaired.status, repaired.stdout.as_str()), (0, "chromadb\n"), "{repaired:?}");
    wait_line(&mut daemon, "web.0", |line| line == "wrote");
    assert!(find(&ask(&daemon), "owners in chromadb").is_none());
}

#[test]
fn a_volume_that_is_gone() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&format!("[pool.web]\nvolumes = ['chromadb:/data/chromadb']\n{SLEEPER}"));
    wait_healthy(&mut daemon, 1);
    fs::remove_dir_all(daemon.path("state/volumes/chromadb")).expect("remove it by hand");
    wait_said(&mut daemon, "volume chromadb", "is not kept", "halsup volume create chromadb");
}

#[test]
fn a_disk_that_is_full() {
    needs!(Root, CgroupTree);
    let place = Place::new(&format!("[pool.web]\n{SLEEPER}"));
    fs::create_dir(place.path("state")).expect("make the directory");
    let state = place.path("state");
    let full = "mount -t tmpfs -o size=32m,mode=700 none \"$1\" && shift && exec \"$@\"";
    let mut command = place.command_under(
        &["unshare", "-m", "sh", "-c", full, "sh", state.to_str().expect("ASCII")],
        &["doctor", "--json"],
    );
    let all = checks(&run(&mut command));
    assert_said(&all, "room", "only ", "halsup volume ls --size");
}

#[test]
fn a_host_without_a_resolver() {
    needs!(Root, CgroupTree);
    let place = Place::new(&format!("[pool.web]\n{SLEEPER}"));
    let hidden = "mount --bind /dev/null \"$(readlink -f /etc/resolv.conf)\" && exec \"$@\"";
    let mut command = place.command_under(&["unshare", "-m", "sh", "-c", hidden, "sh"], &["doctor", "--json"]);
    let dns = find(&checks(&run(&mut command)), "dns").expect("a check");
    assert_eq!(dns["found"], "/etc/resolv.conf names no server");
    assert!(dns["fix"].as_str().is_some_and(|fix| fix.contains("nameserver ADDRESS")), "{dns}");
}

#[test]
fn state_that_is_damaged() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&format!("[pool.web]\n{SLEEPER}"));
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.stop(), 0);
    fs::write(daemon.path("state/certificates"), "this is no record\nnor this\n").expect("damage it");
    assert_eq!(daemon.start_again().code(), Some(0));
    wait_said(&mut daemon, "state files", "1 damaged files are in quarantine", ".reason beside each");
}

#[test]
fn workers_that_run_without_a_daemon() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(&format!("[pool.web]\non_supervisor_death = 'forever'\n{SLEEPER}"));
    wait_healthy(&mut daemon, 1);
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    let all = {
        // The kernel closes the socket a moment after the kill.
        (0..).map(|_| checks(&daemon.cli(&["doctor", "--json"]))).find(|all| find(all, "orphans").is_some())
    };
    assert_said(&all.expect("it ends"), "orphans", "processes of workers run without a daemon", "halsup gc");
    daemon.start_again();
    wait_certificate_none(&mut daemon);
}

/// The worker was taken over: none of its kind has died.
#[track_caller]
fn wait_certificate_none(daemon: &mut Daemon) {
    wait_healthy(daemon, 1);
    assert!(crate::look::certificates(daemon, "web.0").is_empty());
    assert_eq!(daemon.cli(&["restart", "web"]).status, 0);
    wait_certificate(daemon, "web.0", 1);
}
