//! ClaudeCluster's endpoints, key for key, with real programs under a terminal.

use serde_json::{Value, json};

use super::Served;
use crate::http::{self, ask, get};
use crate::look::{pid, signal, worker};
use crate::needs::needs;

/// A daemon whose tasks are typed into this program.
fn served(command: &str, more: &str) -> Served {
    let config =
        format!("[pool.agents]\n[pool.agents.claims]\nmin = 1\n[tasks]\npool = 'agents'\ncommand = {command}\n{more}");
    Served::start_with("worker_id = 'w-7'\nworker_name = 'Seven'\n", &config)
}

const SHELL: &str = "['sh']";

/// Runs a task and gives its name.
#[track_caller]
fn run(served: &Served, token: &str, prompt: &str) -> String {
    let answer = served.ask(token, "POST", "/run", &json!({ "prompt": prompt }).to_string());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()["taskId"].as_str().expect("a name").to_owned()
}

/// Waits until a task is over and gives what is told of it.
#[track_caller]
fn over(served: &mut Served, token: &str, task: &str) -> Value {
    let (port, bearer, path) = (served.port, format!("Bearer {token}"), format!("/tasks/{task}"));
    served.daemon.wait_until("the task is over", |_| {
        let told = ask(port, "GET", &path, &[("Authorization", &bearer)], "").json();
        let is_over = ["completed", "failed", "cancelled"].iter().any(|state| told["status"] == *state);
        is_over.then_some(told)
    })
}

fn holds(value: &Value, expected: &[&str]) {
    for key in expected {
        assert!(value.get(key).is_some(), "{key} in {value}");
    }
}

#[test]
fn hello_has_the_keys_of_all_its_shapes() {
    needs!(Root, CgroupTree);
    let served = served(SHELL, "max_concurrent = 3\n");
    let hello = served.json("/hello");
    let keys = [
        "status",
        "timestamp",
        "version",
        "uptime",
        "activeTasks",
        "systemInfo",
        "currentTasks",
        "capabilities",
        "id",
        "name",
        "workerId",
        "totalTasksExecuted",
        "lastTaskTimestamp",
        "capabilityList",
    ];
    holds(&hello, &keys);
    holds(&hello["systemInfo"], &["nodeVersion", "platform", "arch"]);
    holds(&hello["capabilities"], &["maxConcurrentTasks", "supportedCommands", "environment"]);
    holds(&hello["capabilities"]["environment"], &["nodeVersion", "platform", "architecture"]);
    assert_eq!(
        (&hello["status"], &hello["workerId"], &hello["name"]),
        (&json!("available"), &json!("w-7"), &json!("Seven"))
    );
    assert_eq!(hello["capabilities"]["maxConcurrentTasks"], 3);
    let pty = served.json("/pty/status");
    holds(&pty, &["executorType", "streamingType", "ptyAvailable", "environment", "claudeCliPath", "activeProcesses"]);
    assert_eq!((&pty["executorType"], &pty["claudeCliPath"]), (&json!("pty"), &json!("sh")));
}

#[test]
fn a_prompt_is_run_read_and_told_of() {
    needs!(Root, CgroupTree);
    let mut served = served(SHELL, "");
    let token = served.token("runs", &[]);
    let sent = json!({"prompt": "echo it-is-$((40+2)); exit 3", "workerId": "w", "priority": 9, "metadata": {"a": 1}});
    let answer = served.ask(&token, "POST", "/run", &sent.to_string());
    assert_eq!(answer.status, 200);
    let accepted = answer.json();
    holds(&accepted, &["taskId", "status", "estimatedDuration"]);
    assert_eq!((&accepted["status"], &accepted["estimatedDuration"]), (&json!("pending"), &json!(2_200)));
    let task = accepted["taskId"].as_str().expect("a name");
    let told = over(&mut served, &token, task);
    assert_eq!((&told["status"], &told["error"]), (&json!("failed"), &json!("Process exited with code 3")), "{told}");
    assert!(told["output"].as_str().is_some_and(|output| output.contains("it-is-42")), "{told}");
    assert_eq!(told["metadata"], json!({"a": 1}));
    let listed = served.ask(&token, "GET", "/tasks", "").json();
    assert_eq!((&listed["total"], &listed["tasks"][0]["taskId"]), (&json!(1), &json!(task)));
    assert_eq!(served.json("/hello")["totalTasksExecuted"], 1);
}

#[test]
fn what_is_no_task_is_refused_in_one_sentence() {
    needs!(Root, CgroupTree);
    let served = served("['sleep', '1000']", "max_concurrent = 1\nqueue = 1\n");
    let token = served.token("runs", &[]);
    let post = |path: &str, body: &str| served.ask(&token, "POST", path, body);
    for body in [
        "{}",
        "{\"prompt\": \"\"}",
        "{\"prompt\": 7}",
        "{\"prompt\": \"x\", \"priority\": 0}",
        "{\"prompt\": \"x\", \"priority\": 11}",
        "{\"prompt\": \"x\", \"priority\": 1.5}",
        "{\"prompt\": \"x\", \"metadata\": []}",
        "{\"prompt\": \"x\", \"taskId\": \"../x\"}",
        "{\"prompt\": \"x\", \"strange\": 1}",
        "[",
    ] {
        let answer = post("/run", body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.json()["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    }
    assert_eq!(
        ask(served.port, "POST", "/run", &[("Content-Type", "application/json")], "{\"prompt\":\"x\"}").status,
        401
    );
    let looks = served.token("looks", &["--scope", "observe"]);
    assert_eq!(served.ask(&looks, "POST", "/run", "{\"prompt\":\"x\"}").status, 403);
    assert_eq!(post("/tasks", "{\"title\": \"x\"}").json()["error"], "Invalid task");
    let submitted = post("/tasks", "{\"id\": \"mine\", \"title\": \"x\"}");
    assert_eq!((submitted.status, &submitted.json()["message"]), (202, &json!("Task submitted")));
    let again = post("/tasks", "{\"id\": \"mine\", \"title\": \"x\"}");
    assert_eq!((again.status, &again.json()["error"]), (409, &json!("Task already exists")));
    assert_eq!(post("/run", "{\"prompt\":\"x\"}").status, 200, "one waits");
    let full = post("/run", "{\"prompt\":\"x\"}");
    assert_eq!((full.status, full.field("retry-after")), (503, Some("1")));
    assert_eq!(served.json("/hello")["status"], "busy");
    for (method, path) in [("GET", "/tasks/none"), ("DELETE", "/tasks/none"), ("GET", "/stream/none")] {
        assert_eq!(served.ask(&token, method, path, "").status, 404, "{method} {path}");
    }
}

#[test]
fn a_cancelled_task_leaves_no_process() {
    needs!(Root, CgroupTree);
    let mut served = served(SHELL, "");
    let token = served.token("runs", &[]);
    let task = run(&served, &token, "sleep 4217 & sleep 4217");
    let path = format!("/tasks/{task}");
    let count = || {
        let lines = std::fs::read_dir("/proc").expect("list processes").flatten();
        let commands = lines.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        commands.filter(|command| command == b"sleep\x004217\0").count()
    };
    served.daemon.wait_until("it runs", |_| (count() == 2).then_some(()));
    let answer = served.ask(&token, "DELETE", &path, "");
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("cancelled")));
    assert_eq!(count(), 0);
}

/// The events of a stream: name, id and data.
fn events(text: &str) -> Vec<(String, Option<u64>, Value)> {
    text.split("\n\n")
        .filter_map(|block| {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let data = serde_json::from_str(field("data")?).expect("data is JSON");
            Some((field("event")?.to_owned(), field("id").map(|id| id.parse().expect("a number")), data))
        })
        .collect()
}

#[test]
fn a_story_is_told_from_its_beginning_and_from_where_a_client_was_cut_off() {
    needs!(Root, CgroupTree);
    let mut served = served(SHELL, "");
    let token = served.token("runs", &[]);
    let bearer = format!("Bearer {token}");
    let task = run(&served, &token, "echo Starting; echo Processing; seq 1000; echo Done; exit 0");
    let path = format!("/stream/{task}");
    let follow = |last: Option<&str>| {
        let mut fields = vec![("Authorization", bearer.as_str())];
        fields.extend(last.map(|last| ("Last-Event-ID", last)));
        let answer = ask(served.port, "GET", &path, &fields, "");
        assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/event-stream")));
        events(&String::from_utf8(answer.body).expect("text"))
    };
    let all = follow(None);
    assert_eq!(all.last().map(|(name, ..)| name.as_str()), Some("complete"), "{all:?}");
    let output: String = all
        .iter()
        .filter(|(name, ..)| name == "output")
        .filter_map(|(.., told)| told["data"]["output"].as_str())
        .collect();
    assert!(output.contains("999\r\n1000\r\n"), "whole: {output:.80}");
    let progress: Vec<_> =
        all.iter().filter(|(name, ..)| name == "progress").map(|(.., told)| told["data"]["progress"].clone()).collect();
    assert!(progress.ends_with(&[json!(90)]) || progress.ends_with(&[json!(100)]), "{progress:?}");
    let middle = all[all.len() / 2].1.expect("an id");
    let rest = follow(Some(&middle.to_string()));
    assert!(rest.iter().all(|(_, id, _)| id.is_none_or(|id| id > middle)), "nothing twice");
    assert_eq!(rest.last().map(|(name, ..)| name.as_str()), Some("complete"));
    assert_eq!(ask(served.port, "GET", &path, &[("Authorization", &bearer), ("Last-Event-ID", "x")], "").status, 400);
    over(&mut served, &token, &task);
}

#[test]
fn tasks_go_on_without_their_gateway() {
    needs!(Root, CgroupTree);
    let mut served = served(SHELL, "max_concurrent = 1\n");
    let token = served.token("runs", &[]);
    let first = run(&served, &token, "sleep 1; echo first-done; exit");
    let second = run(&served, &token, "echo second-done; exit");
    signal(pid(&worker(&served.daemon, "gateway")), rustix::process::Signal::KILL);
    let port = served.port;
    served.daemon.wait_until("it is back", |_| {
        let answer = http::exchange(port, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    });
    for (task, said) in [(first, "first-done"), (second, "second-done")] {
        let told = over(&mut served, &token, &task);
        assert_eq!(told["status"], "completed", "{told}");
        assert!(told["output"].as_str().is_some_and(|output| output.contains(said)));
    }
}

#[test]
fn a_switch_tells_the_truth() {
    needs!(Root, CgroupTree);
    let served = served(SHELL, "");
    let token = served.token("runs", &[]);
    let answer = served.ask(&token, "POST", "/pty/switch", "{\"executorType\": \"stub\"}");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["message"], "Execution components switched successfully");
    assert_eq!(answer.json()["newConfig"], json!({"executorType": "stub", "streamingType": "sse"}));
    assert_eq!(served.json("/pty/status")["executorType"], "stub");
    for body in ["{\"executorType\": \"docker\"}", "{\"streamingType\": \"stub\"}", "{\"x\": 1}"] {
        assert_eq!(served.ask(&token, "POST", "/pty/switch", body).status, 400, "{body}");
    }
    assert_eq!(get(served.port, "/pty/switch").status, 405);
}

#[test]
fn without_tasks_it_says_so() {
    needs!(Root, CgroupTree);
    let served = Served::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    assert_eq!(served.json("/hello")["capabilities"]["maxConcurrentTasks"], 0);
    assert_eq!(get(served.port, "/pty/status").status, 404);
    let token = served.token("runs", &[]);
    assert_eq!(served.ask(&token, "POST", "/run", "{\"prompt\": \"x\"}").status, 409);
}
