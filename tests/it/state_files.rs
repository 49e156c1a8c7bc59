//! The daemon's own files, damaged, removed or replaced, while it runs and while it does not: it starts all the same, takes
//! over every worker that lives, and makes anew what is missing.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};

use crate::fixture::{Daemon, LIFE_DEADLINE, ended_within};
use crate::look::{certificates, pid, signal, wait_certificate, wait_healthy, wait_line, worker};
use crate::needs::needs;

const POOL: &str = "[pool.web]\nsize = 2\non_supervisor_death = 'forever'\ncommand = ['sleep', 'infinity']\n\
    [pool.web.restart]\ndelay = '1ms'\n";

fn pids(workers: &[Value]) -> Vec<i32> {
    workers.iter().map(pid).collect()
}

/// Kills the daemon; nothing of it runs afterwards.
fn kill(daemon: &Daemon) {
    let daemon = i32::try_from(daemon.pid()).expect("a pid");
    let pidfd = pidfd_of(daemon);
    signal(daemon, Signal::KILL);
    assert!(ended_within(pidfd.as_fd(), LIFE_DEADLINE), "it is killed");
}

fn pidfd_of(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("it runs")
}

/// One line of a state file, as the daemon writes it.
fn line(key: &str, value: &Value) -> String {
    let body = json!({ "key": key, "value": value }).to_string();
    format!("{:08x} {} {body}\n", crc32fast::hash(body.as_bytes()), body.len())
}

/// Writes the record on the daemon itself otherwise than it was.
fn behead(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(path).expect("read the state");
    let (head, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains("\"key\":\"daemon\""));
    let body = head.last().and_then(|line| line.splitn(3, ' ').nth(2)).expect("a head");
    let mut record: Value = serde_json::from_str(body).expect("it is JSON");
    change(&mut record["value"]);
    fs::write(path, rest.join("\n") + "\n" + &line("daemon", &record["value"])).expect("write the state");
}

fn clear(path: &Path) {
    fs::remove_file(path).expect("remove the file");
}

type Damage = fn(&Path);

/// Files that are read as records.
const RECORDS: &[&str] = &["state/state", "state/certificates"];
/// What becomes of a file, and which of them is put into quarantine for it.
const DAMAGES: [(&str, Damage, &[&str]); 10] = [
    // First, while there is something in it.
    ("flipped", flip, RECORDS),
    ("removed", clear, &[]),
    ("empty", |path| drop(File::create(path).expect("empty it")), &[]),
    ("cut", |path| fs::File::options().write(true).open(path).and_then(|file| file.set_len(100)).expect("cut it"), &[]),
    ("directory", |path| (clear(path), fs::create_dir_all(path.join("deep")).expect("make it")).1, RECORDS),
    ("symlink", |path| (clear(path), symlink("/etc/hostname", path).expect("make it")).1, RECORDS),
    (
        "fifo",
        |path| (clear(path), nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("make it")).1,
        RECORDS,
    ),
    ("huge", |path| File::create(path).and_then(|file| file.set_len(300 << 20)).expect("make it"), RECORDS),
    ("noise", |path| fs::write(path, [0xa5, b'\n'].repeat(5000)).expect("write it"), RECORDS),
    (
        "unreadable names",
        |path| fs::write(path, line("worker/../../x/-1", &json!({"phase": 7}))).expect("write it"),
        &["state/state"],
    ),
];

fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("open it");
    let mut byte = [0];
    file.read_at(&mut byte, 30).expect("read it");
    file.write_all_at(&[byte[0] ^ 4], 30).expect("write it");
}

fn quarantined(daemon: &Daemon) -> usize {
    let reasons =
        fs::read_dir(daemon.path("state/quarantine")).map_or_else(|_| Vec::new(), |all| all.flatten().collect());
    reasons.iter().filter(|entry| entry.file_name().to_string_lossy().ends_with(".reason")).count()
}

/// Kills the daemon, has something happen, starts it, and sees that the same workers run.
#[track_caller]
fn restart_after(daemon: &mut Daemon, name: &str, damage: impl FnOnce(), workers: &[i32]) {
    kill(daemon);
    damage();
    daemon.start_again();
    assert_eq!(pids(&wait_healthy(daemon, workers.len())), workers, "{name}\n{}", daemon.stderr());
}

#[test]
fn whatever_became_of_its_files_a_daemon_starts_and_takes_its_workers_over() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let first = wait_healthy(&mut daemon, 2);
    signal(pid(&first[0]), Signal::KILL);
    wait_certificate(&mut daemon, "web.0", 1);
    let workers = pids(&wait_healthy(&mut daemon, 2));
    let generation = worker(&daemon, "web.1")["generation"].as_u64();
    for file in ["state/state", "state/certificates", "run/exits"] {
        for (name, damage, is_evidence) in DAMAGES {
            let path = daemon.path(file);
            let before = quarantined(&daemon);
            restart_after(&mut daemon, &format!("{file} {name}"), || damage(&path), &workers);
            let kept = quarantined(&daemon) > before;
            assert_eq!(kept, is_evidence.contains(&file), "{file} {name}\n{}", daemon.stderr());
            // Whether or not it is known by what it died, it did not die again.
            assert!(certificates(&daemon, "web.0").len() <= 1, "{file} {name}");
        }
        if file == "state/state" {
            assert_eq!(certificates(&daemon, "web.0").len(), 1, "its certificate is in another file");
        }
    }
    assert_eq!(worker(&daemon, "web.1")["generation"].as_u64(), generation, "it is the same worker by every account");
    assert_eq!(fs::metadata("/etc/hostname").map(|found| found.is_file()).ok(), Some(true));
}

#[test]
fn records_of_another_daemon_count_for_nothing_and_are_kept() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let workers = pids(&wait_healthy(&mut daemon, 2));
    type Change = fn(&mut Value);
    let changes: [(&str, Change, bool); 5] = [
        ("of another instance", |head| head["instance"] = json!("another"), true),
        ("of a later layout", |head| head["format"] = json!(2), true),
        (
            "of another instance that was ending",
            |head| (head["instance"], head["ending"]) = (json!("x"), json!(true)),
            true,
        ),
        ("of an earlier boot", |head| head["boot"] = json!("0000"), false),
        (
            "of an earlier boot that was ending",
            |head| (head["boot"], head["ending"]) = (json!("0"), json!(true)),
            false,
        ),
    ];
    for (name, change, is_evidence) in changes {
        let (before, path) = (quarantined(&daemon), daemon.path("state/state"));
        restart_after(&mut daemon, name, || behead(&path, change), &workers);
        assert_eq!(quarantined(&daemon) > before, is_evidence, "{name}\n{}", daemon.stderr());
        assert_eq!(certificates(&daemon, "web.0").len(), 0, "{name}");
    }
}

/// Puts something in the place of a file, so that there is no moment between.
fn exchange(path: &Path, make: impl FnOnce(&Path)) {
    let other = path.with_extension("other");
    make(&other);
    renameat_with(CWD, &other, CWD, path, RenameFlags::EXCHANGE).expect("exchange them");
    if other.is_dir() {
        fs::remove_dir_all(&other).expect("remove the old one");
    } else {
        clear(&other);
    }
}

#[test]
fn what_is_removed_or_replaced_while_the_daemon_runs_comes_back_by_itself() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let first = wait_healthy(&mut daemon, 2);
    signal(pid(&first[0]), Signal::KILL);
    wait_certificate(&mut daemon, "web.0", 1);
    let workers = pids(&wait_healthy(&mut daemon, 2));
    let happenings: [(&str, Damage); 6] = [
        ("removed", clear),
        ("a directory", |path| exchange(path, |other| fs::create_dir_all(other.join("deep")).expect("make it"))),
        ("a symlink", |path| exchange(path, |other| symlink("/etc/hostname", other).expect("make it"))),
        ("a fifo", |path| {
            exchange(path, |other| nix::unistd::mkfifo(other, nix::sys::stat::Mode::S_IRWXU).expect("make it"));
        }),
        ("another file", |path| exchange(path, |other| fs::write(other, "what?\n").expect("write it"))),
        ("gone and back", |path| (clear(path), fs::write(path, "what?\n").unwrap_or(())).1),
    ];
    for file in ["state/state", "state/certificates", "run/exits", "run/control.sock"] {
        for (name, happening) in happenings {
            let path = daemon.path(file);
            happening(&path);
            daemon.wait_until(&format!("{file}, {name}, is back"), |_| {
                let found = fs::symlink_metadata(&path).ok()?.file_type();
                if file == "run/control.sock" {
                    return found.is_socket().then_some(());
                }
                let text = || fs::read(&path).is_ok_and(|bytes| bytes.len() > 100 && !bytes.starts_with(b"what?"));
                // The ledger has room made when it is next needed.
                (found.is_file() && (text() || file == "run/exits")).then_some(())
            });
            assert_eq!(pids(&wait_healthy(&mut daemon, 2)), workers, "{file} {name}");
        }
        restart_after(&mut daemon, file, || {}, &workers);
        assert_eq!(certificates(&daemon, "web.0").len(), 1, "{file}: it is remembered");
        assert_eq!(quarantined(&daemon), 0, "{file}: {}", daemon.stderr());
    }
}

/// Two workers of which one exits 7 when it is told to.
const LAST_WORDS: &str = "[pool.web]\nsize = 2\non_supervisor_death = 'forever'\nrestart = false\n\
    command = ['sh', '-c', 'trap \"exit 7\" TERM; echo set; while :; do sleep 1000 & wait; done']\n";

/// How web.0 is said to have ended that has ended without a daemon; `before` and `after` are done to the ledger.
fn told_of_end(before: Damage, after: Damage) -> Value {
    let mut daemon = Daemon::start(LAST_WORDS);
    let both = wait_healthy(&mut daemon, 2);
    wait_line(&mut daemon, "web.0", |line| line == "set");
    let path = daemon.path("run/exits");
    let init = pidfd_of(i32::try_from(both[0]["init_pid"].as_i64().expect("an init")).expect("a pid"));
    before(&path);
    kill(&daemon);
    signal(pid(&both[0]), Signal::TERM);
    assert!(ended_within(init.as_fd(), LIFE_DEADLINE), "its init ends with it");
    after(&path);
    daemon.start_again();
    let told = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(pid(&worker(&daemon, "web.1")), pid(&both[1]), "the other one is taken over");
    told
}

#[test]
fn an_end_without_a_daemon_is_known_though_the_ledger_was_removed() {
    needs!(Root, CgroupTree);
    // The init of the other worker still has the file.
    for (before, after) in [(clear as Damage, (|_| {}) as Damage), (|_| {}, clear), (|_| {}, |_| {})] {
        let told = told_of_end(before, after);
        assert_eq!(told["cause"], "exited 7", "{told}");
    }
    let told = told_of_end(|_| {}, |path| fs::write(path, vec![0xa5; 70_000]).expect("write it"));
    assert_eq!(told["cause"], "unknown", "what is not known is not made up: {told}");
    assert!(told["note"].as_str().is_some_and(|note| note.contains("nobody has written down")), "{told}");
}
