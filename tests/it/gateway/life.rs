//! The gateway as a process: what it can reach, and that its going is nobody's loss.

use rustix::process::Signal;

use super::Served;
use crate::http::get;
use crate::look::{pid, signal, worker};
use crate::needs::needs;

const SLEEPER: &str = "[pool.web]\ncommand = ['sleep', 'infinity']\n";

#[test]
fn it_is_nobody_in_an_empty_root_with_nothing_open_but_what_it_was_handed() {
    needs!(Root, CgroupTree);
    let served = Served::start(SLEEPER);
    let gateway = worker(&served.daemon, "gateway");
    let process = format!("/proc/{}", pid(&gateway));
    let status = std::fs::read_to_string(format!("{process}/status")).expect("read its status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("it is there");
        line.split_once(':').expect("a value").1.trim().to_owned()
    };
    assert!(!field("Uid").starts_with("0\t"), "{}", field("Uid"));
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapBnd"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Threads"), "1");
    let root = |path: &str| -> Vec<String> {
        let entries = std::fs::read_dir(format!("{process}/root/{path}")).expect("read its root");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let top = root("");
    for name in &top {
        assert!(
            ["daemon", "dev", "halsup-gateway", "lib", "lib64", "proc", "run", "sys", "tmp"].contains(&name.as_str()),
            "{name}"
        );
    }
    assert!(root("lib").iter().all(|name| name.contains(".so")), "{:?}", root("lib"));
    assert_eq!(root("daemon"), ["control.sock"]);
    assert!(root("sys").is_empty());
}

#[test]
fn killed_it_is_back_and_no_connection_is_refused_meanwhile() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(SLEEPER);
    let port = served.port;
    for _ in 0..20 {
        let before = pid(&worker(&served.daemon, "gateway"));
        signal(before, Signal::KILL);
        // Asked at once: the socket is the daemon's, and whoever comes waits in it.
        let answered = std::iter::repeat_with(|| {
            crate::http::exchange(port, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        })
        .take(50)
        .find(|answer| answer.starts_with(b"HTTP/1.1 200"));
        assert!(answered.is_some(), "it is back");
        served.daemon.wait_until("another one serves", |daemon| {
            let now = worker(daemon, "gateway");
            Some(()).filter(|()| now["state"] == "healthy" && now["pid"].as_i64() != Some(i64::from(before)))
        });
    }
    assert_eq!(get(port, "/readyz").status, 200);
}

#[test]
fn a_reload_takes_it_away_and_brings_it_back() {
    needs!(Root, CgroupTree);
    let mut served = Served::start(SLEEPER);
    let port = served.port;
    served.daemon.configure(SLEEPER);
    assert_eq!(served.daemon.cli(&["daemon", "reload"]).status, 0);
    served
        .daemon
        .wait_until("nobody listens", |_| std::net::TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
    served.daemon.configure(&format!("[gateway]\nlisten = ['127.0.0.1:{port}']\n{SLEEPER}"));
    assert_eq!(served.daemon.cli(&["daemon", "reload"]).status, 0);
    served.daemon.wait_until("it answers", |_| {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        Some(()).filter(|()| get(port, "/readyz").status == 200)
    });
}
