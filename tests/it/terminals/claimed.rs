//! Terminals of claimed workers: by the session's name, in its project, and nobody else's.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use super::operator::Operator;
use crate::fixture::Daemon;
use crate::needs::needs;
use crate::place::{Output, command, run};

/// Users who may operate the pool, and own nothing.
const ALICE: u32 = 4_711;
const BOB: u32 = 4_712;

fn as_user(daemon: &Daemon, id: u32, arguments: &[&str]) -> Output {
    let mut command = command();
    command.arg("--socket").arg(daemon.path("run/control.sock")).args(arguments);
    run(command.uid(id).gid(id))
}

/// A daemon with two warm workers whose projects lie in a directory, which is gone with the value.
#[track_caller]
fn daemon(roles: &str, pool: &str) -> (tempfile::TempDir, Daemon) {
    let dir = tempfile::tempdir_in("/var/tmp").expect("make a directory");
    let root = dir.path().canonicalize().expect("its path");
    let config =
        format!("{roles}[pool.work]\n{pool}[pool.work.claims]\nmin = 2\nmax = 4\nprojects = ['{}']\n", root.display());
    let mut daemon = Daemon::start(&config);
    daemon.wait_until("warm workers", |daemon| {
        let status = daemon.cli(&["status", "--json"]).json();
        (status["pools"][0]["claims"]["warm"] == 2).then_some(())
    });
    (dir, daemon)
}

#[test]
fn a_spawned_shell_is_in_its_project_and_is_come_back_to() {
    needs!(Root, CgroupTree, Program("bash"), Program("setsid"));
    let (dir, daemon) = daemon("", "terminal = true\n");
    let project = dir.path().join("site");
    std::fs::create_dir(&project).expect("make a project");
    let path = project.canonicalize().expect("its path").display().to_string();
    let mut operator = Operator::at(daemon.place(), &["spawn", &path, "--shell", "--name", "my-site"]);
    operator.sees("$ ");
    operator.types("PS1='ok> '; echo $HALSUP_SESSION in $PWD > made; stty size; cat made\r");
    operator.sees(&format!("my-site in {path}"));
    assert!(operator.screen().contains("24 80"), "{}", operator.screen());
    operator.types("\x10\x11");
    assert_eq!(operator.ends(), 0);
    let listed = daemon.cli(&["ls", "--json"]).json();
    let session = &listed["sessions"][0];
    assert_eq!((&session["name"], &session["project"]), (&"my-site".into(), &path.as_str().into()), "{listed}");
    // The same directory is the same session, and so is the name.
    for arguments in [&["spawn", &path, "--name", "my-site"][..], &["attach", "my-site"], &["attach"]] {
        let mut again = Operator::at(daemon.place(), arguments);
        again.sees(&format!("my-site in {path}"));
        again.types("\x10\x11");
        assert_eq!(again.ends(), 0);
    }
    let run = daemon.cli(&["exec", "my-site", "--", "sh", "-c", "echo $HALSUP_SESSION; pwd; cat made"]);
    assert_eq!(run.stdout, format!("my-site\n{path}\nmy-site in {path}\n"), "{run:?}");
    let warm = listed["sessions"][0]["worker"].as_str().expect("a worker").replace("work.", "");
    let other = if warm == "0" { "work.1" } else { "work.0" };
    assert!(daemon.cli(&["exec", other, "--", "true"]).stderr.contains("does not run"), "nothing runs in a warm one");
    assert!(daemon.cli(&["logs", "my-site"]).stdout.contains(&format!("my-site in {path}")));
    let stats = daemon.cli(&["stats", "my-site", "--json"]).json();
    assert_eq!(stats["workers"].as_array().map(Vec::len), Some(1), "{stats}");
    assert_eq!(stats["workers"][0]["name"], listed["sessions"][0]["worker"]);
    assert_eq!(daemon.cli(&["logs", "No_Such"]).status, 5);
    let mut last = Operator::at(daemon.place(), &["attach", "my-site"]);
    last.sees("ok> ");
    assert_eq!(daemon.cli(&["kill", "my-site"]).status, 0);
    assert_eq!(last.ends(), 128 + 9, "{}", last.screen());
}

#[test]
fn a_release_does_not_wait_for_a_shell_that_takes_no_notice() {
    needs!(Root, CgroupTree, Program("bash"), Program("setsid"));
    let (dir, daemon) = daemon("", "terminal = false\nstop_grace = '1h'\n");
    let path = dir.path().display().to_string();
    let mut refused = Operator::at(daemon.place(), &["spawn", "/", "--shell"]);
    assert_eq!(refused.ends(), 1, "/ is no project: {}", refused.screen());
    let mut operator = Operator::at(daemon.place(), &["spawn", &path, "--shell", "--name", "shell"]);
    operator.sees("$ ");
    assert_eq!(daemon.cli(&["release", "shell"]).status, 0);
    assert_eq!(operator.ends(), 128 + 1, "{}", operator.screen());
}

#[test]
fn a_session_of_one_user_is_closed_to_another() {
    needs!(Root, CgroupTree, Program("setsid"));
    let roles = format!("roles = [{{ uid = {ALICE}, role = 'operate' }}, {{ uid = {BOB}, role = 'operate' }}]\n");
    let (_dir, daemon) = daemon(&roles, "terminal = true\n");
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(daemon.path(""), open).expect("let them in");
    for (user, name) in [(ALICE, "of-alice"), (BOB, "of-bob")] {
        let script = "stty -echo; echo private of $HALSUP_SESSION; while read line; do echo said $line; done";
        let claimed = as_user(&daemon, user, &["claim", "--name", name, "--", "sh", "-c", script]);
        assert_eq!(claimed.status, 0, "{claimed:?}");
    }
    for verb in [
        &["capture", "of-alice"][..],
        &["send", "of-alice", "x"],
        &["exec", "of-alice", "--", "true"],
        &["logs", "of-alice"],
    ] {
        let refused = as_user(&daemon, BOB, verb);
        assert_ne!(refused.status, 0, "{refused:?}");
        assert!(!refused.stdout.contains("private"), "{refused:?}");
    }
    let sent = as_user(&daemon, BOB, &["broadcast", "--enter", "hello"]);
    assert_eq!((sent.status, sent.stdout.as_str()), (0, "all: 1 typed into\n"), "{sent:?}");
    let sent = daemon.cli(&["broadcast", "--enter", "to all"]);
    assert_eq!(sent.stdout, "all: 2 typed into\n");
    let mut daemon = daemon;
    for (name, expected) in
        [("of-alice", "private of of-alice\nsaid to all\n"), ("of-bob", "private of of-bob\nsaid hello\nsaid to all\n")]
    {
        daemon.wait_until("what was typed", |daemon| (daemon.cli(&["capture", name]).stdout == expected).then_some(()));
    }
}
