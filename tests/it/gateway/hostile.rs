//! A gateway that was taken over, and workers that want to be it.

#![expect(clippy::disallowed_types, reason = "the hostile program is compiled first")]

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use super::Served;
use crate::fixture::Daemon;
use crate::http::get;
use crate::look::{lines, pid, python, signal, wait_line, worker};
use crate::needs::needs;
use crate::place::{directory, program};
use crate::ports::free_ports;

/// How often the gateway is killed: `HALSUP_TEST_GATEWAY_KILLS`.
fn kills() -> u32 {
    std::env::var("HALSUP_TEST_GATEWAY_KILLS").ok().map_or(10, |text| text.parse().expect("a number"))
}

#[test]
fn one_that_was_taken_over_can_do_nothing() {
    needs!(Root, CgroupTree, Program("cc"));
    let dir = directory();
    let beside = |name: &str| dir.path().join(name);
    std::fs::copy(program(), beside("halsup")).expect("copy the daemon");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/gateway/hostile.c");
    let built = Command::new("cc").arg("-o").arg(beside("halsup-gateway")).arg(source).status().expect("run cc");
    assert!(built.success());
    // It shares no network with the host: this one it cannot even name.
    let hidden = SocketAddr::from_abstract_name(b"halsup-test-abstract").expect("a name");
    let _listener = UnixListener::bind_addr(&hidden).expect("listen");
    let port = free_ports(1);
    let config = format!(
        "[gateway]\nlisten = ['127.0.0.1:{port}']\n[pool.web]\ncommand = ['sleep', 'infinity']\nrestart = false\n"
    );
    let run = format!("shift; exec {} \"$@\"", beside("halsup").display());
    let mut daemon = Daemon::start_under(&["sh", "-c", &run, "sh"], &config);
    wait_line(&mut daemon, "gateway", |line| line == "done");
    let tried = lines(&daemon, "gateway");
    let attempts: Vec<&String> = tried.iter().filter(|line| line.contains(": ")).collect();
    assert!(attempts.len() > 45, "{tried:?}");
    let let_in: Vec<_> = attempts.iter().filter(|line| !line.ends_with(": refused")).collect();
    assert!(let_in.is_empty(), "{let_in:?}");
    assert_eq!(worker(&daemon, "web.0")["state"], "healthy");
}

#[test]
fn its_port_is_nobody_elses_however_often_it_is_killed() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    // Tries all the time, by every way there is.
    let squatter = format!(
        r"
import socket
tried = 0
while True:
    for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        for address in ('127.0.0.1', '0.0.0.0'):
            s = socket.socket()
            if option is not None:
                s.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                s.bind((address, {port}))
                s.listen()
                print('HELD', flush=True)
            except OSError:
                pass
            s.close()
    tried += 1
    if tried == 100:
        print('trying', flush=True)
"
    );
    let config = format!("[gateway]\nlisten = ['127.0.0.1:{port}']\n[pool.evil]\n{}", python(&squatter));
    let mut daemon = Daemon::start(&config);
    wait_line(&mut daemon, "evil.0", |line| line == "trying");
    for _ in 0..kills() {
        let before = pid(&worker(&daemon, "gateway"));
        signal(before, Signal::KILL);
        daemon.wait_until("another one serves", |daemon| {
            let now = worker(daemon, "gateway");
            Some(()).filter(|()| now["state"] == "healthy" && now["pid"].as_i64() != Some(i64::from(before)))
        });
    }
    assert_eq!(get(port, "/livez").status, 200);
    assert!(lines(&daemon, "evil.0").iter().all(|line| line != "HELD"));
}

#[test]
fn a_worker_is_answered_as_anybody() {
    needs!(Root, CgroupTree, Python3);
    let port = free_ports(1);
    let asking = format!(
        r"
import time, urllib.request, urllib.error
def ask(method, path, **fields):
    request = urllib.request.Request('http://127.0.0.1:{port}' + path, method=method, headers=fields)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
while True:
    try:
        if ask('GET', '/livez') == 200:
            break
    except OSError:
        time.sleep(0.05)
for method in ('POST', 'PUT', 'DELETE', 'PATCH'):
    for path in ('/pool/reset-circuit-breakers', '/livez', '/nothing', '/'):
        print(method, path, ask(method, path), flush=True)
        print(method, path, ask(method, path, Authorization='Bearer halsup_00'), flush=True)
        print(method, path, ask(method, path, **{{'X-Forwarded-For': '127.0.0.1', 'X-Real-IP': '127.0.0.1'}}), flush=True)
print('done', flush=True)
time.sleep(1000)
"
    );
    let config = format!("[gateway]\nlisten = ['127.0.0.1:{port}']\n[pool.evil]\n{}", python(&asking));
    let mut daemon = Daemon::start(&config);
    let told = wait_line(&mut daemon, "evil.0", |line| line == "done");
    let answers: Vec<&String> = told.iter().filter(|line| line.as_str() != "done").collect();
    assert_eq!(answers.len(), 4 * 4 * 3);
    assert!(answers.iter().all(|line| line.ends_with(" 401") || line.ends_with(" 404")), "{answers:?}");
    assert!(answers.iter().all(|line| !line.contains("/pool/") || line.ends_with(" 401")), "{answers:?}");
}

#[test]
fn another_build_and_another_daemon_go_on_with_it() {
    needs!(Root, CgroupTree);
    let mut served = Served::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    let (port, token) = (served.port, served.token("acts", &[]));
    let before = pid(&worker(&served.daemon, "gateway"));
    let reset = |served: &Served| served.ask(&token, "POST", "/pool/reset-circuit-breakers", "").status;
    assert_eq!(reset(&served), 200);
    assert_eq!(served.daemon.cli(&["daemon", "reexec"]).status, 0);
    assert_eq!(reset(&served), 200, "the same gateway finds the new build");
    signal(i32::try_from(served.daemon.pid()).expect("a pid"), Signal::KILL);
    served.daemon.start_again();
    served.daemon.wait_until("it answers", |_| Some(()).filter(|()| get(port, "/readyz").status == 200));
    assert_eq!(reset(&served), 200, "and the next daemon");
    assert_eq!(pid(&worker(&served.daemon, "gateway")), before, "nobody restarted it");
}
