//! The files that tell scripts of sessions and warm workers: they say what is so, by the keys that scripts know, nothing that a
//! claim brought in, and they come back when somebody removes them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::Daemon;
use crate::look::signal;
use crate::needs::needs;

const POOL: &str = "[pool.work]\non_supervisor_death = 'forever'\n[pool.work.claims]\nmin = 1\nmax = 3\n";

/// The names in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// The file of the one worker that is `status`, once there is one.
fn worker_file(daemon: &mut Daemon, home: &Path, status: &str) -> (PathBuf, Value) {
    let dir = home.join("pool/workers");
    daemon.wait_until("a worker's file", |_| {
        let files = names(&dir).into_iter().map(|name| dir.join(name));
        files.filter_map(|path| Some((path.clone(), read(&path)?))).find(|(_, file)| file["status"] == status)
    })
}

fn session_file(daemon: &mut Daemon, home: &Path, name: &str) -> Value {
    let path = home.join("sessions").join(name).with_extension("json");
    daemon.wait_until("the session's file", |_| read(&path))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn claim(daemon: &Daemon, name: &str, more: &[&str]) {
    let arguments = [&["claim", "--cold-ok", "--name", name], more, &["--", "sleep", "1000"]].concat();
    let claimed = daemon.cli(&arguments);
    assert_eq!(claimed.status, 0, "{}", claimed.stderr);
}

#[test]
fn files_tell_scripts_what_is_so_and_go_with_it() {
    needs!(Root, CgroupTree);
    let project = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let project = project.path().canonicalize().expect("its path");
    let below = format!("{POOL}projects = ['{}']\n", project.display());
    let mut daemon = Daemon::start(&below);
    let home = daemon.path("state");
    let (path, warm) = worker_file(&mut daemon, &home, "warm");
    for key in ["name", "container_id", "created_at", "status", "last_used", "resource_limits"] {
        assert!(keys(&warm).contains(&key), "{key} in {warm}");
    }
    assert_eq!(path.file_stem().and_then(|name| name.to_str()), warm["name"].as_str());
    assert_eq!(warm["container_id"].as_str().map(str::len), Some(12), "{warm}");
    let limits = &warm["resource_limits"];
    assert_eq!((&limits["memory"], &limits["cpus"], &limits["pids_limit"]), (&"4g".into(), &"2".into(), &"100".into()));
    // The rest of the test claims; the variable, the label and the secret are canaries.
    fs::write(project.join("key"), "canary-secret").expect("a secret");
    let secret = format!("key={}", project.join("key").display());
    let shown = project.display().to_string();
    let more = ["--project", &shown, "--env", "WORD=canary-variable", "--secret", &secret, "--no-limits"];
    claim(&daemon, "one", &more);
    let session = session_file(&mut daemon, &home, "one");
    assert_eq!((&session["name"], &session["project_dir"]), (&"one".into(), &shown.clone().into()));
    assert_eq!((&session["image"], &session["detached"]), (&"host".into(), &true.into()));
    assert_eq!((&session["remove_on_exit"], &session["parent"]), (&true.into(), &daemon.instance().into()));
    assert_eq!(
        (&session["resource_limits"]["enabled"], &session["resource_limits"]["memory"]),
        (&false.into(), &Value::Null)
    );
    assert_eq!(session["user_isolation"]["user_id"], 0);
    let created = session["created_at"].as_str().expect("when it was made");
    assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    let (_, busy) = worker_file(&mut daemon, &home, "busy");
    assert_eq!((&busy["name"], &busy["project_dir"]), (&session["worker"], &shown.into()));
    assert!(keys(&busy).contains(&"claimed_at") && !keys(&busy).contains(&"last_used"), "{busy}");
    // A worker has its own id, and the one that is claimed keeps it.
    let (_, next) = worker_file(&mut daemon, &home, "warm");
    assert_ne!(next["container_id"], busy["container_id"]);
    assert_eq!(warm["container_id"], busy["container_id"]);
    let pid = || fs::read_to_string(home.join("pool/pool-manager.pid")).unwrap_or_default();
    assert_eq!(pid(), format!("{}\n", daemon.pid()));
    for dir in ["sessions", "pool/workers", "pool"] {
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&home.join(dir)), 0o700);
        for path in names(&home.join(dir)).iter().map(|name| home.join(dir).join(name)).filter(|path| path.is_file()) {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            let text = fs::read_to_string(&path).expect("read it");
            assert!(!text.contains("canary") && !text.contains("sleep"), "{text}");
        }
    }
    assert_eq!(daemon.cli(&["pool", "stop"]).status, 0);
    daemon.wait_until("no pid", |_| pid().is_empty().then_some(()));
    assert_eq!(daemon.cli(&["pool", "start"]).status, 0);
    daemon.wait_until("a pid", |_| (!pid().is_empty()).then_some(()));
    assert_eq!(daemon.cli(&["release", "one"]).status, 0);
    daemon.wait_until("no session", |_| names(&home.join("sessions")).is_empty().then_some(()));
    daemon.wait_until("one worker", |_| (names(&home.join("pool/workers")).len() == 1).then_some(()));
    assert_eq!(daemon.stop(), 0);
    assert!(names(&home.join("pool/workers")).is_empty() && pid().is_empty(), "files of a daemon that has ended");
}

#[test]
fn what_is_removed_by_hand_is_made_anew_and_costs_nothing() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let home = daemon.path("state");
    claim(&daemon, "one", &[]);
    let (busy, _) = worker_file(&mut daemon, &home, "busy");
    let (warm, _) = worker_file(&mut daemon, &home, "warm");
    let session = home.join("sessions/one.json");
    session_file(&mut daemon, &home, "one");
    // As the troubleshooting guide of the system before this one has it: rm -rf …/pool/workers/*.json
    let pid = home.join("pool/pool-manager.pid");
    let all = [busy, warm, session, pid];
    let come_back = |daemon: &mut Daemon| {
        daemon.wait_until("the files", |_| all.iter().all(|path| path.exists()).then_some(()));
    };
    come_back(&mut daemon);
    for path in &all {
        fs::remove_file(path).expect("remove it");
    }
    come_back(&mut daemon);
    fs::rename(home.join("pool/workers"), daemon.path("elsewhere")).expect("move it away");
    come_back(&mut daemon);
    for dir in ["sessions", "pool"] {
        // The daemon may be quicker than a removal, which then meets what was made anew.
        daemon.wait_until("its removal", |_| fs::remove_dir_all(home.join(dir)).ok());
        come_back(&mut daemon);
    }
    assert_eq!(daemon.cli(&["ps", "--json"]).json()["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!(daemon.cli(&["release", "one"]).status, 0);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn what_a_killed_daemon_has_told_is_true_again_after_the_next_start() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(POOL);
    let home = daemon.path("state");
    claim(&daemon, "one", &[]);
    let before = session_file(&mut daemon, &home, "one");
    worker_file(&mut daemon, &home, "warm");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    // What nobody has any more, what was half written, and what is somebody's own.
    for (name, content) in [("gone.json", "{}"), (".half.json.new", "{"), ("notes.txt", "mine")] {
        fs::write(home.join("sessions").join(name), content).expect("write it");
    }
    fs::write(home.join("pool/workers/work.99.json"), "{\"status\":\"warm\"}").expect("write it");
    fs::write(home.join("sessions/one.json"), "{\"name\":\"one\",\"pid\":1}").expect("write it");
    daemon.start_again();
    let mine = home.join("sessions/notes.txt");
    daemon.wait_until("the truth", |_| {
        let sessions = names(&home.join("sessions"));
        let written_anew = read(&home.join("sessions/one.json")).is_some_and(|now| now["pid"] != 1);
        (sessions == ["notes.txt", "one.json"] && written_anew).then_some(())
    });
    assert_eq!(session_file(&mut daemon, &home, "one"), before);
    daemon.wait_until("two workers", |_| {
        let workers = names(&home.join("pool/workers"));
        (workers.len() == 2 && !workers.contains(&"work.99.json".to_owned())).then_some(())
    });
    let pid = fs::read_to_string(home.join("pool/pool-manager.pid")).expect("a pid");
    assert_eq!(pid, format!("{}\n", daemon.pid()));
    fs::remove_file(mine).expect("remove it");
    assert_eq!(daemon.cli(&["release", "one"]).status, 0);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_home_is_where_the_variable_says_and_one_daemons_alone() {
    needs!(Root, CgroupTree);
    let home = crate::place::directory();
    let variable = format!("HAL9000_HOME={}/.hal9000", home.path().display());
    let mut daemon = Daemon::start_under(&["env", &variable], POOL);
    let at = home.path().join(".hal9000");
    worker_file(&mut daemon, &at, "warm");
    assert!(names(&daemon.path("state/sessions")).is_empty());
    let other = crate::place::Place::new(POOL);
    let refused = other.run_bounded(&mut other.command_under(&["env", &variable], &["daemon", "run"]));
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("another halsup daemon writes its sessions into"), "{refused:?}");
    worker_file(&mut daemon, &at, "warm");
    assert_eq!(daemon.stop(), 0);
    assert!(names(&at.join("pool/workers")).is_empty());
    // One that others could change is not used.
    fs::set_permissions(&at, fs::Permissions::from_mode(0o777)).expect("open it to all");
    let refused = other.run_bounded(&mut other.command_under(&["env", &variable], &["daemon", "run"]));
    assert!(refused.status == 1 && refused.stderr.contains("belong to root"), "{refused:?}");
}
