//! Workers that say far too much: they fill their own share and nobody else's.

use std::fs;
use std::path::Path;

use super::python;
use crate::fixture::Daemon;
use crate::look::{certificates, wait_certificate, wait_healthy, wait_line, worker};
use crate::needs::needs;

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("list").flatten();
    entries
        .map(|entry| {
            entry.metadata().map_or(0, |meta| if meta.is_dir() { bytes_below(&entry.path()) } else { meta.len() })
        })
        .sum()
}

const NEIGHBOUR: &str = "
import os, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
notify.send(b'READY=1')
while True:
    notify.send(b'WATCHDOG=1')
    time.sleep(0.2)
";

fn neighbour() -> String {
    format!(
        "[pool.calm]\nready = 'notify'\n{}[pool.calm.heartbeat]\nsource = 'notify'\ninterval = '10s'\nmax_missed = 1\n",
        python(NEIGHBOUR)
    )
}

#[test]
fn a_flood_of_output_fills_no_memory_no_disk_and_no_neighbours_time() {
    needs!(Root, CgroupTree, Python3);
    // Long lines, short lines, lines of escapes, and none at all.
    let flood = "
import os
part = 200 * 1024 * 1024 // 4
for block in (b'x' * 4095 + b'\\n', b'y\\n' * 2048, b'\\x1b[31m\\xff\\x00' * 512, b'z' * 4096):
    for n in range(part // len(block)):
        os.write(1 + n % 2, block)
os._exit(0)
";
    let mut daemon = Daemon::start(&format!(
        "[pool.web]\nrestart = false\n{}[pool.web.log]\nmax_size = '1m'\nkeep = 2\n{}",
        python(flood),
        neighbour()
    ));
    daemon.wait_until("the neighbour", |daemon| Some(()).filter(|()| worker(daemon, "calm.0")["state"] == "healthy"));
    let before = rss_kib(daemon.pid());
    let certificate = wait_flood(&mut daemon);
    assert_eq!(certificate["cause"], "exited 0");
    let after = rss_kib(daemon.pid());
    assert!(after < before + 16 * 1024, "{before} KiB became {after} KiB");
    let on_disk = bytes_below(&daemon.path("state"));
    assert!(on_disk < 4 << 20, "{on_disk} bytes of logs");
    assert_eq!(certificates(&daemon, "calm.0").len(), 0, "the neighbour beat on");
}

/// Waits for the flood's end, however long its emulated machine takes; the control socket answers all the while.
fn wait_flood(daemon: &mut Daemon) -> serde_json::Value {
    loop {
        if let Some(certificate) = certificates(daemon, "web.0").pop() {
            return certificate;
        }
        daemon.wait_until("an answer", |daemon| Some(worker(daemon, "web.0")));
    }
}

#[test]
fn a_flood_of_notifications_and_frames_starves_nobody() {
    needs!(Root, CgroupTree, Python3);
    let flood = "
import json, os, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
notify.send(b'READY=1')
channel = socket.socket(fileno=int(os.environ['HALSUP_CHANNEL_FD'])) if 'HALSUP_CHANNEL_FD' in os.environ else None
junk = [b'', b'\\x00' * 100, b'STATUS=' + b'x' * 5000, b'=' * 4096, b'\\n' * 4096, b'FDSTORE=1', b'MAINPID=1', b'READY=1\\n' * 100,
    b'WATCHDOG_USEC=0', b'EXTEND_TIMEOUT_USEC=99999999999999999999', b'ERRNO=x', os.urandom(2000), b'STATUS=' + bytes(range(1, 256))]
for n in range(20000):
    try:
        notify.send(junk[n % len(junk)])
    except OSError:
        pass
# Descriptors that nobody asked for.
for n in range(50):
    socket.send_fds(notify, [b'FDSTORE=1'], [0] * 100)
print('flooded', flush=True)
while True:
    notify.send(b'STATUS=x')
";
    let mut daemon = Daemon::start(&format!("[pool.web]\nready = 'notify'\n{}{}", python(flood), neighbour()));
    wait_healthy(&mut daemon, 2);
    let fds = |daemon: &Daemon| fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("list descriptors").count();
    let (memory, descriptors) = (rss_kib(daemon.pid()), fds(&daemon));
    wait_line(&mut daemon, "web.0", |line| line == "flooded");
    assert!(rss_kib(daemon.pid()) < memory + 16 * 1024);
    // A client of this test's own may be connected or not.
    assert!(fds(&daemon) <= descriptors + 4, "{descriptors} became {}", fds(&daemon));
    assert_eq!(certificates(&daemon, "calm.0").len(), 0, "the neighbour beat on");
    assert_eq!(daemon.cli(&["kill", "web"]).status, 0, "and the flooder can be ended");
    wait_certificate(&mut daemon, "web.0", 1);
}
