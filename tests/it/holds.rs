//! Copies of volumes that workers write meanwhile: of one moment, and nobody stands still for longer than that takes.

#![expect(clippy::disallowed_types, reason = "commands run beside the daemon and are killed in the middle")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::fixture::Daemon;
use crate::look::{certificates, pid, wait_healthy, wait_line};
use crate::needs::needs;

/// Writes one number into many files, one after the other, again and again: at no moment do two of them differ by more than
/// one, and none is larger than one before it.
const WRITES: &str = r"
import os
os.chdir('/data')
fds = [os.open('n%02d' % i, os.O_CREAT | os.O_RDWR, 0o644) for i in range(40)]
for fd in fds: os.pwrite(fd, b'%012d' % 0, 0)
big = os.open('big', os.O_CREAT | os.O_RDWR, 0o644)
os.write(big, os.urandom(4 << 20))
print('ready', flush=True)
n = 0
while True:
    n += 1
    for fd in fds: os.pwrite(fd, b'%012d' % n, 0)
";

fn writer(settings: &str) -> String {
    format!("[pool.web]\n{settings}volumes = ['data:/data']\ncommand = ['python3', '-c', '''{WRITES}''']\n")
}

/// The numbers in the files, in their order.
fn numbers(data: &Path) -> Vec<u64> {
    (0..40)
        .map(|i| fs::read_to_string(data.join(format!("n{i:02}"))).expect("read").trim().parse().expect("a number"))
        .collect()
}

#[track_caller]
fn assert_of_one_moment(data: &Path) -> u64 {
    let numbers = numbers(data);
    let (first, last) = (numbers[0], numbers[39]);
    assert!(first - last <= 1 && numbers.windows(2).all(|pair| pair[0] >= pair[1]), "{numbers:?}");
    first
}

fn cgroup(daemon: &Daemon) -> PathBuf {
    let base = daemon.cgroup().expect("it has one").join("pool.web");
    let mut all = fs::read_dir(base).expect("list").flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    all.next().expect("one worker")
}

fn is_frozen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
}

/// An export into a pipe that nobody reads: it goes on for as long as that.
fn stalled(daemon: &Daemon) -> Child {
    let mut command = daemon.place().command(&["volume", "export", "data", "-o", "-"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run it")
}

/// Waits until the export packs: then it knows who stands still.
fn await_packing(export: &mut Child) {
    let mut header = [0; 10];
    export.stdout.as_mut().expect("piped").read_exact(&mut header).expect("the archive begins");
}

#[test]
fn a_backup_under_load_is_of_one_moment_and_is_brought_back() {
    needs!(Root, CgroupTree, Userns, Python3);
    let mut daemon = Daemon::start(&writer(""));
    wait_line(&mut daemon, "web.0", |line| line == "ready");
    let mut seen = Vec::new();
    for round in 0..8 {
        let archive = daemon.path(&format!("{round}.tar.gz"));
        let made = daemon.cli(&["backup", "--json", "-o", archive.to_str().expect("ASCII")]);
        assert_eq!((made.status, made.stderr.as_str()), (0, ""), "{made:?}");
        assert_eq!(made.json()["changed"], 0);
        let place = crate::place::Place::new("[pool.web]\ncommand = ['true']\n");
        assert_eq!(place.cli(&["restore", archive.to_str().expect("ASCII")]).status, 0);
        seen.push(assert_of_one_moment(&place.path("state/volumes/data/data")));
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "it goes on between: {seen:?}");
    assert!(certificates(&daemon, "web.0").is_empty());
}

#[test]
fn who_stands_still_is_expected_to_give_no_sign_of_life() {
    needs!(Root, CgroupTree, Userns, Python3);
    let beats = "heartbeat = { source = 'notify', interval = '1s', timeout = '1s', max_missed = 2 }\n";
    let script = WRITES.replace(
        "    for fd in fds: os.pwrite(fd, b'%012d' % n, 0)\n",
        "    for fd in fds: os.pwrite(fd, b'%012d' % n, 0)\n    if n % 10 == 0: s.send(b'WATCHDOG=1')\n",
    );
    let script = format!(
        "import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.connect(os.environ['NOTIFY_SOCKET'])\n{script}"
    );
    let config = format!("[pool.web]\n{beats}volumes = ['data:/data']\ncommand = ['python3', '-c', '''{script}''']\n");
    let mut daemon = Daemon::start(&config);
    wait_line(&mut daemon, "web.0", |line| line == "ready");
    let cgroup = cgroup(&daemon);
    let mut export = stalled(&daemon);
    daemon.wait_until("a frozen worker", |_| is_frozen(&cgroup).then_some(()));
    // Four times as long as would end it otherwise.
    crate::checker::pause(std::time::Duration::from_secs(8));
    assert!(is_frozen(&cgroup) && certificates(&daemon, "web.0").is_empty());
    let mut archive = Vec::new();
    export.stdout.take().expect("piped").read_to_end(&mut archive).expect("read it");
    assert!(export.wait().expect("reap it").success());
    daemon.wait_until("a worker that goes on", |_| (!is_frozen(&cgroup)).then_some(()));
    crate::checker::pause(std::time::Duration::from_secs(2));
    assert!(certificates(&daemon, "web.0").is_empty(), "it beats again by itself");
    fs::write(daemon.path("out.tar.gz"), archive).expect("write");
    let out = crate::place::directory();
    let unpacked = Command::new("tar").arg("xzf").arg(daemon.path("out.tar.gz")).arg("-C").arg(out.path()).status();
    assert!(unpacked.expect("run tar").success());
    assert_of_one_moment(out.path());
}

#[test]
fn whoever_dies_in_the_middle_leaves_nobody_frozen() {
    needs!(Root, CgroupTree, Userns, Python3);
    let mut daemon = Daemon::start(&writer("on_supervisor_death = 'forever'\n"));
    wait_line(&mut daemon, "web.0", |line| line == "ready");
    let worker = wait_healthy(&mut daemon, 1).remove(0);
    let frozen = cgroup(&daemon);
    let mut export = stalled(&daemon);
    daemon.wait_until("a frozen worker", |_| is_frozen(&frozen).then_some(()));
    export.kill().expect("kill it");
    export.wait().expect("reap it");
    daemon.wait_until("a worker that goes on", |_| (!is_frozen(&frozen)).then_some(()));

    // The daemon dies: the command says that the copy is none, and lets the worker go on.
    let mut export = stalled(&daemon);
    daemon.wait_until("a frozen worker", |_| is_frozen(&frozen).then_some(()));
    await_packing(&mut export);
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    let mut rest = Vec::new();
    export.stdout.take().expect("piped").read_to_end(&mut rest).expect("read it");
    let ended = export.wait_with_output().expect("reap it");
    assert!(!ended.status.success());
    assert!(String::from_utf8_lossy(&ended.stderr).contains("did not stand still"), "{ended:?}");
    assert!(!is_frozen(&frozen), "the command has let it go on");

    // Both die: the next daemon does.
    daemon.start_again();
    let mut export = stalled(&daemon);
    daemon.wait_until("a frozen worker", |_| is_frozen(&frozen).then_some(()));
    export.kill().expect("kill it");
    crate::look::signal(i32::try_from(daemon.pid()).expect("a pid"), rustix::process::Signal::KILL);
    export.wait().expect("reap it");
    daemon.start_again();
    daemon.wait_until("a worker that goes on", |_| (!is_frozen(&frozen)).then_some(()));
    assert_eq!(pid(&wait_healthy(&mut daemon, 1)[0]), pid(&worker), "it is still the same");
}

#[test]
fn a_worker_that_is_started_meanwhile_spoils_it() {
    needs!(Root, CgroupTree, Userns, Python3);
    let mut daemon = Daemon::start(&writer("size = 1\n"));
    wait_line(&mut daemon, "web.0", |line| line == "ready");
    let frozen = cgroup(&daemon);
    let mut export = stalled(&daemon);
    daemon.wait_until("a frozen worker", |_| is_frozen(&frozen).then_some(()));
    await_packing(&mut export);
    assert_eq!(daemon.cli(&["scale", "web", "1"]).status, 0);
    assert_eq!(daemon.cli(&["kill", "web.0"]).status, 0);
    daemon.wait_event(|event| event["kind"] == "state" && event["state"] == "healthy" && event["generation"] == 2);
    let mut rest = Vec::new();
    export.stdout.take().expect("piped").read_to_end(&mut rest).expect("read it");
    let ended = export.wait_with_output().expect("reap it");
    assert!(!ended.status.success(), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("did not stand still"), "{ended:?}");
}
