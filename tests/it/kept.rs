//! Sessions that stay when their program has ended (`spawn --no-rm`): how it ended and what it wrote is there to be read,
//! over the daemon's own end, until somebody releases them or they begin anew.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::signal;
use crate::needs::needs;
use crate::place::{Output, command, run};

/// Who has sessions, and who has others.
const ALICE: u32 = 4_711;
const BOB: u32 = 4_712;

/// A daemon with one pool, and a project that its sessions may have.
fn daemon(head: &str) -> (tempfile::TempDir, Daemon) {
    let project = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = project.path().canonicalize().expect("its path");
    let config = format!("{head}[pool.work.claims]\nmin = 1\nmax = 3\nprojects = ['{}']\n", path.display());
    (project, Daemon::start(&config))
}

/// Begins a session that is left alone, in the words of `arguments`; what that says.
#[track_caller]
fn spawn(daemon: &Daemon, project: &Path, arguments: &[&str]) -> Output {
    let path = project.to_str().expect("ASCII");
    let spawned = daemon.cli(&[&["spawn", "--detach", path], arguments].concat());
    assert_eq!(spawned.status, 0, "{arguments:?}: {spawned:?}");
    spawned
}

fn sessions(daemon: &Daemon) -> Vec<Value> {
    daemon.cli(&["sessions", "--json"]).json()["sessions"].as_array().cloned().unwrap_or_default()
}

/// The session of this name, once it has ended and is kept.
#[track_caller]
fn wait_ended(daemon: &mut Daemon, name: &str) -> Value {
    daemon.wait_until(&format!("the end of {name}"), |daemon| {
        sessions(daemon).into_iter().find(|one| one["name"] == name && !one["ended"].is_null())
    })
}

/// All that is told of the session `job`, which has written two lines and ended with 3.
#[track_caller]
fn job_is_told(daemon: &mut Daemon) {
    let listed = wait_ended(daemon, "job");
    assert_eq!((&listed["exit"], &listed["state"]), (&"exited 3".into(), &"stopped".into()), "{listed}");
    assert!(daemon.cli(&["sessions"]).stdout.contains("ended (exited 3)"));
    assert_eq!(daemon.cli(&["sessions", "--json"]).json()["worker_count"], 0, "it runs no more");
    let logs = daemon.cli(&["logs", "job"]);
    assert_eq!((logs.status, logs.stdout.as_str()), (0, "first\nsecond\n"), "{logs:?}");
    assert_eq!(daemon.cli(&["logs", "-n", "1", "job"]).stdout, "second\n");
    let path = daemon.path("state/sessions/job.json");
    let file: Value = daemon.wait_until("its file", |_| serde_json::from_slice(&fs::read(&path).ok()?).ok());
    assert_eq!((&file["remove_on_exit"], &file["exit"]), (&false.into(), &"exited 3".into()), "{file}");
    assert_eq!(file["ended_at"], listed["ended"]);
    let mode = fs::metadata(&path).expect("look at it").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// What is on the disk of sessions that have ended.
fn logs_of_ended(daemon: &Daemon) -> Vec<String> {
    let entries = fs::read_dir(daemon.path("state/logs/workers")).expect("list").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("@ended")).collect()
}

#[test]
fn what_has_ended_stays_until_it_is_released() {
    needs!(Root, CgroupTree);
    let (project, mut daemon) = daemon("");
    let script = "echo first; sleep 0.1; echo second; exit 3";
    // What ends without the word is gone, and so is what is given back.
    spawn(&daemon, project.path(), &["--no-rm", "--name", "job", "--", "sh", "-c", script]);
    job_is_told(&mut daemon);
    spawn(&daemon, project.path(), &["--name", "plain", "--", "true"]);
    spawn(&daemon, project.path(), &["--no-rm", "--rm", "--name", "other", "--", "true"]);
    spawn(&daemon, project.path(), &["--no-rm", "--name", "back", "--", "sleep", "1000"]);
    let file = daemon.path("state/sessions/back.json");
    let file: Value = daemon.wait_until("its file", |_| serde_json::from_slice(&fs::read(&file).ok()?).ok());
    assert_eq!(file["remove_on_exit"], false);
    assert_eq!(daemon.cli(&["release", "back"]).status, 0);
    daemon.wait_until("only the one", |daemon| (sessions(daemon).len() == 1).then_some(()));

    assert_eq!(daemon.stop(), 0);
    daemon.start_again();
    job_is_told(&mut daemon);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    daemon.start_again();
    job_is_told(&mut daemon);
    // Somebody removes its file, and old logs are swept.
    fs::remove_file(daemon.path("state/sessions/job.json")).expect("remove it");
    // Beside its own log one of a session that is kept no more, as a disk leaves it that has refused to remove it.
    let log = daemon.path("state/logs/workers/job@ended.log");
    let stray = daemon.path("state/logs/workers/nobody@ended.log");
    fs::write(&stray, "nobody's").expect("write");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in [&log, &stray] {
        fs::File::options().write(true).open(path).expect("open").set_modified(long_ago).expect("age it");
    }
    assert_eq!(daemon.cli(&["gc", "--stale", "1s"]).status, 0);
    assert!(!stray.exists() && log.exists());
    job_is_told(&mut daemon);

    let released = daemon.cli(&["release", "job"]);
    assert_eq!((released.status, released.stdout.as_str()), (0, "job: 1 released\n"), "{released:?}");
    assert_eq!(sessions(&daemon), Vec::<Value>::new());
    assert_eq!(logs_of_ended(&daemon), Vec::<String>::new());
    daemon.wait_until("no file", |daemon| (!daemon.path("state/sessions/job.json").exists()).then_some(()));
    assert_eq!(daemon.cli(&["release", "job"]).status, 5);
    assert_eq!(daemon.cli(&["logs", "job"]).status, 5);
    assert_eq!(daemon.stop(), 0);
    daemon.start_again();
    assert_eq!(sessions(&daemon), Vec::<Value>::new(), "released is released");
}

#[test]
fn what_a_stop_of_the_daemon_ends_is_kept_too() {
    needs!(Root, CgroupTree);
    let (project, mut daemon) = daemon("");
    let script = "echo begun; exec sleep 1000";
    spawn(&daemon, project.path(), &["--no-rm", "--name", "long", "--", "sh", "-c", script]);
    daemon.wait_until("its output", |daemon| daemon.cli(&["logs", "long"]).stdout.contains("begun").then_some(()));
    assert_eq!(daemon.stop(), 0);
    daemon.start_again();
    let listed = wait_ended(&mut daemon, "long");
    assert_eq!(listed["exit"], "shutdown", "{listed}");
    assert_eq!(daemon.cli(&["logs", "long"]).stdout, "begun\n");
    assert_eq!(daemon.cli(&["release", "long"]).status, 0);
}

#[test]
fn a_second_one_in_its_directory_begins_anew() {
    needs!(Root, CgroupTree);
    let (project, mut daemon) = daemon("");
    let first = spawn(&daemon, project.path(), &["--no-rm", "--", "sh", "-c", "echo one; exit 7"]);
    let name = first.stdout.trim_end().to_owned();
    wait_ended(&mut daemon, &name);
    let beside = spawn(&daemon, project.path(), &["--new", "--", "sleep", "1000"]);
    assert_eq!(beside.stdout.trim_end(), format!("{name}-2"), "it is no free name");
    let second = spawn(&daemon, project.path(), &["--no-rm", "--", "sh", "-c", "echo two; exec sleep 1000"]);
    assert_eq!(second.stdout.trim_end(), name);
    assert!(second.stderr.contains(&format!("session {name} had ended (exited 7): it begins anew")), "{second:?}");
    let of_it: Vec<Value> = sessions(&daemon).into_iter().filter(|one| one["name"] == name.as_str()).collect();
    assert!(of_it.len() == 1 && of_it[0]["ended"].is_null(), "{of_it:?}");
    daemon.wait_until("its output", |daemon| (daemon.cli(&["logs", &name]).stdout == "two\n").then_some(()));
    let file = daemon.path("state/sessions").join(format!("{name}.json"));
    daemon.wait_until("the file of the living one", |_| {
        let file: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        file["pid"].is_i64().then_some(())
    });
    // One that lives is attached to, as ever.
    assert!(spawn(&daemon, project.path(), &[]).stderr.contains("is there already"));
}

#[test]
fn the_oldest_give_way() {
    needs!(Root, CgroupTree);
    let (project, mut daemon) = daemon("");
    for number in 0..22 {
        let name = format!("s{number}");
        spawn(&daemon, project.path(), &["--no-rm", "--name", &name, "--", "true"]);
        wait_ended(&mut daemon, &name);
    }
    let names: Vec<String> =
        sessions(&daemon).iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(names.len(), 20, "{names:?}");
    assert!(!names.contains(&"s0".to_owned()) && !names.contains(&"s1".to_owned()), "{names:?}");
    assert!(logs_of_ended(&daemon).len() <= 20);
}

#[test]
fn what_is_kept_is_its_owners() {
    needs!(Root, CgroupTree);
    let roles = format!("roles = [{{ uid = {ALICE}, role = 'operate' }}, {{ uid = {BOB}, role = 'operate' }}]\n");
    let (project, mut daemon) = daemon(&roles);
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o711)).expect("let them in");
    std::os::unix::fs::chown(project.path(), Some(ALICE), Some(ALICE)).expect("give it to her");
    let socket = daemon.path("run/control.sock");
    let as_user = |id: u32, arguments: &[&str]| {
        let mut command = command();
        run(command.arg("--socket").arg(&socket).args(arguments).uid(id).gid(id))
    };
    let path = project.path().to_str().expect("ASCII");
    let script = "echo private; exit 1";
    let spawned = as_user(ALICE, &["spawn", "--detach", "--no-rm", "--name", "secret", path, "--", "sh", "-c", script]);
    assert_eq!(spawned.status, 0, "{spawned:?}");
    wait_ended(&mut daemon, "secret");
    for arguments in [&["logs", "secret"][..], &["release", "secret"]] {
        let refused = as_user(BOB, arguments);
        assert!(refused.status != 0 && !refused.stdout.contains("private"), "{arguments:?}: {refused:?}");
    }
    let taken = as_user(BOB, &["claim", "--cold-ok", "--name", "secret", "--", "true"]);
    assert!(taken.status == 1 && taken.stderr.contains("exists already"), "{taken:?}");
    assert_eq!(as_user(ALICE, &["logs", "secret"]).stdout, "private\n");
    assert_eq!(as_user(ALICE, &["release", "secret"]).status, 0);
    assert_eq!(sessions(&daemon), Vec::<Value>::new());
}
