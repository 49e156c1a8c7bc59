//! The Python SDK under a real daemon: its callers on the control socket, its worker on a channel.
//!
//! What each does by itself is in `tests/sdk`, where the other side is played.

#![expect(clippy::disallowed_types, reason = "runs the caller; nothing here is supervised")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::fixture::Daemon;
use crate::look::{lines, signal, wait_certificate, wait_healthy, wait_line};
use crate::needs::needs;
use crate::place::directory;

/// What a user copies, and the two programs that use it.
const FILES: [(&str, &str); 3] = [
    ("halsup.py", include_str!("../../examples/sdk/halsup.py")),
    ("worker.py", include_str!("../sdk/worker.py")),
    ("caller.py", include_str!("../sdk/caller.py")),
];

/// A daemon whose pool `web` is one worker that takes four requests at once.
struct Served {
    daemon: Daemon,
    copies: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let copies = directory();
        fs::set_permissions(copies.path(), Permissions::from_mode(0o755)).expect("open the directory");
        for (name, text) in FILES {
            let path = copies.path().join(name);
            fs::write(&path, text).expect("write a copy");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("open the copy");
        }
        let mut daemon = Daemon::start(&format!(
            "[pool.web]\nsize = 1\ncommand = ['python3', '-u', '/srv/worker.py']\nbind = ['{}:/srv']\nready = 'channel'\n\
             dispatch = {{ capacity = 4 }}\non_supervisor_death = '10m'\n",
            copies.path().display()
        ));
        wait_healthy(&mut daemon, 1);
        Self { daemon, copies }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command.args(["-B", "-W", "error"]).arg(self.copies.path().join("caller.py"));
        command.arg(self.daemon.path("run/control.sock")).args(arguments);
        command
    }

    /// What the caller prints, when all was as it expects.
    #[track_caller]
    fn call(&self, arguments: &[&str]) -> String {
        let output = self.daemon.place().run_bounded(&mut self.command(arguments));
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{arguments:?}");
        output.stdout.trim().to_owned()
    }

    /// Begins a request that nothing ends but its caller's patience; it is in the worker when this returns.
    fn hold(&mut self) -> Child {
        let mut command = self.command(&["hold", "600"]);
        let child = command.stdout(Stdio::piped()).spawn().expect("start the caller");
        wait_line(&mut self.daemon, "web.0", |line| line.ends_with("holding"));
        child
    }
}

#[test]
fn callers_get_answers_errors_memory_and_streams() {
    needs!(Root, CgroupTree, Python3);
    let served = Served::start();
    for what in ["calls", "memory", "streams"] {
        served.call(&[what]);
    }
}

#[test]
fn callers_wait_for_pools_and_ask_what_became_of_requests() {
    needs!(Root, CgroupTree, Python3);
    let served = Served::start();
    served.call(&["asks"]);
}

#[test]
fn workers_call_back_for_what_threads_and_event_loops_serve() {
    needs!(Root, CgroupTree, Python3);
    let served = Served::start();
    for what in ["tools", "tools_async", "calls"] {
        served.call(&[what]);
    }
}

#[test]
fn a_request_whose_time_is_over_is_cleaned_up_by_its_worker() {
    needs!(Root, CgroupTree, Python3);
    let mut served = Served::start();
    assert_eq!(served.call(&["hold", "0.2"]), "worker_timeout");
    wait_line(&mut served.daemon, "web.0", |line| line.ends_with("cleaned"));
    served.call(&["calls"]);
    assert_eq!(lines(&served.daemon, "web.0").iter().filter(|line| line.ends_with("ended")).count(), 0);
}

#[test]
fn a_caller_that_goes_has_its_request_cleaned_up() {
    needs!(Root, CgroupTree, Python3);
    let mut served = Served::start();
    let mut caller = served.hold();
    caller.kill().expect("end the caller");
    caller.wait().expect("reap the caller");
    wait_line(&mut served.daemon, "web.0", |line| line.ends_with("cleaned"));
    served.call(&["calls"]);
}

#[test]
fn a_worker_forgets_what_a_new_daemon_does_not_know_and_goes_on() {
    needs!(Root, CgroupTree, Python3);
    let mut served = Served::start();
    let before = served.call(&["echo"]);
    let caller = served.hold();
    signal(i32::try_from(served.daemon.pid()).expect("a pid"), Signal::KILL);
    served.daemon.start_again();
    let said = caller.wait_with_output().expect("reap the caller");
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "connection_lost");
    wait_line(&mut served.daemon, "web.0", |line| line.ends_with("cleaned"));
    assert_eq!(served.call(&["echo"]), before, "the same worker, not a new one");
    served.call(&["calls"]);
}

#[test]
fn a_worker_that_is_asked_to_end_does_so_by_itself() {
    needs!(Root, CgroupTree, Python3);
    let mut served = Served::start();
    served.call(&["echo"]);
    assert_eq!(served.daemon.cli(&["restart", "web.0"]).status, 0);
    let certificate = wait_certificate(&mut served.daemon, "web.0", 1);
    assert_eq!(certificate["status"], "exited 0", "{certificate}");
    wait_line(&mut served.daemon, "web.0", |line| line.ends_with("ended"));
}
