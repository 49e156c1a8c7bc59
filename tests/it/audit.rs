//! The audit log and the security log: real happenings, in their two formats, read by `halsup audit query`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::{wait_certificate, wait_healthy};
use crate::needs::needs;

const NOBODY: u32 = 65_534;

/// What `halsup audit query --json` says, an entry a line.
#[track_caller]
fn entries(daemon: &Daemon, arguments: &[&str]) -> Vec<Value> {
    let output = daemon.cli(&[&["audit", "query", "--json"], arguments].concat());
    assert_eq!(output.status, 0, "{output:?}");
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn field<'v>(entry: &'v Value, name: &str) -> &'v str {
    let pairs = entry["fields"].as_array().expect("fields");
    pairs.iter().find(|pair| pair[0] == name).and_then(|pair| pair[1].as_str()).unwrap_or_default()
}

fn lines(daemon: &Daemon, name: &str) -> String {
    fs::read_to_string(daemon.path("state/logs").join(name)).expect("read the log")
}

#[test]
fn who_did_what_is_written_down_line_by_line() {
    needs!(Root, CgroupTree);
    let config = "[pool.web]\ncommand = ['sleep', 'infinity']\n";
    let mut daemon = Daemon::start(config);
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.cli(&["restart", "web.0"]).status, 0);
    wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(daemon.cli(&["volume", "create", "data"]).status, 0);
    assert_eq!(daemon.cli(&["volume", "rm", "data"]).status, 0);
    daemon.place().configure(&format!("{config}size = 2\n"));
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    wait_healthy(&mut daemon, 2);
    assert_eq!(daemon.stop(), 0);

    let log = lines(&daemon, "audit.log");
    let first = log.lines().next().expect("a first line");
    let (time, rest) = first.split_once(' ').expect("a time");
    assert!(humantime::parse_rfc3339(time).is_ok(), "{first}");
    let begin = format!("container={} event=coordinator_start user=halsup resource=daemon ", daemon.instance());
    assert!(rest.starts_with(&begin), "{first}");
    let mode = fs::metadata(daemon.path("state/logs/audit.log")).expect("look at it").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    // The daemon is gone: the files are still there to be asked.
    let all = entries(&daemon, &[]);
    let events: Vec<&str> = all.iter().map(|entry| entry["event"].as_str().expect("an event")).collect();
    let in_order = [
        "coordinator_start",
        "worker_spawn",
        "order_restart",
        "worker_stop",
        "worker_spawn",
        "volume_create",
        "volume_remove",
        "order_reload",
        "config_reload",
        "worker_spawn",
        "coordinator_stop",
    ];
    let mut left = events.iter();
    for event in in_order {
        assert!(left.any(|found| *found == event), "{event} in {events:?}");
    }
    let stops = entries(&daemon, &["--event", "worker_stop", "--worker", "web.0"]);
    assert_eq!(field(&stops[0], "cause"), "requested");
    assert!(field(&stops[0], "asked_by").starts_with("uid 0 (pid "), "{stops:?}");
    let by_root = entries(&daemon, &["--user", "0"]);
    assert!(by_root.iter().any(|entry| entry["event"] == "volume_remove" && field(entry, "resource") == "data"));
    assert!(by_root.iter().all(|entry| entry["event"] != "worker_spawn"));
    assert_eq!(entries(&daemon, &["--since", "2h"]).len(), all.len());
    assert!(entries(&daemon, &["--since", "2100-01-01T00:00:00Z"]).is_empty());
    let summary = daemon.cli(&["audit", "query", "--summary"]).stdout;
    assert!(summary.contains("volume_create       1\n") || summary.contains("volume_create      1\n"), "{summary}");
}

#[test]
fn what_was_refused_is_in_the_security_log_and_a_flood_of_it_is_counted() {
    needs!(Root, CgroupTree);
    let roles = format!("roles = [{{ uid = {NOBODY}, role = 'observe' }}]\n");
    let mut daemon = Daemon::start(&format!("{roles}[pool.web]\ncommand = ['sleep', 'infinity']\n"));
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o711)).expect("let it in");
    let refused = |daemon: &Daemon| {
        let mut command = crate::place::command();
        command.arg("--socket").arg(daemon.path("run/control.sock")).args(["stop", "web"]);
        let output = crate::place::run(command.uid(NOBODY).gid(NOBODY));
        assert_eq!(output.status, 1, "{output:?}");
    };
    refused(&daemon);
    let line = daemon.wait_until("a line", |daemon| lines(daemon, "security.log").lines().next().map(str::to_owned));
    let expected = format!(" | MEDIUM | ACCESS_DENIED | container={} worker=- user={NOBODY} pid=", daemon.instance());
    assert!(line.contains(&expected) && line.contains(" call=Stop reason=role "), "{line}");
    for _ in 0..40 {
        refused(&daemon);
    }
    let written = lines(&daemon, "security.log").lines().count();
    let told = entries(&daemon, &["--security", "--event", "ACCESS_DENIED", "--user", "65534"]);
    assert_eq!(told.len(), written);
    let untold: usize = told.iter().map(|entry| field(entry, "untold").parse::<usize>().expect("a number")).sum();
    assert!(written + untold <= 41, "{written} and {untold}");
    let summary = daemon.cli(&["audit", "query", "--security", "--summary", "--json"]).json();
    assert_eq!((&summary["severity"], &summary["event"]), (&"MEDIUM".into(), &"ACCESS_DENIED".into()));
}

#[test]
fn a_blocked_system_call_is_in_the_security_log() {
    needs!(Root, CgroupTree, Python3);
    let profile = tempfile::NamedTempFile::new().expect("make a file");
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#;
    fs::write(profile.path(), json).expect("write the profile");
    let settings = format!("seccomp = '{}'\nrestart = false\n", profile.path().display());
    let mut daemon =
        Daemon::start(&format!("[pool.web]\n{settings}command = ['python3', '-c', 'import os; os.mkdir(\"x\")']\n"));
    let certificate = wait_certificate(&mut daemon, "web.0", 1);
    assert_eq!(certificate["cause"], "signal 31", "{certificate}");
    let told = daemon
        .wait_until("an entry", |daemon| entries(daemon, &["--security", "--worker", "web.0"]).into_iter().next());
    assert_eq!((&told["severity"], &told["event"]), (&"HIGH".into(), &"SYSCALL_BLOCKED".into()));
}

#[test]
fn a_worker_that_is_out_of_memory_is_in_the_security_log() {
    needs!(Root, Cgroup2("memory"), Python3);
    let hog = "import time\nx = bytearray(512 << 20)\ntime.sleep(1000)";
    let settings = "memory = '64m'\nrestart = false\n";
    let mut daemon = Daemon::start(&format!("[pool.web]\n{settings}command = ['python3', '-c', '''{hog}''']\n"));
    wait_certificate(&mut daemon, "web.0", 1);
    let told = daemon
        .wait_until("an entry", |daemon| entries(daemon, &["--security", "--event", "OOM_KILL"]).into_iter().next());
    assert_eq!((field(&told, "OOMKilled"), field(&told, "worker")), ("true", "web.0"));
}

#[test]
fn logs_are_rotated_and_read_across_their_files() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    assert_eq!(daemon.stop(), 0);
    // A file that is nearly full, as a long life leaves it.
    let path = daemon.path("state/logs/audit.log");
    let line = "2026-01-26T12:00:00.000Z container=old event=filler user=halsup resource=x\n";
    let filled = line.repeat((10 << 20) / line.len());
    fs::write(&path, &filled).expect("fill it");
    assert_eq!(daemon.start_again().code(), Some(0));
    wait_healthy(&mut daemon, 1);
    let rotated = fs::metadata(daemon.path("state/logs/audit.log.1")).expect("it was rotated").len();
    assert!(rotated <= 10 << 20 && rotated >= filled.len() as u64, "{rotated}");
    assert!(fs::metadata(&path).expect("a new one").len() < 10_000);
    let summary = daemon.cli(&["audit", "query", "--summary", "--event", "filler", "--json"]).json();
    assert_eq!(summary["count"], filled.lines().count());
}

#[test]
fn what_is_done_to_volumes_and_images_is_written_down_with_and_without_a_daemon() {
    needs!(Root, CgroupTree, Userns, Program("tar"));
    let mut daemon = Daemon::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    wait_healthy(&mut daemon, 1);
    let at = |name: &str| daemon.path(name).display().to_string();
    let (tar, backup) = (at("out.tar.gz"), at("backup.tar.gz"));
    let wrong = at("wrong.tar");
    fs::write(&wrong, [b'x'; 2000]).expect("write no archive");
    for arguments in [
        &["volume", "create", "data"][..],
        &["volume", "export", "data", "-o", &tar],
        &["volume", "import", "copy", &tar],
        &["backup", "-o", &backup],
        &["image", "import", &tar, "--name", "it:1"],
        &["image", "rm", "it:1"],
        &["gc"],
    ] {
        let output = daemon.cli(arguments);
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{arguments:?}: {output:?}");
    }
    assert_eq!(daemon.cli(&["image", "import", &wrong, "--name", "no:1"]).status, 1);
    assert_eq!(daemon.cli(&["volume", "import", "copy", &wrong, "--replace"]).status, 1);
    assert_eq!(daemon.stop(), 0);
    assert_eq!(daemon.cli(&["restore", &backup, "--replace"]).status, 0);
    let by_root = entries(&daemon, &["--user", "0"]);
    let one = |event: &str| {
        let mut found = by_root.iter().filter(|entry| entry["event"] == event);
        let entry = found.next().unwrap_or_else(|| panic!("no {event} in {by_root:?}"));
        assert!(found.next().is_none(), "{event} is there twice");
        assert!(!field(entry, "pid").is_empty() && field(entry, "container") == daemon.instance(), "{entry}");
        entry
    };
    assert_eq!((field(one("volume_export"), "resource"), field(one("volume_export"), "to")), ("data", &*tar));
    assert_eq!((field(one("volume_import"), "resource"), field(one("volume_import"), "replaced")), ("copy", "false"));
    assert_eq!((field(one("backup"), "resource"), field(one("backup"), "volumes")), (&*backup, "copy,data"));
    assert_eq!((field(one("restore"), "resource"), field(one("restore"), "volumes")), (&*backup, "copy,data"));
    assert_eq!(field(one("image_import"), "resource"), "it:1");
    assert!(field(one("image_import"), "digest").starts_with("sha256:"));
    assert_eq!(field(one("image_import_failed"), "resource"), "no:1");
    assert!(field(one("image_import_failed"), "cause").contains("checksum"), "{by_root:?}");
    assert_eq!(field(one("image_remove"), "resource"), "it:1");
    assert_eq!(field(one("gc"), "orphans"), "0");
    let mode = fs::metadata(daemon.path("state/logs/audit.log")).expect("look at it").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}
