//! A configuration that is changed while its pools run: all of it is taken or nothing, and only what differs changes.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::Daemon;
use crate::input::assert_refused;
use crate::look::{certificates, signal, wait_healthy, workers};
use crate::needs::needs;

const BEFORE: &str = "
[pool.same]
command = ['sleep', 'infinity']
size = 2
[pool.tuned]
command = ['sleep', 'infinity']
size = 2
[pool.changed]
command = ['sleep', 'infinity']
[pool.gone]
command = ['sleep', 'infinity']
[service.db]
command = ['sleep', 'infinity']
";

const AFTER: &str = "
[pool.tuned]
command = ['sleep', 'infinity']
size = 3
stop_grace = '3s'
restart = { delay = '3s', max_restarts = 9 }
[pool.same]
size = 2
command = ['sleep', 'infinity']
[pool.changed]
command = ['sleep', '1000000']
[pool.new]
command = ['sleep', 'infinity']
[service.db]
command = ['sleep', 'infinity']
";

/// Name and generation of every worker, in order.
fn generations(daemon: &Daemon) -> Vec<(String, u64)> {
    let told = |worker: &Value| Some((worker["name"].as_str()?.to_owned(), worker["generation"].as_u64()?));
    workers(daemon).iter().filter_map(told).collect()
}

fn names(generations: &[(String, u64)]) -> Vec<&str> {
    generations.iter().map(|(name, _)| name.as_str()).collect()
}

/// Waits until the workers of [`AFTER`] run and holds them against those of [`BEFORE`].
#[track_caller]
fn assert_changed(daemon: &mut Daemon, before: &[(String, u64)]) {
    let after = daemon.wait_until("the new configuration", |daemon| {
        let all = workers(daemon);
        let settled = all.len() == 8 && all.iter().all(|worker| worker["state"] == "healthy");
        let after = generations(daemon);
        let replaced = !before.iter().any(|one| one.0 == "changed.0" && after.contains(one));
        Some(after).filter(|_| settled && replaced)
    });
    let expected = ["changed.0", "db", "new.0", "same.0", "same.1", "tuned.0", "tuned.1", "tuned.2"];
    let mut sorted = names(&after);
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    for kept in ["same.0", "same.1", "tuned.0", "tuned.1", "db"] {
        let one = before.iter().find(|(name, _)| name == kept).expect("it was there before");
        assert!(after.contains(one), "{kept} was restarted: {before:?} {after:?}");
        assert!(certificates(daemon, kept).is_empty(), "{kept}");
    }
    let command = &daemon.cli(&["inspect", "changed.0", "--json"]).json()["workers"][0]["command"];
    assert_eq!(command, &json!(["sleep", "1000000"]));
    assert_eq!(certificates(daemon, "changed.0")[0]["cause"], "requested");
    assert_refused(&daemon.cli(&["inspect", "gone"]), 5, "pool gone");
}

#[test]
fn a_reload_adds_removes_and_changes_only_what_differs() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(BEFORE);
    wait_healthy(&mut daemon, 7);
    let before = generations(&daemon);
    daemon.place().configure(AFTER);
    let reply = daemon.cli(&["daemon", "reload", "--json"]).json();
    assert_eq!(reply, json!({ "added": ["new"], "changed": ["changed", "tuned"], "removed": ["gone"] }));
    assert_changed(&mut daemon, &before);
    let again = daemon.cli(&["daemon", "reload"]);
    assert_eq!((again.status, again.stdout.as_str()), (0, "reloaded: nothing differs\n"), "{again:?}");
    // And back: a pool of the same name as one that went is a new pool.
    daemon.place().configure(BEFORE);
    let back = daemon.cli(&["daemon", "reload"]);
    assert_eq!(
        (back.status, back.stdout.as_str()),
        (0, "reloaded: added gone; changed changed, tuned; removed new\n"),
        "{back:?}"
    );
    let kept = |daemon: &Daemon| {
        let now = generations(daemon);
        let of_same = |all: &[(String, u64)]| -> Vec<_> {
            all.iter().filter(|(name, _)| name.starts_with("same") || name == "tuned.0").cloned().collect()
        };
        Some(()).filter(|()| now.len() == 7 && of_same(&now) == of_same(&before))
    };
    daemon.wait_until("the old configuration", kept);
    wait_healthy(&mut daemon, 7);
}

#[test]
fn sighup_does_the_same() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(BEFORE);
    wait_healthy(&mut daemon, 7);
    let before = generations(&daemon);
    daemon.place().configure(AFTER);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::HUP);
    assert_changed(&mut daemon, &before);
    let after = generations(&daemon);
    daemon.place().configure("nonsense = 1\n");
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::HUP);
    daemon.wait_until("the log says why", |daemon| {
        Some(()).filter(|()| daemon.stderr().lines().any(|line| line.contains("ERROR") && line.contains("nonsense")))
    });
    daemon.place().configure(AFTER);
    assert_eq!(generations(&daemon), after);
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing_and_says_why() {
    needs!(Root, CgroupTree);
    let mut daemon = Daemon::start(BEFORE);
    wait_healthy(&mut daemon, 7);
    let before = generations(&daemon);
    let config_before = daemon.cli(&["daemon", "status", "--json"]).json();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("its address").port();
    let new = "[pool.new]\ncommand = ['sleep', 'infinity']\n";
    for (config, words) in [
        (format!("{new}sise = 3\n"), "unknown key; did you mean \"size\"?"),
        (format!("{new}[pool.web\n"), "line "),
        (format!("{new}size = 'x'\n"), "pool.new.size"),
        // Right as text, and found to be impossible only when it is prepared, after others were.
        (format!("{new}[pool.z]\ncommand = ['x']\nlisten = ['tcp:127.0.0.1:{port}']\n"), "in use"),
        (format!("{new}[pool.z]\ncommand = ['x']\nroot = '/nowhere/at/all'\n"), "/nowhere/at/all"),
        (format!("{new}[pool.z]\ncommand = ['x']\nidentity = 'host:no-such-user'\n"), "no-such-user"),
        (format!("uid_base = 1000000000\n{new}"), "uid_base"),
        (format!("state_dir = '/elsewhere'\n{new}"), "state_dir"),
        (format!("{new}[pool.db]\ncommand = ['sleep', 'infinity']\n"), "service"),
    ] {
        if config.starts_with("state_dir") {
            let head =
                format!("[daemon]\ninstance = {:?}\nruntime_dir = {:?}\n", daemon.instance(), daemon.path("run"));
            std::fs::write(daemon.path("config.toml"), head + &config).expect("write the configuration");
        } else {
            daemon.place().configure(&config);
        }
        let socket = daemon.path("run/control.sock").display().to_string();
        let output = crate::place::halsup(&["--socket", &socket, "daemon", "reload"]);
        assert_refused(&output, 1, words);
        let still = crate::place::halsup(&["--socket", &socket, "ps", "--json"]).json();
        assert_eq!(still["workers"].as_array().map(Vec::len), Some(7), "{words}");
    }
    std::fs::remove_file(daemon.path("config.toml")).expect("remove the configuration");
    let socket = daemon.path("run/control.sock").display().to_string();
    let output = crate::place::halsup(&["--socket", &socket, "daemon", "reload"]);
    assert_refused(&output, 1, "No such file");
    daemon.place().configure(BEFORE);
    assert_eq!(generations(&daemon), before);
    let config_after = daemon.cli(&["daemon", "status", "--json"]).json();
    assert_eq!(config_before["pools"], config_after["pools"]);
    let again = daemon.cli(&["daemon", "reload"]);
    assert_eq!((again.status, again.stdout.as_str()), (0, "reloaded: nothing differs\n"), "{again:?}");
}

#[test]
fn a_listener_that_is_no_longer_wanted_leaves_no_socket() {
    needs!(Root, CgroupTree);
    let listens = |path: &std::path::Path| {
        format!("[pool.web]\ncommand = ['sleep', 'infinity']\nlisten = ['unix:{}']\n", path.display())
    };
    let silent = "[pool.web]\ncommand = ['sleep', 'infinity']\n";
    let mut daemon = Daemon::start(silent);
    let socket = daemon.path("run/web.sock");
    daemon.place().configure(&listens(&socket));
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    assert!(socket.exists());
    daemon.place().configure(silent);
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    assert!(!socket.exists(), "removed by the reload");

    // One that was killed cannot remove it, and the next does not know whom it was for.
    daemon.place().configure(&listens(&socket));
    assert_eq!(daemon.cli(&["daemon", "reload"]).status, 0);
    daemon.place().configure(silent);
    signal(i32::try_from(daemon.pid()).expect("a pid"), Signal::KILL);
    daemon.start_again();
    wait_healthy(&mut daemon, 1);
    assert!(!socket.exists(), "removed by the next start");
}
