//! Readiness and signs of life, by every way there is; each against a real worker.

use rustix::process::Signal;

use crate::fixture::Daemon;
use crate::look::{
    ANSWERS_PINGS, certificates, pid, python, signal, wait_certificate, wait_healthy, wait_line, worker,
};
use crate::needs::needs;
use crate::ports::free_ports;

/// The example workers that users copy.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/workers");

fn example(name: &str, settings: &str) -> Daemon {
    let program = std::fs::read_to_string(format!("{EXAMPLES}/{name}.py")).expect("read the example");
    Daemon::start(&format!("[pool.web]\n{}{settings}", python(&program)))
}

#[test]
fn a_channel_worker_is_ready_when_it_says_so_and_killed_when_it_falls_silent() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = example(
        "channel_worker",
        "ready = 'channel'\n[pool.web.heartbeat]\nsource = 'channel'\ninterval = '100ms'\ntimeout = '200ms'\nmax_missed = 3\n",
    );
    let first = wait_healthy(&mut daemon, 1).remove(0);
    signal(pid(&first), Signal::STOP);
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "heartbeat");
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_notify_worker_is_ready_when_it_says_so_and_killed_when_it_falls_silent() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = example(
        "notify_worker",
        "ready = 'notify'\n[pool.web.heartbeat]\nsource = 'notify'\ninterval = '500ms'\nmax_missed = 2\n",
    );
    let first = wait_healthy(&mut daemon, 1).remove(0);
    assert!(worker(&daemon, "web.0")["status_text"].is_string(), "its STATUS is shown");
    signal(pid(&first), Signal::STOP);
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "heartbeat");
    wait_healthy(&mut daemon, 1);
}

#[test]
fn an_independent_worker_is_only_called_unhealthy() {
    needs!(Root, CgroupTree, Python3);
    let mut daemon = example(
        "channel_worker",
        "ready = 'channel'\n[pool.web.heartbeat]\nsource = 'channel'\ninterval = '50ms'\ntimeout = '50ms'\nmax_missed = 2\ndependent = false\n",
    );
    let first = wait_healthy(&mut daemon, 1).remove(0);
    signal(pid(&first), Signal::STOP);
    daemon.wait_until("unhealthy, and well beyond its misses", |daemon| {
        let now = worker(daemon, "web.0");
        Some(()).filter(|()| now["state"] == "unhealthy" && now["missed_heartbeats"].as_u64() >= Some(4))
    });
    assert_eq!(certificates(&daemon, "web.0").len(), 0);
    signal(pid(&first), Signal::CONT);
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_web_server_is_ready_when_it_answers() {
    needs!(Root, CgroupTree, Python3);
    let first = free_ports(3);
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nsize = 3\nbase_port = {first}\nready = 'http:/'\ncommand = ['python3', '-m', 'http.server', '{{port}}', '--bind', '127.0.0.1']\n\
         [pool.web.heartbeat]\nsource = 'tcp'\ninterval = '100ms'\ntimeout = '1s'\n",
    ));
    for worker in wait_healthy(&mut daemon, 3) {
        let port = u16::try_from(worker["port"].as_u64().expect("a port")).expect("a port");
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens, since it is ready");
    }
}

#[test]
fn a_file_makes_a_worker_ready() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nready = 'file:deep/ready'\ncommand = ['sh', '-c', 'mkdir deep; echo x > deep/ready; exec sleep infinity']\n",
    );
    wait_healthy(&mut daemon, 1);
}

#[test]
fn a_worker_that_is_never_ready_is_killed_by_its_deadline() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(
        "[pool.web]\nready = 'notify'\nready_timeout = '200ms'\nrestart = false\ncommand = ['sleep', 'infinity']\n",
    );
    assert_eq!(wait_certificate(&mut daemon, "web.0", 1)["cause"], "start-failed");
}

#[test]
fn a_listening_socket_is_handed_in_and_survives_the_worker() {
    needs!(Root, CgroupTree, Python3);
    let program = r"
import os, socket
assert os.environ['LISTEN_PID'] == str(os.getpid()), os.environ
assert os.environ['LISTEN_FDS'] == '1'
listener = socket.socket(fileno=3)
while True:
    peer, _ = listener.accept()
    peer.sendall(str(os.getpid()).encode())
    peer.close()
";
    let port = free_ports(1);
    let mut daemon = Daemon::start(&format!("[pool.web]\nlisten = ['tcp:127.0.0.1:{port}']\n{}", python(program)));
    let ask = || {
        use std::io::Read as _;
        let mut peer = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the listener is the daemon's");
        let mut said = String::new();
        peer.read_to_string(&mut said).map(|_| said)
    };
    let first = wait_healthy(&mut daemon, 1).remove(0);
    assert_eq!(ask().expect("an answer"), "2");
    signal(pid(&first), Signal::KILL);
    wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(ask().expect("an answer of its successor, asked while nobody ran"), "2");
}

#[test]
fn junk_and_floods_on_the_notify_socket_harm_only_their_sender() {
    needs!(Root, CgroupTree, Python3);
    let bad = r"
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ['NOTIFY_SOCKET'])
for junk in (b'', b'\0', b'=', b'READY', b'x' * 5000, b'\xff\xfe', b'STATUS=\x1b[31m\nREADY=0'):
    s.send(junk)
s.send(b'READY=1')
print('ready', flush=True)
while True:
    s.send(b'STATUS=flood')
";
    let mut daemon = Daemon::start(&format!(
        "[pool.bad]\nready = 'notify'\n{}[pool.good]\nready = 'channel'\n{}\
         [pool.good.heartbeat]\nsource = 'channel'\ninterval = '50ms'\ntimeout = '2s'\nmax_missed = 1\n",
        python(bad),
        python(ANSWERS_PINGS)
    ));
    wait_healthy(&mut daemon, 2);
    wait_line(&mut daemon, "bad.0", |line| line == "ready");
    for _ in 0..20 {
        assert_eq!(daemon.cli(&["ps"]).status, 0);
    }
    assert_eq!(certificates(&daemon, "good.0").len(), 0);
    assert_eq!(worker(&daemon, "good.0")["state"], "healthy");
}
