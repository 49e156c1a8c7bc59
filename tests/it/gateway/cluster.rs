//! What ClaudeCluster's later worker, its coordinator and its demonstration are asked beside `/run` and `/tasks`.

use serde_json::{Value, json};

use super::Served;
use crate::http::{ask, connect, get};
use crate::needs::needs;

fn served(more: &str) -> Served {
    Served::start(&format!(
        "[pool.agents]\n[pool.agents.claims]\nmin = 1\n[tasks]\npool = 'agents'\ncommand = ['sh']\n{more}"
    ))
}

#[track_caller]
fn holds(value: &Value, expected: &[&str]) {
    for key in expected {
        assert!(value.get(key).is_some(), "{key} in {value}");
    }
}

#[test]
fn health_tells_alive_from_ready() {
    needs!(Root, CgroupTree);
    let served = served("max_concurrent = 1\nqueue = 1\n");
    let token = served.token("runs", &["--scope", "admin"]);
    assert_eq!(served.json("/health/live")["status"], "healthy");
    let ready = served.json("/health/ready");
    assert_eq!((&ready["status"], &ready["availableCapacity"]), (&json!("ready"), &json!(2)));
    let run = || served.ask(&token, "POST", "/run", "{\"prompt\": \"sleep 1000\"}");
    assert_eq!((run().status, run().status, run().status), (200, 200, 503));
    let full = get(served.port, "/health/ready");
    assert_eq!((full.status, &full.json()["status"]), (503, &json!("not ready")), "one more would not be taken");
    assert_eq!(get(served.port, "/health/live").status, 200);
    for task in served.ask(&token, "GET", "/tasks", "").json()["tasks"].as_array().expect("a list") {
        let path = format!("/tasks/{}", task["taskId"].as_str().expect("a name"));
        assert_eq!(served.ask(&token, "DELETE", &path, "").status, 200);
    }
    assert_eq!(get(served.port, "/health/ready").status, 200);
    assert_eq!(served.ask(&token, "POST", "/drain", "").status, 200);
    assert_eq!(get(served.port, "/health/ready").status, 503);
    assert_eq!(get(served.port, "/health/live").status, 200);
}

#[test]
fn status_capabilities_and_processes_are_told() {
    needs!(Root, CgroupTree);
    let mut served = served("max_concurrent = 3\n");
    let token = served.token("runs", &[]);
    let status = served.json("/status");
    holds(&status, &["workerId", "name", "status", "version", "uptime", "timestamp", "executionMode", "tasks"]);
    assert_eq!((&status["status"], &status["executionMode"]), (&json!("available"), &json!("process_pool")));
    let capabilities = served.json("/capabilities");
    holds(&capabilities, &["supportedCommands", "capabilities", "executionModes", "maxConcurrentTasks", "limits"]);
    assert_eq!(capabilities["maxConcurrentTasks"], 3);
    let port = served.port;
    served.daemon.wait_until("a warm one", |_| (get(port, "/processes").json()["ready"] == 1).then_some(()));
    let task = served.ask(&token, "POST", "/run", "{\"prompt\": \"sleep 1000\"}").json()["taskId"].clone();
    let told = served.daemon.wait_until("it runs", |_| {
        let told = get(port, "/processes").json();
        // A warm worker is given to the task before its program has been started.
        let runs = |process: &Value| process["status"] == "busy" && process["pid"].is_u64();
        (told["busy"] == 1 && told["processes"].as_array()?.iter().any(runs)).then_some(told)
    });
    holds(&told, &["processes", "total", "busy", "ready", "maxProcesses"]);
    let all = told["processes"].as_array().expect("a list");
    let busy = all.iter().find(|process| process["status"] == "busy").expect("one is busy");
    assert_eq!(busy["taskId"], task, "{busy}");
    let workers = served.json("/workers");
    holds(&workers, &["workers", "totalWorkers", "availableWorkers", "totalActiveTasks"]);
    assert_eq!(workers["totalActiveTasks"], 1);
    holds(&workers["workers"][0], &["id", "status", "activeTasks", "maxTasks"]);
    assert_eq!(ask(port, "POST", "/processes/cleanup", &[], "").status, 401);
    let looks = served.token("looks", &["--scope", "observe"]);
    assert_eq!(served.ask(&looks, "POST", "/processes/cleanup", "").status, 403);
    let cleaned = served.ask(&token, "POST", "/processes/cleanup", "");
    assert_eq!((cleaned.status, &cleaned.json()["message"]), (200, &json!("Process cleanup completed")));
    // What runs goes on.
    assert_eq!(served.json("/processes")["busy"], 1);
    let accept = [("Accept", "application/json")];
    let metrics = ask(port, "GET", "/metrics", &accept, "");
    assert_eq!((metrics.status, metrics.field("content-type")), (200, Some("application/json")));
    holds(&metrics.json(), &["tasks", "performance", "resources"]);
    assert_eq!(metrics.json()["tasks"]["running"], 1);
    let text = ask(port, "GET", "/metrics", &[("Accept", "application/openmetrics-text, application/json;q=0.1")], "");
    assert!(text.body.starts_with(b"# TYPE"), "who takes both is told more by the one");
}

#[test]
fn without_tasks_there_are_no_processes() {
    needs!(Root, CgroupTree);
    let served = Served::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    let token = served.token("runs", &[]);
    for path in ["/capabilities", "/processes", "/workers"] {
        assert_eq!(get(served.port, path).status, 404, "{path}");
    }
    assert_eq!(served.ask(&token, "POST", "/processes/cleanup", "").status, 404);
    assert_eq!(served.ask(&token, "POST", "/execute", "{\"prompt\": \"x\"}").status, 404);
    assert_eq!(served.json("/status")["maxConcurrentTasks"], 0);
    assert_eq!(served.json("/health/ready")["availableCapacity"], Value::Null);
}

#[test]
fn execute_answers_with_the_end() {
    needs!(Root, CgroupTree);
    let served = served("");
    let token = served.token("runs", &[]);
    let execute = |prompt: &str| {
        let body = json!({ "prompt": prompt, "workerId": "w-1" }).to_string();
        let answer = served.ask(&token, "POST", "/execute", &body);
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    };
    let keys = [
        "success",
        "taskId",
        "workerId",
        "command",
        "prompt",
        "output",
        "result",
        "exitCode",
        "executionTime",
        "timestamp",
    ];
    let told = execute("echo it-is-$((40+2)); exit 0");
    holds(&told, &keys);
    assert_eq!((&told["success"], &told["exitCode"], &told["command"]), (&json!(true), &json!(0), &json!("sh")));
    assert!(told["output"].as_str().is_some_and(|output| output.contains("it-is-42")), "{told}");
    assert!(told["executionTime"].is_u64() && told["timestamp"].is_string(), "{told}");
    let told = execute("exit 3");
    assert_eq!((&told["success"], &told["exitCode"]), (&json!(false), &json!(3)));
    assert_eq!(told["error"], "Process exited with code 3");
    for body in ["{}", "{\"prompt\": \"\"}", "{\"prompt\": \"x\", \"priority\": 11}", "["] {
        let answer = served.ask(&token, "POST", "/execute", body);
        assert_eq!(answer.status, 400, "{body}");
        holds(&answer.json(), &["error", "message", "details"]);
    }
    assert_eq!(ask(served.port, "POST", "/execute", &[("Content-Type", "application/json")], "{}").status, 401);
}

#[test]
fn who_leaves_execute_takes_the_task_along() {
    needs!(Root, CgroupTree);
    let mut served = served("");
    let token = served.token("runs", &[]);
    let (port, bearer) = (served.port, format!("Bearer {token}"));
    let mut stream = connect(port);
    let body = json!({ "prompt": "sleep 1000", "taskId": "left-alone" }).to_string();
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).expect("ask");
    let is = |state: &str| {
        let told = ask(port, "GET", "/tasks/left-alone", &[("Authorization", &bearer)], "");
        (told.status == 200 && told.json()["status"] == state).then_some(())
    };
    served.daemon.wait_until("it runs", |_| is("running"));
    drop(stream);
    served.daemon.wait_until("it is cancelled", |_| is("cancelled"));
}

#[test]
fn a_coordinators_client_is_told_where_to_look() {
    needs!(Root, CgroupTree);
    let served = served("");
    let token = served.token("runs", &[]);
    let answer = served.ask(&token, "POST", "/tasks", "{\"prompt\": \"exit 0\", \"timeoutMs\": 5000}");
    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    let told = answer.json();
    holds(&told, &["taskId", "status", "assignedWorker", "estimatedDuration", "streamUrl"]);
    let stream = served.ask(&token, "GET", told["streamUrl"].as_str().expect("a path"), "");
    assert_eq!(stream.status, 200);
    assert!(String::from_utf8_lossy(&stream.body).contains("event: complete"));
    let task = format!("/tasks/{}", told["taskId"].as_str().expect("a name"));
    assert_eq!(served.ask(&token, "GET", &task, "").json()["timeoutMs"], 5000);
}

#[test]
fn how_long_a_task_takes_is_learned() {
    needs!(Root, CgroupTree);
    let mut served = served("");
    let token = served.token("runs", &[]);
    let estimate = |served: &Served| {
        let answer = served.ask(&token, "POST", "/run", "{\"prompt\": \"exit 0\"}").json();
        answer["estimatedDuration"].as_u64().expect("a number")
    };
    for _ in 0..5 {
        let answer = served.ask(&token, "POST", "/execute", "{\"prompt\": \"exit 0\"}");
        assert_eq!(answer.json()["success"], true);
    }
    // Two seconds and fifty milliseconds a word, while nothing is known; five have ended before that.
    let learned = estimate(&served);
    assert!(learned < 2_000, "{learned} ms");
    // The next daemon knows it, too.
    let port = served.port;
    assert_eq!(served.daemon.stop(), 0);
    served.daemon.start_again();
    served.daemon.wait_until("it answers again", |_| Some(()).filter(|()| get(port, "/readyz").status == 200));
    let kept = estimate(&served);
    assert!(kept < 2_000, "{kept} ms");
    // What runs nowhere takes as long as it was thought to.
    assert_eq!(served.ask(&token, "POST", "/pty/switch", "{\"executorType\": \"stub\"}").status, 200);
    assert_eq!(estimate(&served), 2_100);
}

/// A worker that remembers what its session has said.
const REMEMBERS: &str = r#"
import halsup
said = {}
@halsup.tool
def run(context: halsup.Context, args):
    said.setdefault(context.session, []).append(args["prompt"])
    return {"said": said[context.session]}
@halsup.tool
def refuse(context: halsup.Context, args):
    raise ValueError("not this")
halsup.serve()
"#;

#[test]
fn a_session_goes_to_one_worker_until_it_is_over() {
    needs!(Root, CgroupTree, Python3);
    let programs = tempfile::tempdir().expect("a directory of programs");
    std::fs::set_permissions(programs.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open it");
    for (name, text) in [("halsup.py", include_str!("../../../examples/sdk/halsup.py")), ("remembers.py", REMEMBERS)] {
        std::fs::write(programs.path().join(name), text).expect("write a program");
    }
    let mut served = Served::start(&format!(
        "[pool.work]\nsize = 3\nready = 'channel'\ndispatch = true\nbind = ['{}:/srv']\ncommand = ['python3', '-B', '/srv/remembers.py']\n",
        programs.path().display()
    ));
    crate::look::wait_healthy_of(&mut served.daemon, "work", 3);
    let token = served.token("talks", &[]);
    let post = |path: &str, body: &Value| served.ask(&token, "POST", path, &body.to_string());
    let opened = post("/sessions", &json!({ "sessionId": "mine" }));
    assert_eq!(opened.status, 201, "{}", String::from_utf8_lossy(&opened.body));
    let opened = opened.json();
    holds(&opened, &["message", "sessionId", "options", "expiresAt"]);
    assert_eq!((&opened["sessionId"], &opened["options"]), (&json!("mine"), &json!({"pool": "work", "ttl": 3_600})));
    assert_eq!(post("/sessions", &json!({ "sessionId": "mine" })).status, 409);
    let other = post("/sessions", &json!({})).json()["sessionId"].as_str().expect("a name").to_owned();
    let say = |session: &str, prompt: &str| {
        let answer = post(&format!("/sessions/{session}/tasks"), &json!({ "prompt": prompt, "taskId": "t-1" }));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    };
    let first = say("mine", "one");
    holds(&first, &["message", "taskId", "sessionId", "status", "success", "result", "worker", "executionTime"]);
    say(&other, "else");
    let second = say("mine", "two");
    assert_eq!((&second["result"]["said"], &second["worker"]), (&json!(["one", "two"]), &first["worker"]), "{second}");
    let failed = post("/sessions/mine/tasks", &json!({ "command": "refuse" }));
    assert_eq!((failed.status, &failed.json()["status"]), (200, &json!("failed")));
    let listed = served.ask(&token, "GET", "/sessions", "").json();
    assert_eq!((&listed["totalActiveSessions"], &listed["sessions"][0]["sessionId"]), (&json!(2), &json!("mine")));
    let shown = served.ask(&token, "GET", "/sessions/mine", "").json();
    assert_eq!((&shown["worker"], &shown["status"]), (&first["worker"], &json!("active")));
    for (path, body) in [
        ("/sessions", json!({ "ttl": 0 })),
        ("/sessions", json!({ "strange": 1 })),
        ("/sessions", json!({ "pool": "../x" })),
        ("/sessions/mine/tasks", json!({})),
        ("/sessions/mine/tasks", json!({ "prompt": "" })),
        ("/sessions/mine/tasks", json!({ "prompt": "x", "command": "y" })),
    ] {
        assert_eq!(post(path, &body).status, 400, "{path} {body}");
    }
    assert_eq!(served.ask(&token, "DELETE", "/sessions/mine", "").json()["message"], "Session ended");
    for (method, path) in [("GET", "/sessions/mine"), ("DELETE", "/sessions/mine")] {
        assert_eq!(served.ask(&token, method, path, "").status, 404, "{method}");
    }
    assert_eq!(post("/sessions/mine/tasks", &json!({ "prompt": "x" })).status, 404);
    // Who only looks begins and ends none; without a token nothing is told of any.
    let looks = served.token("looks", &["--scope", "observe"]);
    assert_eq!(served.ask(&looks, "POST", "/sessions", "{}").status, 403);
    assert_eq!(served.ask(&looks, "DELETE", &format!("/sessions/{other}"), "").status, 403);
    assert_eq!(served.ask(&looks, "GET", "/sessions", "").status, 200);
    assert_eq!(get(served.port, "/sessions").status, 401);
    // And one of whom nobody asks anything is over by itself.
    assert_eq!(post("/sessions", &json!({ "sessionId": "brief", "ttl": 1 })).status, 201);
    let (port, bearer) = (served.port, format!("Bearer {token}"));
    served.daemon.wait_until("it is over", |_| {
        (ask(port, "GET", "/sessions/brief", &[("Authorization", &bearer)], "").status == 404).then_some(())
    });
}
