//! Looking at workers through the command line, as an operator does.

use serde_json::Value;

use crate::fixture::Daemon;

/// What `halsup ps --json` says of every worker.
pub(crate) fn workers(daemon: &Daemon) -> Vec<Value> {
    daemon.cli(&["ps", "--json"]).json()["workers"].as_array().cloned().unwrap_or_default()
}

/// What it says of one.
#[track_caller]
pub(crate) fn worker(daemon: &Daemon, name: &str) -> Value {
    let all = workers(daemon);
    all.iter().find(|worker| worker["name"] == name).cloned().unwrap_or_else(|| panic!("no {name} in {all:?}"))
}

/// Those that are healthy.
pub(crate) fn healthy(daemon: &Daemon) -> Vec<Value> {
    workers(daemon).into_iter().filter(|worker| worker["state"] == "healthy").collect()
}

/// Waits until exactly `count` workers are healthy and gives them.
#[track_caller]
pub(crate) fn wait_healthy(daemon: &mut Daemon, count: usize) -> Vec<Value> {
    daemon.wait_until(&format!("{count} healthy workers"), |daemon| {
        Some(healthy(daemon)).filter(|workers| workers.len() == count)
    })
}

/// The same of one pool.
#[track_caller]
pub(crate) fn wait_healthy_of(daemon: &mut Daemon, pool: &str, count: usize) -> Vec<Value> {
    daemon.wait_until(&format!("{count} healthy workers of {pool}"), |daemon| {
        let own = healthy(daemon).into_iter().filter(|worker| worker["pool"] == pool);
        Some(own.collect::<Vec<_>>()).filter(|workers| workers.len() == count)
    })
}

/// The pid of a worker's program on this machine.
#[track_caller]
pub(crate) fn pid(worker: &Value) -> i32 {
    worker["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_else(|| panic!("no pid in {worker}"))
}

/// A worker's death certificates, the latest last.
#[track_caller]
pub(crate) fn certificates(daemon: &Daemon, name: &str) -> Vec<Value> {
    let inspected = daemon.cli(&["inspect", name, "--json"]).json();
    let latest_first = inspected["workers"][0]["certificates"].as_array().cloned();
    latest_first.unwrap_or_else(|| panic!("no certificates in {inspected}")).into_iter().rev().collect()
}

/// Waits until a worker has `count` certificates and gives the latest.
#[track_caller]
pub(crate) fn wait_certificate(daemon: &mut Daemon, name: &str, count: usize) -> Value {
    daemon.wait_until(&format!("{count} certificates of {name}"), |daemon| {
        let certificates = certificates(daemon, name);
        certificates.get(count - 1).cloned()
    })
}

/// What a worker has written, line by line.
#[track_caller]
pub(crate) fn lines(daemon: &Daemon, name: &str) -> Vec<String> {
    let output = daemon.cli(&["logs", name, "-n", "1000", "--json"]);
    assert_eq!(output.status, 0, "{output:?}");
    let text = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        entry["text"].as_str().unwrap_or_else(|| panic!("no text in {entry}")).trim_end_matches('\n').to_owned()
    };
    output.stdout.lines().map(text).collect()
}

/// Waits until a worker has written a line that `wanted` accepts, and gives all its lines.
#[track_caller]
pub(crate) fn wait_line(daemon: &mut Daemon, name: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    daemon.wait_until(&format!("a line of {name}"), |daemon| {
        Some(lines(daemon, name)).filter(|lines| lines.iter().any(|line| wanted(line)))
    })
}

/// Sends a signal to a process of this machine by a pidfd, which is opened while it is known to live.
#[track_caller]
pub(crate) fn signal(pid: i32, signal: rustix::process::Signal) {
    use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
    let named = Pid::from_raw(pid).expect("a pid");
    let pidfd = pidfd_open(named, PidfdFlags::empty()).unwrap_or_else(|error| panic!("open pidfd of {pid}: {error}"));
    pidfd_send_signal(&pidfd, signal).unwrap_or_else(|error| panic!("signal {pid}: {error}"));
}

/// A Python program that is ready on its channel and answers every ping.
pub(crate) const ANSWERS_PINGS: &str = r"
import json, os, socket
c = socket.socket(fileno=int(os.environ['HALSUP_CHANNEL_FD']))
c.send(json.dumps({'kind': 'ready'}).encode())
while True:
    frame = json.loads(c.recv(65536))
    if frame['kind'] == 'ping':
        c.send(json.dumps({'kind': 'pong', 'id': frame['id']}).encode())
";

/// A Python program as a pool's command; its braces are no placeholders.
pub(crate) fn python(program: &str) -> String {
    assert!(!program.contains("'''"), "the program is quoted by that");
    let program = program.replace('{', "{{").replace('}', "}}");
    format!("command = ['python3', '-c', '''{program}''']\n")
}
