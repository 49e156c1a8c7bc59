//! Whose a task is that was asked for by HTTP: the token's, by its name. Others see that it is there, and no more.

use serde_json::{Value, json};

use super::Served;
use crate::needs::needs;

/// What only who has asked for it may be told.
const SECRET: &str = "secret-of-ann";

fn served() -> Served {
    Served::start("[pool.agents]\n[pool.agents.claims]\nmin = 1\n[tasks]\npool = 'agents'\ncommand = ['sh']\n")
}

/// Runs a task and gives its name.
#[track_caller]
fn run(served: &Served, token: &str, prompt: &str) -> String {
    let answer = served.ask(token, "POST", "/run", &json!({ "prompt": prompt, "workerId": SECRET }).to_string());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()["taskId"].as_str().expect("a name").to_owned()
}

/// Waits until something that is told contains a text.
fn wait_for(served: &mut Served, token: &str, path: &str, text: &str) -> Value {
    let (port, bearer) = (served.port, format!("Bearer {token}"));
    served.daemon.wait_until(text, |_| {
        let answer = crate::http::ask(port, "GET", path, &[("Authorization", &bearer)], "");
        (answer.status == 200 && String::from_utf8_lossy(&answer.body).contains(text)).then(|| answer.json())
    })
}

#[test]
fn a_token_sees_and_ends_its_own_tasks_and_admin_all() {
    needs!(Root, CgroupTree);
    let mut served = served();
    let (ann, bob) = (served.token("ann", &[]), served.token("bob", &[]));
    let admin = served.token("chief", &["--scope", "admin"]);
    let first = run(&served, &ann, &format!("echo {SECRET}; sleep 1000"));
    let second = run(&served, &ann, &format!("echo {SECRET}; exit 3"));
    let (path, other) = (format!("/tasks/{first}"), format!("/tasks/{second}"));
    wait_for(&mut served, &ann, &path, "\"running\"");
    wait_for(&mut served, &ann, &other, "\"failed\"");
    // Another token is told that they are there, whatever it may do, and nothing of what they are.
    let observe = served.token("dan", &["--scope", "observe"]);
    for token in [&bob, &observe] {
        for (method, path) in [
            ("GET", path.clone()),
            ("GET", other.clone()),
            ("DELETE", path.clone()),
            ("GET", format!("/stream/{second}")),
        ] {
            assert_eq!(served.ask(token, method, &path, "").status, 403, "{method} {path}");
        }
        for path in ["/tasks", "/processes", "/workers", "/hello"] {
            let told = served.ask(token, "GET", path, "");
            assert_eq!(told.status, 200, "{path}");
            assert!(!String::from_utf8_lossy(&told.body).contains(SECRET), "{path}");
        }
    }
    let listed = served.ask(&bob, "GET", "/tasks", "").json();
    assert_eq!((&listed["total"], &listed["tasks"][0]["prompt"]), (&json!(2), &json!("")), "{listed}");
    // Its own it sees whole; and so does who shows the same name, or may do everything.
    for token in [&ann, &admin] {
        let told = served.ask(token, "GET", &other, "").json();
        assert!(told["output"].as_str().is_some_and(|output| output.contains(SECRET)), "{told}");
        let listed = served.ask(token, "GET", "/tasks", "");
        assert!(String::from_utf8_lossy(&listed.body).contains(SECRET));
        assert_eq!(served.ask(token, "GET", &format!("/stream/{second}"), "").status, 200);
    }
    assert_eq!(served.daemon.cli(&["token", "revoke", "ann"]).status, 0);
    assert_eq!(served.ask(&ann, "GET", &path, "").status, 401);
    let renewed = served.token("ann", &[]);
    assert_eq!(served.ask(&renewed, "GET", &path, "").status, 200, "a renewed token goes on");
    assert_eq!(served.ask(&admin, "DELETE", &path, "").json()["status"], "cancelled");
    let third = run(&served, &renewed, "sleep 1000");
    assert_eq!(served.ask(&renewed, "DELETE", &format!("/tasks/{third}"), "").json()["status"], "cancelled");
}

#[test]
fn what_a_task_wrote_is_not_told_by_its_worker_either() {
    needs!(Root, CgroupTree);
    let mut served = served();
    let (ann, bob) = (served.token("ann", &[]), served.token("bob", &[]));
    let ended = run(&served, &ann, &format!("echo {SECRET}; exit 3"));
    wait_for(&mut served, &ann, &format!("/tasks/{ended}"), "\"failed\"");
    let runs = run(&served, &ann, &format!("echo {SECRET}; sleep 1000"));
    let told = wait_for(&mut served, &ann, &format!("/tasks/{runs}"), "\"running\"");
    let worker = told["worker"].as_str().expect("a worker").to_owned();
    wait_for(&mut served, &ann, &format!("/tasks/{runs}"), SECRET);
    assert_eq!(served.ask(&bob, "GET", &format!("/api/logs/{worker}"), "").status, 403);
    // The page's snapshot has how each worker died, and who has those that live.
    let first = |token: &str| {
        let mut stream = crate::http::connect(served.port);
        let head = format!("GET /api/watch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        std::io::Write::write_all(&mut stream, head.as_bytes()).expect("ask");
        let (mut told, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        while !told.windows(18).any(|part| part == b"event: snapshot\nda") || !told.ends_with(b"\n\n\r\n") {
            let count = std::io::Read::read(&mut stream, &mut buffer).expect("read a stream");
            assert!(count > 0, "it goes on");
            told.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8(told).expect("text")
    };
    let told = first(&bob);
    assert!(told.contains("exited 3") && !told.contains(SECRET), "{told}");
}
